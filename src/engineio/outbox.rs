//! What waits to be sent to one client.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice},
};

use bytes::Bytes;
use tokio::net::TcpStream;

use super::frame::{Frame, SEPARATOR};

/// Frames handed to the kernel in one call. Linux takes 1,024; this many cover any usual burst and fit the stack.
const SLICES: usize = 64;

/// What a waiting frame is counted with beside its bytes, so that many tiny ones are bounded too.
const FRAME_OVERHEAD: usize = 96;

/// Bytes of one polling payload, but for a single larger message. The client acknowledges by asking for the next, so a
/// slow one gets ahead, and what it does not read is little.
const PAYLOAD: usize = 1 << 20;

/// Slots kept allocated in an empty outbox.
const SLOTS_KEPT: usize = 4;

/// Frames in order, the first perhaps sent in part.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    frames: VecDeque<Frame>,
    /// Bytes of the first frame that are sent already.
    sent: usize,
    bytes: usize,
    /// Bytes that do not count against the bound, see [`Outbox::excuse`].
    excused: usize,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether the next byte is the first of a frame.
    pub(super) fn at_boundary(&self) -> bool {
        self.sent == 0
    }

    pub(super) fn extend(&mut self, frames: &[&Frame]) {
        self.bytes += frames.iter().map(|frame| weight(frame)).sum::<usize>();
        self.frames.extend(frames.iter().copied().cloned());
    }

    /// The next `frames` do not count against the bound: replayed messages are shared with the log, and a client that
    /// was cut for reading slowly must be able to catch up. Not twice, though, before all of it is gone.
    pub(super) fn excuse(&mut self, frames: &[&Frame]) {
        if self.excused == 0 {
            self.excused = frames.iter().map(|frame| weight(frame)).sum();
        }
    }

    /// Whether more than `limit` bytes wait. A single message may be larger.
    pub(super) fn exceeds(&self, limit: usize) -> bool {
        self.frames.len() > 1 && self.bytes - self.excused.min(self.bytes) > limit
    }

    /// Sends `frames` after what waits, as far as the socket takes them now, and keeps the rest.
    pub(super) fn send(&mut self, stream: &TcpStream, frames: &[&Frame]) -> io::Result<()> {
        let mut rest = frames;
        if self.is_empty() {
            let mut sent = 0;
            while !rest.is_empty() {
                let Some(written) = write(stream, rest.iter().copied(), sent)? else { break };
                sent += written;
                while let Some(first) = rest.first().filter(|first| sent >= first.len()) {
                    sent -= first.len();
                    self.excused = self.excused.saturating_sub(weight(first));
                    rest = &rest[1..];
                }
            }
            self.sent = sent;
            self.bytes = 0;
        }
        self.extend(rest);
        Ok(())
    }

    /// Sends what waits; returns whether all is gone.
    pub(super) fn flush(&mut self, stream: &TcpStream) -> io::Result<bool> {
        while !self.frames.is_empty() {
            let Some(written) = write(stream, self.frames.iter(), self.sent)? else { return Ok(false) };
            self.sent += written;
            while let Some(first) = self.frames.front().filter(|first| self.sent >= first.len()) {
                self.sent -= first.len();
                self.gone();
            }
        }
        self.emptied();
        Ok(true)
    }

    /// The packets of one polling payload from what waits, the rest of a lot for the next.
    pub(super) fn take_payload(&mut self) -> Vec<Bytes> {
        let (mut packets, mut length) = (Vec::new(), 0);
        while let Some(first) = self.frames.front() {
            if length > 0 && length + first.len() > PAYLOAD {
                return packets;
            }
            if let Some(packet) = first.polled() {
                length += packet.len() + SEPARATOR.len();
                packets.push(packet);
            }
            self.gone();
        }
        self.emptied();
        packets
    }

    /// The first frame is sent.
    fn gone(&mut self) {
        let weight = self.frames.pop_front().as_ref().map_or(0, weight);
        self.bytes -= weight;
        self.excused = self.excused.saturating_sub(weight);
    }

    fn emptied(&mut self) {
        self.frames.shrink_to(SLOTS_KEPT);
    }
}

fn weight(frame: &Frame) -> usize {
    frame.len() + FRAME_OVERHEAD
}

/// Writes the first frames, without the first `skip` bytes; `None` when the socket takes nothing now.
fn write<'a>(
    stream: &TcpStream,
    mut frames: impl ExactSizeIterator<Item = &'a Frame>,
    skip: usize,
) -> io::Result<Option<usize>> {
    let first = frames.next().map_or(&[][..], |frame| &frame.wire()[skip..]);
    let written = if frames.len() == 0 {
        stream.try_write(first)
    } else {
        let mut slices = [IoSlice::new(&[]); SLICES];
        slices[0] = IoSlice::new(first);
        let rest = slices[1..].iter_mut().zip(frames);
        let count = 1 + rest.map(|(slice, frame)| *slice = IoSlice::new(frame.wire())).count();
        stream.try_write_vectored(&slices[..count])
    };
    match written {
        Ok(0) => Err(ErrorKind::WriteZero.into()),
        Ok(written) => Ok(Some(written)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{io::AsyncReadExt, net::TcpListener};

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0, client)
    }

    #[tokio::test]
    async fn all_frames_arrive_in_order_through_a_full_socket() {
        let (server, mut client) = pair().await;
        let mut outbox = Outbox::default();
        let frames: Vec<Frame> = (0..2_000u32).map(|n| Frame::binary(&n.to_be_bytes().repeat(1_000))).collect();
        let expected: Vec<u8> = frames.iter().flat_map(|frame| frame.wire().to_vec()).collect();
        for batch in frames.chunks(150) {
            outbox.send(&server, &batch.iter().collect::<Vec<_>>()).unwrap();
        }
        assert!(outbox.exceeds(1 << 20), "nobody reads yet");
        let length = expected.len();
        let reader = async move {
            let mut received = vec![0; length];
            client.read_exact(&mut received).await.unwrap();
            received
        };
        let writer = async {
            while !outbox.flush(&server).unwrap() {
                server.writable().await.unwrap();
            }
        };
        let (received, ()) = tokio::join!(reader, writer);
        assert!(received == expected);
        assert_eq!((outbox.bytes, outbox.sent, outbox.frames.capacity() <= SLOTS_KEPT), (0, 0, true));
    }

    #[test]
    fn what_is_excused_does_not_count_but_only_once() {
        let mut outbox = Outbox::default();
        let frame = Frame::binary(&[0; 100]);
        outbox.extend(&[&frame]);
        assert!(!outbox.exceeds(10), "a single message may be larger");
        outbox.extend(&[&frame]);
        assert!(outbox.exceeds(10));
        let mut outbox = Outbox::default();
        outbox.excuse(&[&frame, &frame]);
        outbox.extend(&[&frame, &frame]);
        assert!(!outbox.exceeds(10));
        outbox.excuse(&[&frame]);
        outbox.extend(&[&frame]);
        assert!(outbox.exceeds(10));
    }

    #[test]
    fn a_long_payload_comes_in_pieces_and_shares_its_bytes() {
        let mut outbox = Outbox::default();
        let frame = Frame::message(&[&vec![b'x'; 400_000]]);
        outbox.extend(&[&frame; 5]);
        let payloads: Vec<_> = std::iter::from_fn(|| (!outbox.is_empty()).then(|| outbox.take_payload())).collect();
        assert_eq!(payloads.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
        assert!(payloads.concat().iter().all(|packet| packet.as_ptr() == frame.polled().unwrap().as_ptr()));
        assert_eq!(outbox.bytes, 0);
    }
}
