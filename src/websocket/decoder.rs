//! Reads the frames that a peer sends (RFC 6455, section 5), without I/O.
//!
//! Keeps bytes only of an unfinished frame or message, so an idle connection holds no buffer. Text is checked as it
//! arrives: a message that cannot become UTF-8 is refused at once.

use std::ops::ControlFlow;

use tokio::time::Instant;

use super::{
    budget::{Budget, Buffer, Exhausted},
    frame::{
        FIN, OPCODE_BINARY, OPCODE_CLOSE, OPCODE_CONTINUATION, OPCODE_PING, OPCODE_PONG, OPCODE_TEXT, header_length,
    },
};

/// In the first byte: bits of extensions, of which none is negotiated.
const RSV_BITS: u8 = 0x70;

/// In the second byte: the data is masked, as all data from a client must be.
const MASKED: u8 = 0x80;
const MASK_LENGTH: usize = 4;

/// Longest data of a control frame.
const MAX_CONTROL: usize = 125;

/// What arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// A ping, which must be answered with its data.
    Ping(&'a [u8]),
    /// A pong.
    Pong(&'a [u8]),
    /// The peer closes, with its code if it gave one.
    Close(Option<u16>),
}

/// Why the connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum Violation {
    #[error("frame breaks the protocol")]
    Protocol,
    #[error("text or close reason is not UTF-8")]
    Encoding,
    #[error("message is too big")]
    TooBig,
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
}

impl Violation {
    /// The code for the close frame (RFC 6455, section 7.4.1).
    pub fn code(self) -> u16 {
        match self {
            Self::Protocol => 1002,
            Self::Encoding => 1007,
            Self::TooBig => 1009,
            Self::Exhausted(_) => 1013,
        }
    }
}

/// State between two reads: one pointer, as most connections have nothing unfinished.
#[derive(Debug, Default)]
pub struct Decoder(Option<Box<Unfinished>>);

#[derive(Debug, Default)]
struct Unfinished {
    /// The start of a header or of a control frame, or everything that a caller left by breaking off.
    rest: Vec<u8>,
    message: Option<PartialMessage>,
    /// When it must be finished.
    deadline: Option<Instant>,
}

/// A message of which the end is missing.
#[derive(Debug, Default)]
struct PartialMessage {
    opcode: u8,
    data: Buffer,
    /// Bytes at the start of a text that are known to be UTF-8.
    valid: usize,
    /// The frame whose data is arriving, with the length that is missing.
    frame: Option<Header>,
}

impl Decoder {
    /// A decoder that has these bytes to read first.
    pub fn with(bytes: &[u8]) -> Self {
        let mut decoder = Self::default();
        decoder.keep(bytes.to_vec());
        decoder
    }

    /// When what is unfinished, if anything is, must be finished: `start` for a message that has just begun.
    pub fn deadline(&mut self, start: impl FnOnce() -> Instant) -> Option<Instant> {
        self.0.as_mut().map(|unfinished| *unfinished.deadline.get_or_insert_with(start))
    }

    /// Takes what was read and calls `on` with everything it completes, until `on` breaks; what is left then stays for
    /// the next call. No message is longer than `max` bytes, all fragments together. `input` is scratch space
    /// afterwards, and the decoder must not be used after an error.
    pub fn feed<B>(
        &mut self,
        input: &mut [u8],
        max: usize,
        budget: &Budget,
        mut on: impl FnMut(Received<'_>) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, Violation> {
        let mut joined = self.0.as_mut().map(|unfinished| std::mem::take(&mut unfinished.rest)).unwrap_or_default();
        let input = if joined.is_empty() {
            input
        } else {
            joined.extend_from_slice(input);
            &mut joined
        };
        let (mut used, mut flow) = (0, ControlFlow::Continue(()));
        while flow.is_continue()
            && let Some((taken, next)) = self.step(&mut input[used..], max, budget, &mut on)?
        {
            (used, flow) = (used + taken, next);
            if let Some(unfinished) = self.0.as_mut().filter(|unfinished| unfinished.message.is_none()) {
                // What comes next has a deadline of its own.
                unfinished.deadline = None;
            }
        }
        self.keep(input[used..].to_vec());
        Ok(flow)
    }

    /// Keeps what is left for the next call, or no memory at all.
    fn keep(&mut self, rest: Vec<u8>) {
        if !rest.is_empty() || self.message().is_some() {
            self.0.get_or_insert_default().rest = rest;
        } else {
            self.0 = None;
        }
    }

    fn message(&mut self) -> Option<&mut PartialMessage> {
        self.0.as_mut()?.message.as_mut()
    }

    /// Reads a whole frame, the header of one that has not arrived as a whole, or a piece of its data. `None` when
    /// nothing can be done without more input.
    fn step<B>(
        &mut self,
        input: &mut [u8],
        max: usize,
        budget: &Budget,
        on: &mut impl FnMut(Received<'_>) -> ControlFlow<B>,
    ) -> Result<Option<(usize, ControlFlow<B>)>, Violation> {
        if let Some(message) = self.message().filter(|message| message.frame.is_some()) {
            let Some((taken, is_whole)) = message.take(input, max, budget)? else { return Ok(None) };
            let whole = if is_whole { self.0.as_mut().and_then(|unfinished| unfinished.message.take()) } else { None };
            let flow = match whole {
                Some(message) => on(received(message.opcode, message.data.bytes())?),
                None => ControlFlow::Continue(()),
            };
            return Ok(Some((taken, flow)));
        }
        let room = max.saturating_sub(self.message().map_or(0, |message| message.data.bytes().len()));
        let Some(header) = Header::read(input, room)? else { return Ok(None) };
        let Header { opcode, fin, mask, start, length } = header;
        let (continues, is_control) = (opcode == OPCODE_CONTINUATION, opcode >= OPCODE_CLOSE);
        if !is_control && continues != self.message().is_some() {
            return Err(Violation::Protocol);
        }
        match input.get_mut(start..start.saturating_add(length)) {
            Some(data) if is_control || (fin && !continues) => {
                unmask(data, mask);
                Ok(Some((start + length, on(received(opcode, data)?))))
            }
            None if is_control => Ok(None),
            _ => {
                let message = &mut self.0.get_or_insert_default().message;
                message.get_or_insert_with(|| PartialMessage { opcode, ..PartialMessage::default() }).frame =
                    Some(header);
                Ok(Some((start, ControlFlow::Continue(()))))
            }
        }
    }
}

impl PartialMessage {
    /// Takes data of the frame that is arriving; returns how much, and whether the message is whole. `None` without any.
    fn take(&mut self, input: &mut [u8], max: usize, budget: &Budget) -> Result<Option<(usize, bool)>, Violation> {
        let Some(Header { fin, mask, length, .. }) = &mut self.frame else { return Ok(None) };
        let taken = input.len().min(*length);
        if taken == 0 && *length > 0 {
            return Ok(None);
        }
        let piece = &mut input[..taken];
        unmask(piece, *mask);
        mask.rotate_left(taken % MASK_LENGTH);
        let whole = if *fin { self.data.bytes().len() + *length } else { max };
        *length -= taken;
        let (is_last, fin) = (*length == 0, *fin);
        self.data.extend(budget, piece, whole)?;
        if self.opcode == OPCODE_TEXT {
            self.valid += match str::from_utf8(&self.data.bytes()[self.valid..]) {
                Ok(text) => text.len(),
                Err(error) if error.error_len().is_none() => error.valid_up_to(),
                Err(_) => return Err(Violation::Encoding),
            };
        }
        if is_last {
            self.frame = None;
        }
        Ok(Some((taken, is_last && fin)))
    }
}

/// A frame's header.
#[derive(Debug)]
struct Header {
    opcode: u8,
    fin: bool,
    mask: [u8; MASK_LENGTH],
    /// Bytes before the data.
    start: usize,
    length: usize,
}

impl Header {
    /// The header at the start of `input`, if all of it is there. `room` bounds the data of a message.
    fn read(input: &[u8], room: usize) -> Result<Option<Self>, Violation> {
        let &[first, second, ..] = input else { return Ok(None) };
        let (opcode, fin) = (first & 0xf, first & FIN != 0);
        let is_control = opcode >= OPCODE_CLOSE;
        let is_known = matches!(opcode, OPCODE_CONTINUATION..=OPCODE_BINARY | OPCODE_CLOSE..=OPCODE_PONG);
        if first & RSV_BITS != 0 || second & MASKED == 0 || !is_known || (is_control && !fin) {
            return Err(Violation::Protocol);
        }
        let start = header_length(second & !MASKED);
        let length = match input.get(2..start) {
            None => return Ok(None),
            Some([]) => u64::from(second & !MASKED),
            Some(bytes) => bytes.iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if is_control && length > MAX_CONTROL {
            return Err(Violation::Protocol);
        }
        if !is_control && length > room {
            return Err(Violation::TooBig);
        }
        let mask = input.get(start..start + MASK_LENGTH).and_then(|mask| mask.try_into().ok());
        Ok(mask.map(|mask| Self { opcode, fin, mask, start: start + MASK_LENGTH, length }))
    }
}

fn unmask(data: &mut [u8], mask: [u8; MASK_LENGTH]) {
    for (byte, mask) in data.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// A control frame or a whole message.
fn received(opcode: u8, data: &[u8]) -> Result<Received<'_>, Violation> {
    Ok(match opcode {
        OPCODE_TEXT => Received::Text(str::from_utf8(data).map_err(|_| Violation::Encoding)?),
        OPCODE_BINARY => Received::Binary(data),
        OPCODE_PING => Received::Ping(data),
        OPCODE_PONG => Received::Pong(data),
        _ => Received::Close(close_code(data)?),
    })
}

/// The code in a close frame (RFC 6455, sections 5.5.1 and 7.4).
fn close_code(data: &[u8]) -> Result<Option<u16>, Violation> {
    let &[high, low, ref reason @ ..] = data else {
        return if data.is_empty() { Ok(None) } else { Err(Violation::Protocol) };
    };
    let code = u16::from_be_bytes([high, low]);
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Violation::Protocol);
    }
    str::from_utf8(reason).map_err(|_| Violation::Encoding)?;
    Ok(Some(code))
}

#[cfg(test)]
mod tests;
