//! Peers that are not who they say, and data directories that are not theirs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use quorate_tests::cluster::{Cluster, make_ca, make_certificate, quorate};
use quorate_tests::process::Process;
use quorate_tests::{http, ports, programs, wait};

use super::assert_serves;

/// How long a node may take to be refused, or to refuse to start.
const REFUSAL_BOUND: Duration = Duration::from_secs(60);

/// The node that comes back wrong; the others must go on without it.
const STRANGER: usize = 2;

/// What a disk keeps free beside a copy of a node's data, before it is filled up.
const SMALL_DISK_SLACK_KIB: u64 = 256;

/// A fresh cluster, if it is ours: the peer checks other things.
fn fresh(test: &str) -> Option<Cluster> {
    let cluster = Cluster::quorate(test)?;
    cluster.is_quorate().then_some(cluster)
}

#[test]
fn a_peer_with_a_wrong_certificate_is_refused() {
    let Some(mut cluster) = fresh("wrong certificates") else { return };
    let dir = cluster.dir().to_owned();
    let (own, other) = (dir.join("certificates"), dir.join("other"));
    make_ca(&other);
    make_certificate(&other, "n3");
    cluster.kill(STRANGER);

    // By another authority, though it trusts the right one.
    let refusal = come_back(&mut cluster, &other.join("n3"), &own.join("ca.crt"));
    assert_serves(&cluster);
    drop(refusal);

    // For another cluster, by the same authority.
    let foreign = dir.join("foreign");
    let mut command = quorate();
    command.args(["cert", "node", "--name", "n3", "--cluster-name", "elsewhere", "--dir"]);
    command.arg(&foreign).arg("--ca").arg(own.join("ca.crt"));
    let made = command.arg("--ca-key").arg(own.join("ca.key")).output().expect("quorate starts");
    assert!(made.status.success(), "{made:?}");
    let refusal = come_back(&mut cluster, &foreign.join("n3"), &own.join("ca.crt"));
    assert_serves(&cluster);
    drop(refusal);

    // Of another node of the cluster.
    let refusal = come_back(&mut cluster, &own.join("n2"), &own.join("ca.crt"));
    assert_serves(&cluster);
    drop(refusal);

    // And with its own it is back.
    cluster.start(STRANGER);
    cluster.wait_ready(STRANGER);
    assert_serves(&cluster);
}

/// Starts the stranger with a certificate and waits until it, or those whom it calls, have said no.
fn come_back(cluster: &mut Cluster, certificate: &Path, ca: &Path) -> Process {
    let mut command = cluster.command(STRANGER);
    // The last of a repeated flag would be an error, so they are replaced.
    let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let mut replaced = quorate();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let file = match arg.to_str() {
            Some("--cert") => certificate.with_extension("crt"),
            Some("--key") => certificate.with_extension("key"),
            Some("--ca") => ca.to_owned(),
            _ => {
                replaced.arg(arg);
                continue;
            }
        };
        args.next().expect("these flags have a value");
        replaced.arg(arg).arg(file);
    }
    command = replaced;
    let log = cluster.dir().join("stranger.log");
    // Only what is said from now on counts.
    let before = said(cluster, &log).len();
    let mut process = Process::start("the stranger", &mut command, &log);
    wait::until("a refusal", REFUSAL_BOUND, || {
        if let Some(status) = process.ended() {
            assert!(!status.success(), "it ended well:\n{}", process.log());
            return Ok(());
        }
        let said = said(cluster, &log).split_off(before).to_lowercase();
        let refused =
            ["refus", "certificate", "unknown issuer"].iter().any(|word| said.contains(word));
        if refused { Ok(()) } else { Err("nobody has said no".to_owned()) }
    });
    let ready = http::get(&cluster.nodes[STRANGER].metrics, "/readyz");
    assert!(!matches!(ready, Ok((200, _))), "a stranger serves");
    process
}

/// What the nodes and the stranger have logged.
fn said(cluster: &Cluster, stranger: &Path) -> String {
    let nodes = cluster.nodes.iter().filter_map(|node| node.process.as_ref()).map(Process::log);
    let stranger = std::fs::read_to_string(stranger).unwrap_or_default();
    nodes.chain([stranger]).collect()
}

#[test]
fn a_data_directory_of_somebody_else_is_refused() {
    let Some(mut cluster) = fresh("data directories") else { return };

    // In use: another process on it, on other ports.
    let mut command = with_flags(&cluster, 0, &fresh_ports());
    let said = assert_refuses_to_start(&cluster, &mut command);
    let data = cluster.nodes[0].data.display().to_string();
    assert!(said.contains(&data), "it names the directory {data}:\n{said}");
    assert_serves(&cluster);

    // Another node's.
    cluster.kill(STRANGER);
    let data = cluster.nodes[1].data.clone();
    cluster.kill(1);
    let data = data.to_str().expect("temporary paths are text").to_owned();
    let mut command = with_flags(&cluster, STRANGER, &[("--data-dir", data)]);
    assert_refuses_to_start(&cluster, &mut command);

    // Another cluster's.
    let token = [("--initial-cluster-token", "another".to_owned())];
    let mut command = with_flags(&cluster, STRANGER, &token);
    assert_refuses_to_start(&cluster, &mut command);

    // All of it is still good for those whose it is.
    cluster.start_all();
    assert_serves(&cluster);
}

#[test]
fn a_full_disk_at_the_start_is_named() {
    let test = "a full disk at the start";
    let Some(mut cluster) = fresh(test) else { return };
    if !on_full_disk(&cluster, 0, "", &Command::new("true"))
        .output()
        .is_ok_and(|o| o.status.success())
    {
        programs::skip(test, "no mount namespaces for this user");
        return;
    }
    cluster.kill(STRANGER);
    let mount = small_disk(&cluster);
    let flags = [("--data-dir", format!("{mount}/n3"))];
    let command = with_flags(&cluster, STRANGER, &flags);

    // A new node, which cannot even write down who it is.
    let said = assert_refuses_to_start(&cluster, &mut on_full_disk(&cluster, 0, "", &command));
    assert!(said.to_lowercase().contains("space"), "{said}");

    // A node with data, on a copy of it.
    let data = cluster.nodes[STRANGER].data.clone();
    let copy = format!("cp -a '{}' '{mount}'", data.display());
    let mut command = on_full_disk(&cluster, size_kib(&data), &copy, &command);
    let said = assert_refuses_to_start(&cluster, &mut command);
    assert!(said.to_lowercase().contains("space"), "{said}");

    cluster.start(STRANGER);
    cluster.wait_ready(STRANGER);
    assert_serves(&cluster);
}

/// A node whose data is a copy that must not be used.
const COPIED: i32 = 5;

#[test]
fn a_directory_that_was_rolled_back_is_refused_until_the_node_is_replaced() {
    let Some(mut cluster) = fresh("a rolled back directory") else { return };
    let data = cluster.nodes[STRANGER].data.clone();
    let yesterday = cluster.dir().join("yesterday");
    assert_serves(&cluster);
    cluster.kill(STRANGER);
    copy(&data, &yesterday);
    cluster.start(STRANGER);
    cluster.wait_ready(STRANGER);
    for _ in 0..5 {
        assert_serves(&cluster);
    }
    // A restart with the same directory is no reason to refuse anybody; and it tells what it has.
    cluster.kill(STRANGER);
    cluster.start(STRANGER);
    cluster.wait_ready(STRANGER);
    assert_serves(&cluster);
    cluster.kill(STRANGER);

    std::fs::remove_dir_all(&data).expect("it can be deleted");
    copy(&yesterday, &data);
    cluster.start(STRANGER);
    let (code, log) = cluster.wait_end(STRANGER);
    assert_eq!(code, Some(COPIED), "{log}");
    assert!(log.contains("returned with an older copy of its data"), "{log}");
    assert_serves(&cluster);

    // As a node that has lost its data.
    let (code, said) = cluster.member(0, &["replace", "n3"]);
    assert_eq!(code, Some(0), "{said}");
    cluster.wipe(STRANGER);
    cluster.start(STRANGER);
    cluster.wait_ready(STRANGER);
    assert_serves(&cluster);
}

#[test]
fn of_two_live_copies_of_a_directory_the_second_is_refused() {
    let Some(mut cluster) = fresh("two live copies") else { return };
    let data = cluster.nodes[STRANGER].data.clone();
    let second = cluster.dir().join("second");
    assert_serves(&cluster);
    cluster.kill(STRANGER);
    copy(&data, &second);
    cluster.start(STRANGER);
    cluster.wait_ready(STRANGER);

    let [client, metrics] = fresh_ports();
    let peer = ("--listen-peer", format!("127.0.0.1:{}", ports::free()));
    let directory = ("--data-dir", second.to_str().expect("paths are text").to_owned());
    let mut command = with_flags(&cluster, STRANGER, &[client, metrics, peer, directory]);
    let mut process = Process::start("the copy", &mut command, &cluster.dir().join("copy.log"));
    let status = process.wait(REFUSAL_BOUND);
    let said = process.log();
    assert_eq!(status.code(), Some(COPIED), "{said}");
    assert!(said.contains("copy of"), "{said}");
    // The first one never noticed.
    cluster.wait_ready(STRANGER);
    assert_serves(&cluster);
}

/// Copies a directory of a node that does not run.
fn copy(from: &Path, to: &Path) {
    let output = Command::new("cp").arg("-a").arg(from).arg(to).output().expect("cp starts");
    assert!(output.status.success(), "{output:?}");
}

fn small_disk(cluster: &Cluster) -> String {
    let mount = cluster.dir().join("small");
    std::fs::create_dir_all(&mount).expect("a directory can be made");
    mount.to_str().expect("temporary paths are text").to_owned()
}

/// `command` in a mount namespace of its own, which goes with the process, where a small disk has room for
/// `kib` more than little, `prepare` has been run, and whatever was left is filled up.
fn on_full_disk(cluster: &Cluster, kib: u64, prepare: &str, command: &Command) -> Command {
    let mount = small_disk(cluster);
    let size = kib + SMALL_DISK_SLACK_KIB;
    let script = format!(
        "mount -t tmpfs -o size={size}k tmpfs '{mount}' && {{ {prepare}\n}} && \
         mkdir -p -m 700 '{mount}/n3' && {{ cat /dev/zero >'{mount}/fill' 2>/dev/null; exec \"$@\"; }}",
        prepare = if prepare.is_empty() { "true" } else { prepare },
    );
    let mut inside = Command::new("unshare");
    inside.args(["--mount", "--map-root-user", "sh", "-c", &script, "sh"]);
    inside.arg(command.get_program()).args(command.get_args());
    inside
}

/// What `du` says of a directory.
fn size_kib(directory: &Path) -> u64 {
    let output = Command::new("du").arg("-sk").arg(directory).output().expect("du starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let size = text.split_ascii_whitespace().next().and_then(|size| size.parse().ok());
    size.unwrap_or_else(|| panic!("du says {output:?}"))
}

/// The command of node `number` with some flags given other values.
fn with_flags(cluster: &Cluster, number: usize, flags: &[(&str, String)]) -> Command {
    let command = cluster.command(number);
    let mut changed = quorate();
    let mut args = command.get_args();
    let mut missing: Vec<&(&str, String)> = flags.iter().collect();
    while let Some(arg) = args.next() {
        changed.arg(arg);
        if let Some(at) = missing.iter().position(|(flag, _)| arg == *flag) {
            args.next().expect("these flags have a value");
            changed.arg(&missing.swap_remove(at).1);
        }
    }
    for (flag, value) in missing {
        changed.arg(flag).arg(value);
    }
    changed
}

fn fresh_ports() -> [(&'static str, String); 2] {
    let address = || format!("127.0.0.1:{}", ports::free());
    [("--listen-client", address()), ("--listen-metrics", address())]
}

/// Runs a command that must end by itself, badly; returns what it said.
fn assert_refuses_to_start(cluster: &Cluster, command: &mut Command) -> String {
    let log = cluster.dir().join("refused.log");
    // Each gets a log of its own.
    let _ = std::fs::remove_file(&log);
    let mut process = Process::start("the refused", command, &log);
    let status = process.wait(REFUSAL_BOUND);
    let said = process.log();
    assert!(!status.success(), "it ended well:\n{said}");
    assert!(said.contains("quorate:"), "it says why:\n{said}");
    said
}
