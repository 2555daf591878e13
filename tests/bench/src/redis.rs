//! A Redis server of our own, and what Rails would write into it.
//!
//! Speaks RESP itself: a publisher must cost as little as possible beside the server that is measured.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::{Instant, sleep},
};

use crate::servers::{Guard, free_port};

/// How long Redis may take to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// A private `redis-server` that keeps nothing on disk; ends when dropped.
pub(crate) struct Redis {
    pub(crate) port: u16,
    directory: PathBuf,
    process: Guard,
}

/// How Redis is stopped.
#[derive(Clone, Copy)]
pub(crate) enum Stop {
    Kill,
    Terminate,
}

impl Redis {
    pub(crate) async fn start(directory: &Path) -> io::Result<Self> {
        let port = free_port()?;
        let process = Self::spawn(directory, port).await?;
        Ok(Self { port, directory: directory.to_owned(), process })
    }

    /// Stops it and waits until it is gone.
    pub(crate) fn stop(&mut self, stop: Stop) {
        match stop {
            Stop::Kill => self.process.kill(),
            Stop::Terminate => self.process.terminate(),
        }
    }

    /// Starts it again at the same port, after [`Redis::stop`].
    pub(crate) async fn start_again(&mut self) -> io::Result<()> {
        self.process = Self::spawn(&self.directory, self.port).await?;
        Ok(())
    }

    async fn spawn(directory: &Path, port: u16) -> io::Result<Guard> {
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(directory).stdin(Stdio::null()).stdout(Stdio::null());
        let process = Guard::spawn(command).map_err(|error| io::Error::other(format!("redis-server: {error}")))?;
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            if started.elapsed() > PATIENCE {
                return Err(io::Error::other("redis-server does not answer"));
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(process)
    }

    pub(crate) async fn connect(&self) -> io::Result<Rails> {
        Rails::connect(self.port).await
    }
}

/// What one message says.
#[derive(Clone, Copy)]
pub(crate) enum To {
    /// A group's room.
    Group(usize),
    /// The room of one user.
    User(usize),
}

/// The writing side: users' tokens and messages. Numbers every message, so that clients can tell what they lack.
pub(crate) struct Rails {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    next: u64,
}

impl Rails {
    /// To the Redis server at `port` of this machine.
    pub(crate) async fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        Ok(Self { reader, writer, next: 1 })
    }

    /// The same after Redis was restarted; numbers go on.
    pub(crate) async fn reconnect(&mut self, port: u16) -> io::Result<()> {
        *self = Self { next: self.next, ..Self::connect(port).await? };
        Ok(())
    }

    /// The number of the next message.
    pub(crate) fn next_number(&self) -> u64 {
        self.next
    }

    /// Writes the tokens of `users`, each a member of the groups that `groups` names.
    pub(crate) async fn sign_in(
        &mut self,
        users: std::ops::Range<usize>,
        groups: impl Fn(usize) -> Vec<usize>,
    ) -> io::Result<()> {
        let count = users.len();
        let mut batch = Vec::new();
        for user in users {
            let groups: Vec<String> = groups(user).iter().map(ToString::to_string).collect();
            let value = format!(r#"{{"name":"User {user}","group_ids":[{}],"id":{user}}}"#, groups.join(","));
            command(&mut batch, &[b"SET", format!("/current_users/{}", token(user)).as_bytes(), value.as_bytes()]);
        }
        // Answers are five bytes each and fit the socket's buffers only up to a point, so read while writing.
        let mut answers = vec![0; count * b"+OK\r\n".len()];
        let (written, read) = tokio::join!(self.writer.write_all(&batch), self.reader.read_exact(&mut answers));
        written.and(read.map(|_| ()))
    }

    /// Publishes `size` bytes of text to a room and waits until Redis has taken them.
    pub(crate) async fn publish(&mut self, to: To, size: usize) -> io::Result<u64> {
        let sent = self.send(to, size).await?;
        self.settle(1).await?;
        Ok(sent)
    }

    /// Publishes without waiting: follow with [`Rails::settle`].
    pub(crate) async fn send(&mut self, to: To, size: usize) -> io::Result<u64> {
        let text: String = ('a'..='z').cycle().take(size).collect();
        self.send_text(to, &text).await
    }

    /// Publishes this text without waiting. It must not need escapes.
    pub(crate) async fn send_text(&mut self, to: To, text: &str) -> io::Result<u64> {
        let number = self.next;
        self.next += 1;
        let mut bytes = Vec::with_capacity(text.len() + 256);
        command(&mut bytes, &[b"PUBLISH", b"/records", payload(to, number, text).as_bytes()]);
        self.writer.write_all(&bytes).await?;
        Ok(number)
    }

    /// Reads the answers to `count` publishes.
    pub(crate) async fn settle(&mut self, count: usize) -> io::Result<()> {
        let mut lines = 0;
        let mut buffer = [0; 4096];
        while lines < count {
            match self.reader.read(&mut buffer).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => lines += count_lines(&buffer[..read]),
            }
        }
        Ok(())
    }

    /// Deletes what an earlier server kept of the messages, so that the next one begins without.
    pub(crate) async fn forget(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        command(&mut bytes, &[b"DEL", b"loomio-channels:recovery"]);
        self.writer.write_all(&bytes).await?;
        self.settle(1).await
    }

    /// Whether anyone listens to what Rails publishes.
    pub(crate) async fn has_listener(&mut self) -> io::Result<bool> {
        let mut bytes = Vec::new();
        command(&mut bytes, &[b"PUBSUB", b"NUMSUB", b"/records"]);
        self.writer.write_all(&bytes).await?;
        let mut answer = Vec::new();
        while count_lines(&answer) < 4 {
            let mut buffer = [0; 256];
            match self.reader.read(&mut buffer).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => answer.extend_from_slice(&buffer[..read]),
            }
        }
        Ok(!answer.ends_with(b":0\r\n"))
    }
}

fn count_lines(bytes: &[u8]) -> usize {
    bytes.split(|&byte| byte == b'\n').count() - 1
}

/// The channel token of a user.
pub(crate) fn token(user: usize) -> String {
    format!("token-{user}")
}

/// Microseconds since 1970: what latencies are measured with, in one process.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// A record as Rails writes it, with the message's number and the time.
fn payload(to: To, number: u64, text: &str) -> String {
    let room = match to {
        To::Group(group) => format!("group-{group}"),
        To::User(user) => format!("user-{user}"),
    };
    let at = now();
    format!(
        r#"{{"room":"{room}","records":{{"events":[{{"id":{number},"t":{at},"kind":"new_comment"}}],"comments":[{{"id":{number},"body":"{text}","author_id":789}}]}}}}"#
    )
}

fn command(into: &mut Vec<u8>, parts: &[&[u8]]) {
    into.extend_from_slice(format!("*{}\r\n", parts.len()).as_bytes());
    for part in parts {
        into.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        into.extend_from_slice(part);
        into.extend_from_slice(b"\r\n");
    }
}
