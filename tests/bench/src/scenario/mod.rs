//! The scenarios: what is done to a server, and which figures come of it.

mod churn;
mod crowd;
mod deploy;
mod failover;
mod fanout;
mod floods;
mod growth;
mod jitter;
mod polling;
mod restarts;

use std::io;

use crate::{
    cli::Topic,
    load::Latencies,
    redis::Redis,
    results::Results,
    scale::Scale,
    servers::{Kind, Programs},
};

/// Sizes of the text in a message.
const SMALL: usize = 1_000;
const LARGE: usize = 20_000;

/// What all scenarios need.
pub(crate) struct Bench {
    pub(crate) programs: Programs,
    pub(crate) redis: Redis,
    pub(crate) scale: Scale,
    pub(crate) results: Results,
}

/// One thing to run: a scenario on a server, or on all at once.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) topic: Topic,
    pub(crate) round: usize,
    /// Several where they are measured together.
    pub(crate) kinds: Vec<Kind>,
    /// Seconds it takes, roughly.
    pub(crate) weight: f64,
}

/// All steps, so that the servers take turns, each round in another order.
pub(crate) fn plan(topics: &[Topic], kinds: &[Kind], rounds: Option<usize>, scale: &Scale) -> Vec<Step> {
    let mut steps = Vec::new();
    for &topic in topics {
        let fits = |kind: &Kind| match topic {
            Topic::Rooms | Topic::Polling | Topic::Jitter => kind.is_complete(),
            Topic::Deploy => kind.has_nodes(),
            // What others promise nothing about need not be shown to break them.
            Topic::Floods | Topic::Churn | Topic::Failover | Topic::RedisRestarts => *kind == Kind::Ours,
            _ => true,
        };
        let mut order: Vec<Kind> = kinds.iter().copied().filter(fits).collect();
        if order.is_empty() {
            continue;
        }
        for round in 1..=rounds.unwrap_or(if topic == Topic::Fanout { scale.rounds } else { 1 }) {
            if topic == Topic::Jitter {
                let weight = scale.jitter.messages as f64 / 2.0 + 8.0;
                steps.push(Step { topic, round, kinds: order.clone(), weight });
                continue;
            }
            let step =
                |&kind: &Kind| Step { topic, round, kinds: vec![kind], weight: scale.pace * weight(topic, kind) };
            steps.extend(order.iter().map(step));
            order.rotate_left(1);
        }
    }
    steps
}

fn weight(topic: Topic, kind: Kind) -> f64 {
    let slow = if kind == Kind::Node && topic != Topic::Deploy { 2.0 } else { 1.0 };
    slow * match topic {
        Topic::Fanout | Topic::Growth => 16.0,
        Topic::Crowd => 20.0,
        Topic::Rooms => 18.0,
        Topic::Polling => 11.0,
        Topic::Jitter => 70.0,
        Topic::Floods => 105.0,
        Topic::Churn => 3_700.0,
        Topic::Deploy | Topic::Failover => 30.0,
        Topic::RedisRestarts => 300.0,
    }
}

impl Bench {
    pub(crate) async fn run(&mut self, step: &Step) -> io::Result<()> {
        if step.topic == Topic::Jitter {
            return self.jitter(&step.kinds).await;
        }
        for &kind in &step.kinds {
            match step.topic {
                Topic::Fanout => self.fanout(kind).await?,
                Topic::Crowd => self.crowd(kind).await?,
                Topic::Growth => self.growth(kind).await?,
                Topic::Rooms => self.rooms(kind).await?,
                Topic::Polling => self.polling(kind).await?,
                Topic::Deploy => self.deploy(kind).await?,
                Topic::Floods => self.floods(kind).await?,
                Topic::Churn => self.churn(kind).await?,
                Topic::Failover => self.failover(kind).await?,
                Topic::RedisRestarts => self.restarts(kind).await?,
                Topic::Jitter => {}
            }
        }
        Ok(())
    }
}

fn milliseconds(latencies: &Latencies, percentile: f64) -> f64 {
    latencies.value_at_percentile(percentile) as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_take_turns() {
        let steps =
            plan(&[Topic::Fanout, Topic::Jitter], &[Kind::Ours, Kind::Node, Kind::Probe], Some(2), &Scale::quick());
        let kinds: Vec<&[Kind]> = steps.iter().map(|step| step.kinds.as_slice()).collect();
        let (ours, node, probe) = (&[Kind::Ours][..], &[Kind::Node][..], &[Kind::Probe][..]);
        let both = &[Kind::Ours, Kind::Node][..];
        assert_eq!(kinds, [ours, node, probe, node, probe, ours, both, both]);
    }
}
