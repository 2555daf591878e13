//! What this server promises, against what was measured.

use crate::{
    results::{Figure, Results, Samples},
    servers::Kind,
};

/// A promise and its outcome.
pub(super) struct Outcome {
    pub(super) promise: String,
    pub(super) measured: String,
    pub(super) kept: bool,
}

/// Where a bound comes from.
#[derive(Clone, Copy)]
enum Bound {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// At most so many times what another server takes.
    TimesAtMost(f64, Kind),
    /// At least so many times what another server does.
    TimesAtLeast(f64, Kind),
}

/// Growth that passes for none.
const FLAT: f64 = 1.10;

const PROMISES: [(Figure, Bound); 32] = [
    (Figure::Idle, Bound::AtMost(9.0)),
    (Figure::Memory, Bound::AtMost(3.0)),
    (Figure::MemoryAfter, Bound::AtMost(3.0)),
    (Figure::SteadySmall, Bound::TimesAtMost(1.2, Kind::Probe)),
    (Figure::BurstSmall, Bound::TimesAtMost(0.12, Kind::Node)),
    (Figure::SteadySmallP50, Bound::TimesAtMost(0.5, Kind::Node)),
    (Figure::SteadySmallP99, Bound::TimesAtMost(0.5, Kind::Node)),
    (Figure::SteadySmallP50, Bound::TimesAtMost(1.1, Kind::Probe)),
    (Figure::SteadySmallP99, Bound::TimesAtMost(1.1, Kind::Probe)),
    (Figure::Single, Bound::TimesAtMost(0.2, Kind::Node)),
    (Figure::Connects, Bound::TimesAtLeast(8.0, Kind::Node)),
    (Figure::JitterDelivered, Bound::AtLeast(100.0)),
    (Figure::JitterReplayP95, Bound::AtMost(500.0)),
    (Figure::DeployDelivered, Bound::AtLeast(100.0)),
    (Figure::DeployRecovered, Bound::AtLeast(100.0)),
    (Figure::DeployAwayP99, Bound::AtMost(2.0)),
    (Figure::AvalancheAll, Bound::AtMost(5.0)),
    (Figure::AvalancheMissing, Bound::AtMost(0.0)),
    (Figure::AvalancheFailed, Bound::AtMost(0.0)),
    (Figure::FloodsLeft, Bound::AtMost(20.0)),
    (Figure::ChurnFailed, Bound::AtMost(0.0)),
    (Figure::ChurnMedianGrowth, Bound::AtMost(1.05)),
    (Figure::ChurnPeakGrowth, Bound::AtMost(1.05)),
    (Figure::FailoverP99, Bound::AtMost(5.0)),
    (Figure::FailoverMissing, Bound::AtMost(0.0)),
    (Figure::FailoverRecovered, Bound::AtLeast(100.0)),
    (Figure::FailoverLost, Bound::AtMost(0.0)),
    (Figure::FailoverFailed, Bound::AtMost(0.0)),
    (Figure::RestartsUntold, Bound::AtMost(0.0)),
    (Figure::RestartsClosed, Bound::AtMost(0.0)),
    (Figure::RestartsMemoryGrowth, Bound::AtMost(1.05)),
    (Figure::RestartsFilesMore, Bound::AtMost(0.0)),
];

/// All promises that this run can tell about.
pub(super) fn outcomes(results: &Results) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> =
        PROMISES.iter().filter_map(|&(figure, bound)| outcome(results, figure, bound)).collect();
    outcomes.extend(growth(results));
    outcomes.extend(growth_of_memory(results));
    outcomes.extend(super::floods::outcomes(results));
    outcomes
}

fn outcome(results: &Results, figure: Figure, bound: Bound) -> Option<Outcome> {
    let ours = results.median(Kind::Ours, figure)?;
    let (name, unit) = figure.text();
    let space = if unit.starts_with(['%', '/']) || unit.is_empty() { "" } else { " " };
    let ratio = |kind| results.median(kind, figure).filter(|&other| other > 0.0).map(|other| ours / other);
    let (promise, measured, kept) = match bound {
        Bound::AtMost(most) => (format!("at most {most}{space}{unit}"), ours, ours <= most),
        Bound::AtLeast(least) => (format!("at least {least}{space}{unit}"), ours, ours >= least),
        Bound::TimesAtMost(times, kind) => {
            let ratio = ratio(kind)?;
            (format!("at most {times} × {}", kind.label()), ratio, ratio <= times)
        }
        Bound::TimesAtLeast(times, kind) => {
            let ratio = ratio(kind)?;
            (format!("at least {times} × {}", kind.label()), ratio, ratio >= times)
        }
    };
    let measured = match bound {
        Bound::AtMost(_) | Bound::AtLeast(_) => format!("{measured:.2}{space}{unit}"),
        Bound::TimesAtMost(..) | Bound::TimesAtLeast(..) => format!("{measured:.2} ×"),
    };
    Some(Outcome { promise: format!("{name}: {promise}"), measured, kept })
}

/// The cost of a delivery must not rise with connections: as such, and beyond what the kernel's own part does, which is
/// what the probe shows.
fn growth(results: &Results) -> Vec<Outcome> {
    let sizes = results.sizes(Figure::Growth);
    let (Some(&first), Some(&last)) = (sizes.first(), sizes.last()) else { return Vec::new() };
    let ratio = |kind| {
        let at = |size| results.get(kind, Figure::Growth, size).map(Samples::median);
        Some(at(last)? / at(first)?)
    };
    let outcome = |than: &str, ratio: f64| Outcome {
        promise: format!("CPU per delivery with {last} clients: at most {FLAT} × that with {first}{than}"),
        measured: format!("{ratio:.2} ×"),
        kept: first == last || ratio <= FLAT,
    };
    let ours = ratio(Kind::Ours);
    let beyond = ours.zip(ratio(Kind::Probe)).map(|(ours, probe)| ours / probe);
    ours.map(|ratio| outcome("", ratio))
        .into_iter()
        .chain(beyond.map(|ratio| outcome(", beyond the limit probe's growth", ratio)))
        .collect()
}

/// The memory of each further client must not rise. It is held against that of all the first ones: how much memory a
/// server has to spare after a few clients, and gives to the next, is chance.
fn growth_of_memory(results: &Results) -> Option<Outcome> {
    let sizes = results.sizes(Figure::Memory);
    let [.., first, last] = sizes[..] else { return None };
    let each = |size| results.get(Kind::Ours, Figure::Memory, size).map(Samples::median);
    let all = |size| Some(each(size)? * size as f64);
    let further = (all(last)? - all(first)?) / (last - first) as f64;
    let ratio = further / each(first)?;
    Some(Outcome {
        promise: format!(
            "Memory per further client, from {first} to {last}: at most {FLAT} × that of the first {first}"
        ),
        measured: format!("{ratio:.2} × ({further:.2} kB)"),
        kept: ratio <= FLAT,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_are_held_against_what_others_do() {
        let mut results = Results::default();
        results.note(Kind::Ours, Figure::Single, 4.0);
        assert!(outcomes(&results).is_empty());
        results.note(Kind::Node, Figure::Single, 40.0);
        results.note_at(Kind::Ours, Figure::Growth, 1_000, 5.0);
        results.note_at(Kind::Ours, Figure::Growth, 16_000, 6.0);
        results.note_at(Kind::Probe, Figure::Growth, 1_000, 5.0);
        results.note_at(Kind::Probe, Figure::Growth, 16_000, 6.0);
        let outcomes: Vec<(String, bool)> =
            outcomes(&results).into_iter().map(|outcome| (outcome.measured, outcome.kept)).collect();
        let expected = [("0.10 ×", true), ("1.20 ×", false), ("1.00 ×", true)];
        assert_eq!(outcomes, expected.map(|(measured, kept)| (measured.to_owned(), kept)));
    }

    #[test]
    fn memory_is_flat_when_further_clients_take_no_more() {
        for (last, measured, kept) in [(2.1, "1.07 × (2.15 kB)", true), (2.2, "1.15 × (2.30 kB)", false)] {
            let mut results = Results::default();
            for (size, each) in [(1_000, 4.0), (5_000, 2.0), (15_000, last)] {
                results.note_at(Kind::Ours, Figure::Memory, size, each);
            }
            let outcome = growth_of_memory(&results).unwrap();
            assert_eq!((outcome.measured.as_str(), outcome.kept), (measured, kept));
        }
    }
}
