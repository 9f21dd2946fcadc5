//! The programs of `docs/clients.md` in other languages do what the page says, with Quorate and with etcd.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use quorate_tests::cluster::Cluster;
use quorate_tests::{client, programs};
use tempfile::TempDir;

/// The address on the page.
const SHOWN: (&str, u16) = ("localhost", 2379);

/// The one block in `language` under the heading that begins with `heading`.
fn block(page: &str, heading: &str, language: &str) -> String {
    let (mut under, mut inside, mut block) = (false, false, Vec::new());
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("## ") {
            under = rest.starts_with(heading);
        }
        match line {
            "```" => inside = false,
            line if under && line.strip_prefix("```") == Some(language) => inside = true,
            line if inside => block.push(line),
            _ => {}
        }
    }
    assert!(block.len() > 10, "no block in {language} under {heading}: {block:?}");
    block.join("\n") + "\n"
}

/// The program of a language as it stands on the page, but for the address.
fn program(heading: &str, language: &str, endpoint: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/clients.md");
    let page = std::fs::read_to_string(page).expect("the page is there");
    let shown = block(&page, heading, language);
    let (host, port) = endpoint.split_once(':').expect("an address");
    let address = [
        (format!("{}:{}", SHOWN.0, SHOWN.1), endpoint.to_owned()),
        (
            format!("host=\"{}\", port={}", SHOWN.0, SHOWN.1),
            format!("host=\"{host}\", port={port}"),
        ),
    ];
    let found: usize = address.iter().map(|(from, _)| shown.matches(from).count()).sum();
    assert_eq!(found, 1, "the page names the address once");
    address.iter().fold(shown, |program, (from, to)| program.replace(from, to))
}

/// What `script` prints, which fetches or builds something.
fn fetched(script: &str, args: &[&Path]) -> Result<PathBuf, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(script);
    let output = Command::new(&script).args(args).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end())),
        false => Err(said.lines().last().unwrap_or("no reason").to_owned()),
    }
}

/// Runs a session at Quorate and at etcd. `command` makes what runs the program in a file, or says why that cannot
/// be had here.
fn sessions(
    test: &str,
    (heading, language): (&str, &str),
    truth: &str,
    skip: fn(&str, &str),
    command: impl Fn(&Path) -> Result<Command, String>,
) {
    let quorate = || Cluster::quorate(test);
    let etcd = || programs::etcd(test).map(Cluster::etcd);
    for start in [&quorate as &dyn Fn() -> Option<Cluster>, &etcd] {
        let Some(cluster) = start() else { continue };
        let dir = TempDir::new().expect("a temporary directory");
        let file = dir.path().join(format!("session.{language}"));
        let endpoint = &cluster.nodes[0].client;
        std::fs::write(&file, program(heading, language, endpoint)).expect("written");
        let mut command = match command(&file) {
            Ok(command) => command,
            Err(reason) => return skip(test, &reason),
        };
        let Output { status, stdout, stderr } = command.output().expect("it starts");
        let (said, error) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert!(status.success(), "{status}: {said}{error}");
        let expected = format!("claimed: {truth}\nchanged: config/a to 1\ndone: {truth}\n");
        assert_eq!(said, expected, "{error}");
        // And that is what is there now.
        let value = |key: &'static [u8]| {
            let found = client::get(&cluster.nodes[1].client, key).expect("a read");
            found.kvs.first().map(|pair| String::from_utf8_lossy(&pair.value).into_owned())
        };
        assert_eq!(value(b"config/owner").as_deref(), Some("one"));
        assert_eq!(value(b"jobs/done").as_deref(), Some("yes"));
        assert_eq!(value(b"services/api/1"), None, "it went with its lease");
    }
}

#[test]
fn the_session_of_rust_does_what_the_page_says() {
    let test = "the session of etcd-client";
    sessions(test, ("Rust", "rust"), "true", programs::skip, |file| {
        let built = fetched("fetch-etcd-client", &[file]);
        built.map(Command::new).map_err(|why| format!("etcd-client cannot be built: {why}"))
    });
}

#[test]
fn the_session_of_go_does_what_the_page_says() {
    // Not every system has the packages, so that not even `REQUIRE_PEERS=1` can ask for them.
    let skip = programs::skip_without_rights;
    sessions("the session of clientv3", ("Go", "go"), "true", skip, |file| {
        let built = fetched("fetch-go-clientv3", &[file]);
        built.map(Command::new).map_err(|why| format!("clientv3 cannot be had: {why}"))
    });
}

#[test]
fn the_session_of_python_does_what_the_page_says() {
    let skip = programs::skip;
    sessions("the session of etcd3", ("Python", "python"), "True", skip, |file| {
        let site = fetched("fetch-python-etcd3", &[]);
        let site = site.map_err(|why| format!("etcd3 cannot be had: {why}"))?;
        let mut command = Command::new("python3");
        command.arg(file).env("PYTHONPATH", site);
        Ok(command)
    });
}

#[test]
fn blocks_are_found_under_their_heading() {
    let lines = |what: &str| (0..11).map(|line| format!("{what} {line}\n")).collect::<String>();
    let (first, second) = (lines("a"), lines("b"));
    let page = format!("## One: x\n```go\n{first}```\ntext\n## Two\n```go\n{second}```\n");
    assert_eq!(block(&page, "One", "go"), first);
    assert_eq!(block(&page, "Two", "go"), second);
}
