//! What dashboards for etcd look for, under etcd's names: of the keyspace's group, as this node sees it.

use std::time::Duration;

use metrics::{Counter, Gauge, Key, Level, Metadata, Recorder, Unit};
use quorate_node::{Engine, Leadership};
use quorate_types::{GroupId, NodeId};

/// How old the figures may be.
const INTERVAL: Duration = Duration::from_secs(1);

const METADATA: Metadata<'static> =
    Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

/// Handles of one node.
pub(crate) struct EtcdMetrics {
    has_leader: Gauge,
    is_leader: Gauge,
    leader_changes: Counter,
    db_bytes: Gauge,
    db_in_use_bytes: Gauge,
}

impl EtcdMetrics {
    pub(crate) fn new(recorder: &dyn Recorder) -> Self {
        let gauge = |name: &'static str, unit, text: &'static str| {
            recorder.describe_gauge(name.into(), Some(unit), text.into());
            recorder.register_gauge(&Key::from_name(name), &METADATA)
        };
        let changes = "etcd_server_leader_changes_seen_total";
        let text = "Leaders of the keyspace that were seen.";
        recorder.describe_counter(changes.into(), Some(Unit::Count), text.into());
        Self {
            has_leader: gauge(
                "etcd_server_has_leader",
                Unit::Count,
                "1 while a leader of the keyspace is known.",
            ),
            is_leader: gauge(
                "etcd_server_is_leader",
                Unit::Count,
                "1 while this node leads the keyspace.",
            ),
            leader_changes: recorder.register_counter(&Key::from_name(changes), &METADATA),
            db_bytes: gauge(
                "etcd_mvcc_db_total_size_in_bytes",
                Unit::Bytes,
                "Bytes of state on disk, about.",
            ),
            db_in_use_bytes: gauge(
                "etcd_mvcc_db_total_size_in_use_in_bytes",
                Unit::Bytes,
                "Bytes of state on disk that hold live data, about.",
            ),
        }
    }

    /// Keeps the figures up to date; runs until it is dropped.
    pub(crate) async fn run(&self, engine: &Engine) {
        let mut seen = None;
        loop {
            // A node may come to have the group, or lose it.
            let mut leadership = engine.leadership(GroupId::FIRST_DATA).ok();
            let now = leadership.as_mut().map(|now| *now.borrow_and_update());
            seen = self.show(engine.node(), now, seen);
            let bytes = engine.state_bytes() as f64;
            self.db_bytes.set(bytes);
            self.db_in_use_bytes.set(bytes);
            let changed = async {
                // An error: the group has gone, and there is nothing to hear of it.
                let Some(leadership) = &mut leadership else { return std::future::pending().await };
                if leadership.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            drop(tokio::time::timeout(INTERVAL, changed).await);
        }
    }

    /// Shows who leads, of whom `seen` was known before; who is known now. As with etcd the first one counts
    /// as a change, and one that was lost and returns.
    fn show(&self, own: NodeId, now: Option<Leadership>, seen: Option<NodeId>) -> Option<NodeId> {
        let leader = now.and_then(|now| now.leader);
        self.has_leader.set(f64::from(u8::from(leader.is_some())));
        self.is_leader.set(f64::from(u8::from(leader == Some(own))));
        if leader.is_some() && leader != seen {
            self.leader_changes.increment(1);
        }
        leader
    }
}

#[cfg(test)]
mod tests {
    use quorate_node::Role;
    use quorate_types::Term;

    use super::*;
    use crate::exporter::Exporter;

    #[test]
    fn leaders_are_shown_and_counted_as_etcd_does() {
        let exporter = Exporter::new("n1").unwrap();
        let (shown, own) = (EtcdMetrics::new(&*exporter.recorder()), NodeId(7));
        let mut seen = None;
        for (leader, has, is, changes) in [
            (None, 0, 0, 0),
            (Some(7), 1, 1, 1),
            (Some(7), 1, 1, 1),
            (Some(8), 1, 0, 2),
            (None, 0, 0, 2),
            (Some(8), 1, 0, 3),
        ] {
            let leader = leader.map(NodeId);
            let (role, term, serving, cause) = (Role::Follower, Term(1), false, None);
            let now = leader.map(|_| Leadership { role, term, leader, serving, cause });
            seen = shown.show(own, now, seen);
            let page = exporter.page()();
            for (name, value) in [
                ("etcd_server_has_leader", has),
                ("etcd_server_is_leader", is),
                ("etcd_server_leader_changes_seen_total", changes),
            ] {
                let row = format!("{name}{{node=\"n1\"}} {value}\n");
                assert!(page.contains(&row), "{leader:?}: no {row}in {page}");
            }
        }
    }
}
