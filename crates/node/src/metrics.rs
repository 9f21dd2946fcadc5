//! What a node counts: handles made once, so that the hot path looks nothing up.

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit,
};
use quorate_raft::Cause;
use quorate_types::NodeId;

/// The node's own metrics; log and network have theirs.
pub(crate) struct NodeMetrics {
    pub(crate) commit_seconds: Histogram,
    pub(crate) reply_seconds: Histogram,
    pub(crate) election_seconds: Histogram,
    pub(crate) elections: Counter,
    leader_changes: Vec<(&'static str, Counter)>,
    pub(crate) leaders: Gauge,
    pub(crate) groups: Gauge,
    pub(crate) groups_fenced: Gauge,
    pub(crate) group_panics: Counter,
    pub(crate) appends_refused: Counter,
    pub(crate) fetches_refused: Counter,
    pub(crate) messages_unrouted: Counter,
    pub(crate) proposals_refused: Counter,
    pub(crate) proposal_bytes_available: Gauge,
    pub(crate) snapshots_installed: Counter,
    pub(crate) entries_truncated: Counter,
    pub(crate) apply_seconds: Histogram,
    pub(crate) apply_entries: Histogram,
    pub(crate) apply_queue_depth: Gauge,
    /// By peer: the most that any group led here has not yet heard back from it.
    pub(crate) replication_lag_entries: Vec<(NodeId, Gauge)>,
}

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

/// One of each kind of cause; who else was part of it makes no label.
const CAUSES: [Cause; 9] = [
    Cause::ElectionTimeout,
    Cause::Asked,
    Cause::PreVotesGranted,
    Cause::Elected,
    Cause::VotesRefused,
    Cause::VoteGranted(NodeId::ZERO),
    Cause::HeardLeader(NodeId::ZERO),
    Cause::HigherTerm(NodeId::ZERO),
    Cause::QuorumLost,
];

impl NodeMetrics {
    /// Registers everything with `recorder`; `peers` are the other nodes, by id and name.
    pub(crate) fn new(recorder: &dyn Recorder, peers: &[(NodeId, String)]) -> Self {
        let registry = Registry { recorder };
        let change = |cause: Cause| {
            let labels = vec![Label::new("cause", cause.name())];
            (
                cause.name(),
                registry.counter_with(
                    "quorate_raft_leader_changes_total",
                    labels,
                    "Leaderships won or lost by replicas of this node, by cause.",
                ),
            )
        };
        let lag = |(node, name): &(NodeId, String)| {
            let labels = vec![Label::new("peer", name.clone())];
            (*node, registry.gauge_with("quorate_raft_replication_lag_entries", labels, "The most entries that a group led here has not yet seen acknowledged by the peer."))
        };
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
            elections: registry.counter(
                "quorate_raft_elections_total",
                "Elections that replicas of this node stood for.",
            ),
            leader_changes: CAUSES.into_iter().map(change).collect(),
            leaders: registry.gauge("quorate_raft_leaders", "Groups that this node leads."),
            groups: registry.gauge("quorate_raft_groups", "Groups that this node hosts."),
            groups_fenced: registry.gauge(
                "quorate_node_groups_fenced",
                "Groups that must not take part here any more, since what the disk holds of them is damaged.",
            ),
            group_panics: registry.counter(
                "quorate_group_panics_total",
                "Groups that stopped on a broken invariant.",
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
            proposals_refused: registry.counter(
                "quorate_node_proposals_refused_total",
                "Proposals refused because too many bytes wait.",
            ),
            proposal_bytes_available: registry.gauge(
                "quorate_node_proposal_bytes_available",
                "Bytes of proposals that may still enter.",
            ),
            snapshots_installed: registry.counter(
                "quorate_node_snapshots_installed_total",
                "Snapshots that took the place of a replica's log and state.",
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
            replication_lag_entries: peers.iter().map(lag).collect(),
        }
    }

    pub(crate) fn leader_change(&self, cause: Cause) {
        if let Some((_, counter)) =
            self.leader_changes.iter().find(|(known, _)| *known == cause.name())
        {
            counter.increment(1);
        }
    }
}

struct Registry<'r> {
    recorder: &'r dyn Recorder,
}

impl Registry<'_> {
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
