//! What must hold of any input, shared by the fuzzers and the tests that run their corpora.

use std::{
    convert::Infallible,
    ops::ControlFlow,
    sync::{Arc, Mutex},
};

use axum::{
    body::{Body, to_bytes},
    http::{Request, StatusCode},
};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use loomio_channels::{
    admission::{Key, SessionId, Ticket, Tickets, Token, User},
    bus::{
        self, MAX_PAYLOAD, Rejected, decode,
        resp::{Reply, ReplyDecoder},
    },
    engineio::{CloseReason, Engine, Handler, Handshake, Malformed, Message, Options, Session},
    hub::OffsetKey,
    lifecycle::Tasks,
    metrics::Metrics,
    websocket::{Budget, Decoder},
};
use serde_json::value::RawValue;
use tokio::runtime::Builder;

/// Small, so that inputs can exceed it.
const MAX_MESSAGE: usize = 1_000;

/// The first byte says into how large pieces the rest is cut; `None` for no input.
fn in_pieces(data: &[u8]) -> Option<(&[u8], usize)> {
    let (&step, rest) = data.split_first()?;
    Some((rest, usize::from(step) + 1))
}

/// What a decoder makes of frames that arrive in pieces, and the code of a violation.
fn frames(data: &[u8], step: usize) -> (Vec<String>, Option<u16>) {
    let (mut decoder, mut received, budget) = (Decoder::default(), Vec::new(), Budget::default());
    for piece in data.chunks(step) {
        let fed = decoder.feed(&mut piece.to_vec(), MAX_MESSAGE, &budget, |item| {
            received.push(format!("{item:?}"));
            ControlFlow::<()>::Continue(())
        });
        if let Err(violation) = fed {
            return (received, Some(violation.code()));
        }
    }
    (received, None)
}

/// WebSocket frames: cutting them differently changes nothing, and no message is too long or follows the end.
pub fn frame_reader(data: &[u8]) {
    let Some((data, step)) = in_pieces(data) else { return };
    let (received, code) = frames(data, data.len().max(1));
    assert_eq!(frames(data, step), (received.clone(), code));
    assert!(code.is_none_or(|code| [1002, 1007, 1009].contains(&code)));
    // Shown with a name, and with escapes of at most ten characters for each byte.
    assert!(received.iter().all(|item| item.len() < 20 + 10 * MAX_MESSAGE));
}

/// Keeps the messages of all sessions.
struct Recorder(Mutex<Vec<Message>>);

impl Handler for Recorder {
    type State = ();

    fn open(&self, _: &Handshake<'_>) {}

    fn message(&self, _: &Arc<Session<Self>>, message: Message) -> Result<(), Malformed> {
        self.0.lock().unwrap().push(message);
        Ok(())
    }

    fn closed(&self, _: &Arc<Session<Self>>, _: CloseReason) {}
}

/// The status of a POST whose body arrives in pieces, and its messages.
async fn post(data: &[u8], step: usize) -> (StatusCode, Vec<Message>) {
    let options = Options { max_payload: MAX_MESSAGE, ..Options::default() };
    let engine = Engine::new(Recorder(Mutex::default()), options, Tasks::current(), Metrics::default());
    let path = "/?EIO=4&transport=polling";
    let open = Arc::clone(&engine).handle(Request::get(path).body(Body::empty()).unwrap()).await;
    let open = to_bytes(open.into_body(), usize::MAX).await.unwrap();
    let open: serde_json::Value = serde_json::from_slice(&open[1..]).unwrap();
    let path = format!("{path}&sid={}", open["sid"].as_str().unwrap());
    let pieces: Vec<_> = data.chunks(step).map(|piece| Ok::<_, Infallible>(piece.to_vec())).collect();
    let request = Request::post(path).body(Body::from_stream(stream::iter(pieces))).unwrap();
    let status = Arc::clone(&engine).handle(request).await.status();
    let messages = std::mem::take(&mut *engine.handler().0.lock().unwrap());
    (status, messages)
}

/// The body of a POST: cutting it differently changes nothing, and nothing comes of too much.
pub fn polling_payload(data: &[u8]) {
    let Some((data, step)) = in_pieces(data) else { return };
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let (whole, pieces) = runtime.block_on(async { (post(data, data.len().max(1)).await, post(data, step).await) });
    assert_eq!(whole, pieces);
    let (status, messages) = whole;
    assert!([200, 400, 413].contains(&status.as_u16()));
    assert_eq!(status == StatusCode::PAYLOAD_TOO_LARGE, data.len() > MAX_MESSAGE);
    assert!(messages.len() <= data.split(|&byte| byte == 0x1e).count());
}

/// A message from Redis: what is passed on is JSON, its room is what a browser would read, and nothing that a
/// browser could parse is called something else.
pub fn redis_message(data: &[u8]) {
    for channel in [bus::RECORDS, bus::SYSTEM_NOTICE] {
        let room = match decode(channel, data) {
            Ok(room) => room,
            Err(rejected) => {
                let valid = serde_json::from_slice::<&RawValue>(data).is_ok();
                assert!(!valid || rejected != Rejected::NotJson);
                continue;
            }
        };
        assert!(data.len() <= MAX_PAYLOAD);
        assert!(serde_json::from_slice::<&RawValue>(data).is_ok());
        assert_eq!(room.is_some(), channel == bus::RECORDS);
        if let Some(room) = room {
            assert!((1..=256).contains(&room.len()));
            // This parser reads less deep than is allowed, but it builds the whole tree.
            if let Ok(tree) = serde_json::from_slice::<serde_json::Value>(data) {
                assert_eq!(tree["room"].as_str(), Some(&*room));
            }
        }
    }
    let _ = User::parse(data).map(|user| user.rooms().count());
}

/// The wire to a subscriber: cutting the bytes differently changes nothing, and what is passed on was in them.
pub fn redis_reply(data: &[u8]) {
    let Some((data, step)) = in_pieces(data) else { return };
    let (replies, well_formed) = decoded(data, data.len().max(1));
    assert_eq!(decoded(data, step), (replies.clone(), well_formed));
    let bytes = replies.iter().map(|reply| match reply {
        Reply::Message { channel, payload } => channel.len() + payload.as_ref().map_or(0, Bytes::len),
        Reply::Text(text) | Reply::Error(text) => text.len(),
        Reply::Subscribed | Reply::Other => 0,
    });
    assert!(bytes.sum::<usize>() <= data.len());
    // Each begins with a line of its own.
    assert!(replies.len() <= data.len());
}

/// The replies in bytes that arrive in pieces of `step`, and whether all of it is well formed.
fn decoded(data: &[u8], step: usize) -> (Vec<Reply>, bool) {
    let (mut decoder, mut source, mut replies) = (ReplyDecoder::new(MAX_MESSAGE), BytesMut::new(), Vec::new());
    for piece in data.chunks(step) {
        source.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut source) {
                Ok(Some(reply)) => replies.push(reply),
                Ok(None) => break,
                Err(_) => return (replies, false),
            }
        }
    }
    (replies, true)
}

/// What a browser comes back with: nobody can make a ticket or change one, and what is read is what was written.
pub fn ticket(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let tickets = Tickets::new(&Key::random());
    assert_eq!(tickets.open(&text), None);
    let offsets = OffsetKey::new(&[7; 32]);
    assert!(offsets.open(&text).is_none_or(|offset| offsets.seal(&offset) == text));
    let token = Token::parse(&text);
    assert!(token.is_none_or(|token| !format!("{token:?}").contains(&*text) || text.len() < 12));
    let user = User { id: Some(text.clone().into_owned()), groups: vec![text.clone().into_owned()] };
    let provisional = text.len().is_multiple_of(2);
    let ticket = Ticket {
        session: SessionId::random(),
        owner: tickets.owner(Token::parse(&text).as_ref()),
        user: Some(user),
        issued: 1,
        vouched: 2,
        offset: String::new(),
        provisional,
    };
    let sealed = tickets.seal(ticket.clone());
    assert_eq!(tickets.open(&sealed).as_ref(), Some(&ticket));
    let mut changed = sealed.into_bytes();
    let place = data.first().map_or(0, |&byte| usize::from(byte)) % changed.len();
    changed[place] = if changed[place] == b'A' { b'B' } else { b'A' };
    assert_eq!(tickets.open(&String::from_utf8_lossy(&changed)), None);
}
