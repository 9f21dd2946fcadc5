//! The commands that a newcomer types, and what an operator scrapes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use quorate_tests::cluster::Cluster;
use quorate_tests::process::Process;
use quorate_tests::{client, http, ports, programs, wait};
use serde_json::Value;
use tempfile::TempDir;

/// How long a cluster may take to serve, or to end.
const BOUND: Duration = Duration::from_secs(60);

/// From the first client port of three nodes to the last port for scrapers: nodes are ten apart.
const PORTS_OF_THREE: u16 = 23;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the tree").to_owned()
}

fn quorate() -> Command {
    let mut command = Command::new(programs::quorate());
    // A setting of the user's must not get into the test.
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("QUORATE_"))
    {
        command.env_remove(name);
    }
    command
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// What a command says that ends well.
fn said(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = output(command);
    let stdout = String::from_utf8_lossy(&stdout).into_owned();
    assert!(
        status.success(),
        "{command:?}: {status}\n{stdout}{}",
        String::from_utf8_lossy(&stderr)
    );
    stdout
}

#[test]
fn dev_serves_a_whole_cluster_and_leaves_nothing_behind() {
    let dir = TempDir::new().expect("a temporary directory");
    let port = ports::free_run(PORTS_OF_THREE);
    let mut command = quorate();
    command.args(["dev", "--port", &port.to_string(), "--rtt", "10"]);
    let mut dev = Process::start("dev", &mut command, &dir.path().join("dev.log"));
    let greeting = wait::until("dev is ready", BOUND, || {
        assert!(dev.ended().is_none(), "dev has ended:\n{}", dev.log());
        let log = dev.log();
        log.contains("ready after").then_some(log).ok_or_else(|| "not ready".to_owned())
    });
    let endpoints: Vec<_> = (0..3).map(|node| format!("127.0.0.1:{}", port + 10 * node)).collect();
    assert!(greeting.contains("etcdctl put"), "a hint: {greeting}");
    assert!(endpoints.iter().all(|endpoint| greeting.contains(endpoint)), "{greeting}");

    client::put(&endpoints[0], b"hello", b"world").expect("a put");
    let got = client::get(&endpoints[2], b"hello").expect("a get");
    assert_eq!(got.kvs.iter().map(|kv| &kv.value[..]).collect::<Vec<_>>(), [b"world"]);

    let all = endpoints.join(",");
    let table = said(quorate().args(["status", "--endpoints", &all]));
    assert!(["n1", "n2", "n3"].iter().all(|name| table.contains(name)), "{table}");
    let json = said(quorate().args(["status", "--json", "--endpoints", &all]));
    let status: Value = serde_json::from_str(&json).expect("JSON");
    let text = status.to_string();
    assert!(text.contains("\"leader\"") && text.contains("\"term\""), "{text}");

    let data = greeting.split("data in ").nth(1).and_then(|rest| rest.split(' ').next());
    let data = Path::new(data.expect("the greeting names the directory"));
    assert!(data.exists(), "{}", data.display());
    let status = dev.terminate(BOUND);
    assert!(status.success(), "{status}:\n{}", dev.log());
    assert!(!data.exists(), "{} was left behind", data.display());
}

#[test]
fn three_processes_are_started_killed_and_restarted_by_name() {
    let dir = TempDir::new().expect("a temporary directory");
    let port = ports::free_run(PORTS_OF_THREE);
    let cluster = |args: &[&str]| {
        let mut command = Command::new(root().join("deploy/local/cluster"));
        command.args(args).env("QUORATE_LOCAL", dir.path()).env("PORT", port.to_string());
        command.env("QUORATE_BIN", programs::quorate());
        said(&mut command)
    };
    struct Stop<F: Fn(&[&str]) -> String>(F);
    impl<F: Fn(&[&str]) -> String> Drop for Stop<F> {
        fn drop(&mut self) {
            (self.0)(&["stop"]);
        }
    }
    let stop = Stop(&cluster);
    let started = cluster(&["start"]);
    assert_eq!(started.matches("serves").count(), 3, "{started}");
    cluster(&["kill", "n2"]);
    let status = cluster(&["status"]);
    assert!(
        status.lines().any(|line| line.starts_with("n2") && line.ends_with("stopped")),
        "{status}"
    );
    assert_eq!(status.matches("serves").count(), 2, "{status}");
    assert_eq!(cluster(&["restart", "n2"]).matches("serves").count(), 3);
    let pids = std::fs::read_to_string(dir.path().join("pids")).expect("the file of ids");
    assert_eq!(pids.lines().count(), 3, "{pids}");
    drop(stop);
    assert_eq!(cluster(&["status"]).matches("stopped").count(), 3);
}

/// What a scrape of a node has to have from the first write on: names, and a label where there is one.
const SCRAPED: &[(&str, &str)] = &[
    ("quorate_raft_commit_seconds_count", ""),
    ("quorate_raft_reply_seconds_count", ""),
    ("quorate_raft_election_seconds_count", ""),
    ("quorate_raft_elections_total", "cause=\"election_timeout\""),
    ("quorate_raft_leader_changes_total", "cause=\"elected\""),
    ("quorate_raft_replication_lag_entries", ""),
    ("quorate_wal_sync_seconds_count", ""),
    ("quorate_wal_batch_entries_count", ""),
    ("quorate_wal_queue_tasks", ""),
    ("quorate_transport_queued_bytes", ""),
    ("quorate_apply_queue_depth", ""),
    ("quorate_node_proposal_bytes_available", ""),
    ("grpc_server_handled_total", ""),
];

#[test]
fn a_scrape_tells_of_commits_syncs_elections_lags_and_queues() {
    let Some(mut cluster) = Cluster::quorate("a scrape tells of commits") else { return };
    if !cluster.is_quorate() {
        return;
    }
    let page = |cluster: &Cluster, number: usize| {
        http::get(&cluster.nodes[number].metrics, "/metrics").expect("a scrape").1
    };
    let rows = |page: &str, (name, label): (&str, &str)| -> Vec<f64> {
        let named = |row: &&str| row.split(['{', ' ']).next() == Some(name) && row.contains(label);
        page.lines().filter(named).filter_map(|row| row.rsplit(' ').next()?.parse().ok()).collect()
    };
    let leader = cluster.leader();
    cluster.write_through(leader);
    let scraped = page(&cluster, leader);
    let missing: Vec<_> = SCRAPED.iter().filter(|row| rows(&scraped, **row).is_empty()).collect();
    assert!(missing.is_empty(), "{missing:?} are missing in:\n{scraped}");
    let commits: f64 = rows(&scraped, ("quorate_raft_commit_seconds_count", "")).iter().sum();
    assert!(commits >= 1.0, "{scraped}");

    let others: Vec<_> = (0..3).filter(|number| *number != leader).collect();
    let count = |cluster: &Cluster, row| -> f64 {
        others.iter().flat_map(|&number| rows(&page(cluster, number), row)).sum()
    };
    let timeouts = ("quorate_raft_elections_total", "cause=\"election_timeout\"");
    let won = ("quorate_raft_leader_changes_total", "cause=\"elected\"");
    let before = (count(&cluster, timeouts), count(&cluster, won));
    cluster.kill(leader);
    cluster.write_through(others[0]);
    let after = (count(&cluster, timeouts), count(&cluster, won));
    assert!(after.0 > before.0 && after.1 > before.1, "{before:?} became {after:?}");
}

#[test]
fn the_simulator_and_the_scripts_run_from_the_command_line() {
    let summary = said(quorate().args(["sim", "--seed", "1"]));
    assert!(summary.contains("seed 1"), "{summary}");
    let script = root().join("crates/raft-script/scripts/elect");
    let script = std::fs::read_dir(&script).expect("scripts").next().expect("one").expect("read");
    let facts = said(Command::new(programs::raft_script()).arg(script.path()));
    let first: Value =
        facts.lines().find_map(|line| serde_json::from_str(line).ok()).expect("lines of JSON");
    let has = |key: &str| first.to_string().contains(&format!("\"{key}\""));
    assert!(["role", "term", "vote", "commit"].into_iter().all(has), "{first}");
}
