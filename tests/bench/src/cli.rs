//! Arguments, and what they teach.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::servers::Kind;

const EXAMPLES: &str = "\
Examples:
  tests/bench/run                                    everything, under 20 minutes; the results of the README
  tests/bench/run --quick                            a first impression, three minutes
  tests/bench/run --only fanout --servers ours,node  one question, two servers
  tests/bench/run --only fanout --rounds 9           the same question, a smaller spread
  tests/bench/run --only failover,redis-restarts     what must hold when things die, four minutes; only when named
  tests/bench/run --only churn                       what must hold for long, an hour; likewise
  tests/bench/run --before old/loomio-channels       what a change costs: both builds in one run

How it measures:
  Every server is a process of its own beside a private Redis, gets the same clients and the same messages, and is
  measured in turn, in every round in another order. Processor time is that of the server's process alone.
  Latency is from publishing to receipt in one process, so with one clock. Clients share the machine with the server,
  as they do for every server here. Messages are numbered and each client's are counted: one lost message fails the run.
  Floods come from a process of its own that leaves the processors to others, and are held against the same flood at
  another server.
  The limit probe does nothing but write prepared frames: what it costs, the kernel costs.

  Close what else works on this machine first: latencies are the first to suffer.

Exit codes: 0 measured, nothing lost; 1 something was lost or failed, see the report; 2 wrong arguments.";

/// Measures this server beside others under the same load; writes a table and pictures
///
/// Results go to tests/bench/results/: README.md and SVG files. With --quick or a selection they go to
/// tests/bench/results/partial/, which is not kept in the repository, so that they never replace the real ones.
#[derive(Debug, Parser)]
#[command(override_usage = "tests/bench/run [OPTIONS]", after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Fewer clients, one round: three minutes instead of twenty
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only these scenarios; some run only when they are named here
    #[arg(long, value_delimiter = ',', value_enum)]
    pub(crate) only: Vec<Topic>,
    /// Only these servers
    #[arg(long, value_delimiter = ',', value_enum)]
    pub(crate) servers: Vec<Kind>,
    /// Binary of an earlier build, measured beside this one; without --servers only these two and the probe are
    #[arg(long, value_name = "BINARY")]
    pub(crate) before: Option<PathBuf>,
    /// Rounds of each scenario, instead of four of the fan-out and one of what takes long and varies little
    #[arg(long)]
    pub(crate) rounds: Option<usize>,
    /// Repository; set by tests/bench/run
    #[arg(long, hide = true)]
    pub(crate) root: PathBuf,
    /// Our binary; set by tests/bench/run
    #[arg(long, hide = true)]
    pub(crate) ours: PathBuf,
}

/// A scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub(crate) enum Topic {
    /// Connecting with token lookup, then one room: 1 kB and 20 kB, steady and in bursts; then single users' rooms
    Fanout,
    /// Memory of 1 k, 5 k and 15 k idle clients, also after 50 kB to all; then the server is killed and restarted
    Crowd,
    /// Cost of a delivery as connections double
    Growth,
    /// Cost of connecting, memory and delivery as the groups of each user double, beyond 200
    Rooms,
    /// Half of the clients poll
    Polling,
    /// Clients are cut every 15 s and return after 2 s, while messages keep coming
    Jitter,
    /// Two nodes behind a balancer are replaced one after the other, while messages keep coming
    Deploy,
    /// Strangers flood this server in every way there is, beside 200 well-behaved clients
    Floods,
    /// Only when named: an hour of 500 connects a second, left in every way, with memory watched
    Churn,
    /// Only when named: 20,000 clients lose their node and return to another at once, while messages keep coming
    Failover,
    /// Only when named: Redis is killed or told to end, and started again, 100 times under load
    RedisRestarts,
}

impl Topic {
    /// What runs when nothing is named.
    pub(crate) const ALL: [Self; 8] =
        [Self::Fanout, Self::Crowd, Self::Growth, Self::Rooms, Self::Polling, Self::Jitter, Self::Deploy, Self::Floods];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Fanout => "fan-out",
            Self::Crowd => "crowd and avalanche",
            Self::Growth => "growth of connections",
            Self::Rooms => "growth of rooms",
            Self::Polling => "half polling",
            Self::Jitter => "jitter",
            Self::Deploy => "deploy",
            Self::Floods => "floods",
            Self::Churn => "churn",
            Self::Failover => "failover",
            Self::RedisRestarts => "restarts of Redis",
        }
    }
}

impl Arguments {
    /// Whether everything was asked for, so that the results may stand for all.
    pub(crate) fn is_complete(&self) -> bool {
        !self.quick && self.only.is_empty() && self.servers.is_empty() && self.before.is_none()
    }

    pub(crate) fn topics(&self) -> Vec<Topic> {
        if self.only.is_empty() {
            Topic::ALL.to_vec()
        } else {
            Topic::value_variants().iter().copied().filter(|topic| self.only.contains(topic)).collect()
        }
    }

    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let wanted = |kind: &Kind| match (kind, &self.before) {
            (Kind::Before, before) => before.is_some(),
            (Kind::Ours | Kind::Probe, Some(_)) if self.servers.is_empty() => true,
            (_, Some(_)) => self.servers.contains(kind),
            (_, None) => self.servers.is_empty() || self.servers.contains(kind),
        };
        Kind::ALL.into_iter().filter(wanted).collect()
    }
}
