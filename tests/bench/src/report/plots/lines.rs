//! One chart with a line per server.

use std::path::Path;

use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{FAINT, FONT, Failure, INK, colour};
use crate::{report::table::short, servers::Kind};

const SIZE: (i32, i32) = (920, 400);

/// Room for the legend, right of the chart.
const LEGEND: i32 = 160;

/// Room above the highest point.
const HEADROOM: f64 = 1.08;

/// A server's line.
pub(super) struct Line {
    pub(super) kind: Kind,
    pub(super) points: Vec<(f64, f64)>,
    /// Whether its points are few and each was measured.
    pub(super) marks: bool,
}

/// A chart; `ticks` are the labels at 0, 1, 2 and so on.
pub(super) struct Chart {
    pub(super) title: &'static str,
    pub(super) x: &'static str,
    pub(super) y: &'static str,
    pub(super) ticks: Vec<String>,
    pub(super) lines: Vec<Line>,
}

pub(super) fn lines(chart: &Chart, path: &Path) -> Result<(), Failure> {
    let area = SVGBackend::new(path, (SIZE.0 as u32, SIZE.1 as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let highest = chart.lines.iter().flat_map(|line| &line.points).map(|&(_, y)| y).fold(f64::MIN_POSITIVE, f64::max);
    let right = (chart.ticks.len().max(2) - 1) as f64;
    let text = |size: i32| (FONT, size).into_font().color(&INK);
    let mut context = ChartBuilder::on(&area)
        .caption(chart.title, text(20))
        .margin(14)
        .margin_right(LEGEND)
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..right, 0.0..highest * HEADROOM)?;
    context
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT)
        .axis_style(INK)
        .label_style(text(13))
        .axis_desc_style(text(14))
        .x_desc(chart.x)
        .y_desc(chart.y)
        .x_labels(chart.ticks.len())
        .x_label_formatter(&|&x| {
            let whole = (x - x.round()).abs() < 1e-6;
            let tick = chart.ticks.get(x.round() as usize).filter(|_| whole);
            tick.cloned().unwrap_or_default()
        })
        .y_label_formatter(&|&y| short(y))
        .draw()?;
    for line in &chart.lines {
        let colour = colour(line.kind);
        let style = colour.stroke_width(if line.kind == Kind::Ours { 3 } else { 2 });
        context.draw_series(LineSeries::new(line.points.iter().copied(), style))?;
        if line.marks {
            context.draw_series(line.points.iter().map(|&point| Circle::new(point, 4, colour.filled())))?;
        }
    }
    for (row, line) in chart.lines.iter().enumerate() {
        let (left, middle) = (SIZE.0 - LEGEND + 24, 64 + 24 * row as i32);
        let style = colour(line.kind).stroke_width(3);
        area.draw(&PathElement::new([(left, middle), (left + 20, middle)], style))?;
        let label = text(13).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(line.kind.label(), (left + 26, middle), label))?;
    }
    area.present()?;
    Ok(())
}
