//! As many clients as fit: what they take while nothing happens, what stays after something large for all, and what
//! becomes of them when the server dies and comes back.

use std::{io, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

use super::Bench;
use crate::{
    load::{Habit, Options},
    procfs,
    redis::To,
    results::Figure,
    servers::{Kind, Server},
    stage::Stage,
};

/// Text of the message to all.
const BROADCAST: usize = 50_000;

/// What a server means to give back it has given back by then.
const CALM: Duration = Duration::from_secs(2);

/// Clients that are not back by then count as lost.
const GIVE_UP: Duration = Duration::from_secs(40);

/// Clients that may wait for their message to be published.
const ASKING: usize = 1 << 16;

/// Text of a message that tells a client that it is in its room.
const TINY: usize = 16;

impl Bench {
    pub(super) async fn crowd(&mut self, kind: Kind) -> io::Result<()> {
        let sizes = self.scale.crowd.clone();
        let all = sizes.last().copied().unwrap_or_default();
        self.redis.connect().await?.sign_in(0..all, |_| vec![0]).await?;
        let before = procfs::socket_memory()?;
        let (ask, asked) = mpsc::channel(ASKING);
        let options = |port| Options { habit: Habit::Return(ask), ..Options::new(port, all) };
        let mut stage = Stage::open(kind, self, options).await?;
        let sockets = |clients: usize| -> io::Result<f64> {
            Ok(procfs::socket_memory()?.saturating_sub(before) as f64 / 1e3 / clients as f64)
        };
        for size in sizes {
            stage.connect(size).await?;
            self.results.note_at(kind, Figure::Memory, size, stage.memory_per_client()? / 1e3);
            self.results.note_at(kind, Figure::SocketMemory, size, sockets(size)?);
        }
        stage.burst(To::Group(0), BROADCAST, 1).await?;
        sleep(CALM).await;
        self.results.note_at(kind, Figure::MemoryAfter, all, stage.memory_per_client()? / 1e3);
        self.results.note_at(kind, Figure::SocketMemoryAfter, all, sockets(all)?);
        self.avalanche(stage, asked).await
    }

    /// Kills the server under its clients and starts it again at once.
    async fn avalanche(&mut self, mut stage: Stage, asked: mpsc::Receiver<usize>) -> io::Result<()> {
        let Stage { ref fleet, ref mut server, .. } = stage;
        let (kind, port, all) = (server.kind, server.port, fleet.len());
        let answering = Answering(tokio::spawn(answer(asked, self.redis.connect().await?)));
        let tally = fleet.tally();
        // The old one must be gone before the port is free for the new one.
        fleet.note_restart();
        server.kill();
        *server = Server::spawn(kind, &self.programs, self.redis.port, port)?;
        let restarted = Instant::now();
        while tally.back().len() < all && restarted.elapsed() < GIVE_UP {
            sleep(Duration::from_millis(50)).await;
        }
        server.rss()?;
        let back = tally.back();
        let results = &mut self.results;
        results.note(kind, Figure::AvalancheMissing, (all - back.len()) as f64 * 100.0 / all as f64);
        if let Some(half) = back.get(all / 2) {
            results.note(kind, Figure::AvalancheHalf, half.as_secs_f64());
        }
        if let (Some(last), true) = (back.last(), back.len() == all) {
            results.note(kind, Figure::AvalancheAll, last.as_secs_f64());
        }
        results.note(kind, Figure::AvalancheRefused, tally.refused.load(Relaxed) as f64);
        results.note(
            kind,
            Figure::AvalancheFailed,
            (tally.failed.load(Relaxed) + tally.told_to_wait.load(Relaxed)) as f64,
        );
        results.note_returns(kind, all, back);
        drop(answering);
        Ok(())
    }
}

struct Answering(tokio::task::JoinHandle<io::Result<()>>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Publishes to the rooms of the clients that ask.
async fn answer(mut asked: mpsc::Receiver<usize>, mut rails: crate::redis::Rails) -> io::Result<()> {
    let mut users = Vec::new();
    while asked.recv_many(&mut users, 256).await > 0 {
        for &user in &users {
            rails.send(To::User(user), TINY).await?;
        }
        rails.settle(users.len()).await?;
        users.clear();
    }
    Ok(())
}
