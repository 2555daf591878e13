//! The pictures: bars for what one number tells, lines for what grows or spreads.

mod bars;
mod lines;

use std::{error::Error, path::Path};

use plotters::prelude::*;

use self::{
    bars::bars,
    lines::{Chart, Line, lines},
};
use crate::{
    results::{Figure, Results, Samples},
    servers::Kind,
};

/// Whatever the plotting crate complains of.
type Failure = Box<dyn Error + Send + Sync>;

const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(45, 45, 50);
const FAINT: RGBColor = RGBColor(228, 228, 232);

const CPU: [Figure; 6] = [
    Figure::SteadySmall,
    Figure::BurstSmall,
    Figure::SteadyLarge,
    Figure::BurstLarge,
    Figure::Single,
    Figure::PollingCpu,
];
const MEMORY: [Figure; 4] = [Figure::Idle, Figure::Memory, Figure::MemoryAfter, Figure::RoomsMemory];
const CONNECTIONS: [Figure; 3] = [Figure::Connects, Figure::AvalancheAll, Figure::JitterReplayP95];

/// Percentiles drawn, as powers of ten of what is beyond them: from 0 % to 99.99 %.
const NINES: f64 = 4.0;

/// A colour per server, told apart also by those who see few colours.
fn colour(kind: Kind) -> RGBColor {
    match kind {
        Kind::Ours => RGBColor(0, 114, 178),
        Kind::Before => RGBColor(86, 180, 233),
        Kind::Node => RGBColor(213, 94, 0),
        Kind::Bun => RGBColor(230, 159, 0),
        Kind::Socketioxide => RGBColor(0, 158, 115),
        Kind::Probe => RGBColor(140, 140, 148),
    }
}

/// Draws all that has been measured; returns the names of the files.
pub(super) fn draw(results: &Results, directory: &Path) -> Result<Vec<String>, Failure> {
    let mut drawn = Vec::new();
    for (name, title, figures) in [
        ("cpu.svg", "Processor time of the server (shorter is better)", &CPU[..]),
        ("memory.svg", "Memory (shorter is better)", &MEMORY),
        ("connections.svg", "Connects (longer is better), and coming back (shorter is better)", &CONNECTIONS),
    ] {
        if bars(results, &directory.join(name), title, figures)? {
            drawn.push(name.to_owned());
        }
    }
    for (name, chart) in [
        ("latency.svg", latency(results)),
        (
            "growth.svg",
            growth(results, Figure::Growth, "CPU per delivery as connections double", "clients in the room"),
        ),
        ("rooms.svg", growth(results, Figure::RoomsConnect, "CPU per connect as groups double", "groups of each user")),
        ("avalanche.svg", avalanche(results)),
        ("deploy.svg", deploy(results)),
    ] {
        if !chart.lines.is_empty() {
            lines(&chart, &directory.join(name))?;
            drawn.push(name.to_owned());
        }
    }
    Ok(drawn)
}

fn latency(results: &Results) -> Chart {
    let steps = 200;
    let line = |(&kind, latencies): (&Kind, &crate::load::Latencies)| {
        let point = |step: i32| {
            let nines = NINES * f64::from(step) / f64::from(steps);
            let percentile = 100.0 * (1.0 - 10_f64.powf(-nines));
            (nines, latencies.value_at_percentile(percentile) as f64 / 1e3)
        };
        Line { kind, points: (0..=steps).map(point).collect(), marks: false }
    };
    Chart {
        title: "From publishing to receipt, 1 kB to everyone in a room at 5/s",
        x: "percentile",
        y: "ms",
        ticks: ["0", "90 %", "99 %", "99.9 %", "99.99 %"].map(str::to_owned).to_vec(),
        lines: results.latencies().iter().map(line).collect(),
    }
}

fn growth(results: &Results, figure: Figure, title: &'static str, x: &'static str) -> Chart {
    let sizes = results.sizes(figure);
    let line = |kind: Kind| {
        let median = |(index, &size): (usize, &usize)| {
            results.get(kind, figure, size).map(Samples::median).map(|median| (index as f64, median))
        };
        let points: Vec<(f64, f64)> = sizes.iter().enumerate().filter_map(median).collect();
        (!points.is_empty()).then_some(Line { kind, points, marks: true })
    };
    let lines = Kind::ALL.into_iter().filter_map(line).collect();
    Chart { title, x, y: "µs", ticks: sizes.iter().map(ToString::to_string).collect(), lines }
}

fn avalanche(results: &Results) -> Chart {
    let longest = results
        .returns()
        .values()
        .filter_map(|(_, back)| back.last())
        .max()
        .map_or(1.0, |last| last.as_secs_f64().ceil());
    let line = |(&kind, (all, back)): (&Kind, &(usize, Vec<std::time::Duration>))| {
        let every = (back.len() / 300).max(1);
        let mut points = vec![(0.0, 0.0)];
        let share = |index: usize| (index + 1) as f64 * 100.0 / (*all).max(1) as f64;
        points.extend(back.iter().enumerate().step_by(every).map(|(index, after)| (after.as_secs_f64(), share(index))));
        if let Some(last) = back.last() {
            points.extend([(last.as_secs_f64(), share(back.len() - 1)), (longest, share(back.len() - 1))]);
        }
        Line { kind, points, marks: false }
    };
    Chart {
        title: "Clients back in their rooms after the server was killed and restarted",
        x: "seconds since the restart",
        y: "%",
        ticks: (0..=longest as usize).map(|second| second.to_string()).collect(),
        lines: results.returns().iter().map(line).collect(),
    }
}

/// Seconds from one label below the deploy to the next.
const DEPLOY_TICK: f64 = 5.0;

fn deploy(results: &Results) -> Chart {
    let ends = results.presence().values().filter_map(|presence| presence.last());
    let longest = ends.map(|(end, _)| end.as_secs_f64()).fold(DEPLOY_TICK, f64::max);
    let line = |(&kind, presence): (&Kind, &Vec<(std::time::Duration, f64)>)| {
        let points = presence.iter().map(|&(at, share)| (at.as_secs_f64() / DEPLOY_TICK, share)).collect();
        Line { kind, points, marks: false }
    };
    let ticks = 0..=(longest / DEPLOY_TICK).ceil() as usize;
    Chart {
        title: "Clients with a connection while two nodes are replaced one after the other",
        x: "seconds",
        y: "%",
        ticks: ticks.map(|tick| (tick as f64 * DEPLOY_TICK).to_string()).collect(),
        lines: results.presence().iter().map(line).collect(),
    }
}
