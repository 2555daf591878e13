//! The table: a row per figure and size, a column per server.

use std::fmt::Write;

use crate::{
    results::{Figure, Results, Samples},
    servers::Kind,
};

/// Servers that have any result, in the usual order.
fn columns(results: &Results) -> Vec<Kind> {
    let measured = |kind: &Kind| {
        let figures = results.figures();
        figures.iter().any(|&figure| results.median(*kind, figure).is_some())
    };
    Kind::ALL.into_iter().filter(measured).collect()
}

/// Figures of the project's README, each at its largest size only.
const MAIN: [Figure; 16] = [
    Figure::Idle,
    Figure::Memory,
    Figure::MemoryAfter,
    Figure::Connects,
    Figure::SteadySmall,
    Figure::SteadySmallP50,
    Figure::SteadySmallP99,
    Figure::BurstSmall,
    Figure::Single,
    Figure::PollingCpu,
    Figure::AvalancheAll,
    Figure::JitterDelivered,
    Figure::JitterReplayP95,
    Figure::DeployDelivered,
    Figure::DeployRecovered,
    Figure::DeployAwayP99,
];

/// All figures in Markdown; medians, with the least and the most where there were several rounds.
pub(super) fn markdown(results: &Results) -> String {
    let rows = results.figures().into_iter().flat_map(|figure| {
        let sizes = results.sizes(figure);
        sizes.into_iter().map(move |size| (figure, size))
    });
    table(results, rows, full)
}

/// The main figures in Markdown; medians.
pub(super) fn summary(results: &Results) -> String {
    let largest = |figure: Figure| results.sizes(figure).last().map(|&size| (figure, size));
    table(results, MAIN.into_iter().filter_map(largest), |samples| short(samples.median()))
}

fn table(results: &Results, rows: impl Iterator<Item = (Figure, usize)>, cell: fn(&Samples) -> String) -> String {
    let kinds = columns(results);
    let mut table = String::from("| |");
    for kind in &kinds {
        let _ = write!(table, " {} |", kind.label());
    }
    let _ = writeln!(table, "\n|---|{}", "--:|".repeat(kinds.len()));
    for (figure, size) in rows {
        let (name, unit) = figure.text();
        let _ = write!(table, "| {name}");
        if let Some(what) = figure.size() {
            let _ = write!(table, ", {} {what}", thousands(size));
        }
        if !unit.is_empty() {
            let _ = write!(table, " ({unit})");
        }
        table.push_str(" |");
        for &kind in &kinds {
            let cell = results.get(kind, figure, size).map_or_else(|| "–".to_owned(), cell);
            let _ = write!(table, " {cell} |");
        }
        table.push('\n');
    }
    table
}

fn full(samples: &Samples) -> String {
    let median = samples.median();
    match samples.spread() {
        Some((least, most)) => format!("{} <sub>{}–{}</sub>", short(median), short(least), short(most)),
        None => short(median),
    }
}

/// Three significant digits, or all before the point.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 9_999.5 => thousands(value.round() as usize),
        whole if whole >= 99.95 || value == 0.0 => format!("{value:.0}"),
        tens if tens >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn thousands(number: usize) -> String {
    let digits = number.to_string();
    if digits.len() < 5 {
        return digits;
    }
    let (head, tail) = digits.split_at(digits.len() - 3);
    format!("{head},{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_become_rows() {
        let mut results = Results::default();
        results.note(Kind::Ours, Figure::Idle, 7.25);
        results.note_at(Kind::Node, Figure::Memory, 15_000, 12.0);
        results.note_at(Kind::Node, Figure::Memory, 15_000, 13.0);
        let expected = "| | loomio-channels | Node |\n|---|--:|--:|\n\
            | Memory without clients (MB) | 7.25 | – |\n\
            | Memory per idle client, 15,000 clients (kB) | – | 12.5 <sub>12.0–13.0</sub> |\n";
        assert_eq!(markdown(&results), expected);
    }

    #[test]
    fn the_summary_has_the_largest_size_and_no_spread() {
        let mut results = Results::default();
        for (size, memory) in [(1_000, 4.0), (15_000, 2.0), (15_000, 3.0)] {
            results.note_at(Kind::Ours, Figure::Memory, size, memory);
        }
        results.note_at(Kind::Ours, Figure::Growth, 1_000, 5.0);
        let expected = "| | loomio-channels |\n|---|--:|\n| Memory per idle client, 15,000 clients (kB) | 2.50 |\n";
        assert_eq!(summary(&results), expected);
    }

    #[test]
    fn numbers_are_short() {
        let numbers = [0.0, 0.123, 9.996, 12.34, 99.96, 1234.5, 12_345.6].map(short);
        assert_eq!(numbers, ["0", "0.12", "10.0", "12.3", "100", "1234", "12,346"]);
    }
}
