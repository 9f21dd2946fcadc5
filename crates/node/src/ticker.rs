//! The one clock of a node: ticks all of its groups, and looks at them now and then.

use std::sync::Arc;
use std::time::Duration;

use quorate_raft::Role;
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};

use crate::actor::{GroupReport, Input};
use crate::router::Router;

/// Ticks in a heartbeat interval: two, so that timeouts are drawn from twice as many values as there
/// are beats, and two candidates seldom stand at once.
pub(crate) const TICKS_PER_HEARTBEAT: u32 = 2;

/// Time between two looks at the groups, for metrics.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Ticks until the router's node stops.
pub(crate) async fn run(router: Arc<Router>, tick: Duration) {
    let mut ticks = interval(tick);
    // After a pause (a stopped process, a stalled disk) the groups must not live through all missed
    // ticks at once: they would take their leader for dead before its beats are read. But a tick that
    // is only late must not push back those after it, or timeouts stretch on a busy machine.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let residents = router.residents.load_full();
        for resident in residents.values() {
            // A group that has stopped needs no ticks.
            drop(router.tell(resident, Input::Tick));
        }
    }
}

/// Looks at the groups now and then, for metrics. Not part of the ticker: a group that is slow to answer
/// must not keep the others from their ticks.
pub(crate) async fn look_around(router: Arc<Router>) {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let reports = reports(&router).await;
        look(&router, &reports);
    }
}

/// How all groups of the node are; those that have stopped are left out.
pub(crate) async fn reports(router: &Router) -> Vec<GroupReport> {
    let residents = router.residents.load_full();
    let asked: Vec<_> = residents
        .values()
        .filter_map(|resident| {
            let (sender, report) = oneshot::channel();
            router.tell(resident, Input::Look(sender)).ok().map(|()| report)
        })
        .collect();
    let mut reports = Vec::with_capacity(asked.len());
    for report in asked {
        reports.extend(report.await);
    }
    reports
}

fn look(router: &Router, reports: &[GroupReport]) {
    let metrics = &router.metrics;
    metrics.proposal_bytes_available.set(router.proposal_bytes.available_permits() as f64);
    for (peer, gauge) in &metrics.replication_lag_entries {
        let lag = reports
            .iter()
            .filter(|report| report.leadership.role == Role::Leader)
            .flat_map(|report| {
                let of_peer = report.peers.iter().filter(|(node, _)| node == peer);
                of_peer.map(|(_, progress)| report.last.index.since(progress.match_index))
            })
            .max();
        gauge.set(lag.unwrap_or(0) as f64);
    }
}
