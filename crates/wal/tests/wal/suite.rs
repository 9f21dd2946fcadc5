//! The property suite: random histories with restarts and power cuts, over any store.
//!
//! After each step everything that the store tells must equal the model.

use bytes::Bytes;
use proptest::prelude::*;
use quorate_wal::LogStore;

use crate::model::{Change, Model};

/// A place where logs outlive the process.
pub(crate) trait Place {
    type Log: LogStore;

    fn open(&mut self) -> Self::Log;

    /// Writes `batches` so that a power cut can still take them, and cuts the power: gives how many of
    /// them survived, which must be a prefix.
    fn cut_power(
        &mut self,
        log: Self::Log,
        batches: &[Vec<quorate_wal::Write>],
        seed: u64,
    ) -> usize;

    /// Lets the store tidy up, as it may at any moment.
    fn tidy(&mut self, log: &Self::Log, thoroughly: bool);
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Write(Vec<Change>),
    Seal,
    Note(u8),
    Reopen,
    CutPower { batches: Vec<Vec<Change>>, seed: u64 },
    Tidy { thoroughly: bool },
}

/// Runs a history in `place`.
pub(crate) fn run(place: &mut impl Place, steps: &[Step]) {
    let mut model = Model::default();
    let mut log = place.open();
    model.check(&mut log);
    // The host's words: what a restart finds, and what the next batch or seal brings.
    let (mut noted, mut to_note) = (Bytes::new(), None);
    for step in steps {
        match step {
            Step::Write(changes) => {
                let batch = model.batch(changes);
                let batches = log.synced_batches();
                log.write(&batch).expect("nothing fails here");
                noted = to_note.take().unwrap_or(noted);
                assert_eq!(log.synced_batches(), batches + 1);
            }
            Step::Seal => {
                let batches = log.synced_batches();
                log.seal().expect("nothing fails here");
                noted = to_note.take().unwrap_or(noted);
                assert_eq!(log.synced_batches(), batches, "a seal is no batch");
            }
            Step::Note(words) => {
                let words = Bytes::from(vec![*words]);
                log.note(words.clone());
                to_note = Some(words);
            }
            Step::Reopen => {
                let batches = log.synced_batches();
                drop(log);
                to_note = None;
                log = place.open();
                assert_eq!(log.synced_batches(), batches);
            }
            Step::CutPower { batches, seed } => {
                let synced = log.synced_batches();
                let mut models = vec![model.clone()];
                let mut written = Vec::new();
                for changes in batches {
                    written.push(model.batch(changes));
                    models.push(model.clone());
                }
                let survived = place.cut_power(log, &written, *seed);
                model = models.swap_remove(survived);
                log = place.open();
                assert_eq!(log.synced_batches(), synced + survived as u64);
                let brought = to_note.take().filter(|_| survived > 0);
                noted = brought.unwrap_or(noted);
            }
            Step::Tidy { thoroughly } => place.tidy(&log, *thoroughly),
        }
        model.check(&mut log);
        assert_eq!(log.noted(), noted, "words come with a batch and not before");
    }
}

/// Histories of a few groups, so that they get into each other's way.
pub(crate) fn history(steps_max: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => batch().prop_map(Step::Write),
        1 => Just(Step::Seal),
        1 => any::<u8>().prop_map(Step::Note),
        1 => Just(Step::Reopen),
        1 => (proptest::collection::vec(batch(), 0..3), any::<u64>())
            .prop_map(|(batches, seed)| Step::CutPower { batches, seed }),
        2 => any::<bool>().prop_map(|thoroughly| Step::Tidy { thoroughly }),
    ];
    proptest::collection::vec(step, 1..steps_max)
}

fn batch() -> impl Strategy<Value = Vec<Change>> {
    proptest::collection::vec(change(), 0..6)
}

fn change() -> impl Strategy<Value = Change> {
    let group = 1u64..4;
    let append = (
        group.clone(),
        prop_oneof![2 => Just(0), 1 => 0u64..8],
        proptest::collection::vec(prop_oneof![4 => Just(0u64), 1 => 1u64..3], 1..6),
        prop_oneof![4 => 0usize..50, 1 => Just(5_000usize)],
        any::<bool>(),
    );
    prop_oneof![
        2 => (group.clone(), 1u64..4, prop_oneof![Just(1u64), 1u64..300])
            .prop_map(|(group, term, index)| Change::Create { group, term, index }),
        12 => append.prop_map(|(group, back, term_steps, bytes, hard_state)| Change::Append {
            group,
            back,
            term_steps,
            bytes,
            hard_state,
        }),
        2 => (group.clone(), any::<bool>())
            .prop_map(|(group, same)| Change::HardState { group, same }),
        4 => (group.clone(), prop_oneof![0u64..=100, Just(100)])
            .prop_map(|(group, percent)| Change::Truncate { group, percent }),
        2 => group.clone().prop_map(|group| Change::Intend { group }),
        1 => group.prop_map(|group| Change::Destroy { group }),
    ]
}
