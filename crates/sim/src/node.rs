//! A node: what outlives its processes (disk, state, clock), and the process that runs on it now.
//!
//! A process is put together as the real host does it: recover the log, load each group's row, hand both to
//! [`Group`], and give the group's machine to the applier.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use quorate_group::{Descriptor, Generation, Group, GroupConfig, GrowthGate, Host, Panics};
use quorate_placement::{PlacementKind, PlacementMap};
use quorate_raft::{Config, LogState, Ticket};
use quorate_store::{GroupRow, KvKind, MemState, ScopedView, StateEngine};
use quorate_types::machine::RowScope;
use quorate_types::{
    Due, Entry, EntryId, GroupId, HardState, KeyRange, LogIndex, MachineKind, Membership, NodeId,
    Payload, SnapshotMeta, StateMachine, Term,
};
use quorate_wal::directory::MemDirectory;
use quorate_wal::mem::{MemDisk, MemLog};
use quorate_wal::{LogReader, LogStore, RecoveredLog, Write};

use crate::beats::Hearing;
use crate::clock::Clock;
use crate::disks::{Disks, Trouble};
use crate::event::Event;
use crate::feed::Ring;
use crate::mover::Mover;
use crate::plan::{Cluster, Plan};
use crate::snapshot::Snapshot;
use crate::spoil::Spoil;

/// Whose request a waiting proposal or read is: the group hands it back with the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slot {
    pub(crate) request: u64,
    pub(crate) attempt: u32,
    /// The node that the client talks to.
    pub(crate) gateway: NodeId,
}

/// The first entry of every log: nothing is in it, it stands for the first snapshot.
pub(crate) const FIRST: EntryId = EntryId::new(Term(1), LogIndex(1));

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) disk: MemDisk,
    pub(crate) state: MemState,
    pub(crate) clock: Clock,
    /// The descriptors of its groups.
    labels: BTreeMap<GroupId, Bytes>,
    /// Counts starts and stops: odd while a process runs.
    pub(crate) life: u64,
    pub(crate) process: Option<Process>,
    pub(crate) paused_until: Option<u64>,
    /// What has reached its process while that stands still, in order.
    pub(crate) put_off: Vec<Event>,
    /// Ticks that its process sees at once when it goes on.
    pub(crate) late_ticks: u64,
    /// When it last went on: what has waited is one turn.
    pub(crate) resumed_us: Option<u64>,
    /// Goes down after so many more effects.
    pub(crate) crash_after: Option<PlannedCrash>,
    /// Files of received snapshots; what is in them is in `received` and `installing`.
    pub(crate) files: MemDirectory,
    /// Snapshots that are here as a whole.
    pub(crate) received: BTreeMap<GroupId, Snapshot>,
    /// The one that is taking the place of log and state. Durable: a start does it again.
    pub(crate) installing: Option<(GroupId, Snapshot)>,
    /// The newest placement map that it has heard of: durable, as the copy in a data directory.
    pub(crate) map: Option<PlacementMap>,
    pub(crate) slow_sync_us: u64,
    pub(crate) trouble: Trouble,
    /// What is wrong with the rows of its data group.
    pub(crate) spoil: Spoil,
    pub(crate) full: bool,
    /// It must not come back: its log is damaged or gone.
    pub(crate) lost: bool,
    /// A synced record of its log is damaged: the next start finds out.
    pub(crate) damaged: bool,
    /// How long its next failure keeps it down.
    pub(crate) down_us: u64,
}

/// A crash that waits for its effect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlannedCrash {
    pub(crate) effects: u32,
    pub(crate) power: bool,
    pub(crate) down_us: u64,
    /// It never comes back.
    pub(crate) for_good: bool,
}

/// What runs on a node between a start and a stop.
pub(crate) struct Process {
    pub(crate) host: Host,
    pub(crate) residents: BTreeMap<GroupId, Resident>,
    /// What is left of groups that have panicked: their machines, for what is still applied.
    pub(crate) dead: BTreeMap<GroupId, Resident>,
    /// Groups whose next life is being loaded.
    pub(crate) reloading: BTreeMap<GroupId, Generation>,
    pub(crate) panics: BTreeMap<GroupId, Panics>,
    pub(crate) quarantined: BTreeSet<GroupId>,
    pub(crate) wal: Wal,
    pub(crate) to_apply: VecDeque<(GroupId, Generation, Vec<Entry>)>,
    pub(crate) hearing: Hearing,
    pub(crate) disks: Disks,
    pub(crate) mover: Mover,
    /// The highest revision that its gateway has answered: no serializable read goes below it.
    pub(crate) answered_revision: i64,
    /// What machines want proposed and has not come to an end.
    pub(crate) dues: BTreeMap<u32, (Arc<dyn MachineKind>, Due)>,
    pub(crate) last_due: u32,
}

/// The log's thread.
pub(crate) struct Wal {
    pub(crate) log: MemLog,
    pub(crate) reader: Box<dyn LogReader>,
    pub(crate) waiting: VecDeque<Task>,
    /// Who hears of the batch under way: the last ticket of each group.
    pub(crate) syncing: BTreeMap<(GroupId, Generation), Ticket>,
    /// When the oldest append of that batch was asked for.
    pub(crate) syncing_since_us: Option<u64>,
    pub(crate) busy: bool,
}

impl Wal {
    /// Since when the oldest append waits that is not synced.
    pub(crate) fn oldest_unsynced_us(&self) -> Option<u64> {
        self.syncing_since_us.or_else(|| self.waiting.front().map(|task| task.since_us))
    }
}

/// An append on its way to the log.
pub(crate) struct Task {
    pub(crate) group: GroupId,
    pub(crate) generation: Generation,
    /// What the group hears of it; nothing for a cut.
    pub(crate) ticket: Option<Ticket>,
    pub(crate) write: Write,
    pub(crate) since_us: u64,
}

/// A group on a node.
pub(crate) struct Resident {
    pub(crate) group: Group<Slot, Slot>,
    pub(crate) generation: Generation,
    pub(crate) kind: Arc<dyn MachineKind>,
    pub(crate) machine: Box<dyn StateMachine>,
    /// What the machine has told lately.
    pub(crate) ring: Ring,
    pub(crate) membership: Membership,
    pub(crate) applied: EntryId,
    pub(crate) turn_due: bool,
    /// As the wheel knows it.
    pub(crate) rests: bool,
    pub(crate) growth: GrowthGate,
    /// Its next apply panics.
    pub(crate) machine_panics: bool,
    /// It has, and applies nothing more.
    pub(crate) machine_failed: bool,
    /// Serializable reads are served from here on.
    pub(crate) caught_up_at: LogIndex,
    pub(crate) sweeping: bool,
    /// Appends that wait for the log to begin anew, while a snapshot is installed.
    pub(crate) held: Option<Vec<Task>>,
}

/// Why a node does not start.
#[derive(Debug)]
pub(crate) enum OpenFailed {
    /// Its log says that it is damaged.
    Damaged(String),
    /// State and log do not belong together.
    Inconsistent(String),
}

impl Node {
    /// A node of the plan whose groups are founded and that has never run.
    pub(crate) fn found(id: NodeId, plan: &Plan, membership: &Membership, clock: Clock) -> Self {
        let disk = MemDisk::new();
        let mut log = disk.open();
        let (mut writes, mut labels) = (Vec::new(), BTreeMap::new());
        for (group, kind, range) in groups(&plan.cluster) {
            let label = Descriptor { kind: kind.name().to_owned(), range }.encode();
            // Whoever is no member knows nothing of the group but what is in no log: an empty first snapshot.
            labels.insert(group, label.clone());
            let is_member = membership.contains(id);
            let known = if is_member { membership.clone() } else { Membership::default() };
            let snapshot = SnapshotMeta { last: FIRST, membership: known };
            writes.push(Write::Create { group, label, snapshot });
            writes.extend(past(group, &plan.cluster).filter(|_| is_member));
        }
        log.write(&writes).expect("a new disk takes writes");
        Self {
            id,
            disk,
            state: MemState::new(),
            clock,
            labels,
            life: 0,
            process: None,
            paused_until: None,
            put_off: Vec::new(),
            late_ticks: 0,
            resumed_us: None,
            crash_after: None,
            files: MemDirectory::new(),
            received: BTreeMap::new(),
            installing: None,
            map: None,
            slow_sync_us: 0,
            trouble: Trouble::default(),
            spoil: Spoil::default(),
            full: false,
            lost: false,
            damaged: false,
            down_us: 0,
        }
    }

    /// Starts a process on what the last one has left. What it had staged is there, since the machine has
    /// kept its power since then, or has lost it in its crash.
    pub(crate) fn open(
        &mut self,
        cluster: &Cluster,
    ) -> Result<BTreeMap<GroupId, RecoveredLog>, OpenFailed> {
        let mut log = self.disk.open();
        let recovered = log.recover().map_err(|error| OpenFailed::Damaged(error.to_string()))?;
        self.life += 1;
        let (mut host, mut residents) = (Host::new(), BTreeMap::new());
        let reader = log.reader();
        for (&group, found) in &recovered {
            let inconsistent = |why: String| OpenFailed::Inconsistent(format!("{group}: {why}"));
            let descriptor = Descriptor::decode(&found.label)
                .map_err(|error| inconsistent(error.to_string()))?;
            let generation =
                host.admit(group, descriptor).map_err(|error| inconsistent(error.to_string()))?;
            let resident = self.begin_life(cluster, group, generation, found.clone())?;
            if group == GroupId::FIRST_DATA {
                self.spoil.recover(resident.applied.index);
            }
            residents.insert(group, resident);
        }
        let mut hearing = Hearing::new(self.id, cluster);
        residents.keys().for_each(|&group| hearing.wheel.on_awake(group));
        self.process = Some(Process {
            host,
            residents,
            dead: BTreeMap::new(),
            reloading: BTreeMap::new(),
            panics: BTreeMap::new(),
            quarantined: BTreeSet::new(),
            wal: Wal {
                log,
                reader,
                waiting: VecDeque::new(),
                syncing: BTreeMap::new(),
                syncing_since_us: None,
                busy: false,
            },
            to_apply: VecDeque::new(),
            hearing,
            disks: Disks::default(),
            mover: Mover::default(),
            answered_revision: 0,
            dues: BTreeMap::new(),
            last_due: 0,
        });
        Ok(recovered)
    }

    /// A life of a group that begins from its log and its row, as both are now.
    pub(crate) fn begin_life(
        &self,
        cluster: &Cluster,
        group: GroupId,
        generation: Generation,
        log: RecoveredLog,
    ) -> Result<Resident, OpenFailed> {
        let inconsistent = |why: String| OpenFailed::Inconsistent(format!("group {group}: {why}"));
        let descriptor =
            Descriptor::decode(&log.label).map_err(|error| inconsistent(error.to_string()))?;
        // A kind outlives the lives of its groups.
        let before = self.process.as_ref().and_then(|process| process.dead.get(&group));
        let kind = before
            .map(|dead| Arc::clone(&dead.kind))
            .or_else(|| kind_of(&descriptor.kind))
            .ok_or_else(|| inconsistent(format!("unknown kind {}", descriptor.kind)))?;
        let view = self.state.view();
        let row = GroupRow::load(group, &*view).map_err(|error| inconsistent(error.to_string()))?;
        let caught_up_at = log.hard_state.commit;
        let (applied, meta, membership) = match row {
            Some(row) => (row.applied, row.meta, row.membership),
            None => (log.snapshot.last, Default::default(), log.snapshot.membership.clone()),
        };
        if applied.index > log.last.index {
            return Err(inconsistent(format!(
                "the state is at {applied}, beyond the log's end {}",
                log.last
            )));
        }
        let scoped = ScopedView::new(&*view, kind.scope(), group);
        let mut machine =
            kind.open(group, &meta, &scoped).map_err(|error| inconsistent(error.to_string()))?;
        let mut ring = Ring::default();
        machine.take_feed().into_iter().for_each(|feed| ring.publish(feed));
        let state = LogState {
            hard_state: log.hard_state,
            snapshot: log.snapshot,
            terms: log.terms,
            memberships: log.memberships,
            last: log.last,
            applied: applied.index,
        };
        // Another life, other timeouts: or two nodes that restart together would collide for ever.
        let seed = (self.id.value() << 32)
            ^ self.life
            ^ (generation.0 << 20)
            ^ group.value().rotate_left(48);
        Ok(Resident {
            group: Group::new(group_config(cluster, group, self.id, seed), state),
            generation,
            kind,
            machine,
            ring,
            membership,
            applied,
            turn_due: false,
            rests: false,
            growth: GrowthGate::default(),
            machine_panics: false,
            machine_failed: false,
            caught_up_at,
            sweeping: true,
            held: None,
        })
    }

    /// Ends the process, by itself or not. The machine's memory of rows goes with it, and with the power also
    /// what the log had not synced; returns how many staged batches survived, if the power went.
    pub(crate) fn stop(&mut self, power: bool, random: &mut fastrand::Rng) -> Option<usize> {
        if self.process.take().is_some() {
            self.life += 1;
        }
        self.paused_until = None;
        self.resumed_us = None;
        self.crash_after = None;
        // The state engine has no log of its own: whatever it had not flushed is gone, but for a prefix.
        let kept = random.usize(..=self.state.unflushed());
        self.state.crash(kept);
        power.then(|| {
            self.files.crash(random.u64(..));
            self.disk.crash(random.u64(..)).survived
        })
    }

    /// What the log says of a group.
    pub(crate) fn label_of(&self, group: GroupId) -> Bytes {
        self.labels.get(&group).cloned().unwrap_or_default()
    }

    /// Where the rows of a group's machine are.
    pub(crate) fn scope_of(&self, group: GroupId) -> RowScope {
        if group == GroupId::FIRST_DATA { RowScope::Keyspace } else { RowScope::Group }
    }

    pub(crate) fn resident(&self, group: GroupId) -> Option<&Resident> {
        self.process.as_ref()?.residents.get(&group)
    }

    pub(crate) fn resident_mut(&mut self, group: GroupId) -> Option<&mut Resident> {
        self.process.as_mut()?.residents.get_mut(&group)
    }
}

/// The groups of a cluster: id, machine, and the keys that it owns.
pub(crate) fn groups(cluster: &Cluster) -> Vec<(GroupId, Arc<dyn MachineKind>, Option<KeyRange>)> {
    let data: (GroupId, Arc<dyn MachineKind>, _) =
        (GroupId::FIRST_DATA, Arc::new(KvKind::default()), Some(KeyRange::all()));
    if cluster.placement {
        vec![(GroupId::PLACEMENT, Arc::new(PlacementKind), None), data]
    } else {
        vec![data]
    }
}

fn kind_of(name: &str) -> Option<Arc<dyn MachineKind>> {
    let kinds: [Arc<dyn MachineKind>; 2] = [Arc::new(KvKind::default()), Arc::new(PlacementKind)];
    kinds.into_iter().find(|kind| kind.name() == name)
}

/// Entries that a scenario wants in every log from the beginning: no-ops of the first term, all committed.
fn past(group: GroupId, cluster: &Cluster) -> Option<Write> {
    let term = Term(cluster.first_term);
    if cluster.first_term == 1 && cluster.first_entries == 0 {
        return None;
    }
    let first = FIRST.index.value() + 1;
    let last = FIRST.index.value() + cluster.first_entries;
    let entry = |index| Entry { id: EntryId::new(term, LogIndex(index)), payload: Payload::Empty };
    let hard_state = HardState { term, vote: None, commit: LogIndex(last) };
    Some(Write::Append {
        group,
        hard_state: Some(hard_state),
        entries: (first..=last).map(entry).collect(),
    })
}

fn group_config(cluster: &Cluster, group: GroupId, node: NodeId, seed: u64) -> GroupConfig {
    GroupConfig {
        raft: Config {
            election_ticks_min: cluster.election_ticks_min,
            election_ticks_max: cluster.election_ticks_max,
            heartbeat_ticks: cluster.heartbeat_ticks,
            append_bytes_max: cluster.append_bytes_max,
            inflight_appends_max: cluster.inflight_appends_max,
            inflight_partial_max: cluster.inflight_partial_max,
            eager_commit: cluster.eager_commit,
            quiet_commit: cluster.quiet_commit,
            inflight_bytes_max: cluster.inflight_bytes_max,
            uncommitted_bytes_max: cluster.uncommitted_bytes_max,
            cached_bytes_max: cluster.cached_bytes_max,
            seed,
            tick_us: cluster.tick_us,
            quiesce_ticks: cluster.quiesce_ticks,
            pre_vote: cluster.pre_vote,
            check_quorum: cluster.check_quorum,
            lease: cluster.lease,
            life: seed,
            ..Config::new(group, node)
        },
        proposal_ticks_max: cluster.proposal_ticks_max,
        read_ticks_max: cluster.proposal_ticks_max,
    }
}
