//! Redis is killed and started again, many times, under load. Each time everyone is served again; whoever may have missed
//! something is told; and nothing adds up in the server.
//!
//! This Redis keeps nothing on disk, so that keys and the stream are gone each time as well. Rails writes its keys again.

use std::{io, sync::atomic::Ordering::Relaxed, time::Duration};

use rand::RngExt;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Bench, SMALL, floods::fill};
use crate::{
    load::{Habit, Options, Tally},
    redis::{Stop, To},
    results::{Figure, Samples},
    servers::Kind,
    stage::Stage,
};

const CLIENTS: usize = 500;

/// The group of everyone; then groups that share the clients; then one without members.
const EVERYONE: usize = 0;
const GROUPS: usize = 10;
const NOBODY: usize = GROUPS + 1;

const PER_SECOND: u32 = 200;

/// How long messages come before Redis is stopped, and how long it is away, in milliseconds.
const RUNS: std::ops::Range<u64> = 500..1_000;
const AWAY: std::ops::Range<u64> = 0..1_000;

/// Everyone is served again by then, or the server has failed.
const GIVE_UP: Duration = Duration::from_secs(20);

/// Between two messages that look whether everyone is served.
const LOOK: Duration = Duration::from_millis(50);

/// Notices of gaps come at least this far apart; the last has come by then.
const LAST_NOTICE: Duration = Duration::from_secs(15);

/// After this many restarts memory is held against that at the end; a look is the median of the last few.
const SETTLED: usize = 20;
const FEW: usize = 5;

impl Bench {
    pub(super) async fn restarts(&mut self, kind: Kind) -> io::Result<()> {
        let options = |port| Options { habit: Habit::Insist, ..Options::new(port, CLIENTS) };
        let sign_in = |user: usize| vec![EVERYONE, 1 + user % GROUPS];
        self.redis.connect().await?.sign_in(0..CLIENTS, sign_in).await?;
        let mut stage = Stage::open(kind, self, options).await?;
        fill(&mut stage.rails, NOBODY).await?;
        stage.connect(CLIENTS).await?;
        let (mut memory, mut files, mut slowest) = (Vec::new(), Vec::new(), Duration::ZERO);
        // Notices that all clients had when the last loss was seen.
        let (mut losses, mut notices_at_loss) = (0, None);
        for number in 1..=self.scale.endurance.restarts {
            stage.fleet.tally().reset();
            let mut due = 0;
            let (runs, away) = (rand::rng().random_range(RUNS), rand::rng().random_range(AWAY));
            let stop = if number % 2 == 1 { Stop::Kill } else { Stop::Terminate };
            let notices = told(stage.fleet.tally());
            tokio::join!(publish(&mut stage, &mut due), async {
                sleep(Duration::from_millis(runs)).await;
                self.redis.stop(stop);
            });
            sleep(Duration::from_millis(away)).await;
            self.redis.start_again().await?;
            stage.rails.reconnect(self.redis.port).await?;
            stage.rails.sign_in(0..CLIENTS, sign_in).await?;
            let started = Instant::now();
            // In every other pair of restarts Rails publishes nothing before the server has subscribed.
            while number % 4 < 2 && !stage.rails.has_listener().await? && started.elapsed() < GIVE_UP {
                sleep(LOOK).await;
            }
            served(&mut stage, &mut due, number).await?;
            slowest = slowest.max(started.elapsed());
            if stage.fleet.tally().delivered() < due {
                losses += 1;
                notices_at_loss = Some(notices);
            }
            memory.push(stage.server.rss()? as f64 / 1e6);
            files.push(stage.server.files()? as f64);
            if number % 10 == 0 {
                let (memory, files) = (memory[number - 1], files[number - 1]);
                let told = told(stage.fleet.tally());
                eprintln!(
                    "        {number} restarts: {memory:.1} MB, {files} open files, lost something in {losses}, told {told} times"
                );
            }
        }
        let waiting = Instant::now();
        while notices_at_loss.is_some_and(|then| told(stage.fleet.tally()) <= then) && waiting.elapsed() < LAST_NOTICE {
            sleep(LOOK).await;
        }
        let tally = stage.fleet.tally();
        let untold = notices_at_loss.is_some_and(|then| told(tally) <= then);
        let closed = tally.closed.load(Relaxed);
        let at = |looks: &[f64], count: usize| {
            let end = count.min(looks.len());
            Samples::from(&looks[end.saturating_sub(FEW)..end]).median()
        };
        let results = &mut self.results;
        results.note(kind, Figure::RestartsServed, slowest.as_secs_f64());
        results.note(kind, Figure::RestartsLosses, f64::from(losses));
        results.note(kind, Figure::RestartsUntold, f64::from(u8::from(untold)));
        results.note(kind, Figure::RestartsClosed, closed as f64);
        results.note(kind, Figure::RestartsMemory, at(&memory, SETTLED));
        results.note(kind, Figure::RestartsMemoryGrowth, at(&memory, memory.len()) / at(&memory, SETTLED));
        results.note(kind, Figure::RestartsFiles, at(&files, SETTLED));
        results.note(kind, Figure::RestartsFilesMore, at(&files, files.len()) - at(&files, SETTLED));
        Ok(())
    }
}

/// Notices that every client has had.
fn told(tally: &Tally) -> u64 {
    tally.notices.load(Relaxed) / CLIENTS as u64
}

/// Publishes to the groups in turn until Redis is gone; `due` grows by the deliveries of what Redis has taken.
async fn publish(stage: &mut Stage, due: &mut u64) {
    let start = Instant::now();
    for message in 0_usize.. {
        sleep_until(start + Duration::from_secs(1) / PER_SECOND * message as u32).await;
        if stage.rails.publish(To::Group(1 + message % GROUPS), SMALL).await.is_err() {
            return;
        }
        *due += (CLIENTS / GROUPS) as u64;
    }
}

/// Publishes to everyone until everyone has one of these messages, and so all that was sent before.
async fn served(stage: &mut Stage, due: &mut u64, restart: usize) -> io::Result<()> {
    let (tally, begun) = (stage.fleet.tally(), Instant::now());
    tally.raise_fence(stage.rails.next_number());
    while tally.beyond_fence() < CLIENTS {
        if begun.elapsed() > GIVE_UP {
            let missing = CLIENTS - tally.beyond_fence();
            return Err(io::Error::other(format!("{missing} clients are not served after restart {restart}")));
        }
        stage.rails.publish(To::Group(EVERYONE), SMALL).await?;
        *due += CLIENTS as u64;
        sleep(LOOK).await;
    }
    // The last of these messages is on its way to some.
    tally.raise_fence(stage.rails.next_number());
    stage.rails.publish(To::Group(EVERYONE), SMALL).await?;
    *due += CLIENTS as u64;
    while tally.beyond_fence() < CLIENTS && begun.elapsed() < GIVE_UP {
        sleep(LOOK).await;
    }
    Ok(())
}
