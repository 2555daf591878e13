//! The table: a row per figure and size, a column per server.

use std::fmt::Write;

use crate::{
    results::{Results, Samples},
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

/// Markdown; medians, with the least and the most where there were several rounds.
pub(super) fn markdown(results: &Results) -> String {
    let kinds = columns(results);
    let mut table = String::from("| |");
    for kind in &kinds {
        let _ = write!(table, " {} |", kind.label());
    }
    let _ = writeln!(table, "\n|---|{}", "--:|".repeat(kinds.len()));
    for figure in results.figures() {
        let (name, unit) = figure.text();
        for size in results.sizes(figure) {
            table.push_str("| ");
            table.push_str(name);
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
    }
    table
}

fn cell(samples: &Samples) -> String {
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
    use crate::results::Figure;

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
    fn numbers_are_short() {
        let numbers = [0.0, 0.123, 9.996, 12.34, 99.96, 1234.5, 12_345.6].map(short);
        assert_eq!(numbers, ["0", "0.12", "10.0", "12.3", "100", "1234", "12,346"]);
    }
}
