//! A node dies, and all its clients return at once to the other, while messages keep coming.

use std::{io, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use super::{Bench, SMALL};
use crate::{
    load::{Habit, Options},
    redis::To,
    results::Figure,
    servers::{Kind, Server},
    stage::Stage,
};

/// Groups that share the clients and take turns with the messages.
const GROUPS: usize = 200;

const PER_SECOND: u32 = 100;

/// Messages before the node dies, and after everyone is back.
const BEFORE: Duration = Duration::from_secs(2);
const AFTER: Duration = Duration::from_secs(1);

/// Clients that are not back by then count as lost.
const GIVE_UP: Duration = Duration::from_mins(1);

impl Bench {
    pub(super) async fn failover(&mut self, kind: Kind) -> io::Result<()> {
        let clients = self.scale.endurance.returning;
        self.redis.connect().await?.sign_in(0..clients, |user| vec![user % GROUPS]).await?;
        let options = |port| Options { habit: Habit::Insist, ..Options::new(port, clients) };
        let mut stage = Stage::open(kind, self, options).await?;
        let other = Server::start(kind, &self.programs, self.redis.port, 0, &mut stage.rails).await?;
        stage.connect(clients).await?;

        let members = |group: usize| (clients + GROUPS - 1 - group) / GROUPS;
        let start = Instant::now();
        let mut cpu = Duration::ZERO;
        let (mut message, mut due, mut died, mut back) = (0, 0, None::<Instant>, None::<Instant>);
        while back.is_none_or(|back| back.elapsed() < AFTER) {
            sleep_until(start + Duration::from_secs(1) / PER_SECOND * message as u32).await;
            stage.rails.publish(To::Group(message % GROUPS), SMALL).await?;
            due += members(message % GROUPS);
            message += 1;
            match died {
                None if start.elapsed() > BEFORE => {
                    // As a balancer does that sees at once that the node is gone.
                    stage.fleet.turn_to(other.port);
                    stage.fleet.note_restart();
                    stage.server.kill();
                    cpu = other.cpu()?;
                    died = Some(Instant::now());
                }
                Some(died) if back.is_none() => {
                    let tally = stage.fleet.tally();
                    let all = tally.back_count() >= clients && tally.connected() == clients;
                    back = (all || died.elapsed() > GIVE_UP).then(Instant::now);
                    if back.is_some() {
                        cpu = other.cpu()?.saturating_sub(cpu);
                    }
                }
                _ => {}
            }
        }
        // One more for each, to see that they are where they were.
        for group in 0..GROUPS {
            stage.rails.publish(To::Group(group), SMALL).await?;
            due += members(group);
        }
        let undelivered = stage.drain(due as u64, Duration::from_millis(20)).await;
        // What comes twice came after the last that was missing.
        sleep(Duration::from_millis(100)).await;
        other.rss()?;

        let (tally, results) = (stage.fleet.tally(), &mut self.results);
        let times = tally.back();
        let returned = tally.returned.load(Relaxed);
        let mut note = |figure, value| results.note_at(kind, figure, clients, value);
        let at = |part: usize| times.get((times.len() * part).div_ceil(100).saturating_sub(1));
        for (figure, part) in [(Figure::FailoverHalf, 50), (Figure::FailoverP99, 99), (Figure::FailoverAll, 100)] {
            note(figure, at(part).map_or(f64::INFINITY, Duration::as_secs_f64));
        }
        note(Figure::FailoverCpu, cpu.as_secs_f64() * 1e6 / clients as f64);
        note(Figure::FailoverMissing, (clients - tally.connected()) as f64);
        note(Figure::FailoverRecovered, tally.recovered.load(Relaxed) as f64 * 100.0 / returned.max(1) as f64);
        note(Figure::FailoverLost, due as f64 - tally.delivered() as f64);
        note(Figure::FailoverRepeated, tally.repeated.load(Relaxed) as f64);
        note(Figure::FailoverToldToWait, tally.told_to_wait.load(Relaxed) as f64);
        note(Figure::FailoverFailed, (tally.failed.load(Relaxed) + tally.refused.load(Relaxed)) as f64);
        undelivered
    }
}
