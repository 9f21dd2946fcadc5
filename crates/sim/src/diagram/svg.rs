//! As an SVG image: time runs downwards, messages slope from where they left to where they arrived.
//!
//! Quiet stretches are cut short, so that what happens within a millisecond and what happens after a second fit
//! on one page; the numbers at the left say when.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;

use quorate_types::NodeId;

use super::{Mark, Shape, Weight, marks, nodes};
use crate::fault::node_name;
use crate::plan::Plan;
use crate::trace::TraceEvent;

/// Pixels between two lines of time.
const STEP: usize = 240;
/// Pixels left of the first line.
const MARGIN: usize = 90;
/// Pixels above the first moment.
const TOP: usize = 50;
/// Pixels between two moments.
const ROW: usize = 20;

/// Draws the part of a trace within `span_ms`.
#[must_use]
pub fn svg(plan: &Plan, trace: &[TraceEvent], span_ms: &Range<u64>) -> String {
    let (nodes, marks) = (nodes(plan), marks(plan, trace, span_ms));
    let rows = rows(&marks);
    let width = MARGIN + STEP * nodes.len();
    let height = TOP + ROW * (rows.len() + 2);
    let mut image = String::new();
    let mut put = |line: String| {
        image += &line;
        image.push('\n');
    };
    put(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\">"
    ));
    put(format!("<title>{}</title>", escaped(&plan.title)));
    put("<style>line,path{stroke-width:1.3}</style>".to_owned());
    put(format!("<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>"));
    for (at, node) in nodes.iter().enumerate() {
        let x = MARGIN + at * STEP;
        let name = node_name(*node);
        put(format!(
            "<text x=\"{x}\" y=\"24\" font-size=\"16\" font-weight=\"bold\" text-anchor=\"middle\">{name}</text>"
        ));
        put(format!("<line x1=\"{x}\" y1=\"34\" x2=\"{x}\" y2=\"{height}\" stroke=\"#999\"/>"));
    }
    let mut shown_at = None;
    for mark in &marks {
        let y = y_of(&rows, mark.at_us);
        if shown_at != Some(mark.at_us) {
            shown_at = Some(mark.at_us);
            let ms = mark.at_us as f64 / 1000.0;
            put(format!("<text x=\"4\" y=\"{}\" fill=\"#666\">{ms:.3}</text>", y + 4));
        }
        put(draw(&nodes, &rows, mark, y, width));
    }
    put("</svg>".to_owned());
    image
}

/// A row for each moment at which something leaves, arrives or happens.
fn rows(marks: &[Mark]) -> BTreeMap<u64, usize> {
    let mut moments: BTreeMap<u64, usize> = BTreeMap::new();
    for mark in marks {
        // Several marks of one moment at one node stand below each other.
        *moments.entry(mark.at_us).or_default() += 1;
        if let Shape::Arrow { sent_us, .. } = mark.shape {
            moments.entry(sent_us).or_default();
        }
    }
    let mut row = 0;
    for count in moments.values_mut() {
        let lines = (*count).clamp(1, 3);
        *count = row;
        row += lines;
    }
    moments
}

fn y_of(rows: &BTreeMap<u64, usize>, at_us: u64) -> usize {
    TOP + ROW * rows.get(&at_us).copied().unwrap_or(0)
}

fn draw(
    nodes: &[NodeId],
    rows: &BTreeMap<u64, usize>,
    mark: &Mark,
    y: usize,
    width: usize,
) -> String {
    let x_of = |node: NodeId| {
        let at = nodes.iter().position(|&other| other == node).unwrap_or(0);
        MARGIN + at * STEP
    };
    let words = escaped(&mark.words);
    let mut drawn = String::new();
    // Writing into a string cannot fail.
    let result = match (mark.shape, mark.node) {
        (Shape::Arrow { from, sent_us, weight }, Some(to)) => {
            let (x1, y1, x2) = (x_of(from), y_of(rows, sent_us), x_of(to));
            let (colour, side) = (colour(weight), if x2 > x1 { -5 } else { 5 });
            let (tx, ty) = (x2 as i64 + side * 2, y as i64);
            let middle = ((x1 + x2) / 2, (y1 + y) / 2);
            write!(
                drawn,
                "<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y}\" stroke=\"{colour}\"/>\
                 <path d=\"M{x2} {y} L{tx} {} L{tx} {} Z\" fill=\"{colour}\"/>\
                 <text x=\"{}\" y=\"{}\" fill=\"{colour}\" text-anchor=\"middle\">{words}</text>",
                ty - 4,
                ty + 4,
                middle.0,
                middle.1.saturating_sub(3),
            )
        }
        (Shape::Lost { to }, Some(from)) => {
            let (x1, x2) = (x_of(from) as i64, x_of(to) as i64);
            let end = x1 + (x2 - x1) / 3;
            write!(
                drawn,
                "<line x1=\"{x1}\" y1=\"{y}\" x2=\"{end}\" y2=\"{y}\" stroke=\"#c00\" \
                 stroke-dasharray=\"4 3\"/><text x=\"{end}\" y=\"{}\" fill=\"#c00\">x {words}</text>",
                y + 4
            )
        }
        (Shape::Point(weight), Some(node)) => {
            let (x, colour) = (x_of(node), colour(weight));
            write!(
                drawn,
                "<circle cx=\"{x}\" cy=\"{y}\" r=\"4\" fill=\"{colour}\"/>\
                 <text x=\"{}\" y=\"{}\" fill=\"{colour}\">{words}</text>",
                x + 8,
                y + 4
            )
        }
        (Shape::Band, _) => write!(
            drawn,
            "<line x1=\"60\" y1=\"{y}\" x2=\"{width}\" y2=\"{y}\" stroke=\"#c60\" \
             stroke-dasharray=\"8 4\"/><text x=\"64\" y=\"{}\" fill=\"#c60\">{words}</text>",
            y.saturating_sub(3)
        ),
        (Shape::Arrow { .. } | Shape::Lost { .. } | Shape::Point(_), None) => Ok(()),
    };
    debug_assert!(result.is_ok(), "a string takes everything");
    drawn
}

const fn colour(weight: Weight) -> &'static str {
    match weight {
        Weight::Election => "#7a3fb0",
        Weight::Replication => "#1f6fb2",
        Weight::Commit => "#1b8a3a",
        Weight::Client => "#444444",
        Weight::Trouble => "#c00000",
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
