//! The seam between a group and what it replicates.
//!
//! The life of a command, seen from here:
//!
//! 1. A leader proposes the command's bytes; the log replicates and commits them.
//! 2. On every replica an *applier* hands runs of committed commands to [`StateMachine::apply`], with a
//!    [`StateBatch`] to read and write rows through.
//! 3. The host adds the group's own row (applied index, term, membership, [`StateMachine::meta`]) to the
//!    same batch and writes all of it atomically.
//! 4. The outcome of each command goes back to whoever proposed it.
//!
//! Reads do not pass through the machine: [`MachineKind::read`] answers from a consistent view of the
//! rows and of the `meta` that was written with them, on any thread, beside running applies.

use std::any::Any;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use crate::digest::Digest;
use crate::entry::EntryId;
use crate::id::{GroupId, Term};
use crate::moment::Moment;

/// A committed command on its way into a state machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Committed {
    /// The entry that carried it.
    pub id: EntryId,
    /// What was proposed.
    pub command: Bytes,
}

/// What commands did, for those who follow a group: what is between two positions of its machine.
///
/// The host publishes it unread once the rows are written; only the machine and those who follow it know
/// what the payload is. Positions grow; `after == through` with an empty payload says where the machine
/// stands. Cheap to clone.
#[derive(Clone)]
pub struct Feed {
    /// The machine's position before; the `through` of the feed before, if nothing is left out.
    pub after: i64,
    /// The machine's position now: nothing can be added up to here.
    pub through: i64,
    /// What the payload takes in memory, about.
    pub bytes: usize,
    /// What happened in between; shared, never copied.
    pub payload: Arc<dyn Any + Send + Sync>,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { after, through, bytes, .. } = self;
        write!(f, "Feed({after}..={through}, {bytes} bytes)")
    }
}

/// The engine under the rows failed or holds damaged data: the node must stop using it.
///
/// This is never part of a replicated outcome: other replicas may well succeed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("state engine: {0}")]
pub struct StateError(pub String);

/// Why a read has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// The query's bytes are not a query of this machine.
    #[error("malformed query: {0}")]
    Malformed(String),
    /// Only the leader can answer, and this replica does not lead in the term of the read; or it cannot at
    /// this moment. Worth asking again.
    #[error("not now")]
    NotNow,
    /// The engine failed.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Which way a scan walks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Ascending keys.
    Forward,
    /// Descending keys.
    Backward,
}

/// What a scan calls for each row, with key and value; `Break` ends the scan.
pub type Visit<'v> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'v;

/// A consistent view of the rows that a machine owns.
pub trait StateReader {
    /// The value of `key`.
    ///
    /// # Errors
    /// When the engine fails or finds damage.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StateError>;

    /// Visits the rows with `start <= key < end` (no `end`: to the last row of the machine) in
    /// `direction`, until the range or `visit` ends.
    ///
    /// # Errors
    /// When the engine fails or finds damage.
    fn scan(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        direction: Direction,
        visit: &mut Visit<'_>,
    ) -> Result<(), StateError>;
}

/// A batch under construction: reads see the batch's own writes over the engine's rows.
///
/// The batch is written as a whole or not at all.
pub trait StateBatch: StateReader {
    /// Sets a row.
    fn put(&mut self, key: &[u8], value: &[u8]);

    /// Removes a row; no error if there is none.
    fn delete(&mut self, key: &[u8]);
}

/// A deterministic, replicated state machine: the same commands in the same order give the same rows,
/// the same `meta` and the same outcomes on every replica.
///
/// It must not look at a clock, at randomness, or at which node it is on. Malformed commands are part
/// of life: they get an outcome, never a panic.
pub trait StateMachine: Send {
    /// Applies commands in log order and returns one outcome for each, in the same order.
    ///
    /// # Errors
    /// Only when the engine fails; whatever a command does wrong is an outcome.
    fn apply(
        &mut self,
        committed: &[Committed],
        batch: &mut dyn StateBatch,
    ) -> Result<Vec<Bytes>, StateError>;

    /// What the commands that were applied since the last call did, for those who follow the group; the
    /// host asks after each run, and publishes it once the run is written. The first call after the machine
    /// was opened may say where it stands. `None`: nothing to say, as of machines that nobody can follow.
    fn take_feed(&mut self) -> Option<Feed> {
        None
    }

    /// What the machine must know again after a restart and beside its rows; stored in the same batch
    /// as the rows. Small: it is written with every batch.
    fn meta(&self) -> Bytes;

    /// What the writes of all commands so far come to: the same on every replica that has applied the
    /// same entries, however they were cut into runs. Part of [`Self::meta`], so that restarts and
    /// snapshots keep it. `None`: replicas of this machine are not compared.
    fn digest(&self) -> Option<Digest> {
        None
    }

    /// Removes up to `budget_rows` rows that no read can see any more. Called now and then between
    /// applies; returns true while there is more to remove.
    ///
    /// # Errors
    /// When the engine fails.
    fn sweep(
        &mut self,
        budget_rows: usize,
        batch: &mut dyn StateBatch,
    ) -> Result<bool, StateError> {
        let _ = (budget_rows, batch);
        Ok(false)
    }
}

/// Where the rows of a kind of machine live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RowScope {
    /// In a space of the group's own: no other group can name them.
    Group,
    /// In the node's one space of user keys, so that a split of a range moves no data. The host refuses
    /// two groups of this scope whose ranges overlap.
    Keyspace,
}

/// The leadership under which a read for the leader was granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Led {
    /// The term of the grant.
    pub term: Term,
    /// The host's clock, read after the grant.
    pub now: Moment,
}

/// A command that a kind wants proposed because time has passed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Due {
    /// The group.
    pub group: GroupId,
    /// The command.
    pub command: Bytes,
}

/// How many of something there are in the replicas of a node, as a metric shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Figure {
    /// The metric's name.
    pub name: &'static str,
    /// What is counted, for people.
    pub help: &'static str,
    /// How many there are now.
    pub value: u64,
}

/// A kind of state machine, registered by name when a node is opened, so that a restart can rebuild the
/// groups that it finds.
pub trait MachineKind: Send + Sync + fmt::Debug {
    /// The persisted name; never changed once groups of the kind exist.
    fn name(&self) -> &str;

    /// Whether `command` may add data. What does not is taken even when disks are nearly full, because it
    /// may free some; a command that cannot be read grows nothing.
    fn grows(&self, command: &Bytes) -> bool {
        let _ = command;
        true
    }

    /// Where the rows live.
    fn scope(&self) -> RowScope {
        RowScope::Group
    }

    /// The machine of `group` as of the rows in `state` and the `meta` stored with them; `meta` is empty
    /// for a new group.
    ///
    /// # Errors
    /// When the engine fails or `meta` cannot be read.
    fn open(
        &self,
        group: GroupId,
        meta: &[u8],
        state: &dyn StateReader,
    ) -> Result<Box<dyn StateMachine>, StateError>;

    /// Answers a query from one consistent view of `group`. It runs beside applies, on any thread.
    ///
    /// # Errors
    /// [`ReadError::Malformed`] for bytes that are no query, [`ReadError::State`] when the engine fails.
    fn read(
        &self,
        group: GroupId,
        query: &Bytes,
        meta: &[u8],
        state: &dyn StateReader,
    ) -> Result<Bytes, ReadError>;

    /// Like [`MachineKind::read`], for a query that looks at a few rows at most, so that it may be answered
    /// right where it is asked; `None` for any other, which is moved away from the threads that serve
    /// everybody.
    fn read_few(
        &self,
        group: GroupId,
        query: &Bytes,
        meta: &[u8],
        state: &dyn StateReader,
    ) -> Option<Result<Bytes, ReadError>> {
        let _ = (group, query, meta, state);
        None
    }

    /// Who keeps time: this replica of `group` leads in `term` from now on, and has applied the first entry
    /// of that term; `None`: it leads no more, or it has no life to lead in. Told from the group's own
    /// turns, so it must not take long.
    fn on_leadership(&self, group: GroupId, term: Option<Term>) {
        let _ = (group, term);
    }

    /// Time has passed: what shall be proposed to groups that this node leads. Called many times a second,
    /// whether the groups are awake or not, from where nothing may block.
    ///
    /// `now` comes from a monotonic clock that counts through suspends.
    fn tick(&self, now: Moment) -> Vec<Due> {
        let _ = now;
        Vec::new()
    }

    /// A command of [`Self::tick`] was certainly not proposed, and will not be.
    fn not_proposed(&self, due: &Due) {
        let _ = due;
    }

    /// What there is now in the replicas of this node, leaders or not: always the same figures, in the same
    /// order. Asked about once a second, from where nothing may block, so it counts nothing out.
    fn figures(&self) -> Vec<Figure> {
        Vec::new()
    }

    /// Answers a query that only the leader can answer, such as one about time. It was granted like any
    /// linearizable read, by this replica in the term of `led`: everything up to the grant is applied.
    /// It runs right where it was asked, so it must look at few rows.
    ///
    /// # Errors
    /// As [`MachineKind::read`], and [`ReadError::NotNow`].
    fn read_led(
        &self,
        group: GroupId,
        query: &Bytes,
        led: Led,
        meta: &[u8],
        state: &dyn StateReader,
    ) -> Result<Bytes, ReadError> {
        let _ = (group, query, led, meta, state);
        Err(ReadError::Malformed("no question for a leader".into()))
    }
}
