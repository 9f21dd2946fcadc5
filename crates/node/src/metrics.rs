//! What a node counts: handles made once, so that the hot path looks nothing up.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit,
};
use quorate_raft::Cause;
use quorate_types::{MachineKind, NodeId};

use crate::engine::lock;

/// The node's own metrics; log and network have theirs.
pub(crate) struct NodeMetrics {
    pub(crate) commit_seconds: Histogram,
    pub(crate) reply_seconds: Histogram,
    pub(crate) election_seconds: Histogram,
    elections: Vec<(&'static str, Counter)>,
    leader_changes: Vec<(&'static str, Counter)>,
    pub(crate) leaders: Gauge,
    pub(crate) groups: Gauge,
    pub(crate) groups_asleep: Gauge,
    pub(crate) groups_to_tell: Gauge,
    pub(crate) groups_fenced: Gauge,
    pub(crate) group_panics: Counter,
    pub(crate) groups_quarantined: Gauge,
    pub(crate) appends_refused: Counter,
    pub(crate) fetches_refused: Counter,
    pub(crate) messages_unrouted: Counter,
    pub(crate) due_proposed: Counter,
    pub(crate) due_refused: Counter,
    pub(crate) proposals_refused: Counter,
    pub(crate) proposals_refused_no_space: Counter,
    pub(crate) disk_free_bytes: Gauge,
    pub(crate) disk_reserve_bytes: Gauge,
    pub(crate) unfit: Gauge,
    pub(crate) entry_cache_bytes: Gauge,
    pub(crate) proposal_bytes_available: Gauge,
    pub(crate) snapshots_installed: Counter,
    pub(crate) digest_mismatches: Counter,
    pub(crate) states_distrusted: Gauge,
    pub(crate) states_rebuilt: Counter,
    pub(crate) entries_truncated: Counter,
    pub(crate) apply_seconds: Histogram,
    pub(crate) apply_entries: Histogram,
    pub(crate) apply_queue_depth: Gauge,
    pub(crate) feed_bytes: Gauge,
    pub(crate) follows_asked: Counter,
    pub(crate) follows_answered: Counter,
    /// The figures of each kind of machine.
    figures: Vec<(Arc<dyn MachineKind>, Vec<Gauge>)>,
    /// By peer: the most that any group led here has not yet heard back from it.
    replication_lag_entries: Mutex<BTreeMap<NodeId, Gauge>>,
    /// Where the metrics of nodes that join later go.
    recorder: OnceLock<Arc<dyn Recorder + Send + Sync>>,
}

/// Nodes with metrics of their own, over the life of a process: labels stay, and nodes may come and go.
const PEERS_MAX: usize = 64;

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

/// One of each kind of cause; who else was part of it makes no label.
const CAUSES: [Cause; 13] = [
    Cause::ElectionTimeout,
    Cause::Asked,
    Cause::PreVotesGranted,
    Cause::Elected,
    Cause::VotesRefused,
    Cause::VoteGranted(NodeId::ZERO),
    Cause::HeardLeader(NodeId::ZERO),
    Cause::HigherTerm(NodeId::ZERO),
    Cause::Transferred(NodeId::ZERO),
    Cause::LeaderForgotten,
    Cause::Removed,
    Cause::QuorumLost,
    Cause::Unfit,
];

/// Why a replica stands for election.
const ELECTION_CAUSES: [Cause; 3] =
    [Cause::ElectionTimeout, Cause::Asked, Cause::Transferred(NodeId::ZERO)];

impl NodeMetrics {
    /// Registers everything with `recorder`; `peers` are the other nodes, by id and name.
    pub(crate) fn new(recorder: &dyn Recorder, peers: &[(NodeId, String)]) -> Self {
        let registry = Registry { recorder };
        let by_cause = |cause: Cause, name: &'static str, text: &'static str| {
            let labels = vec![Label::new("cause", cause.name())];
            (cause.name(), registry.counter_with(name, labels, text))
        };
        let change = |cause| {
            let text = "Leaderships won or lost by replicas of this node, by cause.";
            by_cause(cause, "quorate_raft_leader_changes_total", text)
        };
        let election = |cause| {
            let text = "Elections that replicas of this node stood for, by cause.";
            by_cause(cause, "quorate_raft_elections_total", text)
        };
        let lag = |(node, name): &(NodeId, String)| (*node, registry.replication_lag(name));
        Self {
            commit_seconds: registry.seconds(
                "quorate_raft_commit_seconds",
                "From a proposal's arrival at its group to its commit.",
            ),
            reply_seconds: registry.seconds(
                "quorate_raft_reply_seconds",
                "From a proposal's arrival at its group to its answer.",
            ),
            election_seconds: registry.seconds(
                "quorate_raft_election_seconds",
                "From the loss of a leader to the next one, as a replica saw it.",
            ),
            elections: ELECTION_CAUSES.into_iter().map(election).collect(),
            leader_changes: CAUSES.into_iter().map(change).collect(),
            leaders: registry.gauge("quorate_raft_leaders", "Groups that this node leads."),
            groups: registry.gauge("quorate_raft_groups", "Groups that this node hosts."),
            groups_asleep: registry.gauge(
                "quorate_raft_groups_asleep",
                "Groups that this node hosts and that sleep: they cost nothing until something happens.",
            ),
            groups_to_tell: registry.gauge(
                "quorate_raft_groups_to_tell_of_losses",
                "Sleeping groups that have still to hear that a node was lost.",
            ),
            groups_fenced: registry.gauge(
                "quorate_node_groups_fenced",
                "Groups that must not take part here any more, since what the disk holds of them is damaged.",
            ),
            group_panics: registry.counter(
                "quorate_group_panics_total",
                "Panics of groups on this node, in their turns or machines; each is loaded again or quarantined.",
            ),
            groups_quarantined: registry.gauge(
                "quorate_groups_quarantined",
                "Groups that are kept away from this node until its next start, because they panicked again and again.",
            ),
            appends_refused: registry.counter(
                "quorate_group_appends_refused_total",
                "Appends that the log's full queue refused; they are offered again.",
            ),
            fetches_refused: registry.counter(
                "quorate_group_fetches_refused_total",
                "Reads of old entries that the log's full queue refused; they are asked again.",
            ),
            messages_unrouted: registry.counter(
                "quorate_node_messages_unrouted_total",
                "Messages for groups that do not live here.",
            ),
            due_proposed: registry.counter(
                "quorate_node_due_commands_total",
                "Commands proposed because time has passed: each ends a lease.",
            ),
            due_refused: registry.counter(
                "quorate_node_due_commands_refused_total",
                "Such commands that could not be proposed, since too many bytes wait; they come again.",
            ),
            proposals_refused: registry.counter(
                "quorate_node_proposals_refused_total",
                "Proposals refused because too many bytes wait.",
            ),
            proposals_refused_no_space: registry.counter(
                "quorate_node_proposals_refused_no_space_total",
                "Proposals refused because the disks of too many voters are nearly full.",
            ),
            disk_free_bytes: registry
                .gauge("quorate_node_disk_free_bytes", "Bytes that are free where the data lies."),
            disk_reserve_bytes: registry.gauge(
                "quorate_node_disk_reserve_bytes",
                "Bytes that are kept free: below, writes that grow the state are refused.",
            ),
            unfit: registry.gauge(
                "quorate_node_unfit",
                "1 while this node leads nothing because its disk hangs or is all but full.",
            ),
            entry_cache_bytes: registry.gauge(
                "quorate_node_entry_cache_bytes",
                "Entries of all groups that are kept in memory.",
            ),
            proposal_bytes_available: registry.gauge(
                "quorate_node_proposal_bytes_available",
                "Bytes of proposals that may still enter.",
            ),
            snapshots_installed: registry.counter(
                "quorate_node_snapshots_installed_total",
                "Snapshots that took the place of a replica's log and state.",
            ),
            digest_mismatches: registry.counter(
                "quorate_node_digest_mismatches_total",
                "Times that a replica here and a peer had applied the same entries and written different rows.",
            ),
            states_distrusted: registry.gauge(
                "quorate_node_states_distrusted",
                "Replicas of this node whose state is known to be wrong and is being rebuilt.",
            ),
            states_rebuilt: registry.counter(
                "quorate_node_states_rebuilt_total",
                "States that were found to be wrong and replaced by a snapshot of the leader's.",
            ),
            entries_truncated: registry.counter(
                "quorate_node_entries_truncated_total",
                "Entries that logs of this node have forgotten.",
            ),
            apply_seconds: registry
                .seconds("quorate_apply_seconds", "One round of the applier, its write included."),
            apply_entries: registry
                .histogram("quorate_apply_entries", "Entries that one round applied."),
            apply_queue_depth: registry
                .gauge("quorate_apply_queue_depth", "Groups that wait for the applier."),
            feed_bytes: registry.gauge(
                "quorate_node_feed_bytes",
                "Bytes of late feeds that are held for those who follow groups of this node.",
            ),
            follows_asked: registry.counter(
                "quorate_node_follows_asked_total",
                "Questions to other nodes for what happens in groups that this node has no replica of.",
            ),
            follows_answered: registry.counter(
                "quorate_node_follows_answered_total",
                "Such questions of other nodes that a replica here has answered; not those that were refused.",
            ),
            figures: Vec::new(),
            replication_lag_entries: Mutex::new(peers.iter().take(PEERS_MAX).map(lag).collect()),
            recorder: OnceLock::new(),
        }
    }

    /// The same, with the figures of these kinds of machines.
    pub(crate) fn with_figures<'k>(
        self,
        recorder: &dyn Recorder,
        kinds: impl IntoIterator<Item = &'k Arc<dyn MachineKind>>,
    ) -> Self {
        let registry = Registry { recorder };
        let gauges = |kind: &Arc<dyn MachineKind>| {
            let figures = kind.figures().into_iter();
            let gauges = figures.map(|figure| registry.gauge(figure.name, figure.help));
            (Arc::clone(kind), gauges.collect())
        };
        Self { figures: kinds.into_iter().map(gauges).collect(), ..self }
    }

    /// Shows the figures as they are now.
    pub(crate) fn show_figures(&self) {
        for (kind, gauges) in &self.figures {
            for (figure, gauge) in kind.figures().into_iter().zip(gauges) {
                gauge.set(figure.value as f64);
            }
        }
    }

    /// From now on nodes that join get metrics of their own, from `recorder`.
    pub(crate) fn label_later_peers(&self, recorder: Arc<dyn Recorder + Send + Sync>) {
        // A second one would count the same things elsewhere.
        drop(self.recorder.set(recorder));
    }

    /// Gives a node that has joined metrics of its own, unless there are too many. Returns where its other
    /// metrics go.
    pub(crate) fn label_peer(&self, node: NodeId, name: &str) -> Option<&dyn Recorder> {
        let recorder: &dyn Recorder = &**self.recorder.get()?;
        let mut gauges = lock(&self.replication_lag_entries);
        if gauges.len() < PEERS_MAX {
            let lag = || Registry { recorder }.replication_lag(name);
            gauges.entry(node).or_insert_with(lag);
        }
        Some(recorder)
    }

    /// Shows how far each peer is behind; `lag` says by how many entries at most.
    pub(crate) fn show_lags(&self, lag: impl Fn(NodeId) -> u64) {
        for (&peer, gauge) in &*lock(&self.replication_lag_entries) {
            gauge.set(lag(peer) as f64);
        }
    }

    /// A replica of this node has won or lost a leadership.
    pub(crate) fn leader_change(&self, cause: Cause) {
        count(&self.leader_changes, cause);
    }

    /// A replica of this node stands for election.
    pub(crate) fn election(&self, cause: Cause) {
        count(&self.elections, cause);
    }
}

fn count(counters: &[(&'static str, Counter)], cause: Cause) {
    let counter = counters.iter().find(|(known, _)| *known == cause.name());
    counter.into_iter().for_each(|(_, counter)| counter.increment(1));
}

struct Registry<'r> {
    recorder: &'r dyn Recorder,
}

impl Registry<'_> {
    fn replication_lag(&self, peer: &str) -> Gauge {
        let labels = vec![Label::new("peer", peer.to_owned())];
        let help =
            "The most entries that a group led here has not yet seen acknowledged by the peer.";
        self.gauge_with("quorate_raft_replication_lag_entries", labels, help)
    }

    fn counter(&self, name: &'static str, help: &'static str) -> Counter {
        self.counter_with(name, Vec::new(), help)
    }

    fn counter_with(&self, name: &'static str, labels: Vec<Label>, help: &'static str) -> Counter {
        self.recorder.describe_counter(KeyName::from(name), None, SharedString::from(help));
        self.recorder.register_counter(&Key::from_parts(name, labels), &METADATA)
    }

    fn gauge(&self, name: &'static str, help: &'static str) -> Gauge {
        self.gauge_with(name, Vec::new(), help)
    }

    fn gauge_with(&self, name: &'static str, labels: Vec<Label>, help: &'static str) -> Gauge {
        self.recorder.describe_gauge(KeyName::from(name), None, SharedString::from(help));
        self.recorder.register_gauge(&Key::from_parts(name, labels), &METADATA)
    }

    fn histogram(&self, name: &'static str, help: &'static str) -> Histogram {
        self.recorder.describe_histogram(KeyName::from(name), None, SharedString::from(help));
        self.recorder.register_histogram(&Key::from_name(name), &METADATA)
    }

    fn seconds(&self, name: &'static str, help: &'static str) -> Histogram {
        let unit = Some(Unit::Seconds);
        self.recorder.describe_histogram(KeyName::from(name), unit, SharedString::from(help));
        self.recorder.register_histogram(&Key::from_name(name), &METADATA)
    }
}

#[cfg(test)]
mod tests {
    use metrics::NoopRecorder;

    use super::*;

    #[test]
    fn nodes_that_join_later_are_shown_up_to_a_bound_once_it_is_known_where() {
        let founders = [(NodeId(1), "n1".to_owned())];
        let metrics = NodeMetrics::new(&NoopRecorder, &founders);
        let shown = || {
            let nodes = Mutex::new(Vec::new());
            metrics.show_lags(|node| {
                lock(&nodes).push(node.value());
                0
            });
            nodes.into_inner().unwrap()
        };
        assert!(metrics.label_peer(NodeId(2), "n2").is_none());
        assert_eq!(shown(), [1]);
        metrics.label_later_peers(Arc::new(NoopRecorder));
        for node in 2..1_000 {
            assert!(metrics.label_peer(NodeId(node), "later").is_some());
        }
        assert!(shown().into_iter().eq(1..=PEERS_MAX as u64));
    }
}
