//! What lints cannot hold: who may depend on whom, what may stand in which crate, and the shape of files.
//!
//! [`edges`] has the table of crates as `docs/architecture.md` draws it: a new arrow is a change of the
//! design, and is made there first. [`sources`] reads every file. All findings are shown at once.

mod edges;
mod sources;

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn the_crates_keep_to_their_edges() {
    report(edges::findings(&root()));
}

#[test]
fn the_sources_keep_to_the_rules() {
    report(sources::findings(&root()));
}

/// The top of the workspace.
fn root() -> PathBuf {
    // At run time, so that the built test can be pointed at another checkout.
    let tests = std::env::var("CARGO_MANIFEST_DIR").expect("cargo says where this crate is");
    Path::new(&tests).parent().expect("it is a member of a workspace").to_owned()
}

fn report(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

/// The member crates: their directories' names (`raft`, `benches`) and their directories, in order.
fn members(root: &Path) -> Vec<(String, PathBuf)> {
    let mut directories: Vec<PathBuf> = entries(&root.join("crates"));
    directories.extend([root.join("benches"), root.join("tests")]);
    directories.retain(|directory| directory.join("Cargo.toml").exists());
    let name = |directory: &PathBuf| {
        let name = directory.file_name().expect("a directory of a crate has a name");
        name.to_string_lossy().into_owned()
    };
    directories.into_iter().map(|directory| (name(&directory), directory)).collect()
}

/// All files below `directory`, in order; what is built and what is hidden left out.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in entries(directory) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name == "target" || name.starts_with('.') {
            continue;
        }
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(directory).map(|entries| entries.flatten().map(|entry| entry.path()));
    let mut paths: Vec<PathBuf> = entries.map(Iterator::collect).unwrap_or_default();
    paths.sort();
    paths
}
