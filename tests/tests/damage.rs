//! A disk that has lost what was written to it: the node says so and takes no part, whatever it is told, and
//! the cluster goes on and takes a successor in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use quorate_tests::cluster::{self, Cluster};
use quorate_tests::verify::{Verify, await_writes};
use quorate_tests::wait;

/// How long a node may take to catch up.
const BOUND: Duration = Duration::from_secs(60);

/// Commands of ours: the peer has others.
/// Far above what handing over and a flush take.
const STOP_BOUND: Duration = Duration::from_secs(60);

fn quorate(test: &str) -> Option<Cluster> {
    Cluster::quorate(test).filter(Cluster::is_quorate)
}

fn data_dir(cluster: &Cluster, number: usize) -> PathBuf {
    cluster.dir().join(&cluster.nodes[number].name)
}

/// The largest file below `directory` whose name ends so.
fn largest(directory: &Path, suffix: &str) -> PathBuf {
    let files =
        fs::read_dir(directory).expect("a directory").map(|file| file.expect("a file").path());
    let files = files.filter(|file| file.to_string_lossy().ends_with(suffix));
    files.max_by_key(|file| file.metadata().expect("a file").len()).expect("there is one")
}

/// Flips a bit in the first record of a node's log; what it had synced after that shows that this record
/// was synced too.
fn flip_a_bit_in_the_log(cluster: &Cluster, number: usize) {
    let file = largest(&data_dir(cluster, number).join("log"), ".log");
    let mut bytes = fs::read(&file).expect("a log file");
    assert!(bytes.len() > 2_000, "{} has only {} bytes", file.display(), bytes.len());
    bytes[60] ^= 1;
    fs::write(file, bytes).expect("written");
}

/// Runs a command on a data directory.
fn run(args: &[&str], data_dir: &Path) -> (Option<i32>, String) {
    let mut command = cluster::quorate();
    let Output { status, stdout, stderr } =
        command.args(args).arg("--data-dir").arg(data_dir).output().expect("quorate runs");
    let said = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    (status.code(), said)
}

#[test]
fn a_node_whose_log_is_damaged_is_fenced_until_it_is_replaced() {
    let Some(mut cluster) = quorate("a node with a damaged log is fenced") else { return };
    let mut verify = Verify::start(&cluster, &[]);
    await_writes(&cluster);
    let damaged = (cluster.leader() + 1) % 3;
    let asked = (damaged + 1) % 3;
    let name = cluster.nodes[damaged].name.clone();
    verify.announce("damage");
    cluster.kill(damaged);
    let directory = data_dir(&cluster, damaged);
    assert_eq!(run(&["check"], &directory).0, Some(0), "whole before");
    flip_a_bit_in_the_log(&cluster, damaged);
    let (code, said) = run(&["check"], &directory);
    assert_eq!(code, Some(6), "{said}");
    assert!(said.contains("DAMAGE: the log is damaged"), "{said}");

    // However often it is started.
    for _ in 0..2 {
        cluster.start(damaged);
        let (code, log) = cluster.wait_end(damaged);
        assert_eq!(code, Some(6), "{log}");
        assert!(log.contains(&format!("quorate member replace {name}")), "{log}");
        await_writes(&cluster);
    }
    verify.announce("replace");
    let (code, said) = cluster.member(asked, &["replace", &name]);
    assert_eq!(code, Some(0), "{said}");
    cluster.wipe(damaged);
    cluster.start(damaged);
    cluster.wait_ready(damaged);
    // The new one counts: with it, the cluster does without any other.
    wait::until("the successor votes", BOUND, || {
        let (_, said) = cluster.member(asked, &["list"]);
        let is_voter = |line: &str| line.contains(&name) && line.contains("voter");
        if said.lines().any(is_voter) { Ok(()) } else { Err(said) }
    });
    verify.announce("kill another");
    cluster.kill(asked);
    await_writes(&cluster);
    cluster.start(asked);
    cluster.wait_ready(asked);
    let (report, code) = verify.end();
    assert_eq!(code, Some(0), "{report:#}");
}

#[test]
fn a_running_node_is_neither_checked_nor_dumped_and_a_stopped_one_tells_its_log() {
    let Some(mut cluster) = quorate("a data directory is looked at") else { return };
    cluster.write_through(0);
    let directory = data_dir(&cluster, 0);
    for args in [&["check"][..], &["log", "dump", "--group", "2"]] {
        let (code, said) = run(args, &directory);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("is in use by another process"), "{said}");
    }
    // Stopped, it leaves its state on disk.
    let mut process = cluster.nodes[0].process.take().expect("it runs");
    process.terminate(STOP_BOUND);
    let (code, said) = run(&["check"], &directory);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("keyspace of group 2") && said.ends_with("no damage found\n"), "{said}");
    let (code, said) = run(&["log", "dump", "--group", "2"], &directory);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.lines().any(|line| line.contains("command") && line.contains("put \"")), "{said}");
    let (code, said) = run(&["log", "dump", "--group", "1"], &directory);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("first map: 3 nodes"), "{said}");
    let (code, said) = run(&["log", "dump", "--group", "9"], &directory);
    assert_eq!(code, Some(1), "{said}");
}
