//! The one clock of a node: ticks those of its groups that are awake, watches over the other nodes for those
//! that sleep, and looks at all of them now and then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_group::{EntryBudget, FailureDetector, Heard, Wheel};
use quorate_raft::Role;
use quorate_transport::{Limits, Pulse};
use quorate_types::{Due, MachineKind, NodeId};
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};

use crate::actor::{GroupReport, Input, Promise, ProposalReply, ProposalSlot};
use crate::clock;
use crate::config::EngineConfig;
use crate::engine::lock;
use crate::router::{Residents, Router};

/// Ticks in a heartbeat interval: two, so that timeouts are drawn from twice as many values as there
/// are beats, and two candidates seldom stand at once.
pub(crate) const TICKS_PER_HEARTBEAT: u32 = 2;

/// Sleeping groups that hear of a lost node at one tick. Each may be an election; at this pace 10,000 take
/// four seconds, and the nodes have time left for what else they do.
const TOLD_PER_TICK_MAX: usize = 128;

/// Keep-alives of an idle connection in an election timeout: a lost one must not make a node pass for
/// gone, and all other nodes should find a loss at about the same time.
const KEEP_ALIVES_PER_ELECTION: u32 = 8;

/// What one group keeps of its log in memory while there is room: a follower that was away for a moment is
/// served from there.
pub(crate) const GROUP_CACHE_BYTES_MAX: usize = 4 << 20;

/// Time between two looks at the groups, for metrics.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The wheel of a node without groups: others are gone when nothing is heard of them for an election
/// timeout, as a leader is to an awake group.
pub(crate) fn wheel(node: NodeId, config: &EngineConfig) -> Wheel {
    let ticks_per_election = config.election_timeout.as_nanos()
        / (config.heartbeat_interval / TICKS_PER_HEARTBEAT).as_nanos().max(1);
    let silent_ticks_max = u32::try_from(ticks_per_election).unwrap_or(u32::MAX).max(1);
    Wheel::new(node, FailureDetector::new(silent_ticks_max), TOLD_PER_TICK_MAX)
}

/// How often an idle connection is kept alive, so that its other end is heard.
pub(crate) fn keep_alive_interval(config: &EngineConfig) -> Duration {
    let without_sleep = Limits::default().keep_alive_interval;
    match config.sleep_after.is_zero() {
        true => without_sleep,
        false => without_sleep.min(config.election_timeout / KEEP_ALIVES_PER_ELECTION),
    }
}

/// Ticks until the router's node stops, and divides `entry_cache_bytes` of memory among the groups.
pub(crate) async fn run(
    router: Arc<Router>,
    kinds: Vec<Arc<dyn MachineKind>>,
    tick: Duration,
    entry_cache_bytes: usize,
) {
    let mut budget = EntryBudget::new(entry_cache_bytes, GROUP_CACHE_BYTES_MAX);
    let mut ticks = interval(tick);
    // After a pause (a stopped process, a stalled disk) the groups must not live through all missed
    // ticks at once: they would take their leader for dead before its beats are read. But a tick that
    // is only late must not push back those after it, or timeouts stretch on a busy machine.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let heard = router.transport.load().as_ref().map(|transport| {
            let heard = |(node, pulse): (NodeId, Option<Pulse>)| {
                (node, pulse.map(|Pulse { session, datagrams }| Heard { session, datagrams }))
            };
            transport.pulses().into_iter().map(heard).collect()
        });
        let (told, awake) = {
            let mut wheel = lock(&router.wheel);
            let told = heard.map(|heard| wheel.tick(&heard));
            (told.unwrap_or_default(), wheel.awake().collect::<Vec<_>>())
        };
        router.entries.divide(&mut budget, awake.len());
        let residents = router.residents.load();
        let tell = |group, input| {
            if let Some(resident) = residents.get(&group) {
                // A group that has stopped needs neither.
                drop(router.tell(resident, input));
            }
        };
        told.into_iter().for_each(|(group, lost)| tell(group, Input::NodesLost(lost)));
        awake.into_iter().for_each(|group| tell(group, Input::Tick));
        for kind in &kinds {
            for due in kind.tick(clock::now()) {
                propose_due(&router, &residents, kind, due);
            }
        }
    }
}

/// Proposes what a machine wants because time has passed; nobody waits for it.
fn propose_due(router: &Router, residents: &Residents, kind: &Arc<dyn MachineKind>, due: Due) {
    let command = due.command.clone();
    let resident = residents.get(&due.group);
    // Dropped without having been proposed, it lets its kind know.
    let promise = Promise::new(Arc::clone(kind), due);
    let Some(resident) = resident else { return };
    let Ok(permit) = router.permit(command.len()) else {
        return router.metrics.due_refused.increment(1);
    };
    router.metrics.due_proposed.increment(1);
    let reply = ProposalReply::Due(Box::new(promise));
    let slot = ProposalSlot { since: Instant::now(), reply, _permit: permit };
    // A group that has stopped drops it.
    drop(router.tell(resident, Input::Propose { command, slot }));
}

/// Looks at the groups now and then, for metrics. Not part of the ticker: a group that is slow to answer
/// must not keep the others from their ticks.
pub(crate) async fn look_around(router: Arc<Router>) {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        // First: what is in memory waits for no group.
        router.metrics.show_figures();
        let reports = reports(&router).await;
        look(&router, &reports);
    }
}

/// How all groups of the node are, by id; those that have stopped are left out, and those that sleep are
/// not asked.
pub(crate) async fn reports(router: &Router) -> Vec<Arc<GroupReport>> {
    enum Report {
        Known(Arc<GroupReport>),
        Asked(oneshot::Receiver<GroupReport>),
    }
    let residents = router.residents.load_full();
    let asked: Vec<_> = residents
        .values()
        .filter_map(|resident| {
            if let Some(report) = resident.resting.load_full() {
                return Some(Report::Known(report));
            }
            let (sender, report) = oneshot::channel();
            router.tell(resident, Input::Look(sender)).ok().map(|()| Report::Asked(report))
        })
        .collect();
    let mut reports = Vec::with_capacity(asked.len());
    for report in asked {
        match report {
            Report::Known(report) => reports.push(report),
            Report::Asked(report) => reports.extend(report.await.map(Arc::new)),
        }
    }
    reports
}

fn look(router: &Router, reports: &[Arc<GroupReport>]) {
    let metrics = &router.metrics;
    {
        let wheel = lock(&router.wheel);
        metrics.groups_asleep.set(wheel.asleep_count() as f64);
        metrics.groups_to_tell.set(wheel.to_tell_count() as f64);
    }
    metrics.entry_cache_bytes.set(router.entries.kept_bytes() as f64);
    metrics.proposal_bytes_available.set(router.proposal_bytes.available_permits() as f64);
    metrics.show_lags(|peer| {
        // Nobody is behind in a group that sleeps.
        let led = reports
            .iter()
            .filter(|report| report.leadership.role == Role::Leader && !report.asleep);
        let lags = led.flat_map(|report| {
            let of_peer = report.peers.iter().filter(|(node, _)| *node == peer);
            of_peer.map(|(_, progress)| report.last.index.since(progress.match_index))
        });
        lags.max().unwrap_or(0)
    });
}
