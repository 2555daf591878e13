//! One server with its clients and a publisher: the things every scenario does to them.

use std::{io, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    load::{Fleet, Options},
    redis::{Rails, To},
    scenario::Bench,
    servers::{Kind, Server},
};

/// A server that delivers nothing for this long, while something is due, has lost it.
const SILENCE: Duration = Duration::from_secs(8);

/// Messages of single users under way at the same time: enough to keep the server busy, and far from the backlog at
/// which Redis drops a slow subscriber.
const WINDOW: u64 = 4_000;

/// Messages published before Redis' answers are read.
const PIPELINE: usize = 500;

/// What a server spent on a number of deliveries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) cpu: Duration,
    pub(crate) elapsed: Duration,
    pub(crate) deliveries: u64,
}

impl Cost {
    /// Microseconds of processor time per delivery.
    pub(crate) fn each(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.deliveries.max(1) as f64
    }

    /// Deliveries per second.
    pub(crate) fn rate(&self) -> f64 {
        self.deliveries as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

pub(crate) struct Stage {
    // Clients go first, so that they do not see the server's end.
    pub(crate) fleet: Fleet,
    pub(crate) server: Server,
    pub(crate) rails: Rails,
    /// Memory before the first client, in bytes.
    pub(crate) idle: u64,
    settle: Duration,
}

impl Stage {
    /// Starts `kind` for users whose tokens have been written.
    pub(crate) async fn open(kind: Kind, bench: &Bench, options: impl FnOnce(u16) -> Options) -> io::Result<Self> {
        let settle = bench.scale.settle;
        let mut rails = bench.redis.connect().await?;
        rails.forget().await?;
        let server = Server::start(kind, &bench.programs, bench.redis.port, 0, &mut rails).await?;
        sleep(settle).await;
        let idle = server.rss()?;
        let fleet = Fleet::new(options(server.port));
        Ok(Self { fleet, server, rails, idle, settle })
    }

    /// Connects clients until there are `count`; returns the processor time that took.
    pub(crate) async fn connect(&mut self, count: usize) -> io::Result<Duration> {
        let before = self.server.cpu()?;
        self.fleet.grow(count).await?;
        let spent = self.server.cpu()?.saturating_sub(before);
        sleep(self.settle).await;
        Ok(spent)
    }

    /// Publishes to one room at `per_second`, and waits until everyone has everything.
    pub(crate) async fn steady(&mut self, to: To, size: usize, count: usize, per_second: u32) -> io::Result<Cost> {
        let members = self.fleet.len() as u64;
        self.measure(async |stage| {
            let start = Instant::now();
            for message in 0..count {
                sleep_until(start + Duration::from_secs(1) / per_second * message as u32).await;
                stage.rails.publish(to, size).await?;
            }
            Ok(members * count as u64)
        })
        .await
    }

    /// Publishes as fast as Redis takes it.
    pub(crate) async fn burst(&mut self, to: To, size: usize, count: usize) -> io::Result<Cost> {
        let members = self.fleet.len() as u64;
        self.measure(async |stage| {
            for _ in 0..count {
                stage.rails.send(to, size).await?;
            }
            stage.rails.settle(count).await?;
            Ok(members * count as u64)
        })
        .await
    }

    /// Publishes the next message when all `members` of the room of the one before have it.
    pub(crate) async fn lockstep(
        &mut self,
        to: impl Fn(usize) -> To,
        members: u64,
        size: usize,
        count: usize,
    ) -> io::Result<Cost> {
        self.measure(async |stage| {
            for message in 0..count {
                stage.rails.publish(to(message), size).await?;
                stage.drain(members * (message as u64 + 1), Duration::from_micros(300)).await?;
            }
            Ok(members * count as u64)
        })
        .await
    }

    /// Publishes to single users in turn, as fast as the server delivers.
    pub(crate) async fn singles(&mut self, size: usize, count: usize) -> io::Result<Cost> {
        let users = self.fleet.len();
        self.measure(async |stage| {
            let mut sent = 0;
            while sent < count {
                let pipeline = PIPELINE.min(count - sent);
                for message in sent..sent + pipeline {
                    // A prime, so that neighbours in time are not neighbours in the server's tables.
                    stage.rails.send(To::User(message * 7_919 % users), size).await?;
                }
                stage.rails.settle(pipeline).await?;
                sent += pipeline;
                stage.drain((sent as u64).saturating_sub(WINDOW), Duration::from_millis(1)).await?;
            }
            Ok(count as u64)
        })
        .await
    }

    /// Processor and clock time until what `publish` says is due has been delivered.
    async fn measure(&mut self, publish: impl AsyncFnOnce(&mut Self) -> io::Result<u64>) -> io::Result<Cost> {
        self.fleet.tally().reset();
        let (cpu, started) = (self.server.cpu()?, Instant::now());
        let deliveries = publish(self).await?;
        self.drain(deliveries, Duration::from_millis(2)).await?;
        Ok(Cost { cpu: self.server.cpu()?.saturating_sub(cpu), elapsed: started.elapsed(), deliveries })
    }

    /// Waits until `due` messages have been delivered.
    pub(crate) async fn drain(&self, due: u64, look_every: Duration) -> io::Result<()> {
        let tally = self.fleet.tally();
        let (mut seen, mut since) = (tally.delivered(), Instant::now());
        while seen < due {
            sleep(look_every).await;
            let now = tally.delivered();
            if now != seen {
                (seen, since) = (now, Instant::now());
            } else if since.elapsed() > SILENCE {
                let left = tally.closed.load(std::sync::atomic::Ordering::Relaxed);
                return Err(io::Error::other(format!(
                    "lost {} of {due} deliveries, {left} clients dropped",
                    due - seen
                )));
            }
        }
        Ok(())
    }

    /// Memory beyond that of the idle server, per connected client, in bytes.
    pub(crate) fn memory_per_client(&self) -> io::Result<f64> {
        Ok((self.server.rss()? as f64 - self.idle as f64) / self.fleet.len().max(1) as f64)
    }
}
