//! Two protocols on one hub: Socket.IO's, and a tiny one of plain lines.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use loomio_channels::{
    engineio::Frame,
    hub::{Epoch, Event, Hub, Kind, LogBounds, Membership, Offset, Return, Rooms, Shards, Since, Subscriber, Wire},
    socketio::SocketIoWire,
};

use crate::screen::{self, PATIENCE};

const SHARDS: usize = 3;
/// Subscribers of each wire, so that every shard has some.
const SUBSCRIBERS: usize = 2 * SHARDS;
const EVENTS: usize = 300;

/// One line for each event: kind, room, payload and offset.
struct Lines(Hub);

impl Wire for Lines {
    type Form = String;

    fn form(&self, event: &Event, payload: &Bytes) -> (String, Option<Bytes>) {
        let (payload, offset) = (str::from_utf8(payload).unwrap(), self.0.seal_offset(&event.offset));
        (format!("{:?} {} {payload} {offset}", event.kind, event.room), None)
    }
}

/// Counts the forms that are made.
struct Counted<W> {
    wire: W,
    made: AtomicUsize,
}

impl<W: Wire> Wire for Counted<W> {
    type Form = W::Form;

    fn form(&self, event: &Event, payload: &Bytes) -> (W::Form, Option<Bytes>) {
        self.made.fetch_add(1, Ordering::Relaxed);
        self.wire.form(event, payload)
    }
}

/// What a test reads from a form.
trait Text {
    fn text(&self) -> String;
}

impl Text for String {
    fn text(&self) -> String {
        self.clone()
    }
}

impl Text for Frame {
    fn text(&self) -> String {
        String::from_utf8(self.text_data().unwrap().into()).unwrap()
    }
}

/// Each form that arrived, with its address.
type Inbox = Mutex<Vec<(String, usize)>>;

struct Reader<W> {
    wire: Arc<Counted<W>>,
    inbox: Arc<Inbox>,
}

impl<W: Wire<Form: Text>> Reader<W> {
    fn read(&self, event: &Event) {
        let form = event.form(&*self.wire);
        self.inbox.lock().unwrap().push((form.text(), std::ptr::from_ref(form).addr()));
    }
}

impl<W: Wire<Form: Text> + Send + Sync> Subscriber for Reader<W> {
    fn deliver(&self, events: &[&Event]) {
        for event in events {
            self.read(event);
        }
    }

    fn remind(&self, _: &str) {}

    fn lagged(&self) {
        panic!("the log is long enough");
    }
}

struct World {
    hub: Hub,
    _shards: Shards,
    lines: Arc<Counted<Lines>>,
    socket_io: Arc<Counted<SocketIoWire>>,
}

impl World {
    fn new() -> Self {
        let bounds = LogBounds { window: Duration::MAX, bytes: 1 << 30, undelivered: 0, replay: 1 << 30 };
        let (hub, shards) = screen::hub(Epoch(7), bounds, SHARDS);
        let lines = Arc::new(Counted { wire: Lines(hub.clone()), made: AtomicUsize::new(0) });
        let socket_io = Arc::new(Counted { wire: SocketIoWire(hub.clone()), made: AtomicUsize::new(0) });
        Self { hub, _shards: shards, lines, socket_io }
    }

    /// Joins the rooms 0 and 1, with what was missed in its inbox before what is delivered.
    fn join<W>(&self, wire: &Arc<Counted<W>>, since: Since) -> (Membership, Arc<Inbox>)
    where
        W: Wire<Form: Text> + Send + Sync,
    {
        let (inbox, (sender, welcomed)) = (Arc::default(), mpsc::channel());
        let reader = || Reader { wire: Arc::clone(wire), inbox: Arc::clone(&inbox) };
        let rooms = Rooms::all([0, 1].map(screen::room).to_vec());
        let (subscriber, newcomer) = (reader(), reader());
        let membership = self.hub.join(subscriber, rooms, since, Instant::now(), move |joined| {
            joined.missed.iter().for_each(|event| newcomer.read(event));
            sender.send(joined.complete).unwrap();
        });
        assert!(welcomed.recv_timeout(PATIENCE).unwrap(), "nothing is lost");
        (membership, inbox)
    }

    /// Publishes to the rooms 0, 1 and 2, of which nobody is in the last; returns what is owed.
    fn publish(&self) -> Vec<Owed> {
        let publish = |number: usize| {
            let (room, kind) = (number % 3, if number < EVENTS / 2 { Kind::Records } else { Kind::Notice });
            let payload = format!(r#"{{"number":{number}}}"#);
            let offset =
                self.hub.publish(kind, &screen::room(room), Bytes::copy_from_slice(payload.as_bytes()), Instant::now());
            (room < 2).then_some(Owed { kind, room: screen::room(room), payload, offset })
        };
        (0..EVENTS).filter_map(publish).collect()
    }

    fn made(&self) -> [usize; 2] {
        [&self.lines.made, &self.socket_io.made].map(|made| made.load(Ordering::Relaxed))
    }
}

struct Owed {
    kind: Kind,
    room: String,
    payload: String,
    offset: Offset,
}

impl Owed {
    fn line(&self, hub: &Hub) -> String {
        let Self { kind, room, payload, offset } = self;
        format!("{kind:?} {room} {payload} {}", hub.seal_offset(offset))
    }

    fn packet(&self, hub: &Hub) -> String {
        let name = if self.kind == Kind::Records { "records" } else { "notice" };
        format!(r#"42["{name}",{},"{}"]"#, self.payload, hub.seal_offset(&self.offset))
    }
}

/// Waits for as many forms as expected; these must be exactly those expected.
fn arrived(inbox: &Inbox, expected: &[String]) -> Vec<usize> {
    let until = Instant::now() + PATIENCE;
    while inbox.lock().unwrap().len() < expected.len() {
        assert!(Instant::now() < until, "not all came");
        thread::yield_now();
    }
    let (texts, addresses): (Vec<_>, Vec<_>) = inbox.lock().unwrap().iter().cloned().unzip();
    assert_eq!(texts, expected);
    addresses
}

#[test]
fn two_wires_get_each_event_once_in_order_and_share_one_form_each() {
    let world = World::new();
    let lines: Vec<_> = (0..SUBSCRIBERS).map(|_| world.join(&world.lines, Since::Now)).collect();
    let browsers: Vec<_> = (0..SUBSCRIBERS).map(|_| world.join(&world.socket_io, Since::Now)).collect();
    let owed = world.publish();
    let expected: Vec<_> = owed.iter().map(|owed| owed.line(&world.hub)).collect();
    let mut addresses: Vec<_> = lines.iter().map(|(_, inbox)| arrived(inbox, &expected)).collect();
    addresses.dedup();
    assert_eq!(addresses.len(), 1, "all share the same lines");
    let expected: Vec<_> = owed.iter().map(|owed| owed.packet(&world.hub)).collect();
    let mut addresses: Vec<_> = browsers.iter().map(|(_, inbox)| arrived(inbox, &expected)).collect();
    addresses.dedup();
    assert_eq!(addresses.len(), 1, "all share the same packets");
    assert_eq!(world.made(), [owed.len(); 2]);
}

#[test]
fn a_form_that_no_subscriber_listens_for_is_never_made_and_a_replay_makes_it_once() {
    let world = World::new();
    let start = world.hub.publish(Kind::Notice, "elsewhere", Bytes::from_static(b"null"), Instant::now());
    let since = Since::Return(Return { started: Some(start), served: None });
    let live = world.join(&world.socket_io, Since::Now);
    let owed = world.publish();
    let packets: Vec<_> = owed.iter().map(|owed| owed.packet(&world.hub)).collect();
    let sent = arrived(&live.1, &packets);
    assert_eq!(world.made(), [0, owed.len()]);
    for _ in 0..SUBSCRIBERS {
        let (_returned, inbox) = world.join(&world.socket_io, since);
        assert_eq!(arrived(&inbox, &packets), sent, "what was sent already is sent again as it is");
        let (_returned, inbox) = world.join(&world.lines, since);
        arrived(&inbox, &owed.iter().map(|owed| owed.line(&world.hub)).collect::<Vec<_>>());
    }
    assert_eq!(world.made(), [owed.len(); 2]);
}

#[test]
fn an_offset_from_one_wire_serves_on_the_other() {
    let world = World::new();
    let start = world.hub.publish(Kind::Notice, "elsewhere", Bytes::from_static(b"null"), Instant::now());
    let (membership, inbox) = world.join(&world.socket_io, Since::Now);
    let owed = world.publish();
    arrived(&inbox, &owed.iter().map(|owed| owed.packet(&world.hub)).collect::<Vec<_>>());
    drop(membership);
    let packet = inbox.lock().unwrap()[owed.len() / 2].0.clone();
    let offset = packet.rsplit('"').nth(1).and_then(|text| world.hub.open_offset(text));
    let (_returned, inbox) = world.join(&world.lines, Since::Return(Return { started: Some(start), served: offset }));
    let rest = &owed[owed.len() / 2 + 1..];
    arrived(&inbox, &rest.iter().map(|owed| owed.line(&world.hub)).collect::<Vec<_>>());
}

#[test]
fn a_notice_of_a_gap_is_for_subscribers_that_were_there_before_it() {
    let world = World::new();
    let publish = |kind, payload: &'static str| Owed {
        kind,
        room: screen::room(0),
        payload: payload.to_owned(),
        offset: world.hub.publish(kind, &screen::room(0), Bytes::from_static(payload.as_bytes()), Instant::now()),
    };
    let (_before, before) = world.join(&world.lines, Since::Now);
    world.hub.resume(false);
    let start = publish(Kind::Records, "0");
    let (_after, after) = world.join(&world.lines, Since::Now);
    let lines = [publish(Kind::GapNotice, "1"), publish(Kind::Notice, "2")].map(|owed| owed.line(&world.hub));
    arrived(&before, &[&[start.line(&world.hub)], &lines[..]].concat());
    arrived(&after, &lines[1..]);
    let since = Since::Return(Return { started: Some(start.offset), served: None });
    let (_returned, returned) = world.join(&world.lines, since);
    arrived(&returned, &lines[1..]);
}
