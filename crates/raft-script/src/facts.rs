//! What is true of each node, as JSON lines for other programs.

use std::fmt::Write as _;

use quorate_raft::Replica;
use quorate_types::{EntryId, NodeId};

use crate::node::Node;

/// One JSON object: what `node` is and holds after the stanza that begins at `line`.
///
/// Numbers and fixed words only, so that nothing needs escaping. A node that is down has
/// `"up":false` and nothing else.
pub(crate) fn of_node(line: usize, node: &Node) -> String {
    let mut text = format!("{{\"line\":{line},\"node\":{}", node.id());
    let Some(replica) = node.view() else {
        text.push_str(",\"up\":false}");
        return text;
    };
    write!(
        text,
        ",\"up\":true,\"role\":\"{}\",\"term\":{},\"vote\":{},\"leader\":{},\"commit\":{},\
         \"applied\":{}",
        replica.role().name(),
        replica.term(),
        optional(replica.vote()),
        optional(replica.leader()),
        replica.commit(),
        node.applied(),
    )
    .expect("strings take everything");
    let base = replica.base();
    let first = base.index.next();
    let first = replica.term_at(first).map(|term| EntryId::new(term, first));
    let membership = replica.membership();
    write!(
        text,
        ",\"base\":{},\"first\":{},\"last\":{},\"durable\":{},\"incoming\":{},\"outgoing\":{},\
         \"learners\":{},\"inflight\":{}}}",
        entry_id(base),
        first.map_or_else(|| "null".to_owned(), entry_id),
        entry_id(replica.last()),
        replica.durable(),
        list(&membership.voters),
        list(&membership.outgoing),
        list(&membership.learners),
        inflight(replica),
    )
    .expect("strings take everything");
    text
}

fn optional(node: Option<NodeId>) -> String {
    node.map_or_else(|| "null".to_owned(), |node| node.to_string())
}

fn entry_id(id: EntryId) -> String {
    format!("{{\"index\":{},\"term\":{}}}", id.index, id.term)
}

fn list<'n>(nodes: impl IntoIterator<Item = &'n NodeId>) -> String {
    let nodes: Vec<_> = nodes.into_iter().map(ToString::to_string).collect();
    format!("[{}]", nodes.join(","))
}

/// Unanswered appends by peer; empty unless the node leads.
fn inflight(replica: &Replica) -> String {
    let peers = replica.membership().nodes();
    let peers = peers.into_iter().filter_map(|peer| {
        replica.progress(peer).map(|progress| format!("\"{peer}\":{}", progress.inflight))
    });
    let peers: Vec<_> = peers.collect();
    format!("{{{}}}", peers.join(","))
}
