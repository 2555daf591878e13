//! A panel per figure, three in a row, each with a bar per server.

use std::path::Path;

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{FAINT, FONT, Failure, INK, colour};
use crate::{
    report::table::short,
    results::{Figure, Results},
    servers::Kind,
};

/// Panels in a row: what a page is wide enough for.
const ACROSS: usize = 3;

const PANEL_WIDTH: i32 = 225;
const BAR_HEIGHT: i32 = 20;
const BAR_STEP: i32 = 28;
const TITLE: i32 = 40;

/// Of a row, above its bars.
const TOP: i32 = 52;
const LEFT: i32 = 120;

/// Room right of the longest bar, for its number.
const NUMBER: i32 = 80;

/// Longest line of a panel's heading, in characters.
const HEADING: usize = 30;

/// A figure and what each server has of it.
type Panel = (Figure, Vec<(Kind, f64)>);

/// Returns whether there was anything to draw.
pub(super) fn bars(results: &Results, path: &Path, title: &str, figures: &[Figure]) -> Result<bool, Failure> {
    let measured = |figure: Figure| -> Vec<(Kind, f64)> {
        Kind::ALL.into_iter().filter_map(|kind| Some((kind, results.median(kind, figure)?))).collect()
    };
    let panels: Vec<Panel> =
        figures.iter().map(|&figure| (figure, measured(figure))).filter(|(_, bars)| !bars.is_empty()).collect();
    let kinds: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| panels.iter().any(|(_, bars)| bars.iter().any(|(of, _)| of == kind)))
        .collect();
    if panels.is_empty() {
        return Ok(false);
    }
    let rows: Vec<&[Panel]> = panels.chunks(ACROSS).collect();
    let width = LEFT + PANEL_WIDTH * panels.len().min(ACROSS) as i32;
    let height = TITLE + (TOP + BAR_STEP * kinds.len() as i32 + 16) * rows.len() as i32;
    let area = SVGBackend::new(path, (width as u32, height as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let (above, below) = area.split_vertically(TITLE);
    above.draw(&Text::new(title.to_owned(), (16, 24), style(20, HPos::Left)))?;
    for (area, panels) in below.split_evenly((rows.len(), 1)).iter().zip(rows) {
        draw_row(area, results, panels, &kinds).map_err(|error| error.to_string())?;
    }
    area.present()?;
    Ok(true)
}

fn draw_row<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    results: &Results,
    panels: &[Panel],
    kinds: &[Kind],
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    let top = |index: usize| TOP + BAR_STEP * index as i32;
    for (index, kind) in kinds.iter().enumerate() {
        let place = (LEFT - 10, top(index) + BAR_HEIGHT / 2);
        area.draw(&Text::new(kind.label(), place, style(13, HPos::Right)))?;
    }
    for (panel, (figure, bars)) in panels.iter().enumerate() {
        let left = LEFT + PANEL_WIDTH * panel as i32;
        for (line, text) in heading(results, *figure).into_iter().enumerate() {
            area.draw(&Text::new(text, (left, 12 + 17 * line as i32), style(13, HPos::Left)))?;
        }
        let most = bars.iter().map(|&(_, value)| value).fold(f64::MIN_POSITIVE, f64::max);
        let bottom = top(kinds.len() - 1) + BAR_HEIGHT + 4;
        area.draw(&PathElement::new([(left, TOP - 4), (left, bottom)], FAINT.stroke_width(1)))?;
        for &(kind, value) in bars {
            let Some(index) = kinds.iter().position(|&of| of == kind) else { continue };
            let length = (value.max(0.0) / most * f64::from(PANEL_WIDTH - NUMBER)).round() as i32;
            let (top, end) = (top(index), left + length.max(1));
            area.draw(&Rectangle::new([(left, top), (end, top + BAR_HEIGHT)], colour(kind).filled()))?;
            area.draw(&Text::new(short(value), (end + 6, top + BAR_HEIGHT / 2), style(13, HPos::Left)))?;
        }
    }
    Ok(())
}

fn style(size: i32, h: HPos) -> TextStyle<'static> {
    (FONT, size).into_font().color(&INK).pos(Pos::new(h, VPos::Center))
}

/// The figure's name, broken into two lines.
fn heading(results: &Results, figure: Figure) -> Vec<String> {
    let (name, unit) = figure.text();
    let size = figure.size().zip(results.sizes(figure).last().copied());
    let mut text = name.to_owned();
    if let Some((what, size)) = size {
        text = format!("{text}, {size} {what}");
    }
    if !unit.is_empty() {
        text = format!("{text} ({unit})");
    }
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.len() - 1;
        if !lines[line].is_empty() && lines[line].len() + word.len() >= HEADING && lines.len() < 2 {
            lines.push(word.to_owned());
        } else {
            let gap = if lines[line].is_empty() { "" } else { " " };
            lines[line] = format!("{}{gap}{word}", lines[line]);
        }
    }
    lines
}
