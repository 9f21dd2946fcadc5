//! What an entry does, in a few words and without values.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message as _;
use quorate_placement::PlacementKind;
use quorate_placement::message::{self, command as placement_command};
use quorate_types::kv::{self, command, op};
use quorate_types::{Membership, NodeId, Payload};

/// A longer key is cut.
const KEY_BYTES_MAX: usize = 64;

/// The name of an entry's kind.
pub(super) const fn kind(payload: &Payload) -> &'static str {
    match payload {
        Payload::Empty => "no-op",
        Payload::Command(_) => "command",
        Payload::Membership(_) => "membership",
    }
}

/// What an entry does in a group whose machine is of `machine`; empty for what is not known.
pub(super) fn what(machine: &str, payload: &Payload) -> String {
    match payload {
        Payload::Empty => String::new(),
        Payload::Membership(membership) => members(membership),
        Payload::Command(bytes) if machine == quorate_store::KvKind::NAME => keyspace(bytes),
        Payload::Command(bytes) if machine == PlacementKind::NAME => placement(bytes),
        Payload::Command(_) => String::new(),
    }
}

fn members(membership: &Membership) -> String {
    let list = |nodes: &BTreeSet<NodeId>| {
        nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let mut words = format!("voters {}", list(&membership.voters));
    for (name, nodes) in [("outgoing", &membership.outgoing), ("learners", &membership.learners)] {
        if !nodes.is_empty() {
            words += &format!(", {name} {}", list(nodes));
        }
    }
    words
}

fn placement(bytes: &Bytes) -> String {
    use placement_command::Body;
    let Ok(message::Command { expected_version, body: Some(body) }) =
        message::Command::decode(bytes.clone())
    else {
        return unreadable();
    };
    let what = match body {
        Body::Bootstrap(map) => format!("first map: {} nodes", map.nodes.len()),
        Body::UpdateNode(node) => format!("update node {}", NodeId(node.id)),
        Body::AddNode(node) => format!("add node {} at {}", node.name, node.peer_address),
        Body::JoinNode(node) => format!("node {} joins at {}", node.name, node.peer_address),
        Body::PromoteNode(id) => format!("promote node {}", NodeId(id)),
        Body::RemoveNode(id) => format!("remove node {}", NodeId(id)),
        Body::ReplaceNode(replace) => format!("replace node {}", NodeId(replace.id)),
        Body::Report(group) => format!("report of group {}", group.id),
    };
    format!("{what} (map {expected_version})")
}

fn keyspace(bytes: &Bytes) -> String {
    match kv::Command::decode(bytes.clone()).ok().and_then(|command| command.body) {
        Some(command::Body::Put(put)) => of_put(&put),
        Some(command::Body::DeleteRange(delete)) => of_delete(&delete),
        Some(command::Body::ChangeAlarm(change)) => {
            let verb = if change.raise { "raise" } else { "clear" };
            format!("{verb} alarm {} of {}", change.alarm.kind, change.alarm.member)
        }
        Some(command::Body::ChangeDowngrade(change)) => format!("downgrade to {:?}", change.target),
        Some(command::Body::Compact(compact)) => format!("compact {}", compact.revision),
        // Shows neither hashes nor secrets.
        Some(command::Body::Auth(change)) => format!("auth {:?}", change.body),
        Some(command::Body::Txn(txn)) => of_txn(&txn),
        Some(command::Body::LeaseGrant(grant)) => {
            format!("grant lease {:x} of {} s", grant.id, grant.ttl_s)
        }
        Some(command::Body::LeaseRevoke(revoke)) => match revoke.expired_in_term {
            0 => format!("revoke lease {:x}", revoke.id),
            term => format!("revoke lease {:x}, expired in term {term}", revoke.id),
        },
        None => unreadable(),
    }
}

fn of_put(put: &kv::Put) -> String {
    let lease = if put.lease == 0 { String::new() } else { format!(", lease {:x}", put.lease) };
    format!("put {} ({} B{lease})", key(&put.key), put.value.len())
}

fn of_delete(delete: &kv::DeleteRange) -> String {
    format!("delete {}", range(&delete.key, &delete.range_end))
}

fn of_txn(txn: &kv::Txn) -> String {
    let compares = txn.compares.iter();
    let compares = compares.map(|compare| range(&compare.key, &compare.range_end));
    let compares = compares.collect::<Vec<_>>().join(", ");
    format!("txn if {compares} then [{}] else [{}]", of_ops(&txn.success), of_ops(&txn.failure))
}

fn of_ops(ops: &[kv::Op]) -> String {
    let of_op = |op: &kv::Op| match &op.body {
        Some(op::Body::Put(put)) => of_put(put),
        Some(op::Body::DeleteRange(delete)) => of_delete(delete),
        Some(op::Body::Range(read)) => format!("range {}", range(&read.key, &read.range_end)),
        Some(op::Body::Txn(txn)) => of_txn(txn),
        None => unreadable(),
    };
    ops.iter().map(of_op).collect::<Vec<_>>().join("; ")
}

fn range(start: &Bytes, end: &Bytes) -> String {
    if end.is_empty() { key(start) } else { format!("{}..{}", key(start), key(end)) }
}

fn key(key: &Bytes) -> String {
    let shown = &key[..key.len().min(KEY_BYTES_MAX)];
    let more = if shown.len() < key.len() { "..." } else { "" };
    format!("\"{}{more}\"", shown.escape_ascii())
}

fn unreadable() -> String {
    "not readable".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_without_their_values() {
        let put = |name: &'static str| kv::Put {
            key: Bytes::from_static(name.as_bytes()),
            value: Bytes::from_static(b"secret"),
            lease: 0x1f,
            ..kv::Put::default()
        };
        let delete = kv::DeleteRange {
            key: Bytes::from_static(b"a\0"),
            range_end: Bytes::from_static(b"b"),
            ..kv::DeleteRange::default()
        };
        let long = Bytes::from(vec![b'k'; 70]);
        let compare = kv::Compare { key: long, ..kv::Compare::default() };
        let op = |body| kv::Op { body: Some(body) };
        let txn = kv::Txn {
            compares: vec![compare],
            success: vec![op(op::Body::Put(put("x"))), op(op::Body::DeleteRange(delete.clone()))],
            failure: vec![op(op::Body::Range(kv::Range::default())), kv::Op::default()],
        };
        let told = |body| {
            let command = kv::Command { body: Some(body), ..kv::Command::default() };
            what("kv", &Payload::Command(command.encode_to_vec().into()))
        };
        assert_eq!(told(command::Body::Put(put("foo"))), "put \"foo\" (6 B, lease 1f)");
        assert_eq!(told(command::Body::DeleteRange(delete)), "delete \"a\\x00\"..\"b\"");
        assert_eq!(told(command::Body::Compact(kv::Compact { revision: 9 })), "compact 9");
        let key = "k".repeat(KEY_BYTES_MAX);
        let expected = format!(
            "txn if \"{key}...\" then [put \"x\" (6 B, lease 1f); delete \"a\\x00\"..\"b\"] else [range \
             \"\"; not readable]"
        );
        assert_eq!(told(command::Body::Txn(txn)), expected);
    }

    #[test]
    fn what_nobody_understands_is_no_panic() {
        let noise = Payload::Command(Bytes::from_static(b"\xff\xff"));
        assert_eq!(what("kv", &noise), "not readable");
        assert_eq!(what(PlacementKind::NAME, &noise), "not readable");
        assert_eq!(what("of an embedder", &noise), "");
    }
}
