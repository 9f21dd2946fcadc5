//! The program as its users run it, against its own server with constant answers.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// A ceiling server; it is killed when this is dropped.
struct Ceiling {
    child: Child,
    endpoint: String,
}

impl Ceiling {
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quorate-load"));
        let mut child =
            command.arg("ceiling").stdout(Stdio::piped()).spawn().expect("the program starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it was piped");
        BufReader::new(stdout).read_line(&mut line).expect("it says where it listens");
        let endpoint = line.trim().strip_prefix("listening on ").expect("an address").to_owned();
        Self { child, endpoint }
    }
}

impl Drop for Ceiling {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn load(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate-load"));
    command.args(args).output().expect("the program starts")
}

/// Runs a load of 2,000 operations and returns its JSON.
fn measured(server: &Ceiling, args: &[&str]) -> Value {
    let pid = server.child.id().to_string();
    let common =
        ["--endpoints", &server.endpoint, "--pids", &pid, "--total", "2000", "--warmup", "0s"];
    let output = load(&[args, &common, &["--json", "--no-fill"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn every_workload_counts_what_it_sends() {
    let server = Ceiling::start();
    for args in [
        &["put", "--clients", "8"][..],
        &["put", "--clients", "8", "--threads", "2"],
        &["put", "--clients", "8", "--rate", "20000"],
        &["get", "--distribution", "zipf(0.99)"],
        &["get", "--consistency", "s", "--clients", "1"],
        &["mixed", "--read-ratio", "0.9"],
        &["range", "--span", "10"],
        &["txn"],
    ] {
        let report = measured(&server, args);
        assert_eq!(report["answered"], 2000, "{args:?}: {report}");
        assert_eq!(report["failed"], 0, "{args:?}: {report}");
        let latency = &report["latency_ms"];
        assert!(latency["p50"].as_f64() <= latency["p99"].as_f64(), "{args:?}: {report}");
        assert!(latency["p99"].as_f64() <= latency["max"].as_f64(), "{args:?}: {report}");
        assert!(report["ops_per_s"].as_f64() > Some(0.0), "{args:?}: {report}");
        assert_eq!(report["servers"][0]["pid"], server.child.id(), "{args:?}: {report}");
    }
}

#[test]
fn the_text_report_has_the_figures() {
    let server = Ceiling::start();
    let output =
        load(&["put", "--endpoints", &server.endpoint, "--total", "500", "--warmup", "0s"]);
    let text = String::from_utf8_lossy(&output.stdout);
    for part in ["put, 64 clients", "500 answered", "p99.9", "client CPU", "####"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn a_server_that_keeps_nothing_is_found_out() {
    let server = Ceiling::start();
    let output =
        load(&["verify", "--endpoints", &server.endpoint, "--duration", "200ms", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(report["workload"]["contradictions"].as_u64() > Some(0), "{report}");
    assert!(report["check"]["lost"].as_u64() > Some(0), "{report}");
}

#[test]
fn wrong_usage_and_missing_servers_are_named() {
    let refused = |args: &[&str], text: &str| {
        let output = load(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(text), "{text} in {said}");
    };
    refused(&["put", "--endpoints", "nowhere"], "host:port");
    refused(&["put", "--endpoints", "127.0.0.1:1"], "127.0.0.1:1");
    refused(&["put", "--key-size", "4"], "--key-size");
    refused(&["put", "--distribution", "zipf(-1)"], "THETA");
    refused(&["put", "--clients", "1", "--threads", "2"], "--threads");
    refused(&["verify", "--check", "/nowhere/at/all"], "/nowhere/at/all");
}
