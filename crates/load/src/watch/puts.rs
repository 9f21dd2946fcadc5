//! Puts on a schedule, whatever becomes of the ones before.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use quorate_api::etcdserverpb::PutRequest;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::Code;

use super::follower::value;
use super::verdict::Fate;
use super::{PUT, Shared, lock};
use crate::Fault;
use crate::call::{Caller, Connection, Failure, Method, frame};
use crate::pacer::Pacer;
use crate::values::letters;

/// Sends every put of the plan when it is due, or late where too many are in flight; returns when all are
/// answered. `begins` is called when the first one is due whose latency counts.
///
/// # Errors
/// When there is no timer, or `begins` fails.
pub(super) async fn put_all(
    shared: &Arc<Shared>,
    connections: &[Arc<Connection>],
    mut begins: impl FnMut() -> Result<(), Fault>,
) -> Result<(), Fault> {
    let args = &shared.args;
    let caller = |connection| Caller::new(Arc::clone(connection), args.target.timeout);
    let callers: Vec<_> = connections.iter().cycle().take(args.clients).map(caller).collect();
    let room = Arc::new(Semaphore::new(callers.len()));
    let idle = Arc::new(Mutex::new(callers));
    let mut pacer = Pacer::new().map_err(|error| format!("no timer: {error}"))?;
    let filler = letters(args.value_size, 1);
    let mut puts = JoinSet::new();
    let began = shared.begin();
    for number in 0..shared.plan.puts {
        let due = began + shared.plan.due(number);
        pacer.until(due).await.map_err(|error| format!("the timer failed: {error}"))?;
        if number == shared.plan.measured_from {
            begins()?;
        }
        while puts.try_join_next().is_some() {}
        let permit = Arc::clone(&room).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        let mut caller = lock(&idle).pop().expect("whoever holds a permit finds an idle client");
        let request = PutRequest {
            key: shared.keys.key(shared.plan.key_of(number)).into(),
            value: value(number, &filler),
            ..PutRequest::default()
        };
        let (shared, idle) = (Arc::clone(shared), Arc::clone(&idle));
        puts.spawn(async move {
            let outcome = caller.call(Method::Put, frame(&request)).await;
            shared.answered(number, due, &outcome.map(drop));
            lock(&idle).push(caller);
            drop(permit);
        });
    }
    puts.join_all().await;
    Ok(())
}

/// What a put's answer says of it.
pub(super) fn fate(answer: &Result<(), Failure>) -> Fate {
    match answer {
        Ok(()) => Fate::Acknowledged,
        Err(failure) => match failure.code {
            Code::InvalidArgument
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::ResourceExhausted
            | Code::Unimplemented => Fate::Unsent,
            _ => Fate::Unknown,
        },
    }
}

impl Shared {
    /// Put number `put`, which was due then, has its answer.
    fn answered(&self, put: u64, due: Instant, answer: &Result<(), Failure>) {
        let now = Instant::now();
        let mut counts = lock(&self.counts);
        counts.fates[put as usize] = fate(answer);
        match answer {
            Ok(()) if put >= self.plan.measured_from => counts.tally.answered(PUT, now - due),
            Ok(()) => {}
            Err(failure) => counts.tally.failed(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_says_that_a_put_was_not_done() {
        let failed = |code| fate(&Err(Failure { code, text: String::new() }));
        assert_eq!(fate(&Ok(())), Fate::Acknowledged);
        assert_eq!(failed(Code::Unavailable), Fate::Unknown);
        assert_eq!(failed(Code::DeadlineExceeded), Fate::Unknown);
        assert_eq!(failed(Code::InvalidArgument), Fate::Unsent);
    }
}
