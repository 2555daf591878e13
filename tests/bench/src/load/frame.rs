//! Just enough of WebSocket for a client that trusts its server: whole frames out of a stream, small frames into it.

/// A frame from the server.
pub(super) struct Frame<'a> {
    pub(super) opcode: u8,
    pub(super) payload: &'a [u8],
    /// Bytes that the frame took.
    pub(super) length: usize,
}

pub(super) const TEXT: u8 = 1;
pub(super) const CLOSE: u8 = 8;

/// The first frame in `bytes`, if it is all there.
pub(super) fn parse(bytes: &[u8]) -> Option<Frame<'_>> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (header, length) = match second & 0x7f {
        126 => (4, u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)),
        short => (2, u64::from(short)),
    };
    let length = header + usize::try_from(length).ok()?;
    Some(Frame { opcode: first & 0x0f, payload: bytes.get(header..length)?, length })
}

/// A close frame without a reason.
pub(super) fn masked_close() -> [u8; 6] {
    [0x80 | CLOSE, 0x80, 0, 0, 0, 0]
}

/// A text frame as clients send it; the mask of zeros changes nothing.
pub(super) fn masked(text: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | TEXT];
    match text.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length => {
            frame.push(0x80 | 0x7e);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(text);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_all_sizes_are_found_once_they_are_whole() {
        for size in [0_usize, 1, 125, 126, 65_535, 65_536, 100_000] {
            let mut bytes = vec![0x81];
            match size {
                0..126 => bytes.push(size as u8),
                126..65_536 => bytes.extend([&[126][..], &(size as u16).to_be_bytes()].concat()),
                _ => bytes.extend([&[127][..], &(size as u64).to_be_bytes()].concat()),
            }
            bytes.resize(bytes.len() + size, b'x');
            assert!(parse(&bytes[..bytes.len() - 1]).is_none(), "{size}");
            bytes.push(0x81);
            let frame = parse(&bytes).unwrap();
            assert_eq!((frame.opcode, frame.payload.len(), frame.length), (TEXT, size, bytes.len() - 1), "{size}");
        }
    }

    #[test]
    fn what_is_sent_is_masked() {
        assert_eq!(masked(b"40"), [0x81, 0x82, 0, 0, 0, 0, b'4', b'0']);
        assert_eq!(masked(&[b'x'; 200])[..4], [0x81, 0xfe, 0, 200]);
    }
}
