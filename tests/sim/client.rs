//! A client: connects, returns with its session after each loss of its connection as the official client does, and writes
//! down what it gets.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{sleep, sleep_until},
};

use crate::{
    harness::{Connection, Event, Session, WEBSOCKET, WebSocket, large_record},
    model::{Entry, Noted},
    publisher::{Clock, token},
};

/// What happens to a client.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ClientOrder {
    /// It loses its connection, and dials this node after this time.
    Leave { away: Duration, to: usize },
    /// It does not read for this time.
    Stall(Duration),
}

/// Orders that wait: more than a plan has for one client at a time.
pub(crate) const ORDERS: usize = 256;

/// Backoff between two attempts to connect, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// What a client got, shared with the run.
pub(crate) type Transcript = Arc<Mutex<Vec<Noted>>>;

pub(crate) struct Client {
    pub(crate) user: usize,
    pub(crate) narrow: bool,
    /// The node it dials next.
    pub(crate) node: usize,
    pub(crate) nodes: Arc<[SocketAddr]>,
    pub(crate) clock: Clock,
    pub(crate) transcript: Transcript,
    pub(crate) orders: mpsc::Receiver<ClientOrder>,
    pub(crate) session: Option<Session>,
    /// Offsets of events that wait for the welcome. Those of a connection that ended before it stay.
    pub(crate) held: Option<String>,
}

/// Why a connection ended.
enum Parting {
    /// By order.
    Left { away: Duration },
    /// The server, or the way to it.
    Lost,
}

impl Client {
    /// Until it is dropped.
    pub(crate) async fn live(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let welcomes = self.welcomes();
            let parting = self.connect().await;
            self.note(Entry::Ended);
            match parting {
                Parting::Left { away } => sleep(away).await,
                Parting::Lost if self.welcomes() > welcomes => {
                    pause = FIRST_PAUSE;
                    sleep(pause).await;
                }
                Parting::Lost => {
                    // As a balancer does with a node that does not serve.
                    self.node = (self.node + 1) % self.nodes.len();
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn note(&self, entry: Entry) {
        self.transcript.lock().unwrap().push(Noted { at: self.clock.now(), entry });
    }

    fn welcomes(&self) -> usize {
        let transcript = self.transcript.lock().unwrap();
        transcript.iter().filter(|noted| matches!(noted.entry, Entry::Welcome { .. })).count()
    }

    /// One connection from beginning to end.
    async fn connect(&mut self) -> Parting {
        self.note(Entry::Dialled { node: self.node, returns: self.session.is_some() });
        let buffer = self.narrow.then_some(Connection::NARROW);
        let target = format!("{WEBSOCKET}&channel_token={}", token(self.user));
        let Ok(connection) = Connection::dial(self.nodes[self.node], buffer).await else { return Parting::Lost };
        let Ok(mut socket) = WebSocket::upgrade(connection, &target).await else { return Parting::Lost };
        let mut welcome = false;
        let mut stalled = None;
        loop {
            tokio::select! {
                biased;
                Some(order) = self.orders.recv() => match order {
                    ClientOrder::Leave { away, to } => {
                        socket.cut();
                        self.node = to;
                        return Parting::Left { away };
                    }
                    ClientOrder::Stall(time) => stalled = Some(tokio::time::Instant::now() + time),
                },
                () = sleep_until(stalled.unwrap_or_else(tokio::time::Instant::now)), if stalled.is_some() => stalled = None,
                packet = socket.packet_or_ping(), if stalled.is_none() => match packet.as_deref() {
                    Err(_) | Ok("1" | "41") => return Parting::Lost,
                    Ok("2") => socket.send("3").await,
                    Ok(open) if open.starts_with("0{") => {
                        let connect = self.session.as_ref().map_or_else(|| "40".to_owned(), Session::packet);
                        socket.send(connect).await;
                    }
                    Ok(packet) if packet.starts_with("40{") => {
                        self.welcome(&packet[2..]);
                        welcome = true;
                    }
                    Ok(packet) => self.event(packet, welcome),
                },
            }
        }
    }

    fn welcome(&mut self, answer: &str) {
        let answer: serde_json::Value = serde_json::from_str(answer).unwrap();
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        let (sid, pid) = (text("sid"), text("pid"));
        let same = self.session.as_ref().filter(|session| session.pid == pid);
        if same.is_some_and(|session| session.sid != sid) {
            self.note(Entry::Odd(format!("the session goes on with another sid: {sid}")));
        }
        let recovered = same.is_some();
        let known = self.session.take().and_then(|session| session.offset);
        // The official client keeps its offset over the beginning of another session.
        self.session = Some(Session { sid, pid, offset: self.held.take().or(known) });
        self.note(Entry::Welcome { recovered });
    }

    fn event(&mut self, packet: &str, welcome: bool) {
        let Some(event) = Event::parse(packet) else { return self.note(Entry::Odd(packet.to_owned())) };
        match &mut self.session {
            Some(session) if welcome => session.offset = Some(event.offset.clone()),
            _ => self.held = Some(event.offset.clone()),
        }
        if event.name != "session" {
            self.note(read(&event));
        }
    }
}

/// What an event says.
fn read(event: &Event) -> Entry {
    let argument: serde_json::Value = serde_json::from_str(&event.argument).unwrap_or_default();
    if event.name == "notice" && argument["reload"] == true {
        return Entry::Reload;
    }
    let number = argument["records"]["n"].as_u64().and_then(|number| usize::try_from(number).ok());
    let (Some(number), Some(room)) = (number, argument["room"].as_str()) else {
        return Entry::Odd(event.packet.clone());
    };
    let is_whole = event.argument == large_record(room, number, event.argument.len());
    let channel = if room.is_empty() { "notice" } else { "records" };
    if is_whole && event.name == channel {
        Entry::Got { number, room: room.into() }
    } else {
        Entry::Odd(event.packet.clone())
    }
}
