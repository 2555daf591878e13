//! Strangers that flood a server: which ways there are, and the process that does it.
//!
//! A flood comes from a process of its own, this program started once more, for three reasons. Its descriptors and its
//! memory are not those of the well-behaved clients, whose latencies are measured here. It is killed with whatever it
//! holds. And it can be told to leave the processors to others: a stranger brings a machine of its own, so that a flooder
//! which takes a core away from server and clients would show its own work and not the server's. Hence one thread, run
//! with `nice`, and [`PER_SECOND`]. What the server then does about the flood is at the server's own priority.

mod stranger;

use std::{
    io::{self, BufRead, BufReader},
    process::{ChildStdin, Command, Stdio},
    time::Duration,
};

use clap::{Parser, ValueEnum};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

pub(crate) use self::stranger::run_flood;
use crate::servers::Guard;

/// The argument with which this program is a flood.
pub(crate) const FLOOD: &str = "flood";

/// Requests or connections of a flood per second, at most: what one thread can ask for, and far more than a server of
/// this kind is ever asked.
const PER_SECOND: u32 = 20_000;

/// A flood ends by itself after this long, also when nobody is left to end it.
const LONGEST: Duration = Duration::from_secs(30);

/// How long a flood may take until it begins, and until it says what it did.
const PATIENCE: Duration = Duration::from_secs(15);

/// Added to the flooder's niceness.
const NICENESS: &str = "10";

/// One way to flood a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Flood {
    /// Polling handshakes over one connection
    Handshakes,
    /// Polling handshakes over 50 connections
    Crowd,
    /// Sockets with all but the last byte of a frame of 1 MB
    Frames,
    /// Sockets with a first fragment, and all but the last byte of the next
    Fragments,
    /// POSTs with all but the last byte of their body
    Bodies,
    /// Connections that say nothing
    Silent,
    /// Sockets that are opened, joined and closed
    Churn,
    /// Returns with an old or a made-up offset that do not read what they are given
    Returns,
    /// Pollers of large compressed answers
    Gzip,
}

impl Flood {
    pub(crate) const ALL: [Self; 9] = [
        Self::Handshakes,
        Self::Crowd,
        Self::Frames,
        Self::Fragments,
        Self::Bodies,
        Self::Silent,
        Self::Churn,
        Self::Returns,
        Self::Gzip,
    ];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Handshakes => "polling handshakes over one connection",
            Self::Crowd => "polling handshakes over 50 connections",
            Self::Frames => "500 sockets with an unfinished frame of 1 MB",
            Self::Fragments => "500 sockets with a fragment and an unfinished one",
            Self::Bodies => "500 POSTs with an unfinished body of 1 MB",
            Self::Silent => "5000 silent connections",
            Self::Churn => "sockets opened, joined and closed, 20 at a time",
            Self::Returns => "returns that ask for 7 MB and do not read, 50 at a time",
            Self::Gzip => "100 compressed pollers of 300 kB, five times a second",
        }
    }
}

/// What a flood is told.
#[derive(Clone, Copy, Debug, Parser)]
struct Order {
    flood: Flood,
    /// Of the server.
    port: u16,
    /// Of Redis, for floods that need messages.
    redis: u16,
    /// A user, and all up to [`Flooder::MEMBERS`] after it, who are alone in the group.
    member: usize,
    group: usize,
}

/// A flood under way; ends when dropped.
pub(crate) struct Flooder {
    input: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    began: Instant,
    _process: Guard,
}

impl Flooder {
    /// Members of the group that floods need for themselves.
    pub(crate) const MEMBERS: usize = 100;

    /// Starts `flood` against the server at `port`, and returns when it has begun. `member` is the first of
    /// [`Flooder::MEMBERS`] users with nobody else in `group`.
    pub(crate) async fn start(flood: Flood, port: u16, redis: u16, member: usize, group: usize) -> io::Result<Self> {
        let name = flood.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        let mut command = Command::new("nice");
        command.args(["-n", NICENESS]).arg(std::env::current_exe()?).args([FLOOD, &name]);
        command.args([usize::from(port), usize::from(redis), member, group].map(|number| number.to_string()));
        let mut process = Guard::spawn({
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            command
        })?;
        let (input, Some(output)) = process.pipes() else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let (line, lines) = mpsc::channel(2);
        // Ends with the process.
        std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|text| line.blocking_send(text))
        });
        let mut flooder = Self { input, lines, began: Instant::now(), _process: process };
        flooder.line().await?;
        flooder.began = Instant::now();
        Ok(flooder)
    }

    /// Ends it; returns how many requests or connections it made per second.
    pub(crate) async fn finish(mut self) -> io::Result<f64> {
        let elapsed = self.began.elapsed();
        self.input = None;
        let count: f64 = self.line().await?.parse().map_err(io::Error::other)?;
        Ok(count / elapsed.as_secs_f64())
    }

    async fn line(&mut self) -> io::Result<String> {
        let line = timeout(PATIENCE, self.lines.recv()).await.ok().flatten();
        line.ok_or_else(|| io::Error::other("the flood failed"))
    }
}
