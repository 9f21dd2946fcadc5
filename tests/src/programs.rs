//! Where the programs under test and their peers are.

use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The program `quorate`.
///
/// # Panics
/// When it is not built.
pub fn quorate() -> PathBuf {
    built("quorate", "QUORATE_BIN")
}

/// The program `quorate-load`.
///
/// # Panics
/// When it is not built.
pub fn quorate_load() -> PathBuf {
    built("quorate-load", "QUORATE_LOAD_BIN")
}

/// The program `raft-script`.
///
/// # Panics
/// When it is not built.
pub fn raft_script() -> PathBuf {
    built("raft-script", "RAFT_SCRIPT_BIN")
}

/// The program that `variable` names, else the one that was built beside this test.
fn built(program: &str, variable: &str) -> PathBuf {
    if let Some(given) = env::var_os(variable) {
        return given.into();
    }
    let test = env::current_exe().expect("a test knows its own path");
    // <target>/release/deps/<test>, or a program in <target>/release.
    let directory = test.parent().expect("a program stands in a directory");
    let directory = match directory.ends_with("deps") {
        true => directory.parent().expect("deps stands in a directory"),
        false => directory,
    };
    let beside = directory.join(program);
    assert!(
        beside.exists(),
        "{} is not there: `cargo build --release --workspace --locked` makes it, `make test` does so first",
        beside.display()
    );
    beside
}

/// The peer's programs.
#[derive(Debug, Clone)]
pub struct Etcd {
    /// The directory that holds them.
    pub bin: PathBuf,
}

impl Etcd {
    /// One of `etcd`, `etcdctl`, `etcdutl`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

/// The peer's programs, fetched if need be; none, and a line that names `test` and the reason, when they
/// cannot be had.
///
/// # Panics
/// When they cannot be had and `REQUIRE_PEERS=1` is set.
pub fn etcd(test: &str) -> Option<Etcd> {
    static FETCHED: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match FETCHED.get_or_init(fetch_etcd) {
        Ok(bin) => Some(Etcd { bin: bin.clone() }),
        Err(reason) => {
            skip(test, reason);
            None
        }
    }
}

/// Says that `test` is skipped, on the real standard error, which the test runner does not hold back.
///
/// # Panics
/// When `REQUIRE_PEERS=1` is set.
pub fn skip(test: &str, reason: &str) {
    let required = env::var_os("REQUIRE_PEERS").is_some_and(|value| value == "1");
    assert!(!required, "{test} cannot be skipped under REQUIRE_PEERS=1: {reason}");
    say_skipped(test, reason);
}

/// The same for what takes rights that not every user and every container has, as mounting does: not even
/// `REQUIRE_PEERS=1` can give those.
pub fn skip_without_rights(test: &str, reason: &str) {
    say_skipped(test, reason);
}

fn say_skipped(test: &str, reason: &str) {
    // Nothing is left to do when standard error is closed.
    let _ = writeln!(std::io::stderr(), "{test}: skipped: {reason}");
}

fn fetch_etcd() -> Result<PathBuf, String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/fetch-etcd");
    let fetched = Command::new(&script).output().map_err(|error| format!("fetch-etcd: {error}"))?;
    if !fetched.status.success() {
        let said = String::from_utf8_lossy(&fetched.stderr);
        return Err(format!(
            "etcd cannot be fetched: {}",
            said.lines().last().unwrap_or("no reason")
        ));
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&fetched.stdout).trim_end()))
}
