//! A deploy: two nodes behind a balancer are replaced one after the other, while messages keep coming.
//!
//! The nodes of every server are ended and started in the same way, which is what Docker does.

use std::{cell::Cell, io, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use super::{Bench, SMALL};
use crate::{
    balancer::Balancer,
    load::{Fleet, Habit, Options},
    redis::{Rails, To},
    results::Figure,
    servers::{Kind, Server},
};

const PER_SECOND: u32 = 100;

/// Messages from one look at how many clients are connected to the next.
const LOOK_EVERY: u32 = PER_SECOND / 10;

/// Who is not back by then, after the last message, is missing.
const LAST_ONES: Duration = Duration::from_secs(10);

/// What was published during a deploy.
struct Published {
    start: Instant,
    /// Messages, of which each room got as many.
    rounds: u64,
    /// Share of the clients that were connected, in percent, since the first message.
    presence: Vec<(Duration, f64)>,
}

impl Bench {
    pub(super) async fn deploy(&mut self, kind: Kind) -> io::Result<()> {
        let (clients, rooms) = (self.scale.deploy.clients, self.scale.deploy.rooms);
        let mut rails = self.redis.connect().await?;
        rails.sign_in(0..clients, |user| vec![user % rooms]).await?;
        let mut nodes = Vec::new();
        for _ in 0..2 {
            nodes.push(Server::start_node(kind, &self.programs, self.redis.port, 0).await?);
        }
        let balancer = Balancer::start(nodes.iter().map(|node| node.port)).await?;
        let options = Options { habit: Habit::Insist, ..Options::new(balancer.port, clients) };
        let mut fleet = Fleet::new(options);
        fleet.grow(clients).await?;
        sleep(self.scale.settle).await;
        fleet.tally().reset();

        let over = Cell::new(false);
        let replace = async {
            let outcome = self.replace(kind, &mut nodes).await;
            over.set(true);
            outcome
        };
        let (published, replaced) = tokio::join!(publish(&mut rails, rooms, &fleet, &over), replace);
        replaced?;
        let mut published = published?;

        let due = published.rounds * clients as u64;
        let last = Instant::now();
        let is_owed = || fleet.tally().delivered() < due || fleet.tally().connected() < clients;
        while last.elapsed() < LAST_ONES && is_owed() {
            sleep(Duration::from_millis(50)).await;
            published.presence.push((published.start.elapsed(), share_connected(&fleet)));
        }
        self.results.note_presence(kind, published.presence);
        self.judge_deploy(kind, &fleet, due)
    }

    async fn replace(&self, kind: Kind, nodes: &mut [Server]) -> io::Result<()> {
        sleep(self.scale.deploy.pause).await;
        for node in nodes {
            node.end().await;
            *node = Server::start_node(kind, &self.programs, self.redis.port, node.port).await?;
            sleep(self.scale.deploy.pause).await;
        }
        Ok(())
    }

    fn judge_deploy(&mut self, kind: Kind, fleet: &Fleet, due: u64) -> io::Result<()> {
        let tally = fleet.tally();
        let (delivered, absences) = (tally.delivered(), tally.absences());
        let returns = (absences.len() as f64).max(1.0);
        let seconds = |percentile: f64| absences.value_at_percentile(percentile) as f64 / 1e6;
        let results = &mut self.results;
        results.note(kind, Figure::DeployDelivered, delivered as f64 * 100.0 / due as f64);
        results.note(kind, Figure::DeployTwice, tally.repeated.load(Relaxed) as f64 * 100.0 / due as f64);
        results.note(kind, Figure::DeployRecovered, tally.recovered.load(Relaxed) as f64 * 100.0 / returns);
        results.note(kind, Figure::DeployAwayP50, seconds(50.0));
        results.note(kind, Figure::DeployAwayP99, seconds(99.0));
        results.note(kind, Figure::DeployAwayMost, seconds(100.0));
        let failed = [&tally.refused, &tally.told_to_wait, &tally.failed].map(|count| count.load(Relaxed) as f64);
        results.note(kind, Figure::DeployFailed, failed.iter().sum());
        results.note(kind, Figure::DeployMissing, (fleet.len() - tally.connected()) as f64);
        if kind == Kind::Ours && delivered < due {
            return Err(io::Error::other(format!("lost {} of {due} deliveries", due - delivered)));
        }
        Ok(())
    }
}

/// Publishes to the rooms in turn until it is `over` and each has got as much.
async fn publish(rails: &mut Rails, rooms: usize, fleet: &Fleet, over: &Cell<bool>) -> io::Result<Published> {
    let (mut rounds, mut presence) = (0, Vec::new());
    let start = Instant::now();
    let mut message = 0;
    while !over.get() {
        for room in 0..rooms {
            sleep_until(start + Duration::from_secs(1) / PER_SECOND * message).await;
            rails.publish(To::Group(room), SMALL).await?;
            if message.is_multiple_of(LOOK_EVERY) {
                presence.push((start.elapsed(), share_connected(fleet)));
            }
            message += 1;
        }
        rounds += 1;
    }
    Ok(Published { start, rounds, presence })
}

/// In percent.
fn share_connected(fleet: &Fleet) -> f64 {
    fleet.tally().connected() as f64 * 100.0 / fleet.len() as f64
}
