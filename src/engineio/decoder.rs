//! Reads the WebSocket frames a browser sends (RFC 6455), without I/O.
//!
//! Keeps bytes only of an incomplete frame or message, so an idle connection holds no buffer.

use std::ops::ControlFlow;

use tokio::time::Instant;

use super::{
    budget::{Budget, Buffer, Exhausted},
    frame::{OPCODE_BINARY, OPCODE_CLOSE, OPCODE_PONG, OPCODE_TEXT},
};

const OPCODE_CONTINUATION: u8 = 0x0;
const OPCODE_PING: u8 = 0x9;
const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
const MASK_LENGTH: usize = 4;

/// Longest data of a control frame.
const MAX_CONTROL: usize = 125;

/// What arrived.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
    Ping(&'a [u8]),
    /// The peer closes, with its code if it gave one.
    Close(Option<u16>),
}

/// Why the connection must be closed. The code goes into the close frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    #[error("frame breaks the protocol")]
    Protocol,
    #[error("text is not UTF-8")]
    Encoding,
    #[error("message is too big")]
    TooBig,
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
}

impl Violation {
    /// RFC 6455, section 7.4.1.
    pub(super) fn code(self) -> u16 {
        match self {
            Self::Protocol => 1002,
            Self::Encoding => 1007,
            Self::TooBig => 1009,
            Self::Exhausted(_) => 1013,
        }
    }
}

/// A frame's header.
struct Header {
    opcode: u8,
    fin: bool,
    mask: [u8; MASK_LENGTH],
    /// Bytes before the data.
    start: usize,
    length: usize,
}

/// What holds for a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds<'a> {
    /// Most bytes, all fragments together.
    pub(super) max: usize,
    /// What the unfinished messages of all clients may hold.
    pub(super) budget: &'a Budget,
}

/// State between two reads: one pointer, as most connections have nothing unfinished.
#[derive(Debug, Default)]
pub(super) struct Decoder(Option<Box<Incomplete>>);

#[derive(Debug, Default)]
struct Incomplete {
    /// Start of a frame whose rest has not arrived, or what was left when a caller had enough.
    rest: Buffer,
    /// The message being put together from fragments, with its opcode.
    message: Option<(u8, Buffer)>,
    /// When it must be complete.
    deadline: Option<Instant>,
}

impl Decoder {
    /// A decoder that has `input` to read already.
    ///
    /// # Errors
    /// When the budget is exhausted.
    pub(super) fn with(input: &[u8], budget: &Budget) -> Result<Self, Exhausted> {
        let mut decoder = Self::default();
        let mut rest = Buffer::default();
        rest.extend(budget, input, input.len())?;
        decoder.keep(rest);
        Ok(decoder)
    }

    /// When what is incomplete must be complete: `start` for a message that has just begun. `None` when nothing is
    /// incomplete.
    pub(super) fn deadline(&mut self, start: impl FnOnce() -> Instant) -> Option<Instant> {
        self.0.as_mut().map(|incomplete| *incomplete.deadline.get_or_insert_with(start))
    }

    /// Takes what was read and calls `on` with every event it completes, until `on` breaks; what is left then stays
    /// for the next call. `input` is scratch space afterwards.
    pub(super) fn feed<B>(
        &mut self,
        mut input: &mut [u8],
        bounds: Bounds<'_>,
        mut on: impl FnMut(Event<'_>) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, Violation> {
        let mut rest = self.0.as_mut().map(|incomplete| std::mem::take(&mut incomplete.rest)).unwrap_or_default();
        while !rest.is_empty() {
            let (used, flow) = self.frames(rest.bytes_mut(), bounds, &mut on)?;
            rest.consume(used);
            if flow.is_break() || input.is_empty() {
                rest.extend(bounds.budget, input, rest.len() + input.len())?;
                self.keep(rest);
                return Ok(flow);
            }
            if !rest.is_empty() {
                // No more than this frame needs, so that its buffer is never longer.
                let missing = missing(rest.bytes());
                let (now, later) = input.split_at_mut(missing.min(input.len()));
                rest.extend(bounds.budget, now, rest.len() + missing)?;
                input = later;
            }
        }
        let (used, flow) = self.frames(input, bounds, &mut on)?;
        let left = &input[used..];
        let whole = if flow.is_break() { left.len() } else { left.len() + missing(left) };
        rest.extend(bounds.budget, left, whole)?;
        self.keep(rest);
        Ok(flow)
    }

    /// Keeps the start of a frame for the next call, or nothing at all.
    fn keep(&mut self, rest: Buffer) {
        if !rest.is_empty() || self.message().is_some() {
            self.0.get_or_insert_default().rest = rest;
        } else {
            self.0 = None;
        }
    }

    fn message(&self) -> Option<&(u8, Buffer)> {
        self.0.as_ref()?.message.as_ref()
    }

    /// Handles the whole frames at the start of `input`; returns how many bytes those were.
    fn frames<B>(
        &mut self,
        input: &mut [u8],
        bounds: Bounds<'_>,
        on: &mut impl FnMut(Event<'_>) -> ControlFlow<B>,
    ) -> Result<(usize, ControlFlow<B>), Violation> {
        let mut used = 0;
        loop {
            let room = bounds.max.saturating_sub(self.message().map_or(0, |(_, message)| message.len()));
            let Some(header) = Header::read(&input[used..], room)? else { break };
            let start = used + header.start;
            let Some(data) = input.get_mut(start..start + header.length) else { break };
            for (byte, mask) in data.iter_mut().zip(header.mask.iter().cycle()) {
                *byte ^= mask;
            }
            used = start + header.length;
            let flow = self.frame(&header, data, bounds, on)?;
            if let Some(incomplete) = self.0.as_mut().filter(|incomplete| incomplete.message.is_none()) {
                // What comes next begins anew.
                incomplete.deadline = None;
            }
            if flow.is_break() {
                return Ok((used, flow));
            }
        }
        Ok((used, ControlFlow::Continue(())))
    }

    fn frame<B>(
        &mut self,
        header: &Header,
        data: &[u8],
        bounds: Bounds<'_>,
        on: &mut impl FnMut(Event<'_>) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, Violation> {
        match header.opcode {
            OPCODE_TEXT | OPCODE_BINARY if self.message().is_some() => Err(Violation::Protocol),
            OPCODE_TEXT | OPCODE_BINARY if header.fin => complete(header.opcode, data, on),
            OPCODE_TEXT | OPCODE_BINARY => {
                let mut message = Buffer::default();
                message.extend(bounds.budget, data, bounds.max)?;
                self.0.get_or_insert_default().message = Some((header.opcode, message));
                Ok(ControlFlow::Continue(()))
            }
            OPCODE_CONTINUATION => {
                let message = self.0.as_mut().and_then(|incomplete| incomplete.message.as_mut());
                let (opcode, message) = message.ok_or(Violation::Protocol)?;
                message.extend(bounds.budget, data, bounds.max)?;
                if !header.fin {
                    return Ok(ControlFlow::Continue(()));
                }
                let (opcode, message) = (*opcode, std::mem::take(message));
                if let Some(incomplete) = &mut self.0 {
                    incomplete.message = None;
                }
                complete(opcode, message.bytes(), on)
            }
            OPCODE_PING => Ok(on(Event::Ping(data))),
            OPCODE_PONG => Ok(ControlFlow::Continue(())),
            _ => Ok(on(Event::Close(close_code(data)?))),
        }
    }
}

/// How many bytes the header at the start of `input` has, as far as that can be told.
fn header_length(input: &[u8]) -> usize {
    MASK_LENGTH
        + match input.get(1).map_or(0, |second| second & !MASKED) {
            126 => 4,
            127 => 10,
            _ => 2,
        }
}

/// How many bytes the frame at the start of `input`, whose header is not against the protocol, lacks at least: those of
/// its header, or all that are left.
fn missing(input: &[u8]) -> usize {
    let known = if input.len() < 2 { 2 } else { header_length(input) };
    let whole = match Header::read(input, usize::MAX) {
        Ok(Some(header)) => header.start.saturating_add(header.length),
        _ => known,
    };
    whole.saturating_sub(input.len())
}

impl Header {
    /// The header at the start of `input`, if all of it is there. `room` bounds the data of a message.
    fn read(input: &[u8], room: usize) -> Result<Option<Self>, Violation> {
        let &[first, second, ..] = input else { return Ok(None) };
        let (opcode, fin) = (first & 0xf, first & FIN != 0);
        let control = opcode >= OPCODE_CLOSE;
        let known = matches!(opcode, OPCODE_CONTINUATION..=OPCODE_BINARY | OPCODE_CLOSE..=OPCODE_PONG);
        if first & RESERVED != 0 || second & MASKED == 0 || !known || (control && !fin) {
            return Err(Violation::Protocol);
        }
        let (start, length) = match second & !MASKED {
            126 => match input.get(2..4) {
                Some(bytes) => (4, bytes.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte))),
                None => return Ok(None),
            },
            127 => match input.get(2..10) {
                Some(bytes) => (10, bytes.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte))),
                None => return Ok(None),
            },
            short => (2, u64::from(short)),
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if control && length > MAX_CONTROL {
            return Err(Violation::Protocol);
        }
        if length > room && !control {
            return Err(Violation::TooBig);
        }
        let mask = input.get(start..start + MASK_LENGTH).and_then(|mask| mask.try_into().ok());
        Ok(mask.map(|mask| Self { opcode, fin, mask, start: start + MASK_LENGTH, length }))
    }
}

fn complete<B>(
    opcode: u8,
    data: &[u8],
    on: &mut impl FnMut(Event<'_>) -> ControlFlow<B>,
) -> Result<ControlFlow<B>, Violation> {
    if opcode == OPCODE_BINARY {
        return Ok(on(Event::Binary(data)));
    }
    let text = str::from_utf8(data).map_err(|_| Violation::Encoding)?;
    Ok(on(Event::Text(text)))
}

fn close_code(data: &[u8]) -> Result<Option<u16>, Violation> {
    let &[high, low, ref reason @ ..] = data else {
        return if data.is_empty() { Ok(None) } else { Err(Violation::Protocol) };
    };
    let code = u16::from_be_bytes([high, low]);
    match code {
        1000..=1003 | 1007..=1014 | 3000..=4999 => {}
        _ => return Err(Violation::Protocol),
    }
    str::from_utf8(reason).map_err(|_| Violation::Encoding)?;
    Ok(Some(code))
}

#[cfg(test)]
mod tests;
