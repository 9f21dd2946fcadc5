//! The keyspace's machine, in trouble when it is told to be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::Bytes;
use quorate_node::KvKind;
use quorate_types::machine::{Feed, ReadError, RowScope, StateError};
use quorate_types::{
    Committed, Digest, Due, GroupId, Led, MachineKind, Moment, StateBatch, StateMachine,
    StateReader, Term,
};

use super::cluster::put;

/// What goes wrong with the machines of a node.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    /// The next command is another one here.
    pub(crate) spoils: AtomicBool,
    /// So many times a machine panics when it is given commands.
    pub(crate) panics: AtomicU32,
}

/// The keyspace, but for its [`Trouble`].
#[derive(Debug, Default)]
pub(crate) struct Troubled {
    pub(crate) keyspace: KvKind,
    pub(crate) trouble: Arc<Trouble>,
}

struct Machine {
    machine: Box<dyn StateMachine>,
    trouble: Arc<Trouble>,
}

impl StateMachine for Machine {
    fn apply(
        &mut self,
        committed: &[Committed],
        batch: &mut dyn StateBatch,
    ) -> Result<Vec<Bytes>, StateError> {
        let panics = &self.trouble.panics;
        let took_one =
            panics.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        assert!(took_one.is_err(), "as asked");
        let mut committed = committed.to_vec();
        if let Some(first) = committed.first_mut()
            && self.trouble.spoils.swap(false, Ordering::Relaxed)
        {
            first.command = put("spoiled");
        }
        self.machine.apply(&committed, batch)
    }

    fn take_feed(&mut self) -> Option<Feed> {
        self.machine.take_feed()
    }

    fn meta(&self) -> Bytes {
        self.machine.meta()
    }

    fn digest(&self) -> Option<Digest> {
        self.machine.digest()
    }

    fn sweep(
        &mut self,
        budget_rows: usize,
        batch: &mut dyn StateBatch,
    ) -> Result<bool, StateError> {
        self.machine.sweep(budget_rows, batch)
    }
}

impl MachineKind for Troubled {
    fn name(&self) -> &str {
        self.keyspace.name()
    }

    fn grows(&self, command: &Bytes) -> bool {
        self.keyspace.grows(command)
    }

    fn scope(&self) -> RowScope {
        self.keyspace.scope()
    }

    fn open(
        &self,
        group: GroupId,
        meta: &[u8],
        state: &dyn StateReader,
    ) -> Result<Box<dyn StateMachine>, StateError> {
        let machine = self.keyspace.open(group, meta, state)?;
        Ok(Box::new(Machine { machine, trouble: Arc::clone(&self.trouble) }))
    }

    fn read(
        &self,
        group: GroupId,
        query: &Bytes,
        meta: &[u8],
        state: &dyn StateReader,
    ) -> Result<Bytes, ReadError> {
        self.keyspace.read(group, query, meta, state)
    }

    fn on_leadership(&self, group: GroupId, term: Option<Term>) {
        self.keyspace.on_leadership(group, term);
    }

    fn tick(&self, now: Moment) -> Vec<Due> {
        self.keyspace.tick(now)
    }

    fn read_led(
        &self,
        group: GroupId,
        query: &Bytes,
        led: Led,
        meta: &[u8],
        state: &dyn StateReader,
    ) -> Result<Bytes, ReadError> {
        self.keyspace.read_led(group, query, led, meta, state)
    }
}
