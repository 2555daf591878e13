//! A Rails that answers as it is told, and remembers what it was asked.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::sleep,
};

/// What is done with a request.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// This status, with further header lines, each ended by CRLF.
    Status(u16, &'static str),
    /// These bytes, and the connection is closed.
    Raw(&'static str),
    /// These bytes, one each second.
    Slowly(&'static str),
    /// 200 and a body of this length, as fast as it is taken.
    Body(usize),
    /// Nothing until [`Rails::release`], then this status.
    Later(u16),
    /// Nothing, ever.
    Nothing,
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Asked {
    pub(crate) fn name(&self) -> String {
        self.field("document_name")
    }

    fn field(&self, name: &str) -> String {
        let body: serde_json::Value = serde_json::from_str(&self.body).unwrap();
        body[name].as_str().unwrap().to_owned()
    }
}

type Script = dyn Fn(&Asked) -> Answer + Send + Sync;

struct State {
    script: Mutex<Arc<Script>>,
    asked: Mutex<Vec<Asked>>,
    connections: AtomicUsize,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
    body_bytes: AtomicUsize,
    released: watch::Sender<bool>,
}

/// A scripted Rails. It ends when dropped.
pub(crate) struct Rails {
    address: SocketAddr,
    state: Arc<State>,
    acceptor: Option<JoinSet<()>>,
}

impl Rails {
    /// A Rails that answers every request by what `script` says.
    pub(crate) async fn start(script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let mut rails = Self::down(script);
        rails.up().await;
        rails
    }

    /// A Rails that does not listen yet.
    pub(crate) fn down(script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        // An address of its own, so that the port stays free while it is down: of this process, and a number.
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let [_, _, b, c] = std::process::id().to_be_bytes();
        let d = NEXT.fetch_add(1, Ordering::Relaxed);
        let state = State {
            script: Mutex::new(Arc::new(script)),
            asked: Mutex::default(),
            connections: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
            body_bytes: AtomicUsize::new(0),
            released: watch::Sender::new(false),
        };
        let address = (Ipv4Addr::new(127, b, c, d), 3_000).into();
        Self { address, state: Arc::new(state), acceptor: None }
    }

    /// The value for `PRIVATE_APP_URL`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes what it answers.
    pub(crate) fn script(&self, script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) {
        *self.state.script.lock().unwrap() = Arc::new(script);
    }

    /// Takes its port.
    pub(crate) async fn up(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let mut acceptor = JoinSet::new();
        acceptor.spawn(accept(listener, Arc::clone(&self.state)));
        self.acceptor = Some(acceptor);
    }

    /// Closes its port and all connections, as a restart does.
    pub(crate) async fn stop(&mut self) {
        if let Some(mut acceptor) = self.acceptor.take() {
            acceptor.shutdown().await;
        }
    }

    /// Answers what waits for it, and from then on at once.
    pub(crate) fn release(&self) {
        self.state.released.send_replace(true);
    }

    /// What was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> usize {
        self.state.asked.lock().unwrap().len()
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Requests that wait for their answer.
    pub(crate) fn under_way(&self) -> usize {
        self.state.under_way.load(Ordering::Relaxed)
    }

    /// The most there were at a time.
    pub(crate) fn most_under_way(&self) -> usize {
        self.state.most_under_way.load(Ordering::Relaxed)
    }

    /// Bytes of long bodies that were taken.
    pub(crate) fn body_bytes(&self) -> usize {
        self.state.body_bytes.load(Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        state.connections.fetch_add(1, Ordering::Relaxed);
        let state = Arc::clone(&state);
        connections.spawn(async move {
            // An error is the end of the connection.
            let _ = serve(stream, &state).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Counts a request as under way.
struct UnderWay<'a>(&'a State);

impl<'a> UnderWay<'a> {
    fn begin(state: &'a State) -> Self {
        let now = state.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        state.most_under_way.fetch_max(now, Ordering::Relaxed);
        Self(state)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve(mut stream: TcpStream, state: &State) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(asked) = read(&mut stream, &mut buffer).await? {
        let _under_way = UnderWay::begin(state);
        let script = Arc::clone(&state.script.lock().unwrap());
        let answer = script(&asked);
        state.asked.lock().unwrap().push(asked);
        if !reply(&mut stream, answer, state).await? {
            break;
        }
    }
    Ok(())
}

/// Whether the connection goes on.
async fn reply(stream: &mut TcpStream, answer: Answer, state: &State) -> std::io::Result<bool> {
    match answer {
        Answer::Status(status, headers) => {
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n{headers}\r\n");
            stream.write_all(head.as_bytes()).await?;
            Ok(true)
        }
        Answer::Raw(bytes) => {
            stream.write_all(bytes.as_bytes()).await?;
            Ok(false)
        }
        Answer::Slowly(bytes) => {
            for byte in bytes.as_bytes() {
                stream.write_all(&[*byte]).await?;
                sleep(Duration::from_secs(1)).await;
            }
            Ok(false)
        }
        Answer::Body(length) => {
            stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").as_bytes()).await?;
            let piece = vec![b'x'; 64 * 1024];
            for _ in 0..length / piece.len() {
                stream.write_all(&piece).await?;
                state.body_bytes.fetch_add(piece.len(), Ordering::Relaxed);
            }
            Ok(false)
        }
        Answer::Later(status) => {
            let mut released = state.released.subscribe();
            let mut byte = [0];
            tokio::select! {
                _ = released.wait_for(|released| *released) => {}
                _ = stream.read(&mut byte) => return Ok(false),
            }
            stream.write_all(format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n").as_bytes()).await?;
            Ok(true)
        }
        Answer::Nothing => {
            // Until the client has gone.
            let _ = stream.read(&mut [0]).await;
            Ok(false)
        }
    }
}

/// The next request; `None` when there is none.
async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<Option<Asked>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(buffer[..end].to_vec()).unwrap();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let whole = end + 4 + length.map_or(0, |length| length.parse().unwrap());
            if buffer.len() >= whole {
                let body = String::from_utf8(buffer[end + 4..whole].to_vec()).unwrap();
                buffer.drain(..whole);
                return Ok(Some(Asked { head, body }));
            }
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}
