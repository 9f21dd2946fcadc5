//! The integration tests of the package `etcd-client`, unmodified, against a cluster on `localhost:2379`.
//!
//! They expect that address, so the cluster and they run in a network namespace of their own; the user root
//! with the password rootpwd; and tokens that live for two seconds. `QUORATE_STAND_IN=etcd` runs them against
//! the peer, which tests this harness.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use quorate_tests::cluster::quorate;
use quorate_tests::programs;
use quorate_tests::verify::say;
use tempfile::TempDir;

/// The test that runs against one node instead of three, as all do with the peer. With three, it expects a
/// header, which etcd 3.5 does not send (its answer is empty), and that the node it asks leads. And while the
/// leader moves, the tests beside it are refused, as by etcd: their clients require a leader.
const ALONE: &str = "test_move_leader";

/// Tests that are not run by default, and why.
const IGNORED: [(&str, &str); 3] = [
    ("test_get_stream", "needs etcd 3.7"),
    ("test_get_stream_chunked", "needs etcd 3.7"),
    ("test_cluster", "needs a fourth node under a name of its own"),
];

/// Runs inside the namespace. The server's command are its arguments.
const INSIDE: &str = r#"
set -eu
ip link set lo up
"$@" >"$LOG" 2>&1 &
server=$!
trap 'kill $server 2>/dev/null; wait $server 2>/dev/null || true' EXIT
export ETCDCTL_API=3
served=
for _ in $(seq 300); do
    if "$ETCDCTL" --endpoints localhost:2379 endpoint health >/dev/null 2>&1; then served=yes; break; fi
    kill -0 $server || break
    sleep 0.2
done
[ "$served" ] || { echo "no server"; tail -n 5 "$LOG"; exit 1; }
"$ETCDCTL" --endpoints localhost:2379 user add root --new-user-password=rootpwd || true
"$ETCDCTL" --endpoints localhost:2379 user grant-role root root || true
for tests in $TESTS; do timeout 300 "$tests" --test-threads 4 $CHOICE 2>&1 || true; done
"#;

#[test]
fn the_tests_of_etcd_client_pass() {
    let test = "the tests of etcd-client";
    let Some(etcd) = programs::etcd(test) else { return };
    if let Err(reason) = namespaces() {
        programs::skip_without_rights(test, &reason);
        return;
    }
    let tests = match fetch() {
        Ok(tests) => tests,
        Err(reason) => return programs::skip(test, &reason),
    };
    let dir = TempDir::with_prefix("quorate-etcd-client-").expect("a temporary directory");
    let stand_in = env::var_os("QUORATE_STAND_IN").is_some_and(|value| value == "etcd");
    let run = |nodes: &str, choice: &str| {
        let server = if stand_in { peer(&etcd, dir.path()) } else { dev(dir.path(), nodes) };
        let mut inside = Command::new("unshare");
        inside.args(["--net", "--kill-child", "sh", "-c", INSIDE, "sh"]);
        inside.arg(server.get_program()).args(server.get_args());
        // The tests wait for tokens to end.
        inside.env("QUORATE_AUTH_TOKEN_TTL", "2").env("CHOICE", choice);
        inside.env("LOG", dir.path().join("server.log")).env("ETCDCTL", etcd.program("etcdctl"));
        inside.env("TESTS", tests.join(" ")).stdin(Stdio::null());
        let output = inside.output().expect("unshare starts");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let said = run("3", &format!("--skip {ALONE}")) + &run("1", &format!("--exact {ALONE}"));
    let said = said.as_str();

    let outcomes = outcomes(said);
    let failed = outcomes.iter().filter(|(_, passed)| !**passed);
    let failed: Vec<_> = failed.map(|(name, _)| name).collect();
    for (name, why) in IGNORED {
        say(&format!("{name} is not run: {why}"));
    }
    assert!(outcomes.len() > 20, "only {} tests came to an end:\n{said}", outcomes.len());
    assert!(failed.is_empty(), "{failed:?}:\n{said}");
    let passed = outcomes.values().filter(|passed| **passed).count();
    say(&format!("etcd-client: {passed} of {} tests pass", outcomes.len()));
}

/// What the lines `test NAME ... ok` say. A test that prints something has its outcome lines later, so only the
/// ends count.
fn outcomes(said: &str) -> BTreeMap<String, bool> {
    let mut outcomes = BTreeMap::new();
    for line in said.lines() {
        let Some((name, end)) =
            line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "))
        else {
            continue;
        };
        match end {
            "ok" => drop(outcomes.insert(name.to_owned(), true)),
            "FAILED" => drop(outcomes.insert(name.to_owned(), false)),
            _ => {}
        }
    }
    outcomes
}

/// A cluster of Quorate in one process.
fn dev(dir: &Path, nodes: &str) -> Command {
    let mut command = quorate();
    command.args(["dev", "--nodes", nodes, "--port", "2379", "--data-dir"]);
    command.arg(dir.join(format!("data-{nodes}")));
    command
}

/// One node of the peer.
fn peer(etcd: &programs::Etcd, dir: &Path) -> Command {
    let mut command = Command::new(etcd.program("etcd"));
    command.arg("--data-dir").arg(dir.join("peer")).args(["--auth-token-ttl", "2"]);
    command
}

/// Whether this user may make a network namespace.
fn namespaces() -> Result<(), String> {
    let output = Command::new("unshare").args(["--net", "ip", "link", "set", "lo", "up"]).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("unshare: {error}")),
    }
}

/// The test programs, fetched and built if need be.
fn fetch() -> Result<Vec<String>, String> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("peers/fetch-etcd-client");
    let output = Command::new(script).output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "etcd-client cannot be built: {}",
            said.lines().last().unwrap_or("no reason")
        ));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(str::to_owned).collect())
}
