//! How the disks of the nodes are: this node looks at its own, tells the others, hears of theirs, and tells
//! its groups what follows. The rules are [`quorate_group::disk`]'s.
//!
//! Free space is asked of the system, away from the runtime: on a disk that hangs, the question hangs too.
//! Whether the disk hangs shows in the log: its oldest append that is not synced grows old. All of this
//! goes on while the log's thread waits.
//!
//! Groups that are awake hear at once what has changed. One that sleeps looks by itself when it wakes; only a
//! leader must give its group away though it sleeps, and of those a few hear of it at each look.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use quorate_group::disk::reserve_bytes;
use quorate_group::{Fitness, Room, Stall};
use quorate_raft::Role;
use quorate_types::{GroupId, NodeId};
use quorate_wal::Wal;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval};

use crate::actor::Input;
use crate::engine::lock;
use crate::forward::{Beat, Request, reply};
use crate::router::Router;

/// Looks in an election timeout: a stalled disk is found so much later at most.
const LOOKS_PER_ELECTION: u32 = 10;

/// How often the system is asked for free space. A fast disk writes some hundred megabytes meanwhile: less
/// than the half of the least reserve that is left when a node stops taking entries.
const MEASURE_INTERVAL: Duration = Duration::from_millis(250);

/// How often the others are told though nothing has changed.
const BEAT_INTERVAL: Duration = Duration::from_millis(500);

/// Sleeping leaders that hear at one look that their node is unfit. Each may be a change of the leader, which
/// wakes the group on all its nodes: thousands at once would hold up whatever else they do. It is the pace at
/// which a lost node's groups are told of it, as long as a look takes two ticks.
const TOLD_ASLEEP_PER_LOOK_MAX: usize = 256;

/// Who has told of its disk, and then nothing for so long, does not count as having room.
const HEARD_MAX: Duration = Duration::from_secs(5);

/// What a node knows of disks.
#[derive(Debug, Default)]
pub(crate) struct Disks {
    heard: Mutex<BTreeMap<NodeId, Heard>>,
    view: ArcSwap<View>,
}

/// As of the last look.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct View {
    /// Of this node.
    pub(crate) fitness: Fitness,
    /// The nodes whose room is not ample. Who is not named has told nothing else.
    pub(crate) rooms: BTreeMap<NodeId, Room>,
    /// The other nodes that cannot lead.
    pub(crate) unfit: Arc<BTreeSet<NodeId>>,
}

#[derive(Clone, Copy, Debug)]
struct Heard {
    at: Instant,
    room: Room,
    unfit: bool,
}

/// What is free on a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Space {
    free_bytes: u64,
    reserve_bytes: u64,
}

impl Disks {
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// A peer tells how it is.
    pub(crate) fn hear(&self, from: NodeId, beat: &Beat) {
        let room = match beat.reserve_bytes {
            0 => Room::Ample,
            reserve_bytes => Room::of(beat.free_bytes, reserve_bytes),
        };
        let heard = Heard { at: Instant::now(), room, unfit: beat.unfit };
        lock(&self.heard).insert(from, heard);
    }

    /// Puts together what is known now; `None` when nothing has changed.
    pub(crate) fn look(&self, node: NodeId, room: Room, fitness: Fitness) -> Option<Arc<View>> {
        let heard = lock(&self.heard).clone();
        let room_of = |heard: Heard| match heard.at.elapsed() > HEARD_MAX {
            true => heard.room.min(Room::Short),
            false => heard.room,
        };
        let mut rooms: BTreeMap<_, _> =
            heard.iter().map(|(peer, heard)| (*peer, room_of(*heard))).collect();
        rooms.insert(node, room);
        rooms.retain(|_, room| *room != Room::Ample);
        let unfit = heard.into_iter().filter(|(_, heard)| heard.unfit).map(|(peer, _)| peer);
        let view = View { fitness, rooms, unfit: Arc::new(unfit.collect()) };
        (*self.view.load_full() != view).then(|| {
            let view = Arc::new(view);
            self.view.store(Arc::clone(&view));
            view
        })
    }
}

/// Looks after the disk of a node.
pub(crate) struct DiskWatch {
    pub(crate) router: Arc<Router>,
    pub(crate) wal: Arc<Wal>,
    pub(crate) session: u64,
    /// Where the node's data lies.
    pub(crate) path: PathBuf,
    pub(crate) election_timeout: Duration,
    /// Instead of the default.
    pub(crate) reserve_bytes: Option<u64>,
}

impl DiskWatch {
    /// Watches until the node stops.
    pub(crate) async fn run(self) {
        let began = Instant::now();
        let mut looks = interval(self.election_timeout / LOOKS_PER_ELECTION);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut space, mut measuring) = (None, Measuring::default());
        let (mut stall, mut fitness) = (Stall::default(), Fitness::Fit);
        let (mut told, mut beaten, mut turns) = (None, None::<Instant>, Turns::default());
        loop {
            looks.tick().await;
            if let Some(measured) = measuring.poll(&self.path, self.reserve_bytes).await {
                space = Some(measured);
            }
            let room = space.map_or(Room::Ample, |Space { free_bytes, reserve_bytes }| {
                Room::of(free_bytes, reserve_bytes)
            });
            let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            let age = self.wal.oldest_unsynced().unwrap_or_default();
            let stalled = stall.note(us(began.elapsed()), us(age), us(self.election_timeout));
            let now = Fitness::of(room, stalled);
            if now != fitness {
                self.say(now, space, age);
            }
            self.router.disks.look(self.router.node, room, now);
            self.tell_groups(now, now != fitness, &mut turns);
            fitness = now;
            let news = told.replace((fitness, room)) != Some((fitness, room));
            if news || beaten.is_none_or(|at| at.elapsed() >= BEAT_INTERVAL) {
                beaten = Some(Instant::now());
                self.beat(space, fitness);
            }
        }
    }

    fn say(&self, fitness: Fitness, space: Option<Space>, unsynced: Duration) {
        let free_bytes = space.map(|space| space.free_bytes);
        match fitness {
            Fitness::Fit => tracing::info!(free_bytes, "the disk keeps up and has room again"),
            Fitness::Stalled => tracing::error!(
                ?unsynced,
                "the disk does not sync in time: this node leads nothing until it does"
            ),
            Fitness::Exhausted => tracing::error!(
                free_bytes,
                "the disk is all but full: this node takes no entries and leads nothing until there is room"
            ),
        }
    }

    fn tell_groups(&self, fitness: Fitness, changed: bool, turns: &mut Turns) {
        if fitness == Fitness::Fit && !changed {
            return;
        }
        let residents = self.router.residents.load();
        let standings = residents.iter().map(|(&group, resident)| Standing {
            group,
            leads: resident.leadership.borrow().role == Role::Leader,
            asleep: resident.is_asleep(),
        });
        for group in turns.due(standings, fitness, changed) {
            // A group that has stopped leads nothing.
            drop(self.router.tell(&residents[&group], Input::Disks));
        }
    }

    /// Tells the other nodes. Who is not connected, or has not answered the last beat, is left out.
    fn beat(&self, space: Option<Space>, fitness: Fitness) {
        let metrics = &self.router.metrics;
        let Space { free_bytes, reserve_bytes } =
            space.unwrap_or(Space { free_bytes: 0, reserve_bytes: 0 });
        metrics.disk_free_bytes.set(free_bytes as f64);
        metrics.disk_reserve_bytes.set(reserve_bytes as f64);
        metrics.unfit.set(if fitness == Fitness::Fit { 0.0 } else { 1.0 });
        let beat = Beat {
            session: self.session,
            synced_batches: self.wal.synced_batches(),
            free_bytes,
            reserve_bytes,
            unfit: fitness != Fitness::Fit,
        };
        let Some(transport) = self.router.transport.load_full() else { return };
        let peers: Vec<_> = self.router.map.load().nodes().map(|node| node.id).collect();
        for peer in peers {
            if peer == self.router.node || !transport.is_connected(peer) {
                continue;
            }
            let router = Arc::clone(&self.router);
            // Bounded: none waits longer than for the next one.
            drop(tokio::spawn(async move {
                let began = Instant::now();
                let answer = router.ask(peer, Request::beat(beat), began + BEAT_INTERVAL).await;
                // A lost beat is followed by the next one.
                let heard = matches!(answer, Ok(reply::Body::Heard(_)));
                let round_trip = if heard { began.elapsed() } else { BEAT_INTERVAL };
                router.distances.note(peer, round_trip);
            }));
        }
    }
}

/// How a replica is when the disk watch looks.
#[derive(Clone, Copy, Debug)]
struct Standing {
    group: GroupId,
    leads: bool,
    asleep: bool,
}

/// Whose turn it is to hear of the node's fitness.
#[derive(Default)]
struct Turns {
    /// The sleeping leader that was told last.
    last: Option<GroupId>,
}

impl Turns {
    /// Whom to tell now: all that are awake when something has changed, else those that still lead though
    /// they should not; and of the leaders that sleep the next ones, ascending, and from the first one again.
    fn due(
        &mut self,
        standings: impl Iterator<Item = Standing>,
        fitness: Fitness,
        changed: bool,
    ) -> Vec<GroupId> {
        let (mut due, mut sleepers) = (Vec::new(), Vec::new());
        for Standing { group, leads, asleep } in standings {
            if !asleep && (changed || leads) {
                due.push(group);
            } else if asleep && leads && fitness != Fitness::Fit {
                sleepers.push(group);
            }
        }
        let told_before = sleepers.partition_point(|group| Some(*group) <= self.last);
        sleepers.rotate_left(told_before);
        sleepers.truncate(TOLD_ASLEEP_PER_LOOK_MAX);
        self.last = sleepers.last().copied().or(self.last);
        due.extend(sleepers);
        due
    }
}

/// Asks the system for space, one question at a time.
#[derive(Default)]
struct Measuring {
    asked: Option<Instant>,
    running: Option<JoinHandle<Option<Space>>>,
}

impl Measuring {
    /// An answer, if one has come; never waits for it.
    async fn poll(&mut self, path: &Path, reserve: Option<u64>) -> Option<Space> {
        if let Some(running) = self.running.take_if(|running| running.is_finished()) {
            return running.await.ok().flatten();
        }
        let is_due = self.asked.is_none_or(|at| at.elapsed() >= MEASURE_INTERVAL);
        if self.running.is_none() && is_due {
            self.asked = Some(Instant::now());
            let path = path.to_owned();
            self.running = Some(spawn_blocking(move || measure(&path, reserve)));
        }
        None
    }
}

fn measure(path: &Path, reserve: Option<u64>) -> Option<Space> {
    let disk = rustix::fs::statvfs(path).inspect_err(|error| {
        tracing::warn!(%error, "free space cannot be asked for");
    });
    let disk = disk.ok()?;
    let disk_bytes = disk.f_blocks.saturating_mul(disk.f_frsize);
    Some(Space {
        free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
        reserve_bytes: reserve.unwrap_or_else(|| reserve_bytes(disk_bytes)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(free_bytes: u64, unfit: bool) -> Beat {
        Beat { session: 1, synced_batches: 1, free_bytes, reserve_bytes: 100, unfit }
    }

    #[test]
    fn what_peers_tell_is_seen_at_the_next_look() {
        let disks = Disks::default();
        let own = NodeId(1);
        assert!(disks.look(own, Room::Ample, Fitness::Fit).is_none(), "nothing is new");
        disks.hear(NodeId(2), &beat(500, false));
        disks.hear(NodeId(3), &beat(90, true));
        let view = disks.look(own, Room::Enough, Fitness::Fit).expect("news");
        assert_eq!(view.rooms, BTreeMap::from([(own, Room::Enough), (NodeId(3), Room::Short)]));
        assert_eq!(*view.unfit, BTreeSet::from([NodeId(3)]));
        disks.hear(NodeId(3), &beat(500, false));
        let view = disks.look(own, Room::Ample, Fitness::Stalled).expect("news");
        assert_eq!(*view, View { fitness: Fitness::Stalled, ..View::default() });
    }

    #[test]
    fn a_node_that_does_not_tell_of_its_disk_counts_as_having_room() {
        let disks = Disks::default();
        disks.hear(NodeId(2), &Beat { reserve_bytes: 0, ..beat(0, false) });
        assert!(disks.look(NodeId(1), Room::Ample, Fitness::Fit).is_none());
    }

    #[test]
    fn sleeping_leaders_hear_of_an_unfit_disk_in_turns_and_other_sleepers_not_at_all() {
        let count = 2 * TOLD_ASLEEP_PER_LOOK_MAX as u64 + 1;
        let standings = |groups: std::ops::RangeInclusive<u64>| {
            let of = |number: u64| [(number, true), (10_000 + number, false)];
            let sleepers = groups.flat_map(of).map(|(group, leads)| (group, leads, true));
            let awake = [(20_001, true, false), (20_002, false, false)];
            let mut all: Vec<_> = sleepers.chain(awake).collect();
            all.sort_unstable();
            let standing =
                |(group, leads, asleep)| Standing { group: GroupId(group), leads, asleep };
            all.into_iter().map(standing)
        };
        let mut turns = Turns::default();
        let mut due = |groups, fitness, changed| {
            let due = turns.due(standings(groups), fitness, changed);
            due.into_iter().map(GroupId::value).collect::<Vec<_>>()
        };
        let first = due(1..=count, Fitness::Stalled, true);
        assert_eq!(first[..2], [20_001, 20_002], "who is awake hears at once");
        assert_eq!(first[2..], (1..=256).collect::<Vec<_>>());
        let second = due(1..=count, Fitness::Stalled, false);
        assert_eq!((second[0], &second[1..]), (20_001, &(257..=512).collect::<Vec<_>>()[..]));
        // Whoever could not give its group away is told again, after all others.
        let third = due(1..=count, Fitness::Stalled, false);
        let again: Vec<_> = [513].into_iter().chain(1..=255).collect();
        assert_eq!(third[1..], again);
        assert_eq!(due(1..=3, Fitness::Stalled, false), [20_001, 1, 2, 3]);
        assert_eq!(due(1..=count, Fitness::Fit, true), [20_001, 20_002]);
    }

    #[test]
    fn free_space_is_that_of_the_directory() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let space = measure(dir.path(), Some(7)).expect("it is there");
        assert!(space.free_bytes > 0 && space.reserve_bytes == 7);
        let space = measure(dir.path(), None).expect("it is there");
        assert!(space.reserve_bytes >= 256 << 20);
        assert_eq!(measure(&dir.path().join("missing"), None), None);
    }
}
