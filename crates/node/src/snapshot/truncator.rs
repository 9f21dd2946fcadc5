//! Truncates the logs of a node, beside everything else: looks at them now and then, decides by
//! [`truncation`](super::truncation), and goes in steps, each durable before the next one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_raft::Role;
use quorate_store::GroupRow;
use quorate_types::machine::StateError;
use quorate_types::{GroupId, LogIndex};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use super::transfer::Snapshots;
use super::truncation::{self, Extent, Held};
use crate::actor::{GroupReport, Input};
use crate::router::Router;
use crate::ticker::reports;

/// Time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Time between two flushes that are made for truncation alone. A busy engine flushes by itself.
const FLUSH_INTERVAL: Duration = Duration::from_secs(5);

/// Truncates until the node stops; `kept` entries stay behind the durable state.
pub(crate) async fn run(router: Arc<Router>, snapshots: Arc<Snapshots>, kept: u64) {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut flushed: Option<Instant> = None;
    loop {
        let now = looks.tick().await.into_std();
        snapshots.exports.forget_unused(now);
        let mut held_by_memory = false;
        for report in reports(&router).await {
            // Nothing can follow from the disk then: an idle log must not cost a read.
            if report.applied.since(report.base.index) < kept + truncation::gathered_min(kept) {
                continue;
            }
            let durable = match durable(&snapshots, report.group).await {
                Ok(durable) => durable,
                Err(error) => {
                    // Whoever writes there finds it too, and ends the process.
                    tracing::error!(group = %report.group, %error, "the durable state cannot be read");
                    continue;
                }
            };
            let extent = extent(&snapshots, &report, durable, now);
            match truncation::through(&extent, kept) {
                Some(through) => truncate(&router, &report, through).await,
                None => {
                    held_by_memory |= truncation::is_held_by_memory(&extent, report.applied, kept);
                }
            }
        }
        if held_by_memory && flushed.is_none_or(|at| now.duration_since(at) >= FLUSH_INTERVAL) {
            flushed = Some(now);
            let engine = Arc::clone(&snapshots.state);
            // The next look sees what came of it; an engine that fails here fails its writer too.
            drop(spawn_blocking(move || engine.flush()).await);
        }
    }
}

/// What a restart would find applied.
async fn durable(snapshots: &Arc<Snapshots>, group: GroupId) -> Result<LogIndex, StateError> {
    let engine = Arc::clone(&snapshots.state);
    let read = move || {
        let row = engine.durable(&quorate_store::layout::group(group))?.map(GroupRow::decode);
        Ok(row.transpose()?.map_or(LogIndex::ZERO, |row| row.applied.index))
    };
    spawn_blocking(read).await.map_err(|error| StateError(error.to_string()))?
}

fn extent(snapshots: &Snapshots, report: &GroupReport, durable: LogIndex, now: Instant) -> Extent {
    let peers = report.peers.iter().map(|&(peer, progress)| {
        let held = progress.match_index;
        let on_its_way = snapshots.on_its_way(report.group, peer, held, now);
        Held { through: on_its_way.unwrap_or(held), receiving: on_its_way.is_some() }
    });
    let peers = if report.leadership.role == Role::Leader { peers.collect() } else { Vec::new() };
    Extent { base: report.base.index, durable, peers }
}

/// Goes from the log's base to `through` in steps.
async fn truncate(router: &Router, report: &GroupReport, through: LogIndex) {
    let group = report.group;
    let mut base = report.base.index;
    while base < through {
        let step = truncation::step(base, through);
        let Ok(resident) = router.resident(group) else { return };
        let (done, truncated) = oneshot::channel();
        if router.tell(&resident, Input::Truncate { through: step, done }).is_err() {
            return;
        }
        // The group had its reasons, or is gone: the next look sees.
        if truncated.await.is_err() {
            return;
        }
        router.metrics.entries_truncated.increment(step.since(base));
        base = step;
    }
    tracing::debug!(%group, %through, "the log was truncated");
}
