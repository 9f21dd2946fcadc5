//! The stock command line against a real etcd and against the gateway: the same words and the same exit.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::peer::{Etcd, programs};
use crate::support::Door;

/// What a command line says, its exit code, and nothing of who answered or how long it took.
async fn said(program: &Path, endpoint: &str, arguments: &[&str], input: &str) -> String {
    let mut command = Command::new(program);
    command.env("ETCDCTL_API", "3").args(["--endpoints", endpoint]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let input = input.to_owned();
    let output = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().expect("etcdctl starts");
        let mut stdin = child.stdin.take().expect("its input is piped");
        std::io::Write::write_all(&mut stdin, input.as_bytes()).expect("it reads its input");
        drop(stdin);
        child.wait_with_output().expect("etcdctl ends")
    });
    let output = output.await.expect("no panic");
    let lines = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let kept = text.lines().filter(|line| !line.contains(r#""level":"warn""#));
        kept.map(|line| anonymous(line, endpoint)).collect::<Vec<_>>().join("\n")
    };
    format!("{}\n{}\nexit {:?}", lines(&output.stdout), lines(&output.stderr), output.status.code())
}

/// A line without what must differ: ids, terms, sizes, indexes, addresses, times.
fn anonymous(line: &str, endpoint: &str) -> String {
    const NUMBERS: [&str; 12] = [
        "cluster_id",
        "member_id",
        "raft_term",
        "dbSize",
        "dbSizeInUse",
        "leader",
        "raftIndex",
        "raftTerm",
        "raftAppliedIndex",
        "ID",
        "Peer",
        "took",
    ];
    let mut line = line.replace(endpoint, "ENDPOINT");
    for name in NUMBERS {
        let field = format!(r#""{name}":"#);
        let Some(at) = line.find(&field).map(|at| at + field.len()) else { continue };
        let end = line[at..].find([',', '}']).map_or(line.len(), |length| at + length);
        line.replace_range(at..end, "N");
    }
    match line.find(r#""peerURLs":["#) {
        Some(at) => {
            let end = line[at..].find(']').map_or(line.len(), |length| at + length);
            line.replace_range(at..end, r#""peerURLs":[URL"#);
            line
        }
        None => match line.split_once("is healthy: successfully committed proposal") {
            Some((endpoint, _)) => format!("{endpoint}is healthy"),
            None => line,
        },
    }
}

#[tokio::test]
async fn stock_etcdctl_says_the_same_of_both() {
    let Some(etcd) = Etcd::start().await else { return };
    let Some(program) = programs().map(|bin| bin.join("etcdctl")) else { return };
    let door = Door::open().await;
    let ours = door.address.to_string();
    let txn = "mod(\"a\") > \"0\"\n\nget a\nput b 1\nget b\ndel a\nput c 1\n\nput d 1\n\n";
    let twice = "\n\nput a 1\nput a 2\n\n\n";
    let rows: &[(&[&str], &str)] = &[
        (&["put", "a", "1"], ""),
        (&["put", "a", "2", "--prev-kv", "-w", "json"], ""),
        (&["get", "a", "-w", "json"], ""),
        (&["get", "a", "--consistency", "s", "--print-value-only"], ""),
        (&["get", "a", "--rev", "99"], ""),
        (&["get", "", "--prefix", "--keys-only"], ""),
        (&["get", "", "--from-key", "--sort-by", "VALUE", "--limit", "1", "-w", "json"], ""),
        (&["get", ""], ""),
        (&["put", "", "x"], ""),
        (&["put", "x", "--ignore-value"], ""),
        (&["put", "b", "x", "--lease", "77"], ""),
        (&["txn"], txn),
        (&["txn", "-w", "json"], txn),
        (&["txn"], twice),
        (&["del", "nope", "-w", "json"], ""),
        (&["del", "b", "--prev-kv"], ""),
        (&["compact", "3"], ""),
        (&["compact", "3"], ""),
        (&["compact", "99"], ""),
        (&["get", "a", "--rev", "2"], ""),
        (&["endpoint", "status", "-w", "json"], ""),
        (&["endpoint", "health"], ""),
        (&["endpoint", "health", "-w", "json"], ""),
        (&["member", "list", "-w", "json"], ""),
        (&["alarm", "list", "-w", "json"], ""),
        (&["alarm", "disarm", "-w", "json"], ""),
        (&["defrag"], ""),
    ];
    for (arguments, input) in rows {
        let expected = said(&program, &etcd.address, arguments, input).await;
        assert_eq!(said(&program, &ours, arguments, input).await, expected, "{arguments:?}");
    }
}
