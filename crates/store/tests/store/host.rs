//! A stand-in for the node: one group of the kind "kv" on an engine, with the log that it replays.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use quorate_store::{GroupRow, KvKind, Overlay, ScopedView, SharedView, StateEngine};
use quorate_types::kv::{Command, KvError, Outcome, Query, Range, outcome, query};
use quorate_types::machine::{Direction, Feed, ReadError, RowScope, StateError};
use quorate_types::{Committed, EntryId, GroupId, LogIndex, MachineKind, StateMachine, Term};

/// The group of every test.
pub(crate) const GROUP: GroupId = GroupId::FIRST_DATA;

/// One replica.
pub(crate) struct Host<E> {
    pub(crate) engine: E,
    kind: KvKind,
    machine: Box<dyn StateMachine>,
    log: Vec<Bytes>,
    outcomes: Vec<Outcome>,
    applied: usize,
}

impl<E: StateEngine> Host<E> {
    pub(crate) fn new(engine: E) -> Self {
        let kind = KvKind::default();
        let machine = open(&kind, &engine).unwrap();
        Self { engine, kind, machine, log: Vec::new(), outcomes: Vec::new(), applied: 0 }
    }

    /// Commits and applies one command.
    pub(crate) fn apply(&mut self, command: &Command) -> Outcome {
        self.apply_all([command.encode_to_vec().into()]).pop().unwrap()
    }

    /// Commits commands and applies them as one batch.
    pub(crate) fn apply_all(&mut self, commands: impl IntoIterator<Item = Bytes>) -> Vec<Outcome> {
        let from = self.log.len();
        self.log.extend(commands);
        self.apply_log(self.log.len()).unwrap();
        self.outcomes[from..].to_vec()
    }

    /// Commits and applies one command; `meanwhile` runs when the machine has applied it and no view can
    /// show it yet.
    pub(crate) fn apply_while(&mut self, command: &Command, meanwhile: impl FnOnce(&Self)) {
        self.log.push(command.encode_to_vec().into());
        self.apply_log_while(self.log.len(), meanwhile).unwrap();
    }

    /// Applies the log up to `to` as one batch; what is applied again must give what it gave before.
    pub(crate) fn apply_log(&mut self, to: usize) -> Result<(), StateError> {
        self.apply_log_while(to, |_| ())
    }

    fn apply_log_while(
        &mut self,
        to: usize,
        meanwhile: impl FnOnce(&Self),
    ) -> Result<(), StateError> {
        let committed: Vec<_> = (self.applied..to)
            .map(|at| Committed { id: entry(at + 1), command: self.log[at].clone() })
            .collect();
        let mut overlay = Overlay::new(self.engine.view());
        let mut batch = overlay.scoped(RowScope::Keyspace, GROUP);
        let outcomes = self.machine.apply(&committed, &mut batch)?;
        assert_eq!(outcomes.len(), committed.len(), "one outcome for each command");
        for (at, outcome) in (self.applied..to).zip(outcomes) {
            let outcome = Outcome::decode(outcome).unwrap();
            match self.outcomes.get(at) {
                Some(before) => assert_eq!(&outcome, before, "replayed entry {}", at + 1),
                None => self.outcomes.push(outcome),
            }
        }
        meanwhile(self);
        self.applied = to;
        self.write(overlay_with_row(overlay, self.applied, &*self.machine))
    }

    /// One round of the sweep; true while there is more.
    pub(crate) fn sweep(&mut self, budget_rows: usize) -> bool {
        let mut overlay = Overlay::new(self.engine.view());
        let mut batch = overlay.scoped(RowScope::Keyspace, GROUP);
        let more = self.machine.sweep(budget_rows, &mut batch).unwrap();
        self.write(overlay_with_row(overlay, self.applied, &*self.machine)).unwrap();
        more
    }

    /// Starts anew from what the engine holds, and replays the rest of the log.
    pub(crate) fn restart(&mut self) {
        self.machine = open(&self.kind, &self.engine).unwrap();
        let row = GroupRow::load(GROUP, &*self.engine.view()).unwrap();
        self.applied = row.map_or(0, |row| row.applied.index.value() as usize);
        for to in self.applied + 1..=self.log.len() {
            self.apply_log(to).unwrap();
        }
    }

    /// How many leases the kind says that there are.
    pub(crate) fn lease_count(&self) -> u64 {
        let figures = self.kind.figures();
        let count = figures.iter().find(|figure| figure.name == "quorate_lease_count");
        count.expect("the kind counts leases").value
    }

    /// The kind without its machine, as of a group that has left the node.
    pub(crate) fn end(self) -> KvKind {
        self.kind
    }

    /// Asks as the host does: of one view, with the meta that this view holds.
    pub(crate) fn read(&self, query: &Query) -> Result<Outcome, ReadError> {
        self.read_bytes(query.encode_to_vec().into())
    }

    pub(crate) fn read_bytes(&self, query: Bytes) -> Result<Outcome, ReadError> {
        let view = self.engine.view();
        let meta = GroupRow::load(GROUP, &*view)?.map_or_else(Bytes::new, |row| row.meta);
        let scoped = ScopedView::new(&*view, RowScope::Keyspace, GROUP);
        Ok(Outcome::decode(self.kind.read(GROUP, &query, &meta, &scoped)?).unwrap())
    }

    /// Asks an older view, and a kind beside the host's own that remembers nothing: both answers.
    pub(crate) fn range_in(&self, view: &SharedView, range: &Range) -> [Outcome; 2] {
        let meta = &view.group_row(GROUP).unwrap().meta;
        let scoped = ScopedView::new(view.rows(), RowScope::Keyspace, GROUP);
        let query = Query { body: Some(query::Body::Range(range.clone())), caller: None }
            .encode_to_vec()
            .into();
        [&self.kind, &KvKind::default()]
            .map(|kind| Outcome::decode(kind.read(GROUP, &query, meta, &scoped).unwrap()).unwrap())
    }

    /// Asks for a range.
    pub(crate) fn range(&self, range: Range) -> Outcome {
        self.read(&Query { body: Some(query::Body::Range(range)), caller: None }).unwrap()
    }

    /// What the machine has to tell since the last call.
    pub(crate) fn take_feed(&mut self) -> Option<Feed> {
        self.machine.take_feed()
    }

    pub(crate) fn meta(&self) -> Bytes {
        self.machine.meta()
    }

    pub(crate) fn log_len(&self) -> usize {
        self.log.len()
    }

    fn write(&self, rows: quorate_store::Rows) -> Result<(), StateError> {
        self.engine.write(rows)
    }
}

/// All rows of an engine.
pub(crate) fn rows(engine: &dyn StateEngine) -> BTreeMap<Bytes, Bytes> {
    let mut rows = BTreeMap::new();
    engine
        .view()
        .scan(&[], None, Direction::Forward, &mut |key, value| {
            rows.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    rows
}

/// The error of an outcome, if it is one.
pub(crate) fn error(outcome: &Outcome) -> Option<KvError> {
    match outcome.body {
        Some(outcome::Body::Error(error)) => KvError::try_from(error).ok(),
        _ => None,
    }
}

fn open(kind: &KvKind, engine: &dyn StateEngine) -> Result<Box<dyn StateMachine>, StateError> {
    let view = engine.view();
    let meta = GroupRow::load(GROUP, &*view)?.map_or_else(Bytes::new, |row| row.meta);
    kind.open(GROUP, &meta, &ScopedView::new(&*view, RowScope::Keyspace, GROUP))
}

fn overlay_with_row(
    mut overlay: Overlay<'_>,
    applied: usize,
    machine: &dyn StateMachine,
) -> quorate_store::Rows {
    let row = GroupRow {
        applied: entry(applied),
        kind: KvKind::NAME.into(),
        meta: machine.meta(),
        ..GroupRow::default()
    };
    overlay.put_group_row(GROUP, &row);
    overlay.into_rows()
}

fn entry(index: usize) -> EntryId {
    EntryId::new(Term(1), LogIndex(index as u64))
}
