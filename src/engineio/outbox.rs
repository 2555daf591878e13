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

/// What a frame is to the bound of its outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Counts.
    Message,
    /// Does not count: replayed messages are shared with the log, and a client that was cut for reading slowly must be
    /// able to catch up.
    Replayed,
    /// Does not count, as at most one of each sort waits, and goes before the others.
    Control,
}

#[derive(Debug)]
struct Waiting {
    frame: Frame,
    kind: Kind,
}

/// Frames in order, the first perhaps sent in part.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    frames: VecDeque<Waiting>,
    /// Bytes of the first frame that are sent already.
    sent: usize,
    /// Frames that count against the bound, and their weight.
    counted: usize,
    bytes: usize,
    /// Replayed frames that wait.
    replayed: usize,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether the next byte is the first of a frame.
    pub(super) fn at_boundary(&self) -> bool {
        self.sent == 0
    }

    /// Appends frames; the first `replayed` do not count against the bound, unless some of an earlier replay still wait:
    /// a client must not fill the memory by asking again and again.
    pub(super) fn extend(&mut self, frames: &[&Frame], replayed: usize) {
        let (replayed, messages) = frames.split_at(if self.replayed == 0 { replayed.min(frames.len()) } else { 0 });
        self.replayed += replayed.len();
        self.counted += messages.len();
        self.bytes += messages.iter().map(|frame| weight(frame)).sum::<usize>();
        let waiting = |kind| move |frame: &&Frame| Waiting { frame: (*frame).clone(), kind };
        self.frames.extend(replayed.iter().map(waiting(Kind::Replayed)));
        self.frames.extend(messages.iter().map(waiting(Kind::Message)));
    }

    /// Puts a control frame before all that is not begun, in place of one like it that still waits there.
    pub(super) fn put_first(&mut self, control: &Frame) {
        let begun = usize::from(!self.at_boundary());
        let mut controls = self.frames.iter_mut().skip(begun).take_while(|waiting| waiting.kind == Kind::Control);
        match controls.find(|waiting| waiting.frame.is_like(control)) {
            Some(waiting) => waiting.frame = control.clone(),
            None => self.frames.insert(begun, Waiting { frame: control.clone(), kind: Kind::Control }),
        }
    }

    /// Whether more than `limit` bytes wait. A single message may be larger.
    pub(super) fn exceeds(&self, limit: usize) -> bool {
        self.counted > 1 && self.bytes > limit
    }

    /// Sends `frames` after what waits, as far as the socket takes them now, and keeps the rest as [`Outbox::extend`].
    pub(super) fn send(&mut self, stream: &TcpStream, frames: &[&Frame], replayed: usize) -> io::Result<()> {
        let mut done = 0;
        if self.is_empty() {
            let mut sent = 0;
            while done < frames.len() {
                let Some(written) = write(stream, frames[done..].iter().copied(), sent)? else { break };
                sent += written;
                while let Some(first) = frames.get(done).filter(|first| sent >= first.len()) {
                    sent -= first.len();
                    done += 1;
                }
            }
            self.sent = sent;
        }
        self.extend(&frames[done..], replayed.saturating_sub(done));
        Ok(())
    }

    /// Sends a control frame as soon as no other is half sent.
    pub(super) fn send_first(&mut self, stream: &TcpStream, control: &Frame) -> io::Result<()> {
        let idle = self.is_empty();
        self.put_first(control);
        if idle {
            self.flush(stream)?;
        }
        Ok(())
    }

    /// Sends what waits, as far as the socket takes it now; returns how many bytes it took.
    pub(super) fn flush(&mut self, stream: &TcpStream) -> io::Result<usize> {
        let mut taken = 0;
        while !self.frames.is_empty() {
            let frames = self.frames.iter().map(|waiting| &waiting.frame);
            let Some(written) = write(stream, frames, self.sent)? else { return Ok(taken) };
            taken += written;
            self.sent += written;
            while let Some(first) = self.frames.front().filter(|first| self.sent >= first.frame.len()) {
                self.sent -= first.frame.len();
                self.gone();
            }
        }
        self.emptied();
        Ok(taken)
    }

    /// The packets of one polling payload from what waits, the rest of a lot for the next.
    pub(super) fn take_payload(&mut self) -> Vec<Bytes> {
        let (mut packets, mut length) = (Vec::new(), 0);
        while let Some(first) = self.frames.front() {
            if length > 0 && length + first.frame.len() > PAYLOAD {
                return packets;
            }
            if let Some(packet) = first.frame.polled() {
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
        match self.frames.pop_front() {
            Some(Waiting { frame, kind: Kind::Message }) => {
                self.counted -= 1;
                self.bytes -= weight(&frame);
            }
            Some(Waiting { kind: Kind::Replayed, .. }) => self.replayed -= 1,
            Some(Waiting { kind: Kind::Control, .. }) | None => {}
        }
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
    use engineioxide_core::Packet;
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
            outbox.send(&server, &batch.iter().collect::<Vec<_>>(), 0).unwrap();
        }
        assert!(outbox.exceeds(1 << 20), "nobody reads yet");
        let length = expected.len();
        let reader = async move {
            let mut received = vec![0; length];
            client.read_exact(&mut received).await.unwrap();
            received
        };
        let writer = async {
            while !outbox.is_empty() {
                outbox.flush(&server).unwrap();
                server.writable().await.unwrap();
            }
        };
        let (received, ()) = tokio::join!(reader, writer);
        assert!(received == expected);
        assert_eq!((outbox.bytes, outbox.sent, outbox.frames.capacity() <= SLOTS_KEPT), (0, 0, true));
    }

    /// Appends frames with these lengths to what waits.
    fn extend(outbox: &mut Outbox, lengths: &[usize], replayed: usize) {
        let frames: Vec<Frame> = lengths.iter().map(|&length| Frame::message(&[&vec![b'x'; length]])).collect();
        outbox.extend(&frames.iter().collect::<Vec<_>>(), replayed);
    }

    #[test]
    fn a_single_message_may_be_larger_than_the_bound() {
        let mut outbox = Outbox::default();
        extend(&mut outbox, &[100], 0);
        outbox.put_first(&Frame::packet(Packet::Ping));
        assert!(!outbox.exceeds(10));
        extend(&mut outbox, &[100], 0);
        assert!(outbox.exceeds(10) && !outbox.exceeds(1_000));
    }

    #[test]
    fn what_is_replayed_does_not_count_until_it_is_asked_for_again() {
        let mut outbox = Outbox::default();
        extend(&mut outbox, &[5], 0);
        extend(&mut outbox, &[1_000, 1_000, 5], 2);
        assert!(!outbox.exceeds(300));
        extend(&mut outbox, &[1_000], 1);
        assert!(outbox.exceeds(300), "some of the first replay still waits");
        assert_eq!(outbox.take_payload().len(), 5);
        extend(&mut outbox, &[1_000, 1_000], 2);
        assert!(!outbox.exceeds(300), "all of the first replay is gone");
        assert_eq!((outbox.counted, outbox.bytes, outbox.replayed), (0, 0, 2));
    }

    #[tokio::test]
    async fn what_is_sent_at_once_is_not_excused_of_what_is_not() {
        let (server, _client) = pair().await;
        let frame = Frame::binary(&vec![0; 100_000]);
        let frames = vec![&frame; 1_000];
        let mut outbox = Outbox::default();
        outbox.send(&server, &frames, 400).unwrap();
        assert!(outbox.replayed < 400, "the socket took some");
        assert_eq!((outbox.counted, outbox.bytes), (600, 600 * weight(&frame)));
    }

    #[test]
    fn control_frames_go_first_and_one_of_each_sort() {
        let ping = Frame::packet(Packet::Ping);
        for (sent, expected) in [(0, "32|b|c"), (1, "b|32|c")] {
            let mut outbox = Outbox { sent, ..Outbox::default() };
            outbox.extend(&[&Frame::message(&[b"b"]), &Frame::message(&[b"c"])], 0);
            for control in [&ping, &Frame::pong(b"1"), &ping, &Frame::pong(b"2"), &ping, &Frame::pong(b"3")] {
                outbox.put_first(control);
            }
            let order: Vec<_> = outbox.frames.iter().map(|waiting| waiting.frame.wire()[2..].to_vec()).collect();
            let expected: Vec<_> = expected.replace("32", "3|2").replace('b', "4b").replace('c', "4c").into_bytes();
            assert_eq!(order, expected.split(|byte| *byte == b'|').collect::<Vec<_>>(), "{sent}");
        }
    }

    #[tokio::test]
    async fn a_control_frame_that_does_not_fit_goes_before_what_comes_later() {
        let (server, _client) = pair().await;
        let mut outbox = Outbox::default();
        let frame = Frame::binary(&vec![0; 100_000]);
        while outbox.is_empty() {
            outbox.send(&server, &[&frame], 0).unwrap();
        }
        outbox.send_first(&server, &Frame::packet(Packet::Ping)).unwrap();
        outbox.send(&server, &[&frame], 0).unwrap();
        let waiting: Vec<_> = outbox.frames.iter().map(|waiting| waiting.kind).collect();
        assert_eq!(waiting, [Kind::Message, Kind::Control, Kind::Message]);
    }

    #[test]
    fn a_long_payload_comes_in_pieces_and_shares_its_bytes() {
        let mut outbox = Outbox::default();
        let frame = Frame::message(&[&vec![b'x'; 400_000]]);
        outbox.extend(&[&frame; 5], 0);
        let payloads: Vec<_> = std::iter::from_fn(|| (!outbox.is_empty()).then(|| outbox.take_payload())).collect();
        assert_eq!(payloads.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
        assert!(payloads.concat().iter().all(|packet| packet.as_ptr() == frame.polled().unwrap().as_ptr()));
        assert_eq!((outbox.counted, outbox.bytes), (0, 0));
    }
}
