//! The floods: a table with a row for each, and what is promised beside them.

use std::fmt::Write;

use super::{table::short, targets::Outcome};
use crate::{
    load::Flood,
    results::{Figure, Results, Samples},
    servers::Kind,
};

/// What the columns are, for people.
const NOTE: &str = "\
Strangers flood the server beside 200 clients in one room that get 1 kB at 50/s. Latency without a flood is the median of \
short slices between the floods. The same flood at another server, a process of its own, shows what it costs the machine, \
which server, clients and strangers share; × is p99 beside the flood over the larger of these two. Strangers are another \
process with `nice 10`, 50 addresses and at most 20,000 requests or connections a second. Memory is what came on top of \
that just before the flood: what a server kept from the one before may serve again.";

/// A column per figure.
const COLUMNS: [(&str, Figure); 9] = [
    ("a second", Figure::FloodRate),
    ("p99 alone (ms)", Figure::FloodAlone),
    ("flood at another server (ms)", Figure::FloodElsewhere),
    ("flood at this one (ms)", Figure::FloodHere),
    ("×", Figure::FloodRatio),
    ("cut", Figure::FloodCut),
    ("lost", Figure::FloodLost),
    ("newcomers in after (s)", Figure::FloodNewcomers),
    ("memory at most + (MB)", Figure::FloodPeak),
];

/// What holds beside every flood, at most, and its unit.
const PROMISES: [(&str, Figure, f64, &str); 4] = [
    ("p99 at most 2 × that without it or with it at another server", Figure::FloodRatio, 2.0, "×"),
    ("clients cut: 0", Figure::FloodCut, 0.0, ""),
    ("deliveries lost: 0", Figure::FloodLost, 0.0, ""),
    ("newcomers are in after at most 5 s", Figure::FloodNewcomers, 5.0, "s"),
];

/// All floods in Markdown, for each server that was flooded; medians.
pub(super) fn markdown(results: &Results) -> String {
    let mut text = String::new();
    for kind in Kind::ALL {
        if results.median(kind, Figure::FloodRatio).is_none() {
            continue;
        }
        let _ = write!(text, "| {} beside |", kind.label());
        for (name, _) in COLUMNS {
            let _ = write!(text, " {name} |");
        }
        let _ = writeln!(text, "\n|---|{}", "--:|".repeat(COLUMNS.len()));
        for flood in Flood::ALL {
            let _ = write!(text, "| {} |", flood.label());
            for (_, figure) in COLUMNS {
                let samples = results.get(kind, figure, flood as usize);
                let _ = write!(text, " {} |", samples.map_or_else(|| "–".to_owned(), |samples| cell(figure, samples)));
            }
            text.push('\n');
        }
        text.push('\n');
    }
    if !text.is_empty() {
        let _ = writeln!(text, "{NOTE}\n");
    }
    text
}

/// A client that was cut in one of several rounds was cut.
fn value(figure: Figure, samples: &Samples) -> f64 {
    match figure {
        Figure::FloodCut | Figure::FloodLost | Figure::FloodNewcomers | Figure::FloodPeak => samples.most(),
        _ => samples.median(),
    }
}

fn cell(figure: Figure, samples: &Samples) -> String {
    short(value(figure, samples))
}

/// What is promised beside floods, each held against the flood that comes nearest to breaking it.
pub(super) fn outcomes(results: &Results) -> Vec<Outcome> {
    let outcome = |&(promise, figure, most, unit): &(&str, Figure, f64, &str)| {
        let of = |flood: Flood| Some((value(figure, results.get(Kind::Ours, figure, flood as usize)?), flood.label()));
        let floods = Flood::ALL.into_iter().filter_map(of);
        let (worst, flood) = floods.max_by(|(left, _), (right, _)| left.total_cmp(right))?;
        let space = if unit.is_empty() { "" } else { " " };
        let which = if worst > 0.0 { format!(" ({flood})") } else { String::new() };
        Some(Outcome {
            promise: format!("Beside each flood: {promise}"),
            measured: format!("{worst:.2}{space}{unit}{which}"),
            kept: worst <= most,
        })
    };
    PROMISES.iter().filter_map(outcome).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_flood_decides() {
        let mut results = Results::default();
        assert!(outcomes(&results).is_empty() && markdown(&results).is_empty());
        for (index, (ratio, cut)) in [(1.2, 0.0), (2.5, 0.0), (1.0, 3.0)].into_iter().enumerate() {
            results.note_at(Kind::Ours, Figure::FloodRatio, index, ratio);
            results.note_at(Kind::Ours, Figure::FloodCut, index, cut);
            // Another round in which all was well.
            results.note_at(Kind::Ours, Figure::FloodCut, index, 0.0);
        }
        let outcomes: Vec<(String, bool)> =
            outcomes(&results).into_iter().map(|outcome| (outcome.measured, outcome.kept)).collect();
        let expected = [
            (format!("2.50 × ({})", Flood::ALL[1].label()), false),
            (format!("3.00 ({})", Flood::ALL[2].label()), false),
        ];
        assert_eq!(outcomes, expected);
        let row = format!("| {} | – | – | – | – | 1.20 | 0 | – | – | – |\n", Flood::ALL[0].label());
        assert!(markdown(&results).contains(&row), "{}", markdown(&results));
    }
}
