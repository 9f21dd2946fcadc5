//! The integration tests of the package `etcd-client`, unmodified, against a cluster on `localhost:2379`.
//!
//! They expect that address, so the cluster and they run in a network namespace of their own; the user root
//! with the password rootpwd; and tokens that live for two seconds. `QUORATE_STAND_IN=etcd` runs them against
//! the peer, which tests this harness.

use std::collections::{BTreeMap, BTreeSet};
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
for tests in $TESTS; do
    echo "program $tests"
    timeout 300 "$tests" --test-threads 4 $CHOICE 2>&1 || true
done
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

    let Said { outcomes, ended } = Said::read(&said);
    let failed: Vec<_> = outcomes.iter().filter(|(_, end)| **end == End::Failed).collect();
    assert!(failed.is_empty(), "{failed:?}:\n{said}");
    // Nothing of what the programs list is missing: a test that hangs ends its program without a word.
    let listed: BTreeSet<_> = tests.iter().flat_map(|program| list(program)).collect();
    assert!(listed.len() > 20, "{listed:?}");
    assert_eq!(outcomes.keys().cloned().collect::<BTreeSet<_>>(), listed, "{said}");
    assert_eq!(ended, 2 * tests.len(), "every program ends well, both times:\n{said}");
    let ignored = outcomes.iter().filter(|(_, end)| **end == End::Ignored);
    let ignored: BTreeSet<_> = ignored.map(|((_, name), _)| name.as_str()).collect();
    assert_eq!(ignored, IGNORED.map(|(name, _)| name).into(), "{said}");
    for (name, why) in IGNORED {
        say(&format!("{name} is not run: {why}"));
    }
    let passed = outcomes.values().filter(|end| **end == End::Passed).count();
    say(&format!("etcd-client: {passed} of {} tests pass", outcomes.len()));
}

/// A test: its program and its name.
type Test = (String, String);

/// How a test has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Passed,
    Failed,
    Ignored,
}

/// What the programs have said.
#[derive(PartialEq, Eq, Debug)]
struct Said {
    outcomes: BTreeMap<Test, End>,
    /// Runs of programs that ended by themselves, and well.
    ended: usize,
}

impl Said {
    /// Reads the lines `test NAME ... ok` and `test result: ok` after each line `program PATH`. A test that prints
    /// something has its outcome lines later, so only the ends count.
    fn read(said: &str) -> Self {
        let (mut outcomes, mut ended, mut program) = (BTreeMap::new(), 0, "");
        for line in said.lines() {
            if let Some(path) = line.strip_prefix("program ") {
                program = path;
            }
            ended += usize::from(line.starts_with("test result: ok. "));
            let Some((name, end)) =
                line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "))
            else {
                continue;
            };
            let end = match end {
                "ok" => End::Passed,
                "FAILED" => End::Failed,
                end if end.starts_with("ignored") => End::Ignored,
                _ => continue,
            };
            outcomes.insert((program.to_owned(), name.to_owned()), end);
        }
        Self { outcomes, ended }
    }
}

/// The tests that a program has, those that it ignores too.
fn list(program: &str) -> Vec<Test> {
    let output = Command::new(program).args(["--list", "--format", "terse"]).output();
    let output = output.expect("it was built");
    let text = String::from_utf8_lossy(&output.stdout);
    let names = text.lines().filter_map(|line| line.strip_suffix(": test"));
    names.map(|name| (program.to_owned(), name.to_owned())).collect()
}

#[test]
fn only_ends_are_outcomes_and_each_belongs_to_its_program() {
    let said = "program a\ntest one ... ok\ntest two has been running for over 60 seconds\n\
                test three ... ignored, why\ntest result: ok. 1 passed\n\
                program b\ntest one ... FAILED\ntest two ... and more\ntest result: FAILED. 0\n";
    let test = |program: &str, name: &str| (program.to_owned(), name.to_owned());
    let outcomes = [
        (test("a", "one"), End::Passed),
        (test("a", "three"), End::Ignored),
        (test("b", "one"), End::Failed),
    ];
    assert_eq!(Said::read(said), Said { outcomes: outcomes.into(), ended: 1 });
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
