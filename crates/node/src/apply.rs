//! The applier: one thread that owns all state machines of a node.
//!
//! The life of a round: take what waits, from many groups; let each group's machine apply its entries
//! into one shared batch, with the group's own row beside its data; write the batch; only then tell
//! the groups. The state engine keeps no log of its own: after a crash a group applies again from the
//! row that was durable, and since row and data are one batch, nothing is applied twice or left out.
//!
//! Between two rounds the machines remove what nobody can read any more, a little at a time: [`Sweeps`] says
//! whose turn it is.
//!
//! A panic in a machine drops that group's part of the batch and that machine alone: the group is told, and
//! asks for a new one ([`Applier::reload`]). A failure of the engine ends the process, because no later
//! answer could be trusted, and so does any other panic here.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::RecvTimeoutError;
use quorate_group::{Checkpoint, DIGEST_INTERVAL, Generation, is_checkpoint};
use quorate_store::{GroupRow, Install, Overlay, ScopedView, StateEngine};
use quorate_types::machine::{Feed, RowScope, StateError};
use quorate_types::{
    Committed, Entry, EntryId, GroupId, LogIndex, MachineKind, Membership, Payload, StateMachine,
};
use quorate_wal::inbox::{Inbox, InboxSender, inbox};

use tokio::sync::oneshot;

use crate::completions::EXIT_STORAGE_FAILED;
use crate::feed::{Feeds, Ring};
use crate::metrics::NodeMetrics;
use crate::sweeps::{STEP_ROWS_MAX, Sweeps, Turn};

/// Bytes of entries that one round takes at most, so that a batch stays a few milliseconds of work.
const ROUND_BYTES_MAX: usize = 4 << 20;

/// Committed entries of a group. A group has at most one such task outstanding, which bounds the
/// applier's queue by the number of groups.
pub(crate) struct ApplyTask {
    pub(crate) group: GroupId,
    pub(crate) generation: Generation,
    pub(crate) entries: Vec<Entry>,
}

/// A group whose machine the applier should own.
pub(crate) struct OpenMachine {
    pub(crate) group: GroupId,
    /// The life of the group that it is opened for.
    pub(crate) generation: Generation,
    pub(crate) kind: Arc<dyn MachineKind>,
    pub(crate) membership: Membership,
    /// Up to here the state was found applied.
    pub(crate) applied: EntryId,
    pub(crate) meta: Bytes,
}

/// A snapshot that is to take the place of a group's rows.
pub(crate) struct InstallTask {
    pub(crate) group: GroupId,
    pub(crate) kind: Arc<dyn MachineKind>,
    pub(crate) install: Install,
    /// Fires when the rows are in place and durable.
    pub(crate) done: oneshot::Sender<()>,
}

enum Work {
    Open(OpenMachine),
    Install(InstallTask),
    Apply(ApplyTask),
    Close(GroupId),
    Reload { group: GroupId, loaded: OnLoaded },
    Stop,
}

/// What the applier tells a group.
pub(crate) type OnApplied = Box<dyn Fn(GroupId, Generation, Applied) + Send + 'static>;

/// What came of a task.
pub(crate) struct Applied {
    pub(crate) through: LogIndex,
    pub(crate) outcomes: Vec<(EntryId, Bytes)>,
    /// What the state came to on the way.
    pub(crate) checkpoints: Vec<Checkpoint>,
}

/// What the applier says of a group whose machine panicked: it will never apply again in this life.
pub(crate) type OnFailed = Box<dyn Fn(GroupId, Generation) + Send + 'static>;

/// Takes the group's own row as it is in the live engine; `None` if there is none.
pub(crate) type OnLoaded = Box<dyn FnOnce(Option<GroupRow>) + Send + 'static>;

/// The way to the applier's thread.
#[derive(Clone)]
pub(crate) struct Applier {
    work: InboxSender<Work>,
}

impl Applier {
    /// Starts the thread.
    pub(crate) fn start(
        engine: Arc<dyn StateEngine>,
        on_applied: OnApplied,
        on_failed: OnFailed,
        metrics: Arc<NodeMetrics>,
        feeds: Arc<Feeds>,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        // Bounded by the number of groups: see `ApplyTask`.
        let (work, queue) = inbox(None);
        let thread = std::thread::Builder::new().name("quorate-apply".into()).spawn(move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                Rounds {
                    engine,
                    machines: BTreeMap::new(),
                    sweeps: Sweeps::default(),
                    on_applied,
                    on_failed,
                    metrics,
                    feeds,
                }
                .run(&queue)
            }));
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(error)) => fail(&error.to_string()),
                Err(_) => fail("panic"),
            }
        })?;
        Ok((Self { work: work.read_by(thread.thread()) }, thread))
    }

    pub(crate) fn open(&self, machine: OpenMachine) {
        self.submit(Work::Open(machine));
    }

    pub(crate) fn apply(&self, task: ApplyTask) {
        self.submit(Work::Apply(task));
    }

    /// Replaces a group's rows, after what was handed in before, and its machine by one of the new rows.
    pub(crate) fn install(&self, task: InstallTask) {
        self.submit(Work::Install(task));
    }

    pub(crate) fn close(&self, group: GroupId) {
        self.submit(Work::Close(group));
    }

    /// Lets go of the group's machine after everything that was handed in for it, and reads its row then:
    /// what a new life of the group begins from. Nothing is applied to it until it is opened again.
    pub(crate) fn reload(&self, group: GroupId, loaded: OnLoaded) {
        self.submit(Work::Reload { group, loaded });
    }

    /// Ends the thread after the work that waits.
    pub(crate) fn stop(&self) {
        self.submit(Work::Stop);
    }

    fn submit(&self, work: Work) {
        // The thread ends only after `stop`, or with the process.
        drop(self.work.send(work));
    }
}

/// Without its applier a node would acknowledge what it cannot show: end the process, so that its
/// groups are led elsewhere.
fn fail(reason: &str) -> ! {
    tracing::error!(reason, "the applier failed; the node stops");
    std::process::exit(EXIT_STORAGE_FAILED)
}

/// The thread's own state.
struct Rounds {
    engine: Arc<dyn StateEngine>,
    machines: BTreeMap<GroupId, Owned>,
    sweeps: Sweeps,
    on_applied: OnApplied,
    on_failed: OnFailed,
    metrics: Arc<NodeMetrics>,
    /// Where what machines tell is published, once it is written.
    feeds: Arc<Feeds>,
}

struct Owned {
    generation: Generation,
    machine: Box<dyn StateMachine>,
    ring: Arc<Ring>,
    kind: String,
    scope: RowScope,
    membership: Membership,
    applied: EntryId,
}

struct Done {
    group: GroupId,
    generation: Generation,
    applied: Applied,
    feed: Option<(Arc<Ring>, Feed)>,
}

impl Rounds {
    fn run(mut self, queue: &Inbox<Work>) -> Result<(), StateError> {
        loop {
            let Some(first) = self.wait(queue)? else { return Ok(()) };
            let (mut tasks, mut bytes, mut next) = (Vec::new(), 0, Some(first));
            while let Some(work) = next {
                match work {
                    Work::Apply(task) => {
                        bytes += task.entries.iter().map(Entry::cost_bytes).sum::<usize>();
                        tasks.push(task);
                        next = if bytes < ROUND_BYTES_MAX { queue.try_recv() } else { None };
                    }
                    other => {
                        // In order: what was handed in before a close is applied before it.
                        self.round(std::mem::take(&mut tasks))?;
                        if !self.administer(other)? {
                            return Ok(());
                        }
                        next = queue.try_recv();
                    }
                }
            }
            self.metrics.apply_queue_depth.set(queue.len() as f64);
            self.round(tasks)?;
        }
    }

    /// The next piece of work; before it, and while there is none, sweeps that are due. `None`: nobody is left to
    /// give any.
    fn wait(&mut self, queue: &Inbox<Work>) -> Result<Option<Work>, StateError> {
        loop {
            // However much waits: space must follow a compaction under every load.
            let now = Instant::now();
            let turn = self.sweeps.turn(now);
            let received = match turn {
                Turn::Now(group) => {
                    self.sweep(group, now)?;
                    continue;
                }
                Turn::At(next) => queue.recv_deadline(next),
                Turn::Never => queue.recv().ok_or(RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(work) => return Ok(Some(work)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// False at the end.
    fn administer(&mut self, work: Work) -> Result<bool, StateError> {
        match work {
            Work::Open(open) => self.open(open)?,
            Work::Install(task) => self.install(task)?,
            Work::Close(group) => self.close(group),
            Work::Reload { group, loaded } => {
                self.close(group);
                loaded(GroupRow::load(group, &*self.engine.view())?);
            }
            Work::Stop => {
                self.machines.values().for_each(|owned| owned.ring.close());
                self.engine.flush()?;
                return Ok(false);
            }
            Work::Apply(task) => self.round(vec![task])?,
        }
        Ok(true)
    }

    fn close(&mut self, group: GroupId) {
        self.feeds.ring(group).close();
        self.machines.remove(&group);
        self.sweeps.remove(group);
    }

    /// A machine has panicked: it must not be used again, and its group has to know.
    fn lose(&mut self, group: GroupId, generation: Generation) {
        tracing::error!(%group, %generation, "a state machine panicked");
        self.close(group);
        (self.on_failed)(group, generation);
    }

    fn open(&mut self, open: OpenMachine) -> Result<(), StateError> {
        let view = self.engine.view();
        let scoped = ScopedView::new(&*view, open.kind.scope(), open.group);
        let opened =
            catch_unwind(AssertUnwindSafe(|| open.kind.open(open.group, &open.meta, &scoped)));
        let is_new = GroupRow::load(open.group, &*view)?.is_none();
        drop(view);
        let Ok(machine) = opened else {
            self.lose(open.group, open.generation);
            return Ok(());
        };
        let mut machine = machine?;
        let ring = self.feeds.ring(open.group);
        if let Some(feed) = machine.take_feed() {
            ring.publish(feed);
        }
        let owned = Owned {
            generation: open.generation,
            machine,
            ring,
            kind: open.kind.name().to_owned(),
            scope: open.kind.scope(),
            membership: open.membership,
            applied: open.applied,
        };
        if is_new {
            // Before anything is applied: whoever lacks the group gets it as a snapshot, which begins with this row.
            let mut overlay = Overlay::new(self.engine.view());
            write_group_row(&owned, open.group, &mut overlay);
            let rows = overlay.into_rows();
            self.engine.write(rows)?;
        }
        self.machines.insert(open.group, owned);
        self.sweeps.add(open.group);
        Ok(())
    }

    /// The one thread that writes rows does this too, so that no batch that rests on the old rows can
    /// come after it.
    fn install(&mut self, task: InstallTask) -> Result<(), StateError> {
        let InstallTask { group, kind, install, done } = task;
        let GroupRow { applied, membership, meta, .. } = install.header().row.clone();
        // Dropped before its rows are replaced: what it remembers of them is wrong from then on.
        let generation = self.machines.remove(&group).map(|owned| owned.generation);
        install.run(&*self.engine)?;
        // A group whose machine is lost asks for another one by itself.
        if let Some(generation) = generation {
            self.open(OpenMachine { group, generation, kind, membership, applied, meta })?;
        }
        tracing::info!(%group, %applied, "a snapshot is installed");
        // Whoever waited may be gone, with the node; the next start goes on.
        let _ = done.send(());
        Ok(())
    }

    fn round(&mut self, tasks: Vec<ApplyTask>) -> Result<(), StateError> {
        if tasks.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        let mut done = Vec::with_capacity(tasks.len());
        let (mut entries, mut lost) = (0, Vec::new());
        let rows = {
            let mut overlay = Overlay::new(self.engine.view());
            for task in tasks {
                entries += task.entries.len();
                let (group, generation) = (task.group, task.generation);
                let Some(owned) = self.machines.get_mut(&group) else {
                    // It panicked as it was opened, perhaps before its group could be told.
                    lost.push((group, generation));
                    continue;
                };
                let savepoint = overlay.savepoint();
                let applied =
                    catch_unwind(AssertUnwindSafe(|| apply_task(owned, task, &mut overlay)));
                match applied {
                    Ok(result) => done.push(result?),
                    Err(_) => {
                        overlay.rollback(savepoint);
                        self.machines.remove(&group);
                        lost.push((group, generation));
                    }
                }
                self.sweeps.add(group);
            }
            overlay.into_rows()
        };
        self.engine.write(rows)?;
        self.sweeps.earn(entries);
        for (group, generation) in lost {
            self.lose(group, generation);
        }
        self.metrics.apply_seconds.record(began.elapsed());
        self.metrics.apply_entries.record(entries as f64);
        for Done { group, generation, applied, feed } in done {
            if let Some((ring, feed)) = feed {
                ring.publish(feed);
            }
            (self.on_applied)(group, generation, applied);
        }
        Ok(())
    }

    /// One step of the group whose turn it is.
    fn sweep(&mut self, group: GroupId, now: Instant) -> Result<(), StateError> {
        let Some(owned) = self.machines.get_mut(&group) else {
            self.sweeps.remove(group);
            return Ok(());
        };
        let generation = owned.generation;
        let mut overlay = Overlay::new(self.engine.view());
        let swept = catch_unwind(AssertUnwindSafe(|| sweep_once(owned, group, &mut overlay)));
        let Ok(swept) = swept else {
            // What it has written into the batch goes with it.
            drop(overlay);
            self.lose(group, generation);
            return Ok(());
        };
        let (more, rows) = (swept?, overlay.into_rows());
        let removed = rows.len();
        if removed > 0 {
            self.engine.write(rows)?;
        }
        self.sweeps.took(now, removed, more);
        Ok(())
    }
}

/// True while there is more to sweep. Writes nothing if nothing has changed, as after most entries.
fn sweep_once(
    owned: &mut Owned,
    group: GroupId,
    overlay: &mut Overlay<'_>,
) -> Result<bool, StateError> {
    let before = owned.machine.meta();
    let more = owned.machine.sweep(STEP_ROWS_MAX, &mut overlay.scoped(owned.scope, group))?;
    if !overlay.is_empty() || owned.machine.meta() != before {
        write_group_row(owned, group, overlay);
    }
    Ok(more)
}

fn apply_task(
    owned: &mut Owned,
    task: ApplyTask,
    overlay: &mut Overlay<'_>,
) -> Result<Done, StateError> {
    let ApplyTask { group, generation, entries } = task;
    let last = entries.last().map_or(owned.applied, |entry| entry.id);
    if let Some(first) = entries.first() {
        assert_eq!(
            first.id.index,
            owned.applied.index.next(),
            "group {group} must apply in order: {} after {}",
            first.id,
            owned.applied,
        );
    }
    let mut applied =
        Applied { through: last.index, outcomes: Vec::new(), checkpoints: Vec::new() };
    let mut committed = Vec::with_capacity(entries.len());
    for Entry { id, payload } in entries {
        match payload {
            Payload::Empty => {}
            Payload::Command(command) => committed.push(Committed { id, command }),
            // Written with the rows: a snapshot of them begins with it.
            Payload::Membership(membership) => owned.membership = *membership,
        }
        if is_checkpoint(id.index, DIGEST_INTERVAL) {
            apply_commands(owned, group, std::mem::take(&mut committed), overlay, &mut applied)?;
            let digest = owned.machine.digest();
            applied.checkpoints.extend(digest.map(|digest| Checkpoint { at: id, digest }));
        }
    }
    apply_commands(owned, group, committed, overlay, &mut applied)?;
    owned.applied = last;
    write_group_row(owned, group, overlay);
    let feed = owned.machine.take_feed().map(|feed| (Arc::clone(&owned.ring), feed));
    Ok(Done { group, generation, applied, feed })
}

fn apply_commands(
    owned: &mut Owned,
    group: GroupId,
    committed: Vec<Committed>,
    overlay: &mut Overlay<'_>,
    applied: &mut Applied,
) -> Result<(), StateError> {
    if committed.is_empty() {
        return Ok(());
    }
    let outcomes = owned.machine.apply(&committed, &mut overlay.scoped(owned.scope, group))?;
    assert_eq!(outcomes.len(), committed.len(), "group {group}: one outcome for each command");
    let ids = committed.into_iter().map(|committed| committed.id);
    applied.outcomes.extend(ids.zip(outcomes));
    Ok(())
}

fn write_group_row(owned: &Owned, group: GroupId, overlay: &mut Overlay<'_>) {
    let row = GroupRow {
        applied: owned.applied,
        membership: owned.membership.clone(),
        kind: owned.kind.clone(),
        meta: owned.machine.meta(),
    };
    overlay.put_group_row(group, &row);
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
