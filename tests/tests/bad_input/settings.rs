//! Configuration files with mistakes: the message names key, line and what was expected, and nothing is
//! touched.

use std::fs;

use quorate_tests::cluster::quorate;
use tempfile::TempDir;

/// The exit code for wrong usage and wrong settings.
const EXIT_USAGE: i32 = 2;

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let said = serve("name = \"n1\"\nlisten-cleint = \"127.0.0.1:1\"\n");
    for part in ["quorate.toml:2:", "listen-cleint", "listen-client"] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

#[test]
fn a_wrong_type_is_named_with_its_line_and_what_was_expected() {
    let said = serve("name = \"n1\"\n\nheartbeat-interval = \"fast\"\n");
    for part in ["quorate.toml:3:", "heartbeat-interval", "must be", "found"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let said = serve("name = 7\n");
    for part in ["quorate.toml:1:", "name", "must be"] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

#[test]
fn what_is_no_toml_is_named_with_its_line() {
    let said = serve("name = \"n1\"\nlisten-client = \n");
    assert!(said.contains("quorate.toml:2:"), "{said}");
}

/// Serves by a file, in vain; returns what was said.
fn serve(text: &str) -> String {
    let dir = TempDir::with_prefix("quorate-test-").expect("a temporary directory can be made");
    let file = dir.path().join("quorate.toml");
    fs::write(&file, text).expect("it can be written");
    let data = dir.path().join("data");
    let mut command = quorate();
    let command = command.arg("serve").arg("--config").arg(&file).arg("--data-dir").arg(&data);
    let output = command.output().expect("quorate starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(EXIT_USAGE), "{said}");
    assert!(!data.exists(), "nothing is touched");
    said
}
