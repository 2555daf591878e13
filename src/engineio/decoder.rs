//! Reads the WebSocket frames a browser sends (RFC 6455), without I/O.
//!
//! Keeps bytes only of an incomplete frame or message, so an idle connection holds no buffer.

use std::ops::ControlFlow;

use super::frame::{OPCODE_BINARY, OPCODE_CLOSE, OPCODE_PONG, OPCODE_TEXT};

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
}

impl Violation {
    /// RFC 6455, section 7.4.1.
    pub(super) fn code(self) -> u16 {
        match self {
            Self::Protocol => 1002,
            Self::Encoding => 1007,
            Self::TooBig => 1009,
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

/// State between two reads.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// Start of a frame whose rest has not arrived.
    partial: Vec<u8>,
    /// The message being put together from fragments, with its opcode.
    message: Option<(u8, Vec<u8>)>,
}

impl Decoder {
    /// A decoder that has `input` to read already.
    pub(super) fn with(input: &[u8]) -> Self {
        Self { partial: input.to_vec(), message: None }
    }

    /// Takes what was read and calls `on` with every event it completes, until `on` breaks; what is left then stays
    /// for the next call. `max` bounds a message in bytes. `input` is scratch space afterwards.
    pub(super) fn feed<B>(
        &mut self,
        input: &mut [u8],
        max: usize,
        mut on: impl FnMut(Event<'_>) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, Violation> {
        if self.partial.is_empty() {
            let (used, flow) = self.frames(input, max, &mut on)?;
            self.partial.extend_from_slice(&input[used..]);
            return Ok(flow);
        }
        let mut partial = std::mem::take(&mut self.partial);
        partial.extend_from_slice(input);
        let (used, flow) = self.frames(&mut partial, max, &mut on)?;
        if used < partial.len() {
            partial.drain(..used);
            self.partial = partial;
        }
        Ok(flow)
    }

    /// Handles the whole frames at the start of `input`; returns how many bytes those were.
    fn frames<B>(
        &mut self,
        input: &mut [u8],
        max: usize,
        on: &mut impl FnMut(Event<'_>) -> ControlFlow<B>,
    ) -> Result<(usize, ControlFlow<B>), Violation> {
        let mut used = 0;
        while let Some(header) = Header::read(&input[used..], max)? {
            let start = used + header.start;
            let Some(data) = input.get_mut(start..start + header.length) else { break };
            for (byte, mask) in data.iter_mut().zip(header.mask.iter().cycle()) {
                *byte ^= mask;
            }
            used = start + header.length;
            if let ControlFlow::Break(value) = self.frame(&header, data, max, on)? {
                return Ok((used, ControlFlow::Break(value)));
            }
        }
        Ok((used, ControlFlow::Continue(())))
    }

    fn frame<B>(
        &mut self,
        header: &Header,
        data: &[u8],
        max: usize,
        on: &mut impl FnMut(Event<'_>) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, Violation> {
        match header.opcode {
            OPCODE_TEXT | OPCODE_BINARY if self.message.is_some() => Err(Violation::Protocol),
            OPCODE_TEXT | OPCODE_BINARY if header.fin => complete(header.opcode, data, on),
            OPCODE_TEXT | OPCODE_BINARY => {
                self.message = Some((header.opcode, data.to_vec()));
                Ok(ControlFlow::Continue(()))
            }
            OPCODE_CONTINUATION => {
                let (opcode, mut message) = self.message.take().ok_or(Violation::Protocol)?;
                if message.len() + data.len() > max {
                    return Err(Violation::TooBig);
                }
                message.extend_from_slice(data);
                if header.fin {
                    return complete(opcode, &message, on);
                }
                self.message = Some((opcode, message));
                Ok(ControlFlow::Continue(()))
            }
            OPCODE_PING => Ok(on(Event::Ping(data))),
            OPCODE_PONG => Ok(ControlFlow::Continue(())),
            _ => Ok(on(Event::Close(close_code(data)?))),
        }
    }
}

impl Header {
    /// The header at the start of `input`, if all of it is there.
    fn read(input: &[u8], max: usize) -> Result<Option<Self>, Violation> {
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
        if length > max {
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: usize = 1_000;

    fn masked(first: u8, data: &[u8]) -> Vec<u8> {
        let mask = [1, 2, 3, 4];
        let mut frame = vec![first];
        match data.len() {
            0..126 => frame.push(0x80 | u8::try_from(data.len()).unwrap()),
            length => {
                frame.push(MASKED | 0x7e);
                frame.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
        }
        frame.extend(mask);
        frame.extend(data.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    /// What a decoder makes of `input` in pieces of `step` bytes.
    fn decode(input: &[u8], step: usize) -> Result<Vec<String>, Violation> {
        let (mut decoder, mut events) = (Decoder::default(), Vec::new());
        for piece in input.chunks(step) {
            let flow = decoder.feed(&mut piece.to_vec(), MAX, |event| {
                events.push(format!("{event:?}"));
                ControlFlow::<()>::Continue(())
            })?;
            assert_eq!(flow, ControlFlow::Continue(()));
        }
        Ok(events)
    }

    #[test]
    fn reads_frames_in_any_pieces() {
        let input = [
            masked(0x81, b"hello"),
            masked(0x01, "h\u{e9}".as_bytes()),
            masked(0x89, b"?"),
            masked(0x00, &"\u{e9}".as_bytes()[..1]),
            masked(0x80, &"\u{e9}".as_bytes()[1..]),
            masked(0x82, &[9; 300]),
            masked(0x8a, b""),
            masked(0x88, &1000u16.to_be_bytes()),
        ]
        .concat();
        let expected = decode(&input, input.len()).unwrap();
        assert_eq!(expected[..3], ["Text(\"hello\")", "Ping([63])", "Text(\"h\u{e9}\u{e9}\")"]);
        assert_eq!(expected[4], "Close(Some(1000))");
        for step in 1..20 {
            assert_eq!(decode(&input, step).unwrap(), expected);
        }
    }

    #[test]
    fn refuses_what_the_protocol_forbids() {
        let unmasked = vec![0x81, 1, b'x'];
        for (input, violation) in [
            (unmasked, Violation::Protocol),
            (masked(0xc1, b"rsv"), Violation::Protocol),
            (masked(0x83, b"opcode"), Violation::Protocol),
            (masked(0x8b, b"opcode"), Violation::Protocol),
            (masked(0x80, b"continues nothing"), Violation::Protocol),
            (masked(0x09, b"fragmented ping"), Violation::Protocol),
            (masked(0x89, &[0; 126]), Violation::Protocol),
            (masked(0x88, b"x"), Violation::Protocol),
            (masked(0x88, &1005u16.to_be_bytes()), Violation::Protocol),
            ([masked(0x01, b"a"), masked(0x81, b"b")].concat(), Violation::Protocol),
            (masked(0x81, &[0xff]), Violation::Encoding),
            (masked(0x88, &[3, 232, 0xff]), Violation::Encoding),
            (masked(0x82, &[0; MAX + 1]), Violation::TooBig),
            ([masked(0x02, &[0; MAX]), masked(0x80, &[0])].concat(), Violation::TooBig),
            ([&[0x82, 0xff][..], &[0xff; 8]].concat(), Violation::TooBig),
        ] {
            assert_eq!(decode(&input, input.len()), Err(violation));
            assert_eq!(decode(&input, 1), Err(violation));
        }
    }

    #[test]
    fn what_follows_a_break_is_kept() {
        let mut decoder = Decoder::default();
        let mut input = [masked(0x81, b"5"), masked(0x81, b"4a"), masked(0x81, b"4b")[..3].to_vec()].concat();
        let flow = decoder.feed(&mut input, MAX, |event| ControlFlow::Break(format!("{event:?}")));
        assert_eq!(flow, Ok(ControlFlow::Break("Text(\"5\")".to_owned())));
        let mut texts = Vec::new();
        let mut rest = masked(0x81, b"4b")[3..].to_vec();
        for input in [&mut [][..], &mut rest] {
            let flow = decoder.feed(input, MAX, |event| {
                texts.push(format!("{event:?}"));
                ControlFlow::<()>::Continue(())
            });
            assert_eq!(flow, Ok(ControlFlow::Continue(())));
        }
        assert_eq!(texts, ["Text(\"4a\")", "Text(\"4b\")"]);
    }

    #[test]
    fn an_idle_connection_holds_no_buffer() {
        let mut decoder = Decoder::default();
        for piece in masked(0x82, &[1; 500]).chunks(200) {
            let flow = decoder.feed(&mut piece.to_vec(), MAX, |_| ControlFlow::<()>::Continue(()));
            assert_eq!(flow, Ok(ControlFlow::Continue(())));
        }
        assert_eq!((decoder.partial.capacity(), decoder.message), (0, None));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(input: Vec<u8>, step in 1usize..50) {
            let whole = decode(&input, input.len().max(1));
            let pieces = decode(&input, step);
            prop_assert_eq!(whole.is_err(), pieces.is_err());
            if whole.is_ok() {
                prop_assert_eq!(whole, pieces);
            }
        }

        #[test]
        fn texts_come_back(texts: Vec<String>, step in 1usize..50) {
            let input: Vec<u8> = texts.iter().flat_map(|text| masked(0x81, text.as_bytes())).collect();
            let expected: Vec<String> = texts.iter().map(|text| format!("Text({text:?})")).collect();
            prop_assert_eq!(decode(&input, step).unwrap(), expected);
        }
    }
}
