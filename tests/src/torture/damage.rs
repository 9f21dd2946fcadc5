//! Damage to the files of a node that is down: one bit is another, or the newest log ends early.
//!
//! What may come of it: nothing (no live byte was hit, or what was lost can be had from the others); the
//! node does not start, and says why; or it stops later, when it reads what is damaged. A node that does
//! not start or has stopped is replaced, as an operator would; so is one that never catches up: a cut may
//! have taken what it had acknowledged, and its leader knows that it did. What may not: a wrong value, a lost write, a
//! node that ends without a reason, a cluster that does not go on.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use std::time::Duration;

use quorate_api::etcdserverpb::RangeRequest;
use tonic::Status;

use super::Session;
use crate::client::{self, Client};
use crate::cluster::Cluster;
use crate::verify::{await_writes, say};
use crate::{http, wait};

/// Bytes that are cut off at most.
const CUT_BYTES_MAX: u64 = 512;

/// Values are large, so that tables are written soon: there is no damage to what is in memory.
const LOAD: [&str; 5] = ["--every-endpoint", "--value-size", "4096", "--writers", "16"];

/// Revisions from one comparison to the next: about as many as there are writers, so that few rows are
/// left out.
const HISTORY_STEP: usize = 16;

/// How long a node may take to catch up.
const CATCH_UP_BOUND: Duration = Duration::from_secs(20);

/// How long a node may take to end after it has answered that it cannot read.
const END_BOUND: Duration = Duration::from_secs(5);

/// How many groups of a node take no part, since their log or state is damaged.
const FENCED: &str = "quorate_node_groups_fenced";

/// Exit codes with which a node may end because of damage: it does not start; it has less than it told the
/// others; it is fenced; what it must read cannot be read.
const CODES: [i32; 4] = [1, 5, 6, 70];

/// What is done to a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    /// One bit of any file of log or state.
    Flip,
    /// The last bytes of the newest file of the log.
    Tear,
}

impl Damage {
    /// Both.
    pub const EACH: [Self; 2] = [Self::Flip, Self::Tear];

    fn name(self) -> &'static str {
        match self {
            Self::Flip => "flip",
            Self::Tear => "tear",
        }
    }
}

/// A fresh cluster under load.
#[must_use]
pub fn begin(test: &str) -> Option<Session> {
    let cluster = Cluster::quorate(test)?;
    cluster.is_quorate().then(|| Session::begin(cluster, &LOAD))
}

/// Kills a node, damages a file of its, starts it again and sees what comes of it. In the end three nodes
/// serve.
///
/// # Panics
/// When that is anything but what may come of it.
pub fn round(session: &mut Session, damage: Damage, random: &mut fastrand::Rng) {
    let victim = random.usize(0..3);
    let name = session.cluster.nodes[victim].name.clone();
    session.announce(&format!("{} {name}", damage.name()));
    session.cluster.kill(victim);
    let what = apply(damage, &session.cluster.nodes[victim].data, random);
    await_writes(&session.cluster);
    session.cluster.start(victim);
    let outcome = match session.cluster.wait_ready_or_ended(victim) {
        Ok(()) => after_the_start(session, victim),
        Err(code) => ended(session, victim, "refused to start", code),
    };
    say(&format!("{what}: {outcome}"));
    if session.cluster.nodes[victim].process.is_none() {
        replace(session, victim);
    }
    await_writes(&session.cluster);
    session.tally.round(&format!("{}: {outcome}", damage.name()));
}

/// The node says that it serves. Its history is read and compared with that of another node.
fn after_the_start(session: &mut Session, victim: usize) -> String {
    let endpoint = |number: usize| session.cluster.nodes[number].client.clone();
    let (own, other) = (endpoint(victim), endpoint((victim + 1) % 3));
    let (_, page) =
        http::get(&session.cluster.nodes[victim].metrics, "/metrics").unwrap_or_default();
    let is_fenced = page.lines().any(|line| line.starts_with(FENCED) && !line.ends_with(" 0"));
    // A linearizable read is answered when it has caught up.
    let process = session.cluster.nodes[victim].process.as_mut().expect("it was started");
    let read = wait::once(CATCH_UP_BOUND, || match process.ended() {
        Some(_) => Some(None),
        None => client::get(&own, b"any").ok().map(Some),
    });
    let answers = match read {
        _ if is_fenced => Ok(()),
        Some(Some(read)) => {
            let revision = read.header.map_or(0, |header| header.revision);
            client::runtime().block_on(same_history(&own, &other, revision))
        }
        Some(None) => Ok(()),
        None => {
            session.cluster.kill(victim);
            return "never caught up, replaced".to_owned();
        }
    };
    let process = session.cluster.nodes[victim].process.as_mut().expect("it was started");
    if answers.is_err() {
        // It may be about to end, and then it should say why.
        let _ = wait::once(END_BOUND, || process.ended());
    }
    match (process.ended(), answers) {
        (Some(status), _) => ended(session, victim, "stopped when it was read", status.code()),
        (None, _) if is_fenced => {
            // The others serve its groups meanwhile.
            session.cluster.kill(victim);
            "a group was fenced, replaced".to_owned()
        }
        (None, Ok(())) => "harmless".to_owned(),
        (None, Err(status)) => {
            // It says that it cannot read, and goes on: an operator replaces it.
            session.cluster.kill(victim);
            format!("gave an error to who read ({:?}), replaced", status.code())
        }
    }
}

/// Reads all keys as they were at many revisions up to `revision`, from the states of both nodes.
///
/// # Panics
/// When they differ: one of them serves what is wrong.
async fn same_history(own: &str, other: &str, revision: i64) -> Result<(), Status> {
    let (mut own, mut other) = (Client::new(own), Client::new(other));
    // So that the other one knows all of them too: a linearizable read waits for that.
    let now = RangeRequest { key: b"any"[..].into(), ..RangeRequest::default() };
    other.kv.range(now).await?;
    let at = |revision| RangeRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        revision,
        serializable: true,
        ..RangeRequest::default()
    };
    for revision in (2..=revision).rev().step_by(HISTORY_STEP) {
        let expected = other.kv.range(at(revision)).await?.into_inner().kvs;
        let found = own.kv.range(at(revision)).await?.into_inner().kvs;
        assert!(found == expected, "at revision {revision} two nodes serve different values");
    }
    Ok(())
}

/// A node has ended by itself: with a code and a reason.
fn ended(session: &mut Session, victim: usize, how: &str, code: Option<i32>) -> String {
    let process = session.cluster.nodes[victim].process.take().expect("it was started");
    let log = process.log();
    let reason = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    assert!(
        code.is_some_and(|code| CODES.contains(&code)) && !reason.contains("panicked"),
        "{} {how} with {code:?}:\n{log}",
        session.cluster.nodes[victim].name
    );
    let name = &session.cluster.nodes[victim].name;
    say(&format!("  {name} {how} with {code:?}: {reason}"));
    format!("{how}, replaced")
}

/// What an operator does with a node whose disk is damaged.
fn replace(session: &mut Session, victim: usize) {
    let (asked, name) = ((victim + 1) % 3, session.cluster.nodes[victim].name.clone());
    session.cluster.wipe(victim);
    let (code, said) = session.cluster.member(asked, &["replace", &name]);
    assert_eq!(code, Some(0), "replace {name}: {said}");
    session.restart(&[victim]);
    session.cluster.await_vote(asked, &name);
}

/// Does it, below the data directory `data`; says what.
fn apply(damage: Damage, data: &Path, random: &mut fastrand::Rng) -> String {
    match damage {
        Damage::Flip => {
            let groups = targets(data);
            let files = &groups[random.usize(..groups.len())];
            let path = &files[random.usize(..files.len())];
            let file = File::options().read(true).write(true).open(path).expect("it can be opened");
            let length = file.metadata().expect("it is there").len();
            let (at, bit) = (random.u64(..length), random.u8(..8));
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("it can be read");
            file.write_all_at(&[byte[0] ^ 1 << bit], at).expect("it can be written");
            format!("bit {bit} of byte {at} of {length} of {}", name(path, data))
        }
        Damage::Tear => {
            let logs = files(&data.join("log"), &|name| name.ends_with(".log"));
            // RocksDB numbers them; recycled ones get a new number too.
            let newest = logs.iter().max().expect("a node that served has a log");
            let file = File::options().write(true).open(newest).expect("it can be opened");
            let length = file.metadata().expect("it is there").len();
            let cut = random.u64(1..=CUT_BYTES_MAX.min(length));
            file.set_len(length - cut).expect("it can be cut");
            format!("the last {cut} bytes of {length} of {}", name(newest, data))
        }
    }
}

/// The files that hold something, by kind: each kind is as likely to be hit, however many there are.
fn targets(data: &Path) -> Vec<Vec<PathBuf>> {
    /// Whether a file's name is one of a kind.
    type IsKind = fn(&str) -> bool;
    let kinds: [(&str, IsKind); 5] = [
        ("log", |name| name.ends_with(".log")),
        ("log", |name| name.ends_with(".sst")),
        ("state", |name| name.ends_with(".sst")),
        ("log", |name| name.starts_with("MANIFEST")),
        ("state", |name| name.starts_with("MANIFEST")),
    ];
    let found = kinds.map(|(directory, is_kind)| files(&data.join(directory), &is_kind));
    found.into_iter().filter(|files| !files.is_empty()).collect()
}

/// The files in `directory` that are not empty and have such a name.
fn files(directory: &Path, is_wanted: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a node that served has it");
    let paths = entries.map(|entry| entry.expect("it can be read").path());
    let wanted = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        is_wanted(name) && path.metadata().is_ok_and(|about| about.len() > 0)
    };
    let mut found: Vec<_> = paths.filter(wanted).collect();
    found.sort();
    found
}

fn name(path: &Path, data: &Path) -> String {
    path.strip_prefix(data).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flip_changes_one_bit_and_a_tear_the_length() {
        let data = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(data.path().join("log")).expect("made");
        fs::create_dir(data.path().join("state")).expect("made");
        let (old, new) = (data.path().join("log/000004.log"), data.path().join("log/000007.log"));
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..100 {
            fs::write(&old, [0; 700]).expect("written");
            fs::write(&new, [0; 300]).expect("written");
            apply(Damage::Flip, data.path(), &mut random);
            let all = [fs::read(&old).expect("read"), fs::read(&new).expect("read")].concat();
            assert_eq!(all.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
            apply(Damage::Tear, data.path(), &mut random);
            assert_eq!(fs::read(&old).expect("read").len(), 700, "only the newest");
            assert!(fs::read(&new).expect("read").len() < 300);
        }
    }
}
