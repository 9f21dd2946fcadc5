//! Sweeps beside a queue that is never empty, and the row that a group begins with.

use std::sync::atomic::{AtomicUsize, Ordering};

use metrics::NoopRecorder;
use quorate_store::MemState;
use quorate_types::{StateBatch, Term};

use super::*;

const BUSY: GroupId = GroupId(7);
const OTHER: GroupId = GroupId(9);

/// Entries of one task: as many as earn a step.
const ENTRIES: u64 = 128;

/// Applies anything, and always has something to remove.
struct Untidy {
    swept: Arc<AtomicUsize>,
}

impl StateMachine for Untidy {
    fn apply(
        &mut self,
        committed: &[Committed],
        _: &mut dyn StateBatch,
    ) -> Result<Vec<Bytes>, StateError> {
        Ok(vec![Bytes::new(); committed.len()])
    }

    fn meta(&self) -> Bytes {
        Bytes::new()
    }

    fn sweep(&mut self, rows: usize, batch: &mut dyn StateBatch) -> Result<bool, StateError> {
        (0..rows).for_each(|row| batch.delete(&row.to_be_bytes()));
        self.swept.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }
}

fn owned(feeds: &Feeds, group: GroupId, swept: &Arc<AtomicUsize>) -> Owned {
    Owned {
        generation: Generation(1),
        machine: Box::new(Untidy { swept: Arc::clone(swept) }),
        ring: feeds.ring(group),
        kind: "untidy".into(),
        scope: RowScope::Group,
        membership: Membership::default(),
        applied: EntryId::ZERO,
    }
}

/// Entries that fill a round: nothing else is taken into it.
fn full_round(group: GroupId, round: u64) -> Work {
    let command = Bytes::from(vec![0; ROUND_BYTES_MAX / ENTRIES as usize]);
    let entry = |index| Entry {
        id: EntryId::new(Term(1), LogIndex(round * ENTRIES + index)),
        payload: Payload::Command(command.clone()),
    };
    Work::Apply(ApplyTask {
        group,
        generation: Generation(1),
        entries: (1..=ENTRIES).map(entry).collect(),
    })
}

#[test]
fn every_group_is_swept_while_there_is_always_something_to_apply() {
    const ROUNDS: u64 = 40;
    let feeds = Arc::new(Feeds::default());
    let swept = [BUSY, OTHER].map(|group| (group, Arc::new(AtomicUsize::new(0))));
    let machines = swept.iter().map(|(group, swept)| (*group, owned(&feeds, *group, swept)));
    let mut rounds = Rounds {
        engine: Arc::new(MemState::new()),
        machines: machines.collect(),
        sweeps: Sweeps::default(),
        on_applied: Box::new(|_, _, _| {}),
        on_failed: Box::new(|group, _| panic!("{group} failed")),
        metrics: Arc::new(NodeMetrics::new(&NoopRecorder, &[])),
        feeds,
    };
    swept.iter().for_each(|(group, _)| rounds.sweeps.add(*group));
    let (work, queue) = inbox(None);
    let work = work.read_by(&std::thread::current());
    for round in 0..ROUNDS {
        work.send(full_round(BUSY, round)).unwrap();
    }
    work.send(Work::Stop).unwrap();
    rounds.run(&queue).unwrap();
    for (group, swept) in swept {
        let swept = swept.load(Ordering::Relaxed) as u64;
        assert!(swept >= ROUNDS / 2 - 1, "{group} was swept {swept} times in {ROUNDS} rounds");
    }
}
