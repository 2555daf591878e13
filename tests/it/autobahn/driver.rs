//! Runs cases: what a client sends, over a socket that is no TCP stream, and all that it gets.

use std::{
    future::Future,
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd},
};

use bytes::{Buf, BytesMut};
use loomio_channels::{
    lifecycle::Tasks,
    websocket::{Connection, Decoder, Socket},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest, Ready},
    net::UnixStream,
    task::yield_now,
};

use super::echo::{echo, shared};
use crate::harness::{CLOSE, frame, within};

/// First bytes of frames beside those that other tests use.
pub(super) const PONG: u8 = 0x8a;
pub(super) const TEXT_BEGINS: u8 = 0x01;
pub(super) const BINARY_BEGINS: u8 = 0x02;
pub(super) const CONTINUES: u8 = 0x00;
pub(super) const ENDS: u8 = 0x80;

struct Unix(UnixStream);

impl Socket for Unix {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn ready(&self, interest: Interest) -> impl Future<Output = io::Result<Ready>> + Send {
        self.0.ready(interest)
    }
}

impl AsFd for Unix {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A frame: its first byte and its data.
pub(super) type Frame = (u8, Vec<u8>);

/// What a client sends, piece by piece, and all that it gets.
pub(super) struct Case {
    pub(super) number: String,
    pub(super) pieces: Vec<Vec<u8>>,
    /// With its answers the client closes.
    pub(super) closes: bool,
    pub(super) expected: Vec<Frame>,
}

pub(super) fn bytes(frames: &[Frame]) -> Vec<u8> {
    frames.iter().flat_map(|(first, data)| frame(*first, data)).collect()
}

pub(super) fn chopped(bytes: &[u8], length: usize) -> Vec<Vec<u8>> {
    bytes.chunks(length).map(<[u8]>::to_vec).collect()
}

pub(super) fn of(first: u8, data: impl AsRef<[u8]>) -> Frame {
    (first, data.as_ref().to_vec())
}

pub(super) fn close(code: u16) -> Frame {
    of(CLOSE, code.to_be_bytes())
}

/// A message in fragments.
pub(super) fn fragments<'a>(first: u8, data: impl IntoIterator<Item = &'a [u8]>) -> Vec<Frame> {
    let mut frames: Vec<Frame> = data.into_iter().map(|data| of(CONTINUES, data)).collect();
    frames[0].0 = first;
    frames.last_mut().unwrap().0 |= ENDS;
    frames
}

#[derive(Default)]
pub(super) struct Cases(pub(super) Vec<Case>);

impl Cases {
    pub(super) fn add(
        &mut self,
        number: impl Into<String>,
        chop: usize,
        sent: &[Frame],
        closes: bool,
        expected: &[Frame],
    ) {
        let (number, pieces) = (number.into(), chopped(&bytes(sent), chop));
        self.0.push(Case { number, pieces, closes, expected: expected.to_vec() });
    }

    /// Frames in pieces of `chop` bytes are all answered. The client closes with 1000, then or in these frames, and so
    /// does the server.
    pub(super) fn pass(&mut self, number: impl Into<String>, chop: usize, sent: &[Frame], answers: &[Frame]) {
        let closes = sent.iter().all(|(first, _)| *first != CLOSE);
        self.add(number, chop, sent, closes, &[answers, &[close(1000)]].concat());
    }

    /// After some answers the server closes with this code.
    pub(super) fn fail(
        &mut self,
        number: impl Into<String>,
        chop: usize,
        sent: &[Frame],
        answers: &[Frame],
        code: u16,
    ) {
        self.add(number, chop, sent, false, &[answers, &[close(code)]].concat());
    }
}

pub(super) const WHOLE: usize = usize::MAX;

pub(super) async fn run(cases: Cases) {
    let tasks = Tasks::current();
    let shared = shared(&tasks);
    let mut failures = Vec::new();
    for Case { number, pieces, closes, expected } in cases.0 {
        let (mut client, server) = UnixStream::pair().unwrap();
        tasks.spawn(echo(Connection::new(Unix(server), &shared), Decoder::default()));
        let got = within(&number, talk(&mut client, &pieces, closes.then_some(expected.len() - 1))).await;
        if got != expected {
            let short = |frames: &[Frame]| {
                let short = |(first, data): &Frame| format!("{first:#x} {:?}", data.get(..20).unwrap_or(data));
                frames.iter().map(short).collect::<Vec<_>>()
            };
            failures.push(format!("{number}: {:?} in place of {:?}", short(&got), short(&expected)));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Sends pieces, closes with so many answers if it should, and returns everything that comes.
async fn talk(client: &mut UnixStream, pieces: &[Vec<u8>], answers: Option<usize>) -> Vec<Frame> {
    let (mut reader, mut writer) = client.split();
    let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
    let writing = async {
        for piece in pieces {
            // When the server has closed, what it sent before says why.
            let _ = writer.write_all(piece).await;
            yield_now().await;
        }
    };
    let reading = async {
        while got.len() < answers.unwrap_or(0) {
            let Some(frame) = next(&mut reader, &mut buffer).await else { break };
            got.push(frame);
        }
    };
    tokio::join!(writing, reading);
    if answers.is_some() {
        let _ = writer.write_all(&bytes(&[close(1000)])).await;
    }
    while let Some(frame) = next(&mut reader, &mut buffer).await {
        got.push(frame);
    }
    got
}

/// The next frame; `None` at the end.
async fn next(reader: &mut (impl AsyncReadExt + Unpin), buffer: &mut BytesMut) -> Option<Frame> {
    let mut read = async |length: usize| {
        while buffer.len() < length {
            reader.read_buf(buffer).await.ok().filter(|&length| length > 0)?;
        }
        Some(buffer.split_to(length))
    };
    let head = read(2).await?;
    let length = match head[1] {
        126 => usize::from(read(2).await?.get_u16()),
        127 => usize::try_from(read(8).await?.get_u64()).unwrap(),
        short => usize::from(short),
    };
    Some((head[0], read(length).await?.to_vec()))
}
