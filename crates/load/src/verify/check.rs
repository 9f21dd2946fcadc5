//! The last look: does every acknowledged write stand where it was put?

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quorate_api::etcdserverpb::{RangeRequest, RangeResponse};
use tokio::task::JoinSet;

use super::clients::{Rover, connections};
use super::ledger::Contradictions;
use super::record::{KeyRecord, Record, number_of};
use crate::Fault;
use crate::args::Verify;
use crate::call::{Failure, Method};

/// Reads in flight at a time. The check is not a load, but a record may hold a million writes.
const CHECKERS: usize = 64;

/// The text of the status by which a server says that history is gone.
const COMPACTED: &str = "required revision has been compacted";

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Acknowledged writes that were looked for, once for each endpoint that was asked.
    pub(crate) looked_for: u64,
    /// What is lost, or stands wrong.
    pub(crate) lost: Contradictions,
}

/// Looks for everything in `record`, through any endpoint or through every one.
///
/// # Errors
/// When servers do not answer for longer than the settling time, or the history is compacted.
pub(crate) async fn check(record: &Record, args: &Verify) -> Result<Found, Fault> {
    let record = Arc::new(record.clone());
    let mut found = Found::default();
    if args.every_endpoint {
        for endpoint in &args.endpoints {
            through(&record, std::slice::from_ref(endpoint), args, &mut found).await?;
        }
    } else {
        through(&record, &args.endpoints, args, &mut found).await?;
    }
    Ok(found)
}

/// Looks through some of `endpoints`.
async fn through(
    record: &Arc<Record>,
    endpoints: &[String],
    args: &Verify,
    found: &mut Found,
) -> Result<(), Fault> {
    let connections = connections(endpoints)?;
    let next = Arc::new(AtomicUsize::new(0));
    let mut checkers = JoinSet::new();
    for number in 0..CHECKERS.min(record.keys.len()) {
        let mut checker = Checker {
            rover: Rover::new(&connections, number, args.timeout.max(Duration::from_secs(5))),
            settle: args.settle,
            through: endpoints.join(","),
            found: Found::default(),
        };
        let (record, next) = (Arc::clone(record), Arc::clone(&next));
        checkers.spawn(async move {
            while let Some(key) = record.keys.get(next.fetch_add(1, Ordering::Relaxed)) {
                checker.key(key).await?;
            }
            Ok::<Found, Fault>(checker.found)
        });
    }
    while let Some(checked) = checkers.join_next().await {
        let part = checked.map_err(|error| format!("a checker died: {error}"))??;
        found.looked_for += part.looked_for;
        for text in part.lost.texts {
            found.lost.push(text);
        }
    }
    Ok(())
}

/// One task of the check.
struct Checker {
    rover: Rover,
    settle: Duration,
    through: String,
    found: Found,
}

impl Checker {
    async fn key(&mut self, key: &KeyRecord) -> Result<(), Fault> {
        let last = key.acknowledged.last();
        let now = self.read(&key.key, 0).await?;
        let objection = match (now.kvs.first(), last) {
            (None, None) => None,
            (None, Some(last)) => {
                let (name, number) = (&key.key, last.number);
                Some(format!(
                    "{name}: nothing stands there, though write {number} was acknowledged"
                ))
            }
            (Some(pair), Some(last)) if pair.mod_revision < last.revision => Some(format!(
                "{}: ends at revision {}, though write {} was acknowledged at {}",
                key.key, pair.mod_revision, last.number, last.revision
            )),
            (Some(pair), _) => key.objection(&pair.value, pair.mod_revision, None),
        };
        self.note(objection);
        for write in &key.acknowledged {
            let then = self.read(&key.key, write.revision).await?;
            let stands = then.kvs.first().is_some_and(|pair| {
                pair.mod_revision == write.revision && number_of(&pair.value) == Some(write.number)
            });
            self.note((!stands).then(|| {
                let (name, number, revision) = (&key.key, write.number, write.revision);
                format!("{name}: write {number}, acknowledged at revision {revision}, is lost")
            }));
            self.found.looked_for += 1;
        }
        Ok(())
    }

    fn note(&mut self, objection: Option<String>) {
        if let Some(text) = objection {
            self.found.lost.push(format!("{text} (through {})", self.through));
        }
    }

    /// Reads `key`, as of `revision` if that is not 0, linearizably; tries for the settling time.
    async fn read(&mut self, key: &str, revision: i64) -> Result<RangeResponse, Fault> {
        let request =
            RangeRequest { key: key.to_owned().into(), revision, ..RangeRequest::default() };
        let began = Instant::now();
        loop {
            let answer: Result<RangeResponse, Failure> =
                self.rover.ask(Method::Range, &request).await;
            match answer {
                Ok(answer) => return Ok(answer),
                Err(failure) if failure.text.contains(COMPACTED) => {
                    return Err(format!(
                        "{key} at revision {revision} cannot be checked: {failure}"
                    ));
                }
                // A revision above the server's: everything behind that point is lost there.
                Err(failure) if failure.code == tonic::Code::OutOfRange => {
                    return Ok(RangeResponse::default());
                }
                Err(failure) if began.elapsed() >= self.settle => {
                    return Err(format!("{}: {failure}", self.through));
                }
                Err(_) => {}
            }
        }
    }
}
