//! The sessions of `docs/clients.md` do what the page shows.

use std::path::Path;
use std::process::Command;

use quorate_tests::cluster::Cluster;
use quorate_tests::programs;

/// A command of a session and the lines that it is shown to print; `...` stands for any part of a line.
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
                (None, Some(step)) => step.shown.push(line.to_owned()),
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

fn session(cluster: &Cluster) {
    let etcd = programs::etcd("the session of etcdctl").expect("it was fetched for the cluster");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/clients.md");
    let page = std::fs::read_to_string(page).expect("the page is there");
    let steps = steps(&page);
    assert!(steps.len() > 10, "{steps:?}");
    // One shell for all, because variables live on; a line with a mark ends the output of each.
    let mark = "--- end of step";
    let script: Vec<String> =
        steps.iter().map(|step| format!("{}\necho '{mark}'", step.command)).collect();
    let output = Command::new("bash")
        .env(
            "PATH",
            format!("{}:{}", etcd.bin.display(), std::env::var("PATH").unwrap_or_default()),
        )
        .env("ETCDCTL_API", "3")
        .env("ETCDCTL_ENDPOINTS", cluster.endpoints().join(","))
        .args(["-c", &script.join("\n")])
        .output()
        .expect("bash starts");
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
fn a_page_is_read_as_it_is_meant() {
    let step = |command: &str, shown: &[&str]| Step {
        command: command.to_owned(),
        shown: shown.iter().map(|&line| line.to_owned()).collect(),
    };
    let page = "text\n```console\n$ a\none\n\ntwo\n$ b\n```\n$ no\n```sh\n$ no\n```\n";
    assert_eq!(steps(page), [step("a", &["one", "", "two"]), step("b", &[])]);
    assert!(matches("lease ... revoked", "lease 123 revoked"));
    assert!(!matches("lease ... revoked", "lease 123 gone"));
    assert!(!matches("OK", "OK then"));
}
