//! Space-time diagrams of a trace: a line of time for each node, messages between them.
//!
//! Both forms draw the same *marks*: what a reader needs to follow elections, appends and faults. Heartbeats and
//! what only repeats itself are left out.

mod svg;
mod text;

use std::ops::Range;

use quorate_raft::Role;
use quorate_types::NodeId;

pub use svg::svg;
pub use text::text;

use crate::fault::node_name;
use crate::plan::Plan;
use crate::trace::{TraceEvent, What};

/// Something to draw.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Mark {
    at_us: u64,
    /// Whose line it is on; `None` for something that concerns all.
    node: Option<NodeId>,
    shape: Shape,
    words: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    /// A message that left there and then.
    Arrow { from: NodeId, sent_us: u64, weight: Weight },
    /// A message to there that never arrived.
    Lost { to: NodeId },
    /// A change at one node.
    Point(Weight),
    /// A fault or the end of one.
    Band,
}

/// How much a mark matters; also its colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Weight {
    Election,
    Replication,
    Commit,
    Client,
    Trouble,
}

/// The nodes of a plan, in order.
fn nodes(plan: &Plan) -> Vec<NodeId> {
    let cluster = &plan.cluster;
    let joint = if cluster.outgoing > 0 {
        cluster.voters.max(cluster.outgoing + 1)
    } else {
        cluster.voters
    };
    (1..=joint + cluster.learners + cluster.spares).map(NodeId).collect()
}

/// What is to be drawn of the part of a trace.
fn marks(plan: &Plan, trace: &[TraceEvent], span_ms: &Range<u64>) -> Vec<Mark> {
    let within = |at_us: u64| span_ms.contains(&(at_us / 1000));
    let mut marks = Vec::new();
    for event in trace.iter().filter(|event| within(event.at_us)) {
        let Some((shape, words)) = mark_of(plan, event) else { continue };
        marks.push(Mark { at_us: event.at_us, node: event.node, shape, words });
    }
    marks
}

fn mark_of(plan: &Plan, event: &TraceEvent) -> Option<(Shape, String)> {
    let point = |weight, words: String| Some((Shape::Point(weight), words));
    match &event.what {
        What::Started => point(Weight::Trouble, "starts".to_owned()),
        What::Stopped(how) => point(Weight::Trouble, format!("stops: {how}")),
        What::Paused => point(Weight::Trouble, "pauses".to_owned()),
        What::Resumed => point(Weight::Trouble, "goes on".to_owned()),
        What::Members { .. } => point(Weight::Election, event.what.to_string()),
        What::Installed { last, .. } => {
            point(Weight::Replication, format!("installs all to {last}"))
        }
        What::Role { role, term, leader, serving, .. } => {
            let words = match role {
                Role::Leader if *serving => format!("serves as leader of term {term}"),
                Role::Leader => format!("is elected in term {term}"),
                Role::Candidate => format!("campaigns in term {term}"),
                Role::PreCandidate => format!("asks who would elect it in term {}", term.next()),
                Role::Follower => match leader {
                    Some(leader) => format!("follows {} in term {term}", node_name(*leader)),
                    None => format!("knows no leader in term {term}"),
                },
            };
            point(Weight::Election, words)
        }
        What::Received { from, sent_us, brief } => {
            let weight = match brief.kind {
                "Heartbeat" | "HeartbeatReply" | "ReadIndex" | "ReadIndexReply" | "Asleep" => {
                    return None;
                }
                "Append" | "AppendAccepted" | "AppendRejected" | "Snapshot" => Weight::Replication,
                _ => Weight::Election,
            };
            Some((Shape::Arrow { from: *from, sent_us: *sent_us, weight }, brief.to_string()))
        }
        What::Lost { to, brief } => match brief.kind {
            "Heartbeat" | "HeartbeatReply" => None,
            _ => Some((Shape::Lost { to: *to }, brief.to_string())),
        },
        What::Synced(false) => point(Weight::Trouble, "sync fails".to_owned()),
        What::Synced(true) => None,
        What::Committed { index, .. } => point(Weight::Commit, format!("commits {index}")),
        What::Applied { index, .. } => point(Weight::Commit, format!("applies {index}")),
        What::Panicked { .. } => point(Weight::Trouble, "panics".to_owned()),
        What::Reloaded { .. } => point(Weight::Trouble, "is loaded again".to_owned()),
        What::Asked { client, request, kind } => {
            point(Weight::Client, format!("client {client} asks #{request} {kind}"))
        }
        What::Answered { client, request, result, .. } => {
            point(Weight::Client, format!("client {client} hears #{request} {result}"))
        }
        What::FaultBegins(number) => Some((Shape::Band, plan.faults[*number].to_string())),
        What::FaultEnds(number) => {
            Some((Shape::Band, format!("end of {}", plan.faults[*number].kind.name())))
        }
        What::Healed => Some((Shape::Band, "the faults are over".to_owned())),
        What::Converged => Some((Shape::Band, "everybody has come together".to_owned())),
    }
}
