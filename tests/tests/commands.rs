//! The commands that a newcomer types, and what an operator scrapes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use quorate_api::etcdserverpb::RangeRequest;
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
fn a_node_forgets_history_by_itself_as_its_flags_say() {
    // The shortest time that may be asked for; by a count of revisions, etcd and we look every five minutes.
    let flags = ["--auto-compaction-mode=periodic", "--auto-compaction-retention=1s"];
    let test = "a node forgets history by itself";
    let Some(cluster) = Cluster::quorate_with(test, &flags) else { return };
    let endpoint = &cluster.nodes[0].client;
    client::put(endpoint, b"k", b"old").expect("a put");
    let old = cluster.revision();
    client::put(endpoint, b"k", b"new").expect("a put");
    let refused = wait::until("the old value is forgotten", BOUND, || {
        let request = RangeRequest { key: "k".into(), revision: old, ..RangeRequest::default() };
        let read = client::runtime()
            .block_on(async { client::Client::new(endpoint).kv.range(request).await });
        read.map(drop).err().ok_or_else(|| format!("revision {old} can be read"))
    });
    let expected = "etcdserver: mvcc: required revision has been compacted";
    assert_eq!((refused.code(), refused.message()), (tonic::Code::OutOfRange, expected));
    let got = client::get(endpoint, b"k").expect("a get");
    assert_eq!(got.kvs.iter().map(|kv| &kv.value[..]).collect::<Vec<_>>(), [b"new"]);
}

#[test]
fn every_flag_of_the_real_etcd_has_its_row_and_no_row_is_about_none() {
    let Some(etcd) = programs::etcd("the flags of the real etcd") else { return };
    let etcd = etcd.program("etcd");
    let page = std::fs::read_to_string(root().join("docs/from-etcd.md")).expect("the page");
    let (page, _) = page.split_once("## Settings that etcd does not have").expect("a chapter");
    let row = |line: &str| Some(line.strip_prefix("| `--")?.split_once('`')?.0.to_owned());
    let rows: BTreeSet<String> = page.lines().filter_map(row).collect();
    let help = output(Command::new(&etcd).arg("--help"));
    let help = [help.stdout, help.stderr].concat();
    let printed = flags_of_help(&String::from_utf8_lossy(&help));
    assert!(printed.len() > 80, "{printed:?}");
    let missing: Vec<_> = printed.difference(&rows).collect();
    assert!(missing.is_empty(), "no row in docs/from-etcd.md: {missing:?}");
    // There are flags that the help is silent about: the program knows them.
    let unknown = |flag: &&String| {
        let tried = output(Command::new(&etcd).args([&format!("--{flag}="), "--version"]));
        let said = [tried.stdout, tried.stderr].concat();
        String::from_utf8_lossy(&said).contains("flag provided but not defined")
    };
    let invented: Vec<_> = rows.iter().filter(unknown).collect();
    assert_eq!(invented, LATER_FLAGS, "rows that are about no flag of etcd 3.5.1");
}

/// Rows of the page about flags that etcd has got since.
const LATER_FLAGS: [&str; 2] = ["max-concurrent-streams", "watch-progress-notify-interval"];

/// The flags that begin a line of etcd's help, or follow the program's name there.
fn flags_of_help(help: &str) -> BTreeSet<String> {
    let flag = |line: &str| {
        let line = line.trim_start();
        let flag = line.strip_prefix("etcd ").unwrap_or(line).strip_prefix("--")?;
        let end = flag.find(|letter: char| letter != '-' && !letter.is_ascii_alphanumeric());
        Some(flag[..end.unwrap_or(flag.len())].to_owned())
    };
    // It shows the version and ends, as ours does.
    help.lines().filter_map(flag).filter(|flag| flag != "version").collect()
}

#[test]
fn flags_are_found_in_a_help() {
    let help = "etcd --version\n  etcd -h | --help\n  etcd --config-file\n    Text --no.\n  --name 'a'\n  --x-1\n";
    let found: Vec<_> = flags_of_help(help).into_iter().collect();
    assert_eq!(found, ["config-file", "name", "x-1"]);
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
