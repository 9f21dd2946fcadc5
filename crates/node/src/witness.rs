//! What a node remembers of the others' directories, so that a copy of one betrays itself: a value.
//!
//! An incarnation tells a node from a wiped one of its name, but a copy of its directory has that too. So
//! every node tells how many batches its log has ever synced, and which process it is:
//!
//! - **An older copy** is put back: the node returns with fewer batches than it has told. What it has
//!   acknowledged since is gone, so it must not vote or acknowledge again.
//! - **Two copies** run at once: a process comes while another one of the same node still speaks. Each would
//!   vote for itself.
//!
//! What was told is kept in the node's own log, with the next batch: it costs no sync, and whoever remembers
//! batches of its own remembers what it had heard before them.
//!
//! A node tells only what is durable there, so no crash can make it return below that. Which is also why a
//! process that comes right after another one has spoken is asked to come again rather than refused for
//! good: most of the time the node has just been started again.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use quorate_transport::{Hello, Refusal};
use quorate_types::{Incarnation, NodeId};

/// For so long after one process of a node was heard no other one is let in. Longer than the time between
/// two beats of a node.
pub(crate) const SPEAKS_MS: u64 = 1_000;

/// What is known of the other nodes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Witness {
    known: BTreeMap<NodeId, Known>,
    /// What is remembered over restarts has changed since it was last taken.
    news: bool,
}

/// What is remembered of a node over our own restarts.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Memory {
    incarnation: Incarnation,
    /// The most synced batches that it has told of.
    synced_batches: u64,
}

#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Known {
    memory: Memory,
    /// Its process that was let in last.
    live: Option<Process>,
    /// The one that wants to be let in, since when.
    waiting: Option<Process>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Process {
    session: u64,
    /// Of the one that lives: when it was last heard.
    at_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
struct WitnessRecord {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<Remembered>,
}

#[derive(Clone, PartialEq, Message)]
struct Remembered {
    #[prost(fixed64, tag = "1")]
    node: u64,
    #[prost(fixed64, tag = "2")]
    incarnation: u64,
    #[prost(uint64, tag = "3")]
    synced_batches: u64,
}

impl Witness {
    /// What was remembered when this node last stopped; nothing if that cannot be read: they will tell again.
    pub(crate) fn of(words: Bytes) -> Self {
        let known = |node: Remembered| {
            let incarnation = Incarnation(node.incarnation);
            let memory = Memory { incarnation, synced_batches: node.synced_batches };
            (NodeId(node.node), Known { memory, ..Known::default() })
        };
        let record = WitnessRecord::decode(words).unwrap_or_default();
        Self { known: record.nodes.into_iter().map(known).collect(), news: false }
    }

    /// A node says hello at `now_ms`; its names and its incarnation were found right.
    ///
    /// # Errors
    /// When it comes with less than it had, or beside another process of its.
    pub(crate) fn admit(&mut self, hello: &Hello, now_ms: u64) -> Result<(), Refusal> {
        if hello.node == NodeId::ZERO {
            return Ok(());
        }
        let name = &hello.node_name;
        let known = self.known.entry(hello.node).or_default();
        if known.memory.incarnation != hello.incarnation {
            // Another directory, rightly: nothing of the old one counts.
            let memory = Memory { incarnation: hello.incarnation, synced_batches: 0 };
            *known = Known { memory, ..Known::default() };
            self.news = true;
        }
        let is_same = known.live.is_some_and(|live| live.session == hello.session);
        // Of one process words may overtake each other. 0 is said by who does not count, and by a directory
        // that has not started: if it has synced anything before, it is a copy of what it was then.
        let (told, most) = (hello.synced_batches, known.memory.synced_batches);
        if !is_same && told < most && (told != 0 || !hello.started) {
            return Err(Refusal::Copy(format!(
                "node {name} returned with an older copy of its data ({told} batches, it had {most}): \
                 it must be replaced, not restarted"
            )));
        }
        if let Some(live) = known.live.filter(|_| !is_same) {
            let first = match known.waiting {
                Some(waiting) if waiting.session == hello.session => waiting.at_ms,
                Some(_) | None => now_ms,
            };
            known.waiting = Some(Process { session: hello.session, at_ms: first });
            if live.at_ms >= first.saturating_add(SPEAKS_MS) {
                return Err(Refusal::Copy(format!(
                    "another process runs with a copy of the data of node {name}, and was there first"
                )));
            }
            if now_ms < live.at_ms.saturating_add(SPEAKS_MS) {
                let reason = format!("node {name} was heard a moment ago as another process");
                return Err(Refusal::Policy(reason));
            }
        }
        known.live = Some(Process { session: hello.session, at_ms: now_ms });
        known.waiting = None;
        self.note(hello.node, told);
        Ok(())
    }

    /// The process `session` of `node` speaks at `now_ms`.
    pub(crate) fn hear(&mut self, node: NodeId, session: u64, synced_batches: u64, now_ms: u64) {
        let live = self.known.get_mut(&node).and_then(|known| known.live.as_mut());
        if let Some(live) = live.filter(|live| live.session == session) {
            live.at_ms = live.at_ms.max(now_ms);
            self.note(node, synced_batches);
        }
    }

    /// What is to be remembered over restarts, in the form that [`Witness::of`] reads, if that has changed
    /// since it was last asked for. It belongs into the log with the node's own next batch.
    pub(crate) fn take_news(&mut self) -> Option<Bytes> {
        let remembered = |(node, known): (&NodeId, &Known)| Remembered {
            node: node.value(),
            incarnation: known.memory.incarnation.value(),
            synced_batches: known.memory.synced_batches,
        };
        std::mem::take(&mut self.news).then(|| {
            let nodes = self.known.iter().map(remembered).collect();
            WitnessRecord { nodes }.encode_to_vec().into()
        })
    }

    fn note(&mut self, node: NodeId, synced_batches: u64) {
        if let Some(known) = self.known.get_mut(&node)
            && known.memory.synced_batches < synced_batches
        {
            known.memory.synced_batches = synced_batches;
            self.news = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(2);

    fn hello(session: u64, synced_batches: u64) -> Hello {
        Hello {
            cluster_name: "c".into(),
            cluster_digest: [0; 32],
            node: NODE,
            node_name: "n2".into(),
            incarnation: Incarnation(7),
            session,
            started: true,
            synced_batches,
            target: NodeId(1),
        }
    }

    fn is_copy(result: Result<(), Refusal>) -> bool {
        matches!(result, Err(Refusal::Copy(_)))
    }

    #[test]
    fn a_node_that_returns_with_less_than_it_had_is_refused() {
        let mut witness = Witness::default();
        assert_eq!(witness.admit(&hello(1, 100), 0), Ok(()));
        witness.hear(NODE, 1, 250, 1_000);
        assert!(is_copy(witness.admit(&hello(2, 249), 60_000)));
        assert!(is_copy(witness.admit(&hello(3, 249), 90_000)), "however often it tries");
        assert_eq!(witness.admit(&hello(4, 250), 90_000), Ok(()), "the real one");
    }

    #[test]
    fn what_was_told_outlives_a_restart_of_the_witness() {
        let mut witness = Witness::default();
        assert_eq!(witness.admit(&hello(1, 100), 0), Ok(()));
        let memories = witness.take_news().expect("news");
        assert_eq!(witness.take_news(), None, "once");
        let mut witness = Witness::of(memories);
        assert!(is_copy(witness.admit(&hello(2, 99), 0)));
        assert_eq!(witness.admit(&hello(3, 100), 0), Ok(()));
    }

    #[test]
    fn what_cannot_be_read_is_told_again() {
        assert_eq!(Witness::of(Bytes::new()), Witness::default());
        assert_eq!(Witness::of(Bytes::from_static(b"\xff\xff")), Witness::default());
    }

    #[test]
    fn a_node_that_was_restarted_is_always_let_in_again_soon() {
        let mut witness = Witness::default();
        let (mut now, mut synced) = (0, 10);
        for session in 1..100 {
            // It comes at once, and again and again.
            while let Err(refusal) = witness.admit(&hello(session, synced), now) {
                assert!(matches!(refusal, Refusal::Policy(_)), "{refusal:?}");
                now += 100;
            }
            assert!(now <= session * (SPEAKS_MS + 1_100));
            synced += session % 3;
            now += 1_000;
            witness.hear(NODE, session, synced, now);
        }
    }

    #[test]
    fn the_second_of_two_live_processes_is_refused() {
        let mut witness = Witness::default();
        assert_eq!(witness.admit(&hello(1, 100), 0), Ok(()));
        let mut refused = Vec::new();
        for now in (0..5_000).step_by(500) {
            if now % 500 == 0 {
                witness.hear(NODE, 1, 100, now);
            }
            refused.push(witness.admit(&hello(2, 100), now).expect_err("never let in"));
        }
        assert!(matches!(refused[0], Refusal::Policy(_)), "it may be a restart");
        assert!(matches!(refused.last(), Some(Refusal::Copy(_))), "it is none");
        assert_eq!(witness.admit(&hello(1, 100), 5_000), Ok(()), "the first goes on");
    }

    #[test]
    fn words_of_one_process_may_overtake_each_other() {
        let mut witness = Witness::default();
        assert_eq!(witness.admit(&hello(1, 100), 0), Ok(()));
        witness.hear(NODE, 1, 120, 10);
        assert_eq!(witness.admit(&hello(1, 110), 20), Ok(()), "its other connection");
        assert!(is_copy(witness.admit(&hello(2, 110), 60_000)));
    }

    #[test]
    fn who_does_not_count_is_not_judged_by_its_count() {
        let mut witness = Witness::default();
        assert_eq!(witness.admit(&hello(1, 100), 0), Ok(()));
        assert_eq!(witness.admit(&hello(2, 0), 60_000), Ok(()), "a node of an older version");
        assert!(is_copy(witness.admit(&hello(3, 99), 120_000)), "what was told is not forgotten");
    }

    #[test]
    fn a_copy_from_before_a_founder_had_started_is_refused() {
        let mut witness = Witness::default();
        let founding = Hello { started: false, ..hello(1, 0) };
        assert_eq!(witness.admit(&founding, 0), Ok(()), "nothing was synced yet");
        assert_eq!(witness.admit(&hello(1, 3), 10), Ok(()), "it has started meanwhile");
        let copy = Hello { started: false, ..hello(2, 0) };
        assert!(is_copy(witness.admit(&copy, 60_000)), "it would vote a second time");
    }

    #[test]
    fn another_directory_begins_anew_and_strangers_leave_no_trace() {
        let mut witness = Witness::default();
        assert_eq!(witness.admit(&hello(1, 100), 0), Ok(()));
        let other = Hello { incarnation: Incarnation(8), ..hello(2, 1) };
        assert_eq!(witness.admit(&other, 1), Ok(()));
        let mut witness = Witness::default();
        let stranger = Hello { node: NodeId::ZERO, ..hello(1, 1) };
        assert_eq!(witness.admit(&stranger, 0), Ok(()));
        assert_eq!(witness.take_news(), None);
    }
}
