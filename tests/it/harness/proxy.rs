//! A TCP proxy that can fail, to stand in front of Redis.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// What is done to connections, which are numbered from 1.
#[derive(Clone, Copy, Default)]
struct Orders {
    /// The last connection so far.
    newest: u64,
    /// This connection and all before it are closed.
    cut: u64,
    /// Nothing passes through this connection and all before it; they stay open.
    hung: u64,
    /// Nothing passes through those after this one.
    held: Option<u64>,
}

impl Orders {
    fn stops(self, connection: u64) -> bool {
        connection <= self.hung || self.held.is_some_and(|last| connection > last)
    }
}

/// Forwards connections; stops when dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    orders: watch::Sender<Orders>,
    acceptor: JoinSet<()>,
}

impl Proxy {
    /// A proxy to a port of this machine.
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (orders, _) = watch::channel(Orders::default());
        let mut acceptor = JoinSet::new();
        acceptor.spawn(accept(listener, port, orders.clone()));
        Self { address, orders, acceptor }
    }

    /// Closes all connections in order, and the port.
    pub(crate) async fn stop(&mut self) {
        self.cut();
        self.acceptor.shutdown().await;
    }

    /// After that: listens on the same port again, in front of the same port of this machine.
    pub(crate) async fn start_again(&mut self, port: u16) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.acceptor.spawn(accept(listener, port, self.orders.clone()));
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}/0", self.address)
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> u64 {
        self.orders.borrow().newest
    }

    /// Closes all connections there are.
    pub(crate) fn cut(&self) {
        self.orders.send_modify(|orders| orders.cut = orders.newest);
    }

    /// Lets all connections there are hang for ever; later ones work.
    pub(crate) fn hang(&self) {
        self.orders.send_modify(|orders| orders.hung = orders.newest);
    }

    /// Lets later connections hang until [released](Self::release).
    pub(crate) fn hold(&self) {
        self.orders.send_modify(|orders| orders.held = Some(orders.newest));
    }

    /// Lets pass what was held.
    pub(crate) fn release(&self) {
        self.orders.send_modify(|orders| orders.held = None);
    }
}

async fn accept(listener: TcpListener, port: u16, orders: watch::Sender<Orders>) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        let mut number = 0;
        orders.send_modify(|orders| {
            orders.newest += 1;
            number = orders.newest;
        });
        connections.spawn(forward(client, port, number, orders.subscribe()));
        while connections.try_join_next().is_some() {}
    }
}

async fn forward(client: TcpStream, port: u16, number: u64, mut orders: watch::Receiver<Orders>) {
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return };
    let ((client_reads, client_writes), (server_reads, server_writes)) = (client.into_split(), server.into_split());
    let (up, down) = (orders.clone(), orders.clone());
    tokio::select! {
        () = pump(client_reads, server_writes, number, up) => {}
        () = pump(server_reads, client_writes, number, down) => {}
        _ = orders.wait_for(|orders| number <= orders.cut) => {}
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    number: u64,
    mut orders: watch::Receiver<Orders>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let passes = orders.wait_for(|orders| !orders.stops(number)).await.is_ok();
        if !passes || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
