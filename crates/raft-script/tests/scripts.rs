//! Runs every script in `scripts/` and compares what it prints. `REWRITE=1` writes it instead.

use std::path::{Path, PathBuf};

use quorate_raft_script::{Runner, Script};

/// A test that runs nothing must not pass.
const SCRIPTS_MIN: usize = 170;

fn scripts(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            scripts(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "txt") {
            found.push(path);
        }
    }
}

#[test]
fn every_script_prints_what_it_says() {
    let rewrite = std::env::var_os("REWRITE").is_some_and(|value| value == "1");
    let mut paths = Vec::new();
    scripts(&Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts"), &mut paths);
    paths.sort();
    assert!(paths.len() >= SCRIPTS_MIN, "only {} scripts", paths.len());
    let mut failures = Vec::new();
    for path in &paths {
        let name = path.display();
        let text = std::fs::read_to_string(path).expect("a readable script");
        let mut script = match Script::parse(&text) {
            Ok(script) => script,
            Err(error) => {
                failures.push(format!("{name}: {error}"));
                continue;
            }
        };
        if !text.starts_with("# ") {
            failures.push(format!("{name}: begins without its reason"));
        }
        let expected = script.clone();
        let mut runner = Runner::new();
        let different = runner.run_all(&mut script);
        if let Some(how) = runner.diverged() {
            failures.push(format!("{name}: {how}"));
        }
        if rewrite {
            std::fs::write(path, script.render()).expect("a writable script");
        } else if let Some(&line) = different.first() {
            let at = |script: &Script| {
                let stanza = script.stanzas.iter().find(|stanza| stanza.line == line);
                stanza.map(|stanza| stanza.expected.clone()).unwrap_or_default()
            };
            failures.push(format!(
                "{name}:{line}\n--- expected\n{}\n--- printed\n{}",
                at(&expected),
                at(&script)
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn every_script_that_the_documents_name_exists() {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = crate_folder.join("../../docs/protocol/coverage.md");
    let text = std::fs::read_to_string(document).expect("a readable document");
    let names = text.split('`').skip(1).step_by(2).filter(|name| !name.starts_with("crates/"));
    let names: Vec<_> = names.collect();
    assert!(names.len() > 60, "only {names:?}");
    let is_missing = |name: &&&str| !crate_folder.join(format!("scripts/{name}.txt")).exists();
    let missing: Vec<_> = names.iter().filter(is_missing).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
