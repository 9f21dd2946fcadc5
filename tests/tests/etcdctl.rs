//! Stock etcdctl 3.5 against etcd and against Quorate: what a person sees must be the same.
//!
//! One session of commands runs against both; outputs and exit codes are compared as text. What names a
//! cluster (ids, addresses, sizes, times) is looked at apart.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use quorate_api::etcdserverpb::DowngradeRequest;
use quorate_api::etcdserverpb::downgrade_request::DowngradeAction;
use quorate_tests::client::{self, Client};
use quorate_tests::cluster::Cluster;
use quorate_tests::{ports, programs, wait};
use serde_json::Value;
use tonic::Code;

/// How long anything may take that comes in the end.
const BOUND: Duration = Duration::from_secs(60);

/// A command line, and what is typed into it.
struct Step {
    args: &'static [&'static str],
    typed: &'static str,
}

const fn step(args: &'static [&'static str]) -> Step {
    Step { args, typed: "" }
}

const fn txn(typed: &'static str) -> Step {
    Step { args: &["txn"], typed }
}

/// The exit code of a Go program that panicked.
const CRASHED: i32 = 2;

/// The session. The store is fresh: the first put makes revision 2. Compares of leases are missing, because
/// etcdctl 3.5.1 crashes on them before it sends anything; the differential test has them.
const SESSION: &[Step] = &[
    step(&["put", "k/b", "two"]),
    step(&["put", "k/a", "one"]),
    step(&["put", "k/c", "three"]),
    step(&["put", "k/a", "one again", "--prev-kv"]),
    step(&["put", "l", "beside the prefix"]),
    step(&["put", "empty", ""]),
    step(&["get", "k/a"]),
    step(&["get", "k/a", "-w", "fields"]),
    step(&["get", "nothing"]),
    step(&["get", "", "--prefix"]),
    step(&["get", "k/", "--prefix"]),
    step(&["get", "k/", "--prefix", "-w", "fields"]),
    step(&["get", "k/b", "--from-key"]),
    step(&["get", "--from-key", ""]),
    step(&["get", "k/a", "k/c"]),
    step(&["get", "k/c", "k/a"]),
    step(&["get", "k/", "--prefix", "--limit", "2"]),
    step(&["get", "k/", "--prefix", "--limit", "2", "-w", "fields"]),
    step(&["get", "k/", "--prefix", "--order", "DESCEND"]),
    step(&["get", "k/", "--prefix", "--order", "DESCEND", "--limit", "1"]),
    step(&["get", "k/", "--prefix", "--sort-by", "VERSION", "--order", "DESCEND", "--limit", "1"]),
    step(&["get", "k/", "--prefix", "--sort-by", "CREATE"]),
    step(&["get", "k/", "--prefix", "--sort-by", "MODIFY"]),
    step(&["get", "k/", "--prefix", "--sort-by", "VALUE"]),
    step(&["get", "k/", "--prefix", "--sort-by", "KEY", "--order", "ASCEND"]),
    step(&["get", "k/", "--prefix", "--keys-only"]),
    step(&["get", "k/", "--prefix", "--count-only", "-w", "fields"]),
    step(&["get", "k/a", "--print-value-only"]),
    step(&["get", "k/a", "--consistency", "s"]),
    step(&["get", "k/a", "--rev", "3"]),
    step(&["get", "k/", "--prefix", "--rev", "2"]),
    step(&["get", "k/a", "--rev", "999"]),
    step(&["put", "", "no key"]),
    step(&["put", "k/a", "--ignore-value"]),
    step(&["put", "missing", "--ignore-value"]),
    step(&["put", "k/a", "x", "--lease", "1234"]),
    txn("value(\"k/a\") = \"one again\"\n\nput k/t \"compared value\"\nget k/t\n\nput k/t no\n\n"),
    txn("value(\"k/a\") != \"one again\"\n\nput k/t yes\n\nget k/t\n\n"),
    txn("value(\"k/a\") > \"a\"\nvalue(\"k/a\") < \"z\"\n\nget k/a\n\n\n"),
    txn("version(\"k/a\") = \"3\"\n\nget k/a\n\nget k/b\n\n"),
    txn("ver(\"k/a\") > \"0\"\nver(\"k/a\") < \"9\"\nver(\"nothing\") = \"0\"\n\ndel k/t\n\n\n"),
    txn("create(\"k/a\") = \"3\"\ncreate(\"k/a\") < \"4\"\n\nput k/u 1\nput k/v 2\n\n\n"),
    txn("mod(\"k/a\") = \"5\"\nmod(\"k/b\") != \"3\"\n\nget k/ --prefix --keys-only\n\n\n"),
    txn("mod(\"k/a\") > \"1000\"\n\n\ndel k/u --prev-kv\n\n"),
    txn("\nput same 1\nput same 2\n\n\n"),
    txn("\nput range/1 1\ndel range/ --prefix\n\n\n"),
    txn("\n\n\n"),
    step(&["get", "", "--from-key", "-w", "fields"]),
    step(&["del", "nothing"]),
    step(&["del", "k/b", "--prev-kv"]),
    step(&["del", "k/", "--prefix", "--prev-kv"]),
    step(&["put", "z/1", "1"]),
    step(&["put", "z/2", "2"]),
    step(&["del", "z/1", "--from-key"]),
    step(&["get", "k/a", "--rev", "4"]),
    step(&["compaction", "6"]),
    step(&["get", "k/a", "--rev", "4"]),
    step(&["get", "k/a", "--rev", "6"]),
    step(&["compaction", "6"]),
    step(&["compaction", "5"]),
    step(&["compaction", "9999"]),
    step(&["compaction", "7", "--physical"]),
    step(&["get", "", "--prefix", "-w", "fields"]),
];

#[test]
fn a_session_looks_the_same() {
    let Some((etcd, quorate)) = both("a session of etcdctl") else { return };
    for (number, Step { args, typed }) in SESSION.iter().enumerate() {
        let expected = etcd.run(args, typed);
        assert_ne!(
            expected.code,
            Some(CRASHED),
            "step {number}: etcdctl {args:?} {typed:?} crashed"
        );
        let found = quorate.run(args, typed);
        assert_eq!(found, expected, "step {number}: etcdctl {args:?} {typed:?} (left: Quorate)");
    }
}

#[test]
fn endpoints_and_members_look_the_same() {
    let Some((etcd, quorate)) = both("etcdctl about endpoints and members") else { return };
    for side in [&etcd, &quorate] {
        side.run(&["put", "k", "v"], "");
        let members = side.members();
        side.statuses(&members);
        side.health();
    }
    // The table of members, with what names the cluster taken out.
    let table = |side: &Ctl| side.anonymous(&side.run(&["member", "list"], "").out);
    assert_eq!(table(&quorate), table(&etcd));
}

/// What etcd 3.5.1 says, after its whole patience, of a change of the downgrade that it has made: the result gets lost
/// on the way. The calls after it show that it was made.
const NEVER_TOLD: &str = "etcdserver: request timed out";

/// etcdctl 3.5.1 has no command for it, so its calls are made here, in an order in which each finds what the others
/// have left.
#[test]
fn downgrades_are_answered_the_same() {
    use DowngradeAction::{Cancel, Enable, Validate};
    let Some((etcd, quorate)) = both("downgrades") else { return };
    let calls = [
        (Validate, "3.4.0"),
        (Validate, "3.3.0"),
        (Validate, "3.5.0"),
        (Validate, "4.0.0"),
        (Validate, "3.4"),
        (Validate, "nothing"),
        (Validate, ""),
        (Enable, "3.3.0"),
        (Enable, "nothing"),
        (Cancel, ""),
        (Enable, "3.4.0"),
        (Enable, "3.4.0"),
        (Validate, "3.4.0"),
        (Cancel, ""),
        (Cancel, ""),
        (Validate, "3.4.0"),
    ];
    for (number, (action, version)) in calls.into_iter().enumerate() {
        let [expected, found] = [&etcd, &quorate].map(|side| side.downgrade(action, version));
        let is_change = action != Validate && found.is_ok();
        if is_change && expected == Err((Code::Unavailable, NEVER_TOLD.to_owned())) {
            continue;
        }
        assert_eq!(found, expected, "call {number}: {action:?} {version:?} (left: Quorate)");
    }
}

#[test]
fn a_member_that_has_moved_is_shown_by_all_and_serves_at_its_new_address() {
    /// The one that moves, and the one that is not needed when it does.
    const MOVED: usize = 2;
    const SPARE: usize = 1;
    let Some((etcd, quorate)) = both("a member that moves") else { return };
    for mut side in [etcd, quorate] {
        let id = side.json(&["endpoint", "status"]);
        let id = id.as_array().expect("a list").iter().find_map(|status| {
            let is_it = status["Endpoint"].as_str() == Some(&*side.cluster.nodes[MOVED].client);
            is_it.then(|| status["Status"]["header"]["member_id"].as_u64())
        });
        let id = format!("{:x}", id.flatten().expect("its id"));
        side.cluster.kill(MOVED);
        let address = format!("127.0.0.1:{}", ports::free());
        let update = ["member", "update", &id, &format!("--peer-urls=http://{address}")];
        let updated = wait::until("the member is updated", BOUND, || {
            let outcome = side.run(&update, "");
            if outcome.code == Some(0) { Ok(outcome.out) } else { Err(format!("{outcome:?}")) }
        });
        assert!(updated.starts_with(&format!("Member {id:>16} updated in cluster ")), "{updated}");
        side.cluster.nodes[MOVED].peer.clone_from(&address);
        side.cluster.nodes[MOVED].joins = true;
        side.shows_at(&[0, SPARE], &address);
        side.cluster.start(MOVED);
        side.cluster.wait_ready(MOVED);
        side.shows_at(&[0, SPARE, MOVED], &address);
        // It is reached there: without it there would be no majority.
        side.cluster.kill(SPARE);
        side.cluster.write_through(0);
        side.cluster.write_through(MOVED);
    }
}

/// Both sides, each a fresh cluster.
fn both(test: &str) -> Option<(Ctl, Ctl)> {
    let programs = programs::etcd(test)?;
    let program = programs.program("etcdctl");
    let quorate = Ctl { program: program.clone(), cluster: Cluster::quorate(test)? };
    Some((Ctl { program, cluster: Cluster::etcd(programs) }, quorate))
}

/// etcdctl and the cluster that it talks to.
struct Ctl {
    program: PathBuf,
    cluster: Cluster,
}

/// What a command came to.
#[derive(Debug, PartialEq)]
struct Outcome {
    code: Option<i32>,
    out: String,
    /// The lines that begin with `Error`: the others are a log with addresses and times.
    error: Vec<String>,
}

impl Ctl {
    fn run(&self, args: &[&str], typed: &str) -> Outcome {
        let mut child = Command::new(&self.program)
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.cluster.endpoints().join(",")])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcdctl starts");
        let mut stdin = child.stdin.take().expect("it was piped");
        // A command that refuses its arguments does not wait for what is typed.
        let _ = stdin.write_all(typed.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("etcdctl ends");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let error = text(&output.stderr);
        Outcome {
            code: output.status.code(),
            out: identities_out(&text(&output.stdout)),
            error: error
                .lines()
                .filter(|line| line.starts_with("Error"))
                .map(str::to_owned)
                .collect(),
        }
    }

    /// What a call about downgrades comes to: the version of the cluster, or the refusal.
    fn downgrade(&self, action: DowngradeAction, version: &str) -> Result<String, (Code, String)> {
        let request = DowngradeRequest { action: action.into(), version: version.to_owned() };
        let answer = client::runtime().block_on(async {
            Client::new(&self.cluster.nodes[0].client).maintenance.downgrade(request).await
        });
        answer
            .map(|answer| answer.into_inner().version)
            .map_err(|status| (status.code(), status.message().to_owned()))
    }

    /// Waits until each of `asked` shows one member with `address` for its peers.
    fn shows_at(&self, asked: &[usize], address: &str) {
        for &number in asked {
            let node = &self.cluster.nodes[number];
            wait::until(&format!("{} shows {address}", node.name), BOUND, || {
                let members = client::members(&node.client).map_err(|status| status.to_string())?;
                let urls = members.iter().flat_map(|member| &member.peer_ur_ls);
                let shown = urls.filter(|url| url.ends_with(&format!("://{address}"))).count();
                if shown == 1 && members.len() == 3 { Ok(()) } else { Err(format!("{members:?}")) }
            });
        }
    }

    fn json(&self, args: &[&str]) -> Value {
        let outcome = self.run(&[args, &["-w", "json"]].concat(), "");
        assert_eq!(outcome.code, Some(0), "{args:?}: {outcome:?}");
        serde_json::from_str(&outcome.out).expect("-w json prints JSON")
    }

    /// The members' ids, after a look at the list.
    fn members(&self) -> Vec<u64> {
        let list = self.json(&["member", "list"]);
        let members = list["members"].as_array().expect("a list of members");
        let mut names: Vec<&str> =
            members.iter().map(|member| member["name"].as_str().expect("a name")).collect();
        names.sort_unstable();
        assert_eq!(names, ["n1", "n2", "n3"]);
        for (member, node) in members.iter().map(|member| {
            let name = member["name"].as_str();
            (member, self.cluster.nodes.iter().find(|node| Some(&node.name[..]) == name))
        }) {
            let node = node.expect("a node of this name");
            assert_eq!(
                member["clientURLs"],
                serde_json::json!([format!("http://{}", node.client)])
            );
            assert_eq!(member["peerURLs"].as_array().map(Vec::len), Some(1));
        }
        let id = |member: &Value| member["ID"].as_u64().expect("an id");
        let ids: Vec<u64> = members.iter().map(id).collect();
        assert!(ids.iter().all(|id| *id != 0));
        assert!(ids.contains(&list["header"]["member_id"].as_u64().expect("who answered")));
        ids
    }

    fn statuses(&self, members: &[u64]) {
        let statuses = self.json(&["endpoint", "status"]);
        let statuses = statuses.as_array().expect("a list of endpoints");
        let field = |status: &Value, name: &str| status["Status"][name].as_u64().unwrap_or(0);
        assert_eq!(statuses.len(), 3);
        let mut answering = Vec::new();
        for status in statuses {
            let header = &status["Status"]["header"];
            answering.push(header["member_id"].as_u64().expect("who answered"));
            assert_eq!(header["revision"].as_u64(), Some(2), "{status}");
            let version = status["Status"]["version"].as_str().expect("a version");
            assert!(version.starts_with("3.5."), "etcdctl and its kin choose by it: {version}");
            assert!(field(status, "dbSize") > 0, "{status}");
            assert!(field(status, "raftTerm") > 0, "{status}");
            assert!(field(status, "raftIndex") >= field(status, "raftAppliedIndex"), "{status}");
            assert!(field(status, "raftAppliedIndex") > 0, "{status}");
            assert_eq!(field(status, "leader"), field(&statuses[0], "leader"), "one leader");
            assert!(members.contains(&field(status, "leader")), "{status}");
        }
        answering.sort_unstable();
        let mut members = members.to_vec();
        members.sort_unstable();
        assert_eq!(answering, members, "every endpoint is another member");
    }

    fn health(&self) {
        let health = self.json(&["endpoint", "health"]);
        let endpoints = health.as_array().expect("a list of endpoints");
        assert_eq!(endpoints.len(), 3);
        for endpoint in endpoints {
            assert_eq!(endpoint["health"], Value::Bool(true), "{endpoint}");
        }
    }

    /// `text` without ids and addresses.
    fn anonymous(&self, text: &str) -> Vec<String> {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for line in &mut lines {
            for node in &self.cluster.nodes {
                // Nodes speak another protocol with each other than the peer's.
                let peers = ["http://", "quic://"].map(|scheme| format!("{scheme}{}", node.peer));
                *line = line.replace(&node.client, "CLIENT");
                peers.iter().for_each(|peer| *line = line.replace(peer, "PEER"));
            }
            if let Some((_, rest)) = line.split_once(", ") {
                *line = format!("ID, {rest}");
            }
        }
        // By name: the order is that of the ids.
        lines.sort();
        lines
    }
}

/// The `fields` output without the ids and the term of the cluster.
fn identities_out(out: &str) -> String {
    let names_a_cluster = |line: &&str| {
        ["\"ClusterID\"", "\"MemberID\"", "\"RaftTerm\""].iter().any(|name| line.starts_with(name))
    };
    out.split_inclusive('\n').filter(|line| !names_a_cluster(line)).collect()
}
