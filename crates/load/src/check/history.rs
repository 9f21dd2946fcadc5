//! What is recorded, in the order in which the client came to know it, and as lines of JSON.
//!
//! All times are microseconds on one monotonic clock of the recording process. Keys are shown without what
//! the round put before them. Values are unique in a history: each names the one call that wrote it.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Fault;

/// All that was recorded in one round, which began with none of its keys there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct History {
    /// In the order of recording; the judges sort by what they need.
    pub(crate) records: Vec<Record>,
}

/// One thing that was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Record {
    /// A new round: what stands before is another history. Only in files.
    Round(u64),
    /// A call on keys.
    Call(Call),
    /// Somebody begins to watch.
    Watcher(Watcher),
    /// Something came out of a watch.
    Watch(Watch),
    /// A call on a lease.
    Lease(LeaseCall),
    /// A lock was held.
    Hold(Hold),
    /// Every watcher was given the time to come to this revision.
    Settled(i64),
}

/// One call on keys. Without an answer a write may have happened, or may still; a read without one is not
/// recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Call {
    /// Who called; a client has one call at a time.
    pub(crate) client: u32,
    /// When it was sent.
    pub(crate) sent_us: u64,
    /// What was asked for.
    pub(crate) action: Action,
    /// What came back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) answer: Option<Answer>,
}

/// What a call asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Action {
    /// A linearizable read of one key.
    Get(String),
    /// Puts, all in one revision.
    Put(Vec<Write>),
    /// A delete of one key.
    Delete(String),
    /// A put if the key's modification revision is the expected one, 0 for none; else a read.
    Cas {
        /// The modification revision that the key must have.
        expect: i64,
        /// The put.
        write: Write,
    },
}

/// A put of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Write {
    /// The key.
    pub(crate) key: String,
    /// The value, which nobody else writes.
    pub(crate) value: String,
    /// The lease that the key is attached to; 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) lease: i64,
}

/// The answer to a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// When it came.
    pub(crate) at_us: u64,
    /// The header's revision.
    pub(crate) revision: i64,
    /// Something was written: at the header's revision.
    pub(crate) wrote: bool,
    /// What it shows of the key just before this call, if it shows that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) seen: Option<Seen>,
}

/// What an answer shows of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Seen {
    /// It is not there.
    Nothing,
    /// It is there.
    Pair(Pair),
}

/// A key's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pair {
    /// The value.
    pub(crate) value: String,
    /// Revision of the put that made the key.
    pub(crate) create: i64,
    /// Revision of the last put.
    #[serde(rename = "mod")]
    pub(crate) modified: i64,
    /// Puts since the key was made.
    pub(crate) version: i64,
}

/// Who watches what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Watcher {
    /// The watcher's number.
    pub(crate) watcher: u32,
    /// What it watches.
    pub(crate) scope: Scope,
    /// It asked for the pairs before each event.
    pub(crate) prev_kv: bool,
}

/// What is watched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scope {
    /// One key.
    Key(String),
    /// Every key that begins so.
    Prefix(String),
}

impl Scope {
    /// Whether `key` is watched.
    pub(crate) fn covers(&self, key: &str) -> bool {
        match self {
            Self::Key(one) => one == key,
            Self::Prefix(prefix) => key.starts_with(prefix.as_str()),
        }
    }
}

/// What came out of a watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Watch {
    /// The watcher's number.
    pub(crate) watcher: u32,
    /// When.
    pub(crate) at_us: u64,
    /// What.
    pub(crate) what: Delivery,
}

/// What a watch's stream delivers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Delivery {
    /// The watch is made.
    Created {
        /// From which revision on, as it was asked for; 0 for what comes after the answer's revision.
        start: i64,
        /// The header's revision.
        revision: i64,
    },
    /// One response with events.
    Events(Vec<Event>),
    /// A response without: everything up to the header's revision has been delivered.
    Progress(i64),
    /// The stream is over; the watcher goes on with another one.
    Lost(String),
    /// The server ended the watch: history is gone up to this revision.
    Compacted(i64),
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// The key.
    pub(crate) key: String,
    /// The change's revision.
    pub(crate) revision: i64,
    /// The key after it; nothing for a delete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) put: Option<Pair>,
    /// The key before it, if that was asked for and it was there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) prev: Option<Pair>,
}

/// A call on a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseCall {
    /// The lease's id, which is never used again.
    pub(crate) lease: i64,
    /// When it was sent.
    pub(crate) sent_us: u64,
    /// What was asked for.
    pub(crate) action: LeaseAction,
    /// What came back. A grant or a keep-alive without an answer is not recorded: it promises nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) answer: Option<LeaseAnswer>,
}

/// What a call on a lease asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LeaseAction {
    /// A new lease.
    Grant,
    /// The lease's full time again.
    KeepAlive,
    /// Its end.
    Revoke,
}

/// The answer to a call on a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseAnswer {
    /// When it came.
    pub(crate) at_us: u64,
    /// The lease's time to live from now on; 0 says that there is no such lease.
    pub(crate) ttl_s: i64,
}

/// A lock that was held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hold {
    /// The lock.
    pub(crate) lock: String,
    /// Who held it.
    pub(crate) holder: u32,
    /// The lease that the ownership hangs on.
    pub(crate) lease: i64,
    /// The fencing token: the create revision of the ownership's key.
    pub(crate) token: i64,
    /// When the holder came to know that it holds.
    pub(crate) acquired_us: u64,
    /// When it began to give it up; nothing if it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) released_us: Option<u64>,
}

// The signature is serde's.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl Action {
    /// The keys that are read or written.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        let (one, many): (Option<&String>, &[Write]) = match self {
            Self::Get(key) | Self::Delete(key) => (Some(key), &[]),
            Self::Put(writes) => (None, writes),
            Self::Cas { write, .. } => (None, std::slice::from_ref(write)),
        };
        one.into_iter().map(String::as_str).chain(many.iter().map(|write| write.key.as_str()))
    }

    /// The puts that it may make.
    pub(crate) fn puts(&self) -> &[Write] {
        match self {
            Self::Get(_) | Self::Delete(_) => &[],
            Self::Put(writes) => writes,
            Self::Cas { write, .. } => std::slice::from_ref(write),
        }
    }
}

impl History {
    /// The calls on keys, with their positions.
    pub(crate) fn calls(&self) -> impl Iterator<Item = (usize, &Call)> {
        self.records.iter().enumerate().filter_map(|(at, record)| match record {
            Record::Call(call) => Some((at, call)),
            _ => None,
        })
    }

    /// Appends this history to `file`, as round number `round`.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn save(&self, file: &mut impl std::io::Write, round: u64) -> Result<(), Fault> {
        let mut out = BufWriter::new(file);
        for record in std::iter::once(&Record::Round(round)).chain(&self.records) {
            writeln!(out, "{}", line(record)).map_err(|error| format!("history: {error}"))?;
        }
        out.flush().map_err(|error| format!("history: {error}"))
    }

    /// The histories in the file at `path`, each with its round's number.
    ///
    /// # Errors
    /// When it cannot be read, or a line of it is no record.
    pub(crate) fn load(path: &Path) -> Result<Vec<(u64, Self)>, Fault> {
        let shown = path.display();
        let file = File::open(path).map_err(|error| format!("{shown}: {error}"))?;
        let mut rounds: Vec<(u64, Self)> = Vec::new();
        for (number, text) in BufReader::new(file).lines().enumerate() {
            let text = text.map_err(|error| format!("{shown}: {error}"))?;
            if text.trim().is_empty() {
                continue;
            }
            let record: Record = serde_json::from_str(&text)
                .map_err(|error| format!("{shown}, line {}: {error}", number + 1))?;
            match (record, rounds.last_mut()) {
                (Record::Round(round), _) => rounds.push((round, Self::default())),
                (record, Some((_, history))) => history.records.push(record),
                (record, None) => rounds.push((0, Self { records: vec![record] })),
            }
        }
        Ok(rounds)
    }
}

/// A record as one line.
pub(crate) fn line(record: &Record) -> String {
    serde_json::to_string(record).expect("records have text keys and plain numbers")
}

#[cfg(test)]
mod tests {
    use super::super::model;
    use super::*;

    #[test]
    fn a_history_comes_back_from_its_file() {
        let dir = std::env::temp_dir().join(format!("quorate-history-{}", std::process::id()));
        let one = model::right(7);
        let other = model::right(8);
        let mut file = File::create(&dir).expect("a file can be made");
        one.save(&mut file, 1).expect("it is written");
        other.save(&mut file, 2).expect("it is written");
        let read = History::load(&dir).expect("it is read");
        std::fs::remove_file(&dir).expect("it was made");
        assert_eq!(read, [(1, one), (2, other)]);
    }

    #[test]
    fn a_line_that_is_no_record_is_named() {
        let path = std::env::temp_dir().join(format!("quorate-no-history-{}", std::process::id()));
        std::fs::write(&path, "{\"settled\":4}\n{\"unsettled\":1}\n").expect("it is written");
        let fault = History::load(&path).expect_err("the second line is none");
        std::fs::remove_file(&path).expect("it was made");
        assert!(fault.contains("line 2"), "{fault}");
    }
}
