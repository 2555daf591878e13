//! Half of the clients poll, as where a proxy lets no WebSocket through.

use std::io;

use super::{Bench, SMALL, milliseconds};
use crate::{load::Options, redis::To, results::Figure, servers::Kind, stage::Stage};

const HALF: usize = 5;
const PER_SECOND: u32 = 5;

impl Bench {
    pub(super) async fn polling(&mut self, kind: Kind) -> io::Result<()> {
        let scale = self.scale.polling.clone();
        self.redis.connect().await?.sign_in(0..scale.clients, |_| vec![0]).await?;
        let options = |port| Options { polling_of_ten: HALF, ..Options::new(port, scale.clients) };
        let mut stage = Stage::open(kind, self, options).await?;
        stage.connect(scale.clients).await?;
        stage.steady(To::Group(0), SMALL, 5, PER_SECOND).await?;
        let cost = stage.steady(To::Group(0), SMALL, scale.messages, PER_SECOND).await?;
        let latencies = stage.fleet.tally().latency();
        self.results.note(kind, Figure::PollingCpu, cost.each());
        self.results.note(kind, Figure::PollingP50, milliseconds(&latencies, 50.0));
        self.results.note(kind, Figure::PollingP99, milliseconds(&latencies, 99.0));
        Ok(())
    }
}
