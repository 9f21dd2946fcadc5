//! As lines of text: one line for each mark, a column for each node.
//!
//! ```text
//!        ms  A        B        C
//!     5.000  o------->*        |    B gets Append t5 [11..11] commit 10 (sent 0.000)
//! ```

use std::ops::Range;

use quorate_types::NodeId;

use super::{Mark, Shape, Weight, marks, nodes};
use crate::fault::node_name;
use crate::plan::Plan;
use crate::trace::TraceEvent;

/// Columns between two lines of time.
const STEP: usize = 9;

/// Draws the part of a trace within `span_ms`.
#[must_use]
pub fn text(plan: &Plan, trace: &[TraceEvent], span_ms: &Range<u64>) -> String {
    let nodes = nodes(plan);
    let mut drawn = format!("{:>10}  ", "ms");
    for node in &nodes {
        drawn += &format!("{:<STEP$}", node_name(*node));
    }
    drawn.truncate(drawn.trim_end().len());
    drawn.push('\n');
    for mark in marks(plan, trace, span_ms) {
        let (ms, us) = (mark.at_us / 1000, mark.at_us % 1000);
        let line = format!("{ms:>6}.{us:03}  {}  {}", lane(&nodes, &mark), words(&mark));
        drawn += line.trim_end();
        drawn.push('\n');
    }
    drawn
}

/// The lines of time at one mark.
fn lane(nodes: &[NodeId], mark: &Mark) -> String {
    let width = STEP * nodes.len().saturating_sub(1) + 1;
    let column = |node: NodeId| nodes.iter().position(|&other| other == node).map(|at| at * STEP);
    let mut lane = vec![' '; width];
    for at in 0..nodes.len() {
        lane[at * STEP] = '|';
    }
    let mut arrow = |from: NodeId, to: NodeId, lost: bool| {
        let (Some(from), Some(to)) = (column(from), column(to)) else { return };
        let (low, high) = (from.min(to), from.max(to));
        lane[low + 1..high].fill('-');
        lane[from] = 'o';
        let head = if to > from { to - 1 } else { to + 1 };
        lane[head] = if to > from { '>' } else { '<' };
        lane[to] = '*';
        if lost {
            lane[(low + high) / 2] = 'X';
            lane[head] = '-';
            lane[to] = '|';
        }
    };
    match (mark.shape, mark.node) {
        (Shape::Arrow { from, .. }, Some(to)) => arrow(from, to, false),
        (Shape::Lost { to }, Some(from)) => arrow(from, to, true),
        (Shape::Point(weight), Some(node)) => {
            if let Some(at) = column(node) {
                lane[at] = match weight {
                    Weight::Election => '#',
                    Weight::Replication => '*',
                    Weight::Commit => '=',
                    Weight::Client => '@',
                    Weight::Trouble => '!',
                };
            }
        }
        (Shape::Band, _) => lane.fill('~'),
        (Shape::Arrow { .. } | Shape::Lost { .. } | Shape::Point(_), None) => {}
    }
    lane.into_iter().collect()
}

fn words(mark: &Mark) -> String {
    let node = mark.node.map(node_name).unwrap_or_default();
    match mark.shape {
        Shape::Arrow { from, sent_us, .. } => {
            let sent_ms = sent_us as f64 / 1000.0;
            format!("{node} gets {} from {} (sent {sent_ms:.3})", mark.words, node_name(from))
        }
        Shape::Lost { to } => format!("{} to {} is lost", mark.words, node_name(to)),
        Shape::Point(_) => format!("{node} {}", mark.words),
        Shape::Band => mark.words.clone(),
    }
}
