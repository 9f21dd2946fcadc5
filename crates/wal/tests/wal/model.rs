//! What logs should hold, as plainly as it can be said: a map from index to entry for each group.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate_types::{
    Entry, EntryId, GroupId, HardState, LogIndex, Membership, NodeId, Payload, SnapshotMeta, Term,
};
use quorate_wal::{LogError, LogStore, RecoveredLog, Write};

/// The logs of a node.
#[derive(Clone, Default, Debug)]
pub(crate) struct Model {
    logs: BTreeMap<GroupId, ModelLog>,
    /// Makes every payload and label different.
    made: u64,
}

#[derive(Clone, Debug)]
struct ModelLog {
    label: Bytes,
    hard_state: HardState,
    snapshot: SnapshotMeta,
    entries: BTreeMap<LogIndex, Entry>,
    intent: Option<Bytes>,
}

/// A change in words that fit any state; [`Model::write`] makes it concrete.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Create { group: u64, term: u64, index: u64 },
    Append { group: u64, back: u64, term_steps: Vec<u64>, bytes: usize, hard_state: bool },
    HardState { group: u64, same: bool },
    Truncate { group: u64, percent: u64 },
    Intend { group: u64 },
    Destroy { group: u64 },
}

impl Model {
    /// Applies a change and gives the writes that make it: none if it makes no sense now.
    pub(crate) fn write(&mut self, change: &Change) -> Option<Write> {
        self.made += 1;
        let made = self.made;
        match *change {
            Change::Create { group, term, index } => {
                let group = GroupId(group);
                let snapshot = SnapshotMeta {
                    last: EntryId::new(Term(term), LogIndex(index)),
                    membership: membership(made),
                };
                let label = Bytes::from(format!("label {made}"));
                let hard_state =
                    self.logs.get(&group).map_or_else(HardState::default, |log| log.hard_state);
                let (entries, write) = (
                    BTreeMap::new(),
                    Write::Create { group, label: label.clone(), snapshot: snapshot.clone() },
                );
                let log = ModelLog { label, hard_state, snapshot, entries, intent: None };
                self.logs.insert(group, log);
                Some(write)
            }
            Change::Append { group, back, ref term_steps, bytes, hard_state } => {
                let group = GroupId(group);
                let log = self.logs.get_mut(&group)?;
                let length = log.entries.len() as u64;
                let mut before = log.ids().nth((length - back.min(length)) as usize)?;
                let mut entries = Vec::new();
                for (step, number) in term_steps.iter().zip(0u64..) {
                    before = EntryId::new(Term(before.term.value() + step), before.index.next());
                    let payload = if (made + number).is_multiple_of(5) {
                        Payload::Empty
                    } else if (made + number).is_multiple_of(7) {
                        Payload::Membership(Box::new(membership(made + number)))
                    } else {
                        let mut text = format!("{made}.{number} ").into_bytes();
                        text.resize(text.len().max(bytes), b'x');
                        Payload::Command(text.into())
                    };
                    entries.push(Entry { id: before, payload });
                }
                let hard_state = hard_state.then(|| log.other_hard_state(made));
                log.append(hard_state, &entries);
                Some(Write::Append { group, hard_state, entries })
            }
            Change::HardState { group, same } => {
                let group = GroupId(group);
                let log = self.logs.get_mut(&group)?;
                let hard_state = if same { log.hard_state } else { log.other_hard_state(made) };
                log.append(Some(hard_state), &[]);
                Some(Write::Append { group, hard_state: Some(hard_state), entries: Vec::new() })
            }
            Change::Truncate { group, percent } => {
                let group = GroupId(group);
                let Some(log) = self.logs.get_mut(&group) else {
                    return Some(Write::TruncatePrefix { group, through: LogIndex(percent) });
                };
                let count = log.entries.len() as u64 * percent / 100;
                let id = log.ids().nth(count as usize)?;
                let kept = log.entries.split_off(&id.index.next());
                let gone = std::mem::replace(&mut log.entries, kept);
                if let Some((_, membership)) = memberships(&gone).pop() {
                    log.snapshot.membership = membership;
                }
                log.snapshot.last = id;
                Some(Write::TruncatePrefix { group, through: id.index })
            }
            Change::Intend { group } => {
                let group = GroupId(group);
                let log = self.logs.get_mut(&group)?;
                // Now and then one that there is, is withdrawn.
                log.intent = match log.intent.is_some() && made.is_multiple_of(2) {
                    true => None,
                    false => Some(Bytes::from(format!("intent {made}"))),
                };
                let intent = log.intent.clone().unwrap_or_default();
                Some(Write::Intend { group, intent })
            }
            Change::Destroy { group } => {
                self.logs.remove(&GroupId(group));
                Some(Write::Destroy { group: GroupId(group) })
            }
        }
    }

    /// Applies a batch of changes.
    pub(crate) fn batch(&mut self, changes: &[Change]) -> Vec<Write> {
        changes.iter().filter_map(|change| self.write(change)).collect()
    }

    pub(crate) fn recovered(&self) -> BTreeMap<GroupId, RecoveredLog> {
        self.logs.iter().map(|(group, log)| (*group, log.recovered())).collect()
    }

    /// All entries of a group.
    #[cfg(feature = "rocks")]
    pub(crate) fn entries(&self, group: GroupId) -> Vec<Entry> {
        self.logs.get(&group).map_or_else(Vec::new, |log| log.entries.values().cloned().collect())
    }

    /// Compares everything that can be asked of `log`.
    pub(crate) fn check(&self, log: &mut impl LogStore) {
        assert_eq!(log.recover(), Ok(self.recovered()));
        let reader = log.reader();
        for (group, expected) in &self.logs {
            assert_eq!(log.log(*group), Some(expected.recovered()));
            let (first, last) = (expected.snapshot.last.index.next(), expected.last().index);
            for from in first.value()..=last.value() + 1 {
                for to in [from, from + 2, last.value() + 5] {
                    for bytes_max in [0, 90, usize::MAX] {
                        let (from, to) = (LogIndex(from), LogIndex(to));
                        let entries = reader.read(*group, from, to, bytes_max);
                        assert_eq!(
                            entries,
                            Ok(expected.read(from, to, bytes_max)),
                            "{from} to {to}"
                        );
                    }
                }
            }
            let below = reader.read(*group, LogIndex(first.value() - 1), last, usize::MAX);
            assert_eq!(below, Err(LogError::Compacted { group: *group, first }));
        }
        let unknown = GroupId(99);
        assert_eq!(log.log(unknown), None);
        let entries = reader.read(unknown, LogIndex(1), LogIndex(2), usize::MAX);
        assert_eq!(entries, Err(LogError::UnknownGroup(unknown)));
    }
}

/// Some membership, with all there is to one.
fn membership(made: u64) -> Membership {
    Membership {
        voters: [NodeId(1), NodeId(made + 8)].into(),
        outgoing: if made.is_multiple_of(2) { [NodeId(7)].into() } else { [].into() },
        learners: [NodeId(made + 9)].into(),
        promote: if made.is_multiple_of(3) { [NodeId(made + 9)].into() } else { [].into() },
        auto_leave: made.is_multiple_of(4),
    }
}

fn memberships(entries: &BTreeMap<LogIndex, Entry>) -> Vec<(LogIndex, Membership)> {
    let found = entries.iter().filter_map(|(index, entry)| match &entry.payload {
        Payload::Membership(membership) => Some((*index, (**membership).clone())),
        Payload::Empty | Payload::Command(_) => None,
    });
    found.collect()
}

impl ModelLog {
    /// The base and then every entry.
    fn ids(&self) -> impl Iterator<Item = EntryId> {
        std::iter::once(self.snapshot.last).chain(self.entries.values().map(|entry| entry.id))
    }

    fn last(&self) -> EntryId {
        self.ids().last().expect("there is a base")
    }

    fn other_hard_state(&self, made: u64) -> HardState {
        let vote = (!made.is_multiple_of(3)).then_some(NodeId(made % 3));
        HardState { term: self.hard_state.term.next(), vote, commit: LogIndex(made) }
    }

    fn append(&mut self, hard_state: Option<HardState>, entries: &[Entry]) {
        self.hard_state = hard_state.unwrap_or(self.hard_state);
        if let Some(first) = entries.first() {
            self.entries.split_off(&first.id.index);
        }
        self.entries.extend(entries.iter().map(|entry| (entry.id.index, entry.clone())));
    }

    fn recovered(&self) -> RecoveredLog {
        let ids: Vec<EntryId> = self.entries.values().map(|entry| entry.id).collect();
        RecoveredLog {
            label: self.label.clone(),
            hard_state: self.hard_state,
            snapshot: self.snapshot.clone(),
            memberships: memberships(&self.entries),
            terms: ids.chunk_by(|one, next| one.term == next.term).map(|run| run[0]).collect(),
            last: self.last(),
            intent: self.intent.clone(),
        }
    }

    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut cost_bytes = 0;
        for (_, entry) in self.entries.range(from..=to) {
            cost_bytes += entry.cost_bytes();
            if !entries.is_empty() && cost_bytes > bytes_max {
                break;
            }
            entries.push(entry.clone());
        }
        entries
    }
}
