//! A balancer before several nodes: each connection goes to the next node that takes its first request.
//!
//! It asks no node for its health: a refusal, by 503 too, hands the request on to the next node, as `proxy_next_upstream`
//! of nginx and `retry-on` of `HAProxy` do.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::servers::UNAVAILABLE;

/// Longest request that a connection begins with.
const MAX_HEAD: usize = 4 * 1024;

/// Listens until it is dropped.
pub(crate) struct Balancer {
    pub(crate) port: u16,
    _task: JoinSet<()>,
}

impl Balancer {
    /// Before the nodes at these ports.
    pub(crate) async fn start(nodes: impl IntoIterator<Item = u16>) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let mut task = JoinSet::new();
        task.spawn(accept(listener, nodes.into_iter().collect()));
        Ok(Self { port, _task: task })
    }
}

async fn accept(listener: TcpListener, nodes: Arc<[u16]>) {
    let turn = Arc::new(AtomicUsize::new(0));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                connections.spawn(pass(client, Arc::clone(&nodes), Arc::clone(&turn)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Closes the client's connection at once when no node takes it.
async fn pass(mut client: TcpStream, nodes: Arc<[u16]>, turn: Arc<AtomicUsize>) -> io::Result<()> {
    // Small frames must not wait for more.
    client.set_nodelay(true)?;
    let mut request = Vec::with_capacity(512);
    while !request.ends_with(b"\r\n\r\n") {
        if request.len() > MAX_HEAD || client.read_buf(&mut request).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    let first = turn.fetch_add(1, Relaxed);
    for next in 0..nodes.len() {
        let Ok((mut server, status)) = ask(nodes[(first + next) % nodes.len()], &request).await else { continue };
        if status == *UNAVAILABLE {
            continue;
        }
        client.write_all(&status).await?;
        // A connection that ends, ends on both sides.
        return copy_bidirectional(&mut client, &mut server).await.map(drop);
    }
    Ok(())
}

/// Sends a node the request; the answer is read as far as its status.
async fn ask(port: u16, request: &[u8]) -> io::Result<(TcpStream, [u8; UNAVAILABLE.len()])> {
    let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
    server.set_nodelay(true)?;
    server.write_all(request).await?;
    let mut status = [0; UNAVAILABLE.len()];
    server.read_exact(&mut status).await?;
    Ok((server, status))
}
