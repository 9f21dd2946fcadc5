//! Taking a place in a queue back whose call has ended before it owned anything.
//!
//! The place was written for the call, so it is taken back in the name of the system: whoever called may have
//! lost the right to it meanwhile, and would leave a key behind that holds others up.

use bytes::Bytes;
use quorate_types::auth::Caller;
use quorate_types::kv::{self, DeleteRange, Txn, command, compare::Target, op, outcome};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::backend::Backend;
use crate::error::ApiError;
use crate::metrics::UndoMetrics;
use crate::ownership::{RETRY_PAUSE, compare, do_op};

/// How often it is tried: for longer than an election takes.
const TRIES: u32 = 50;

/// What a place that waits to be taken back takes in memory beside its key, about.
const PLACE_BYTES: usize = 1024;

/// How many places may be taken back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UndoBounds {
    /// At a time; the others wait for their turn.
    pub(crate) under_way_max: usize,
    /// Bytes of all of them, those that wait too. Places beyond stay until their leases end.
    pub(crate) bytes_max: usize,
}

impl Default for UndoBounds {
    /// A connection's worth of waiting calls, and more, may end at once: room for some 30,000 places with keys of
    /// usual size.
    fn default() -> Self {
        Self { under_way_max: 256, bytes_max: 32 << 20 }
    }
}

/// The places that one gateway takes back.
pub(crate) struct Undos {
    under_way: Semaphore,
    bytes: Semaphore,
    metrics: UndoMetrics,
}

/// A place that is being taken back, counted as long as this lives.
struct Undo<'u> {
    undos: &'u Undos,
    _bytes: SemaphorePermit<'u>,
}

/// Why a place could not be taken back.
#[derive(Debug)]
enum Stays {
    /// Nobody has answered, but somebody may.
    Unanswered,
    /// For good.
    Refused(String),
}

impl Undos {
    pub(crate) fn new(bounds: UndoBounds, metrics: UndoMetrics) -> Self {
        let semaphore = |permits: usize| Semaphore::new(permits.min(Semaphore::MAX_PERMITS));
        let (under_way, bytes) = (semaphore(bounds.under_way_max), semaphore(bounds.bytes_max));
        Self { under_way, bytes, metrics }
    }

    /// Deletes `key` if it is still as it was written at revision `written`: a later call of the same lease may
    /// have taken the place over.
    pub(crate) async fn take_back<B: Backend>(&self, backend: &B, key: Bytes, written: i64) {
        let Some(_counted) = self.admit(key.len()) else {
            tracing::debug!("too many places are taken back: this one stays until its lease ends");
            return;
        };
        let Ok(_turn) = self.under_way.acquire().await else { return };
        let command = delete(&key, written);
        let mut why = "nobody has answered".to_owned();
        for _ in 0..TRIES {
            match propose(backend, &command).await {
                Ok(()) => return,
                Err(Stays::Unanswered) => tokio::time::sleep(RETRY_PAUSE).await,
                Err(Stays::Refused(reason)) => {
                    why = reason;
                    break;
                }
            }
        }
        self.metrics.failed_total.increment(1);
        tracing::debug!(why, "a place stays until its lease ends");
    }

    /// Room for a place with a key of so many bytes; `None` where there is none.
    fn admit(&self, key_bytes: usize) -> Option<Undo<'_>> {
        let bytes = u32::try_from(key_bytes + PLACE_BYTES).unwrap_or(u32::MAX);
        match self.bytes.try_acquire_many(bytes) {
            Ok(permit) => {
                self.metrics.count.increment(1);
                Some(Undo { undos: self, _bytes: permit })
            }
            Err(_) => {
                self.metrics.refused_total.increment(1);
                None
            }
        }
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        self.undos.metrics.count.decrement(1);
    }
}

fn delete(key: &Bytes, written: i64) -> kv::Command {
    let delete = DeleteRange { key: key.clone(), ..DeleteRange::default() };
    let txn = Txn {
        compares: vec![compare(key, Target::ModRevision(written))],
        success: vec![do_op(op::Body::DeleteRange(delete))],
        failure: Vec::new(),
    };
    let body = Some(command::Body::Txn(txn));
    kv::Command { body, caller: Some(Caller::system()), ..kv::Command::default() }
}

async fn propose<B: Backend>(backend: &B, command: &kv::Command) -> Result<(), Stays> {
    match backend.propose(command.clone()).await {
        Ok(answer) => match answer.outcome.body {
            Some(outcome::Body::Txn(_)) => Ok(()),
            refusal => Err(Stays::Refused(format!("{refusal:?}"))),
        },
        Err(error) => match ApiError::from(error) {
            error if error.passes() => Err(Stays::Unanswered),
            error => Err(Stays::Refused(error.text().to_owned())),
        },
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn places_beyond_the_bound_are_refused_and_counted_and_room_comes_back() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let bounds = UndoBounds { under_way_max: 1, bytes_max: 2 * PLACE_BYTES + 10 };
        let undos = Undos::new(bounds, UndoMetrics::new(&recorder));
        let says = |row: &str| {
            let page = recorder.handle().render();
            assert!(page.lines().any(|line| line == row), "{row} in {page}");
        };
        let (first, second) = (undos.admit(5), undos.admit(5));
        assert!(first.is_some() && second.is_some());
        assert!(undos.admit(5).is_none() && undos.admit(usize::MAX / 2).is_none());
        says("quorate_gateway_undos_count 2");
        says("quorate_gateway_undos_refused_total 2");
        drop(first);
        assert!(undos.admit(6).is_none(), "larger than what has gone");
        assert!(undos.admit(5).is_some());
        drop(second);
        says("quorate_gateway_undos_count 0");
        says("quorate_gateway_undos_refused_total 3");
        says("quorate_gateway_undos_failed_total 0");
    }
}
