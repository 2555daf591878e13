//! What must hold of any input, shared by the fuzzers and the tests that run their corpora.

use loomio_channels::{
    admission::{Key, SessionId, Ticket, Tickets, Token, User},
    bus::{self, MAX_PAYLOAD, Rejected, Update, broker::fuzz_requests, decode, fuzz_replies},
    engineio::{fuzz_frames, fuzz_payload},
    hub::OffsetKey,
};
use serde_json::value::RawValue;

/// Small, so that inputs can exceed it.
const MAX_MESSAGE: usize = 1_000;

/// The first byte says into how large pieces the rest is cut; `None` for no input.
fn in_pieces(data: &[u8]) -> Option<(&[u8], usize)> {
    let (&step, rest) = data.split_first()?;
    Some((rest, usize::from(step) + 1))
}

/// WebSocket frames: cutting them differently changes nothing, and no message is too long or follows the end.
pub fn frame_reader(data: &[u8]) {
    let Some((data, step)) = in_pieces(data) else { return };
    let (events, code) = fuzz_frames(data, data.len().max(1), MAX_MESSAGE);
    assert_eq!(fuzz_frames(data, step, MAX_MESSAGE), (events.clone(), code));
    assert!(code.is_none_or(|code| [1002, 1007, 1009].contains(&code)));
    // An event is written with a name, and escapes of at most ten characters for each byte.
    assert!(events.iter().all(|event| event.len() < 20 + 10 * MAX_MESSAGE));
}

/// The body of a POST: cutting it differently changes nothing, and nothing comes of too much.
pub fn polling_payload(data: &[u8]) {
    let Some((data, step)) = in_pieces(data) else { return };
    let packets = fuzz_payload(data, data.len().max(1), MAX_MESSAGE);
    assert_eq!(fuzz_payload(data, step, MAX_MESSAGE), packets);
    if let Some(packets) = packets {
        assert!(!packets.is_empty() && data.len() <= MAX_MESSAGE);
        let parts = data.split(|&byte| byte == 0x1e).count();
        assert!(packets.len() <= parts);
    }
}

/// A message from Redis: what is passed on is JSON, unchanged, its room is what a browser would read, and nothing that a
/// browser could parse is called something else.
pub fn redis_message(data: &[u8]) {
    for channel in [bus::RECORDS, bus::SYSTEM_NOTICE] {
        let update = match decode(channel, data) {
            Ok(update) => update,
            Err(rejected) => {
                let valid = serde_json::from_slice::<&RawValue>(data).is_ok();
                assert!(!valid || rejected != Rejected::NotJson);
                continue;
            }
        };
        let payload = match &update {
            Update::Records { payload, .. } | Update::Notice { payload } => *payload,
        };
        assert_eq!(payload.as_bytes(), data);
        assert!(payload.len() <= MAX_PAYLOAD);
        assert!(serde_json::from_str::<&RawValue>(payload).is_ok());
        if let Update::Records { room, .. } = &update {
            assert!((1..=256).contains(&room.len()));
            // This parser reads less deep than is allowed, but it builds the whole tree.
            if let Ok(tree) = serde_json::from_str::<serde_json::Value>(payload) {
                assert_eq!(tree["room"].as_str(), Some(&**room));
            }
        }
    }
    let _ = User::parse(data).map(|user| user.rooms().count());
}

/// The wire to a subscriber: cutting the bytes differently changes nothing, and what is passed on was in them.
pub fn redis_reply(data: &[u8]) {
    let Some((data, step)) = in_pieces(data) else { return };
    let (replies, well_formed) = fuzz_replies(data, data.len().max(1), MAX_MESSAGE);
    assert_eq!(fuzz_replies(data, step, MAX_MESSAGE), (replies.clone(), well_formed));
    // Shown with a name, and with escapes of four characters for each byte.
    assert!(replies.iter().map(String::len).sum::<usize>() <= 50 * replies.len() + 4 * data.len());
    // Each begins with a line of its own.
    assert!(replies.len() <= data.len());
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

/// The broker's wire: cutting the bytes differently changes nothing, and any request is carried out or refused.
pub fn broker_wire(data: &[u8]) {
    let Some((data, step)) = in_pieces(data) else { return };
    let (requests, end) = fuzz_requests(data, data.len().max(1));
    assert_eq!(fuzz_requests(data, step), (requests.clone(), end));
    let length: usize = requests.iter().flatten().map(bytes::Bytes::len).sum();
    assert!(length <= data.len() && requests.iter().all(|request| !request.is_empty()));
}
