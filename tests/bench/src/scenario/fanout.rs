//! Everyone in one room, then everyone in a room of their own.

use std::io;

use super::{Bench, LARGE, SMALL, milliseconds};
use crate::{load::Options, redis::To, results::Figure, servers::Kind, stage::Stage};

/// Messages before anything counts: what a server compiles or allocates once has happened by then.
const WARM_UP: usize = 5;

const PER_SECOND: u32 = 5;
const ROOM: To = To::Group(0);

impl Bench {
    pub(super) async fn fanout(&mut self, kind: Kind) -> io::Result<()> {
        let scale = self.scale.fanout.clone();
        let clients = scale.clients;
        self.redis.connect().await?.sign_in(0..clients, |_| vec![0]).await?;
        let mut stage = Stage::open(kind, self, |port| Options::new(port, clients)).await?;
        let results = &mut self.results;
        results.note(kind, Figure::Idle, stage.idle as f64 / 1e6);

        let spent = stage.connect(clients).await?;
        if kind.is_complete() {
            results.note(kind, Figure::Connects, clients as f64 / spent.as_secs_f64().max(0.01));
        }
        stage.burst(ROOM, SMALL, WARM_UP).await?;

        let cost = stage.steady(ROOM, SMALL, scale.steady[0], PER_SECOND).await?;
        let latencies = stage.fleet.tally().latency();
        results.note(kind, Figure::SteadySmall, cost.each());
        results.note(kind, Figure::SteadySmallP50, milliseconds(&latencies, 50.0));
        results.note(kind, Figure::SteadySmallP99, milliseconds(&latencies, 99.0));
        results.note_latencies(kind, &latencies);

        let cost = stage.burst(ROOM, SMALL, scale.burst[0]).await?;
        results.note(kind, Figure::BurstSmall, cost.each());
        results.note(kind, Figure::BurstSmallRate, cost.rate() / 1e3);

        let cost = stage.steady(ROOM, LARGE, scale.steady[1], PER_SECOND).await?;
        let latencies = stage.fleet.tally().latency();
        results.note(kind, Figure::SteadyLarge, cost.each());
        results.note(kind, Figure::SteadyLargeP50, milliseconds(&latencies, 50.0));
        results.note(kind, Figure::SteadyLargeP99, milliseconds(&latencies, 99.0));

        let cost = stage.burst(ROOM, LARGE, scale.burst[1]).await?;
        results.note(kind, Figure::BurstLarge, cost.each());
        results.note(kind, Figure::BurstLargeRate, cost.rate() / 1e3);

        let cost = stage.singles(SMALL, scale.single).await?;
        results.note(kind, Figure::Single, cost.each());
        results.note(kind, Figure::SingleRate, cost.rate() / 1e3);
        Ok(())
    }
}
