//! What is going on, and how long it will still take.

use std::{io, time::Duration};

use tokio::time::Instant;

use crate::{cli::Topic, scenario::Step, servers::Kind};

/// Until steps tell how fast this machine is, weights are taken for seconds.
const TRUST: f64 = 15.0;

pub(crate) struct Progress {
    started: Instant,
    total: f64,
    done: f64,
    count: usize,
    number: usize,
}

impl Progress {
    pub(crate) fn new(steps: &[Step]) -> Self {
        let total = steps.iter().map(|step| step.weight).sum();
        Self { started: Instant::now(), total, done: 0.0, count: steps.len(), number: 0 }
    }

    pub(crate) fn begin(&mut self, step: &Step) -> Instant {
        self.number += 1;
        let who = match step.topic {
            Topic::Jitter => "all at once".to_owned(),
            _ => step.kinds.iter().map(|kind: &Kind| kind.label()).collect::<Vec<_>>().join(", "),
        };
        eprintln!(
            "[{:2}/{}] {}, round {}: {who} ({} elapsed, about {} left)",
            self.number,
            self.count,
            step.topic.label(),
            step.round,
            clock(self.started.elapsed()),
            clock(self.left()),
        );
        Instant::now()
    }

    pub(crate) fn end(&mut self, step: &Step, begun: Instant, outcome: &io::Result<()>) {
        self.done += step.weight;
        if let Err(error) = outcome {
            eprintln!("        FAILED after {}: {error}", clock(begun.elapsed()));
        }
    }

    fn left(&self) -> Duration {
        let speed = (self.started.elapsed().as_secs_f64() + TRUST) / (self.done + TRUST);
        Duration::from_secs_f64((self.total - self.done).max(0.0) * speed)
    }
}

/// Minutes and seconds.
pub(crate) fn clock(duration: Duration) -> String {
    format!("{}:{:02}", duration.as_secs() / 60, duration.as_secs() % 60)
}
