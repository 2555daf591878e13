//! An hour of browsers that come and go: what the server keeps of them must not add up.

use std::{io, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{Bench, SMALL, floods::fill};
use crate::{
    load::{VISITORS, Visits},
    progress::clock,
    redis::To,
    results::{Figure, Samples},
    servers::{Kind, Server},
};

const CONNECTS: u32 = 500;

/// Messages a second to the group in which all visitors are.
const MESSAGES: u32 = 10;
const GROUP: usize = 0;

/// A group without members. Each second it gets so much text that the recovery log, full at the start, stays full when
/// its window has passed: otherwise memory would follow the log.
const NOBODY: usize = 1;
const LOG_PER_SECOND: usize = 50_000;

/// Before memory counts: sessions that were abandoned have begun to end by then.
const WARM_UP: Duration = Duration::from_secs(90);

/// Between two looks at memory.
const LOOK: Duration = Duration::from_secs(10);

/// Every how-manieth look is shown.
const SHOWN: usize = 6;

impl Bench {
    pub(super) async fn churn(&mut self, kind: Kind) -> io::Result<()> {
        let mut rails = self.redis.connect().await?;
        rails.sign_in(0..VISITORS, |_| vec![GROUP]).await?;
        let server = Server::start(kind, &self.programs, self.redis.port, 0, &mut rails).await?;
        fill(&mut rails, NOBODY).await?;
        let visits = Visits::start(server.port, CONNECTS);
        let mut ticks = interval(Duration::from_secs(1) / MESSAGES);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (begun, mut looked, mut resident) = (Instant::now(), Instant::now(), Vec::new());
        let cpu = server.cpu()?;
        let lasts = WARM_UP + self.scale.endurance.churn;
        while begun.elapsed() < lasts {
            for _ in 0..MESSAGES {
                ticks.tick().await;
                rails.publish(To::Group(GROUP), SMALL).await?;
            }
            rails.publish(To::Group(NOBODY), LOG_PER_SECOND).await?;
            if looked.elapsed() < LOOK {
                continue;
            }
            looked = Instant::now();
            let (memory, files) = (server.rss()? as f64 / 1e6, server.files()?);
            if begun.elapsed() > WARM_UP {
                resident.push(memory);
            }
            if resident.len() % SHOWN == 1 {
                eprintln!(
                    "        {}: {memory:.1} MB, {files} open files, {} connects, {} refused, {} failed, {} skipped",
                    clock(begun.elapsed()),
                    visits.connects(),
                    visits.tally().told_to_wait.load(Relaxed),
                    visits.tally().failed.load(Relaxed),
                    visits.skipped(),
                );
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        let (first, second) = resident.split_at(resident.len() / 2);
        let results = &mut self.results;
        results.note(kind, Figure::ChurnConnects, visits.connects() as f64 / seconds);
        results.note(kind, Figure::ChurnFailed, visits.tally().failed.load(Relaxed) as f64);
        results.note(kind, Figure::ChurnRefused, visits.tally().told_to_wait.load(Relaxed) as f64);
        results.note(kind, Figure::ChurnCpu, server.cpu()?.saturating_sub(cpu).as_secs_f64() * 100.0 / seconds);
        let (first, second) = (Samples::from(first), Samples::from(second));
        results.note(kind, Figure::ChurnMedian, first.median());
        results.note(kind, Figure::ChurnPeak, first.most());
        results.note(kind, Figure::ChurnMedianGrowth, second.median() / first.median());
        results.note(kind, Figure::ChurnPeakGrowth, second.most() / first.most());
        Ok(())
    }
}
