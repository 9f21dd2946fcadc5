//! The sessions of `docs/clients.md` do what the page shows.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use quorate_api::etcdserverpb::RangeRequest;
use quorate_tests::cluster::Cluster;
use quorate_tests::{client, programs, wait};

/// A command of a session, which `> ` continues, and the lines that it is shown to print; `...` stands for any part of
/// a line.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    command: String,
    shown: Vec<String>,
}

/// The commands in the blocks marked `console`.
fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        match line {
            "```console" => inside = true,
            "```" => inside = false,
            _ if !inside => {}
            line => match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => {
                    steps.push(Step { command: command.to_owned(), shown: Vec::new() });
                }
                (None, Some(step)) => match line.strip_prefix("> ") {
                    Some(more) if step.shown.is_empty() => {
                        step.command.push('\n');
                        step.command.push_str(more);
                    }
                    _ => step.shown.push(line.to_owned()),
                },
                (None, None) => panic!("{line}: a session begins with a command"),
            },
        }
    }
    steps
}

fn matches(shown: &str, printed: &str) -> bool {
    match shown.split_once("...") {
        Some((begin, end)) => {
            printed.len() >= begin.len() + end.len()
                && printed.starts_with(begin)
                && printed.ends_with(end)
        }
        None => shown == printed,
    }
}

#[test]
fn the_session_of_etcdctl_is_as_shown_with_quorate() {
    if let Some(cluster) = Cluster::quorate("the session of etcdctl") {
        session(&cluster);
    }
}

#[test]
fn the_session_of_etcdctl_is_as_shown_with_etcd() {
    if let Some(etcd) = programs::etcd("the session of etcdctl") {
        session(&Cluster::etcd(etcd));
    }
}

/// The steps of the page.
fn shown() -> Vec<Step> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/clients.md");
    let page = std::fs::read_to_string(page).expect("the page is there");
    steps(&page)
}

/// A shell in which `etcdctl` speaks with `cluster`.
fn shell(cluster: &Cluster, script: &str) -> Command {
    let etcd = programs::etcd("the session of etcdctl").expect("it was fetched for the cluster");
    let path = format!("{}:{}", etcd.bin.display(), env::var("PATH").unwrap_or_default());
    let mut shell = Command::new("bash");
    shell.env("PATH", path).env("ETCDCTL_API", "3");
    shell.env("ETCDCTL_ENDPOINTS", cluster.endpoints().join(","));
    shell.args(["-c", script]);
    shell
}

fn session(cluster: &Cluster) {
    let steps = shown();
    assert!(steps.len() > 10, "{steps:?}");
    // One shell for all, because variables live on; a line with a mark ends the output of each.
    let mark = "--- end of step";
    let script: Vec<String> =
        steps.iter().map(|step| format!("{}\necho '{mark}'", step.command)).collect();
    let output = shell(cluster, &script.join("\n")).output().expect("bash starts");
    let printed = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    let parts: Vec<&str> = printed.split(&format!("{mark}\n")).collect();
    assert_eq!(parts.len(), steps.len() + 1, "{printed}\n{error}");
    for (step, printed) in steps.iter().zip(parts) {
        let printed: Vec<&str> = printed.lines().collect();
        let same = printed.len() == step.shown.len()
            && step.shown.iter().zip(&printed).all(|(shown, printed)| matches(shown, printed));
        assert!(
            same,
            "{}\nprints {printed:#?}\nis shown to print {:#?}\n{error}",
            step.command, step.shown
        );
    }
}

#[test]
fn the_guarded_put_of_one_that_had_to_wait_for_the_lock_happens_with_quorate() {
    if let Some(cluster) = Cluster::quorate("a guarded put after waiting") {
        waits_its_turn(&cluster);
    }
}

#[test]
fn the_guarded_put_of_one_that_had_to_wait_for_the_lock_happens_with_etcd() {
    if let Some(etcd) = programs::etcd("a guarded put after waiting") {
        waits_its_turn(&Cluster::etcd(etcd));
    }
}

/// Holds the lock of the page while the page's own command waits for it.
fn waits_its_turn(cluster: &Cluster) {
    const BOUND: Duration = Duration::from_secs(60);
    let steps = shown();
    let at = steps.iter().position(|step| step.command.starts_with("etcdctl lock jobs/nightly "));
    let (before, lock) = steps.split_at(at.expect("the page shows a lock"));
    let definition = &before.last().expect("what it runs is shown before").command;
    let script = format!("{definition}\n{}", lock[0].command);

    let endpoint = &cluster.nodes[0].client;
    let contenders = |count: usize| {
        wait::until(&format!("{count} contend"), BOUND, || {
            let prefix = RangeRequest {
                key: "jobs/nightly/".into(),
                range_end: "jobs/nightly0".into(),
                ..RangeRequest::default()
            };
            let found = client::runtime()
                .block_on(async { client::Client::new(endpoint).kv.range(prefix).await });
            let found = found.map_err(|status| status.to_string())?.into_inner().kvs.len();
            if found == count { Ok(()) } else { Err(format!("there are {found}")) }
        });
    };
    let end = cluster.dir().join("end");
    let holds = "etcdctl lock jobs/nightly -- sh -c 'until [ -e \"$END\" ]; do sleep 0.1; done'";
    let mut holder = shell(cluster, holds).env("END", &end).spawn().expect("bash starts");
    contenders(1);
    let waiter = shell(cluster, &script).stdout(Stdio::piped()).spawn().expect("bash starts");
    contenders(2);
    // The waiter's key is older than this, and what it sees when it is its turn is younger.
    client::put(endpoint, b"meanwhile", b"written").expect("a put");
    std::fs::write(&end, "").expect("it can be written");
    let output = waiter.wait_with_output().expect("it ends");
    assert!(holder.wait().expect("it ends").success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), lock[0].shown.join("\n") + "\n");
    let done = client::get(endpoint, b"jobs/done").expect("a read");
    assert_eq!(done.kvs.iter().map(|pair| &pair.value[..]).collect::<Vec<_>>(), [b"yes"]);
}

#[test]
fn a_page_is_read_as_it_is_meant() {
    let step = |command: &str, shown: &[&str]| Step {
        command: command.to_owned(),
        shown: shown.iter().map(|&line| line.to_owned()).collect(),
    };
    let page = "text\n```console\n$ a\none\n\n> two\n$ b\n> c\n```\n$ no\n```sh\n$ no\n```\n";
    assert_eq!(steps(page), [step("a", &["one", "", "> two"]), step("b\nc", &[])]);
    assert!(matches("lease ... revoked", "lease 123 revoked"));
    assert!(!matches("lease ... revoked", "lease 123 gone"));
    assert!(!matches("OK", "OK then"));
}
