//! The line between one node and Redis: a TCP proxy that can be cut, halved, silenced, slowed down and closed.

use std::{net::Ipv4Addr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::sleep,
};

use crate::harness::{free_port, until};

/// What is done to connections, which are numbered from 1.
#[derive(Clone, Copy, Default)]
struct LineOrders {
    /// The last connection so far.
    newest: u64,
    /// This connection and all before it are closed.
    cut: u64,
    /// This connection and all before it are closed in the middle of the next bytes to the node.
    halved: u64,
    /// New connections are closed at once.
    down: bool,
    /// Nothing passes.
    silent: bool,
    /// The port is closed.
    refused: bool,
    /// How much longer everything takes.
    delay: Duration,
    /// Subscriptions that were answered.
    subscriptions: u64,
}

/// What Redis answers to a subscription.
const SUBSCRIBED: &[u8] = b"subscribe\r\n";

/// Forwards connections; stops when dropped.
pub(crate) struct Line {
    port: u16,
    orders: watch::Sender<LineOrders>,
    listening: watch::Receiver<bool>,
    _acceptor: JoinSet<()>,
}

impl Line {
    /// A line to a port of this machine.
    pub(crate) async fn to(port: u16) -> Self {
        let (own, orders) = (free_port(), watch::Sender::default());
        let (listens, listening) = watch::channel(false);
        let mut acceptor = JoinSet::new();
        acceptor.spawn_local(accept(own, port, orders.clone(), listens));
        let line = Self { port: own, orders, listening, _acceptor: acceptor };
        line.refuse(false).await;
        line
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Waits until there is another subscription than these.
    pub(crate) async fn subscribed_since(&self, subscriptions: u64) {
        until("a subscription", async || self.subscriptions() > subscriptions).await;
    }

    /// Subscriptions so far.
    pub(crate) fn subscriptions(&self) -> u64 {
        self.orders.borrow().subscriptions
    }

    /// Closes all connections there are.
    pub(crate) fn cut(&self) {
        self.orders.send_modify(|orders| orders.cut = orders.newest);
    }

    /// Closes all connections there are in the middle of the next bytes to the node.
    pub(crate) fn halve(&self) {
        self.orders.send_modify(|orders| orders.halved = orders.newest);
    }

    /// Whether new connections are closed at once.
    pub(crate) fn down(&self, down: bool) {
        self.orders.send_modify(|orders| orders.down = down);
    }

    /// Whether nothing passes.
    pub(crate) fn silence(&self, silent: bool) {
        self.orders.send_modify(|orders| orders.silent = silent);
    }

    /// How much longer everything takes.
    pub(crate) fn slow(&self, delay: Duration) {
        self.orders.send_modify(|orders| orders.delay = delay);
    }

    /// Whether the port is closed, as Redis' own is while there is no Redis. Connections stay.
    pub(crate) async fn refuse(&self, refused: bool) {
        self.orders.send_modify(|orders| orders.refused = refused);
        let mut listening = self.listening.clone();
        listening.wait_for(|&listening| listening != refused).await.unwrap();
    }
}

async fn accept(own: u16, port: u16, orders: watch::Sender<LineOrders>, listens: watch::Sender<bool>) {
    let mut connections = JoinSet::new();
    let mut changes = orders.subscribe();
    loop {
        changes.wait_for(|orders| !orders.refused).await.unwrap();
        let mut listener = None;
        until("the port of the line", async || {
            listener = TcpListener::bind((Ipv4Addr::LOCALHOST, own)).await.ok();
            listener.is_some()
        })
        .await;
        let listener = listener.unwrap();
        listens.send_replace(true);
        loop {
            let client = tokio::select! {
                biased;
                _ = changes.wait_for(|orders| orders.refused) => break,
                accepted = listener.accept() => accepted.unwrap().0,
            };
            if orders.borrow().down {
                continue;
            }
            orders.send_modify(|orders| orders.newest += 1);
            let number = orders.borrow().newest;
            connections.spawn_local(forward(client, port, number, orders.clone()));
            while connections.try_join_next().is_some() {}
        }
        drop(listener);
        listens.send_replace(false);
    }
}

async fn forward(client: TcpStream, port: u16, number: u64, orders: watch::Sender<LineOrders>) {
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return };
    let ((client_reads, client_writes), (server_reads, server_writes)) = (client.into_split(), server.into_split());
    let mut cut = orders.subscribe();
    tokio::select! {
        () = pump(client_reads, server_writes, &orders, None) => {}
        () = pump(server_reads, client_writes, &orders, Some(number)) => {}
        _ = cut.wait_for(|orders| number <= orders.cut) => {}
    }
}

/// Passes bytes on. To the node, the connection has a `number` and can be halved.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    orders: &watch::Sender<LineOrders>,
    number: Option<u64>,
) {
    let (mut buffer, mut silence) = (vec![0; 64 * 1024], orders.subscribe());
    let mut subscribes = number.is_some();
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let bytes = &buffer[..length];
        let delay = orders.borrow().delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let _ = silence.wait_for(|orders| !orders.silent).await;
        if number.is_some_and(|number| number <= orders.borrow().halved) {
            let _ = to.write_all(&bytes[..length / 2]).await;
            return;
        }
        if to.write_all(bytes).await.is_err() {
            return;
        }
        if subscribes && bytes.windows(SUBSCRIBED.len()).any(|window| window == SUBSCRIBED) {
            subscribes = false;
            orders.send_modify(|orders| orders.subscriptions += 1);
        }
    }
}
