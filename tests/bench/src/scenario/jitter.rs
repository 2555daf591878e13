//! A bad network: clients are cut every fifteen seconds or so and return two seconds later, while messages keep coming.
//!
//! All servers are measured at the same time, as nothing here is about processor time and each client has little to
//! do. The numbers are those of the well-known test of this kind by the makers of `AnyCable`.

use std::{io, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use super::{Bench, SMALL, milliseconds};
use crate::{
    load::{Habit, Options},
    redis::To,
    results::Figure,
    servers::Kind,
    stage::Stage,
};

/// Between two messages.
const PACE: Duration = Duration::from_millis(500);

/// After the last message everyone is back, and has what it missed, within this time.
const LAST_ONES: Duration = Duration::from_secs(6);

/// How long cuts go on before the first message, so that not all clients are there.
const HEAD_START: Duration = Duration::from_secs(2);

impl Bench {
    pub(super) async fn jitter(&mut self, kinds: &[Kind]) -> io::Result<()> {
        let scale = self.scale.jitter.clone();
        let mut rails = self.redis.connect().await?;
        rails.sign_in(0..scale.clients, |_| vec![0]).await?;
        let mut stages = Vec::new();
        for &kind in kinds {
            let options = |port| Options { habit: Habit::Jitter, ..Options::new(port, scale.clients) };
            let mut stage = Stage::open(kind, self, options).await?;
            stage.connect(scale.clients).await?;
            stages.push(stage);
        }
        for stage in &stages {
            stage.fleet.set_unrest(true);
        }
        sleep(HEAD_START).await;
        let start = Instant::now();
        for message in 0..scale.messages {
            sleep_until(start + PACE * message as u32).await;
            rails.publish(To::Group(0), SMALL).await?;
        }
        for stage in &stages {
            stage.fleet.set_unrest(false);
        }
        let due = (scale.clients * scale.messages) as u64;
        let last = Instant::now();
        while last.elapsed() < LAST_ONES && stages.iter().any(|stage| stage.fleet.tally().delivered() < due) {
            sleep(Duration::from_millis(50)).await;
        }
        for stage in &stages {
            self.judge(stage, due)?;
        }
        Ok(())
    }

    fn judge(&mut self, stage: &Stage, due: u64) -> io::Result<()> {
        let kind = stage.server.kind;
        stage.server.rss()?;
        let tally = stage.fleet.tally();
        let delivered = tally.delivered();
        self.results.note(kind, Figure::JitterDelivered, delivered as f64 * 100.0 / due as f64);
        if kind.recovers() {
            let (returned, recovered) = (tally.returned.load(Relaxed), tally.recovered.load(Relaxed));
            self.results.note(kind, Figure::JitterRecovered, recovered as f64 * 100.0 / returned.max(1) as f64);
            let replay = tally.replay();
            self.results.note(kind, Figure::JitterReplayP50, milliseconds(&replay, 50.0));
            self.results.note(kind, Figure::JitterReplayP95, milliseconds(&replay, 95.0));
        }
        if kind == Kind::Ours && delivered < due {
            return Err(io::Error::other(format!("lost {} of {due} deliveries", due - delivered)));
        }
        Ok(())
    }
}
