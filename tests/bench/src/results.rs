//! What was measured, by figure, size and server.

use std::{collections::BTreeMap, time::Duration};

use crate::{load::Latencies, servers::Kind};

/// A figure; rows of the table are in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Figure {
    Idle,
    Connects,
    SteadySmall,
    SteadySmallP50,
    SteadySmallP99,
    SteadyLarge,
    SteadyLargeP50,
    SteadyLargeP99,
    BurstSmall,
    BurstSmallRate,
    BurstLarge,
    BurstLargeRate,
    Single,
    SingleRate,
    Memory,
    MemoryAfter,
    SocketMemory,
    SocketMemoryAfter,
    AvalancheAll,
    AvalancheHalf,
    AvalancheMissing,
    AvalancheRefused,
    AvalancheFailed,
    Growth,
    RoomsConnect,
    RoomsMemory,
    RoomsDelivery,
    PollingCpu,
    PollingP50,
    PollingP99,
    JitterDelivered,
    JitterRecovered,
    JitterReplayP50,
    JitterReplayP95,
    DeployDelivered,
    DeployTwice,
    DeployRecovered,
    DeployAwayP50,
    DeployAwayP99,
    DeployAwayMost,
    DeployFailed,
    DeployMissing,
    FloodsBefore,
    FloodsPeak,
    FloodsSoon,
    FloodsLeft,
    ChurnConnects,
    ChurnRefused,
    ChurnFailed,
    ChurnCpu,
    ChurnMedian,
    ChurnMedianGrowth,
    ChurnPeak,
    ChurnPeakGrowth,
    FailoverHalf,
    FailoverP99,
    FailoverAll,
    FailoverCpu,
    FailoverMissing,
    FailoverRecovered,
    FailoverLost,
    FailoverRepeated,
    FailoverToldToWait,
    FailoverFailed,
    RestartsServed,
    RestartsLosses,
    RestartsUntold,
    RestartsClosed,
    RestartsMemory,
    RestartsMemoryGrowth,
    RestartsFiles,
    RestartsFilesMore,
    FloodRate,
    FloodAlone,
    FloodElsewhere,
    FloodHere,
    FloodRatio,
    FloodCut,
    FloodLost,
    FloodNewcomers,
    FloodPeak,
}

impl Figure {
    /// What it is, and its unit.
    pub(crate) fn text(self) -> (&'static str, &'static str) {
        match self {
            Self::Idle => ("Memory without clients", "MB"),
            Self::Connects => ("Connects per CPU second, with token lookup", "/s"),
            Self::SteadySmall => ("CPU per delivery, 1 kB at 5/s", "µs"),
            Self::SteadySmallP50 => ("Delivery of 1 kB at 5/s, p50", "ms"),
            Self::SteadySmallP99 => ("Delivery of 1 kB at 5/s, p99", "ms"),
            Self::SteadyLarge => ("CPU per delivery, 20 kB at 5/s", "µs"),
            Self::SteadyLargeP50 => ("Delivery of 20 kB at 5/s, p50", "ms"),
            Self::SteadyLargeP99 => ("Delivery of 20 kB at 5/s, p99", "ms"),
            Self::BurstSmall => ("CPU per delivery, burst of 1 kB", "µs"),
            Self::BurstSmallRate => ("Deliveries per second, burst of 1 kB", "k/s"),
            Self::BurstLarge => ("CPU per delivery, burst of 20 kB", "µs"),
            Self::BurstLargeRate => ("Deliveries per second, burst of 20 kB", "k/s"),
            Self::Single => ("CPU per message to a single user's room", "µs"),
            Self::SingleRate => ("Messages per second to single users' rooms", "k/s"),
            Self::Memory => ("Memory per idle client", "kB"),
            Self::MemoryAfter => ("Memory per client after 50 kB to all", "kB"),
            Self::SocketMemory => ("Kernel's socket memory per client, both ends", "kB"),
            Self::SocketMemoryAfter => ("Kernel's socket memory after 50 kB to all", "kB"),
            Self::AvalancheAll => ("Restart: all clients back in their rooms after", "s"),
            Self::AvalancheHalf => ("Restart: half of them after", "s"),
            Self::AvalancheMissing => ("Restart: clients that never return", "%"),
            Self::AvalancheRefused => ("Restart: attempts before anyone listened", ""),
            Self::AvalancheFailed => ("Restart: attempts that failed otherwise", ""),
            Self::Growth => ("CPU per delivery, one after the other", "µs"),
            Self::RoomsConnect => ("CPU per connect", "µs"),
            Self::RoomsMemory => ("Memory per client", "kB"),
            Self::RoomsDelivery => ("CPU per delivery", "µs"),
            Self::PollingCpu => ("Half polling: CPU per delivery", "µs"),
            Self::PollingP50 => ("Half polling: delivery, p50", "ms"),
            Self::PollingP99 => ("Half polling: delivery, p99", "ms"),
            Self::JitterDelivered => ("Jitter: delivered", "%"),
            Self::JitterRecovered => ("Jitter: returns that continue the session", "%"),
            Self::JitterReplayP50 => ("Jitter: replay after dialling, p50", "ms"),
            Self::JitterReplayP95 => ("Jitter: replay after dialling, p95", "ms"),
            Self::DeployDelivered => ("Deploy: delivered", "%"),
            Self::DeployTwice => ("Deploy: delivered more than once", "%"),
            Self::DeployRecovered => ("Deploy: returns that continue the session", "%"),
            Self::DeployAwayP50 => ("Deploy: without a connection, p50", "s"),
            Self::DeployAwayP99 => ("Deploy: without a connection, p99", "s"),
            Self::DeployAwayMost => ("Deploy: without a connection, longest", "s"),
            Self::DeployFailed => ("Deploy: attempts to connect that failed", ""),
            Self::DeployMissing => ("Deploy: clients not back 10 s after the last message", ""),
            Self::FloodsBefore => ("Floods: memory before, with 200 clients and a full log", "MB"),
            Self::FloodsPeak => ("Floods: memory above that, at most", "MB"),
            Self::FloodsSoon => ("Floods: memory above that, 10 s after all floods", "MB"),
            Self::FloodsLeft => ("Floods: memory above that, within 60 s after all floods", "MB"),
            Self::ChurnConnects => ("Churn: connects", "/s"),
            Self::ChurnRefused => ("Churn: attempts refused with 503 and Retry-After", ""),
            Self::ChurnFailed => ("Churn: attempts that failed otherwise", ""),
            Self::ChurnCpu => ("Churn: CPU, of a core", "%"),
            Self::ChurnMedian => ("Churn: memory in the first half, median", "MB"),
            Self::ChurnMedianGrowth => ("Churn: median of the second half, by that of the first", "×"),
            Self::ChurnPeak => ("Churn: memory in the first half, most", "MB"),
            Self::ChurnPeakGrowth => ("Churn: most of the second half, by that of the first", "×"),
            Self::FailoverHalf => ("Failover: half of the clients back after", "s"),
            Self::FailoverP99 => ("Failover: 99 % of them after", "s"),
            Self::FailoverAll => ("Failover: all of them after", "s"),
            Self::FailoverCpu => ("Failover: CPU of the other node per return", "µs"),
            Self::FailoverMissing => ("Failover: clients that never return", ""),
            Self::FailoverRecovered => ("Failover: returns that continue the session", "%"),
            Self::FailoverLost => ("Failover: deliveries lost", ""),
            Self::FailoverRepeated => ("Failover: deliveries that came twice", ""),
            Self::FailoverToldToWait => ("Failover: attempts refused with 503 and Retry-After", ""),
            Self::FailoverFailed => ("Failover: attempts that failed otherwise", ""),
            Self::RestartsServed => ("Restarts of Redis: everyone is served again after, at most", "s"),
            Self::RestartsLosses => {
                ("Restarts of Redis: those in which Redis took messages before anyone listened", "")
            }
            Self::RestartsUntold => ("Restarts of Redis: losses after which not everyone was told", ""),
            Self::RestartsClosed => ("Restarts of Redis: clients cut", ""),
            Self::RestartsMemory => ("Restarts of Redis: memory after 20", "MB"),
            Self::RestartsMemoryGrowth => ("Restarts of Redis: memory at the end, by that", "×"),
            Self::RestartsFiles => ("Restarts of Redis: open files after 20", ""),
            Self::RestartsFilesMore => ("Restarts of Redis: more open files at the end", ""),
            Self::FloodRate => ("Requests or connections of the flood", "/s"),
            Self::FloodAlone => ("Delivery, p99", "ms"),
            Self::FloodElsewhere => ("Delivery beside the flood at another server, p99", "ms"),
            Self::FloodHere => ("Delivery beside the flood, p99", "ms"),
            Self::FloodRatio => ("Delivery beside the flood, p99, and without", "×"),
            Self::FloodCut => ("Clients cut", ""),
            Self::FloodLost => ("Deliveries lost", ""),
            Self::FloodNewcomers => ("Newcomers in after", "s"),
            Self::FloodPeak => ("Memory added at most", "MB"),
        }
    }

    /// Whether there is one for each flood, and the size is the flood's number: these have a table of their own.
    pub(crate) fn is_by_flood(self) -> bool {
        self >= Self::FloodRate
    }

    /// What the size stands for, for figures that have one.
    pub(crate) fn size(self) -> Option<&'static str> {
        match self {
            Self::Memory | Self::MemoryAfter | Self::SocketMemory | Self::SocketMemoryAfter | Self::Growth => {
                Some("clients")
            }
            Self::FailoverHalf
            | Self::FailoverP99
            | Self::FailoverAll
            | Self::FailoverCpu
            | Self::FailoverMissing
            | Self::FailoverRecovered
            | Self::FailoverLost
            | Self::FailoverRepeated
            | Self::FailoverToldToWait
            | Self::FailoverFailed => Some("clients"),
            Self::RoomsConnect | Self::RoomsMemory | Self::RoomsDelivery => Some("groups each"),
            _ => None,
        }
    }
}

/// The rounds of one figure.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl From<&[f64]> for Samples {
    fn from(values: &[f64]) -> Self {
        Self(values.to_vec())
    }
}

impl Samples {
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            odd if odd % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        }
    }

    pub(crate) fn most(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// Least and most; `None` for a single round.
    pub(crate) fn spread(&self) -> Option<(f64, f64)> {
        let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
        (self.0.len() > 1).then_some((least, self.most()))
    }
}

/// Everything of a run.
#[derive(Default)]
pub(crate) struct Results {
    samples: BTreeMap<(Figure, usize, Kind), Samples>,
    latencies: BTreeMap<Kind, Latencies>,
    returns: BTreeMap<Kind, (usize, Vec<Duration>)>,
    presence: BTreeMap<Kind, Vec<(Duration, f64)>>,
    /// What failed, in words.
    pub(crate) faults: Vec<String>,
}

impl Results {
    pub(crate) fn note(&mut self, kind: Kind, figure: Figure, value: f64) {
        self.note_at(kind, figure, 0, value);
    }

    pub(crate) fn note_at(&mut self, kind: Kind, figure: Figure, size: usize, value: f64) {
        self.samples.entry((figure, size, kind)).or_default().0.push(value);
    }

    /// Latencies of 1 kB at 5/s; rounds are added up.
    pub(crate) fn note_latencies(&mut self, kind: Kind, latencies: &Latencies) {
        let sum = self.latencies.entry(kind).or_insert_with(crate::load::latencies);
        // Both have the same bounds.
        let _ = sum.add(latencies);
    }

    /// When clients were back after a restart, of `all`.
    pub(crate) fn note_returns(&mut self, kind: Kind, all: usize, back: Vec<Duration>) {
        self.returns.insert(kind, (all, back));
    }

    /// Which share of the clients was connected during a deploy, in percent, and when.
    pub(crate) fn note_presence(&mut self, kind: Kind, presence: Vec<(Duration, f64)>) {
        self.presence.insert(kind, presence);
    }

    pub(crate) fn get(&self, kind: Kind, figure: Figure, size: usize) -> Option<&Samples> {
        self.samples.get(&(figure, size, kind))
    }

    /// Median, of the largest size that has one.
    pub(crate) fn median(&self, kind: Kind, figure: Figure) -> Option<f64> {
        let sizes = self.sizes(figure);
        sizes.iter().rev().find_map(|&size| self.get(kind, figure, size)).map(Samples::median)
    }

    /// Figures measured, in the table's order, without those of each flood.
    pub(crate) fn figures(&self) -> Vec<Figure> {
        let figures = self.samples.keys().map(|&(figure, ..)| figure);
        let mut figures: Vec<Figure> = figures.filter(|figure| !figure.is_by_flood()).collect();
        figures.dedup();
        figures
    }

    /// Sizes at which a figure was measured.
    pub(crate) fn sizes(&self, figure: Figure) -> Vec<usize> {
        let mut sizes: Vec<usize> =
            self.samples.keys().filter(|(of, ..)| *of == figure).map(|&(_, size, _)| size).collect();
        sizes.dedup();
        sizes
    }

    pub(crate) fn latencies(&self) -> &BTreeMap<Kind, Latencies> {
        &self.latencies
    }

    pub(crate) fn presence(&self) -> &BTreeMap<Kind, Vec<(Duration, f64)>> {
        &self.presence
    }

    pub(crate) fn returns(&self) -> &BTreeMap<Kind, (usize, Vec<Duration>)> {
        &self.returns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_become_a_median_and_a_spread() {
        let mut results = Results::default();
        for value in [3.0, 1.0, 2.0] {
            results.note(Kind::Ours, Figure::Single, value);
        }
        let samples = results.get(Kind::Ours, Figure::Single, 0).unwrap();
        assert_eq!((samples.median(), samples.spread()), (2.0, Some((1.0, 3.0))));
        results.note_at(Kind::Ours, Figure::Memory, 1_000, 7.0);
        results.note_at(Kind::Ours, Figure::Memory, 15_000, 5.0);
        assert_eq!(results.median(Kind::Ours, Figure::Memory), Some(5.0));
        assert_eq!(results.get(Kind::Ours, Figure::Memory, 1_000).unwrap().spread(), None);
        assert_eq!(results.sizes(Figure::Memory), [1_000, 15_000]);
        assert_eq!(results.figures(), [Figure::Single, Figure::Memory]);
    }
}
