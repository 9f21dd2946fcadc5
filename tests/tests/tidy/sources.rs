//! What may stand in which file.

use std::fs;
use std::path::Path;

/// The crates whose outcome must be the same from the same inputs, every time and everywhere.
const DETERMINISTIC: [&str; 7] =
    ["types", "raft", "raft-script", "group", "store", "placement", "sim"];

/// What a deterministic crate never names, and why.
const NOT_DETERMINISTIC: [(&str, &str); 8] = [
    ("Instant::now", "only the node knows what time it is"),
    ("SystemTime::now", "only the node knows what time it is"),
    ("tokio", "what decides runs nothing"),
    ("kameo", "what decides runs nothing"),
    ("thread::spawn", "what decides runs nothing"),
    ("thread::sleep", "what decides waits for nothing"),
    ("HashMap", "its order differs from run to run"),
    ("HashSet", "its order differs from run to run"),
];

/// Where the state engine meets the disk and other threads: that part of `store` is no machine.
const ENGINE: &str = "crates/store/src/engine";

/// The command around the simulator: it measures how many seeds a minute takes, and keeps count in a file.
const SIM_COMMAND: &str = "crates/sim/src/cli.rs";

/// What no file says, and why. Written in two halves, so that this file does not say it.
const NOWHERE: [([&str; 2], &str); 6] = [
    (["tod", "o!("], "unfinished"),
    (["unimpleme", "nted!("], "unfinished"),
    (["db", "g!("], "left over from a search"),
    (["allow(dead", "_code)"], "what nobody uses goes"),
    (["/ro", "ot/"], "a path of one machine"),
    (["/ho", "me/"], "a path of one machine"),
];

/// Lines of a file without its tests.
const LINES_MAX: usize = 600;

/// Every breach in the files below `root`.
pub(crate) fn findings(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for (name, directory) in super::members(root) {
        for path in super::files(&directory) {
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let shown = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            found.extend(nowhere_findings(&shown, &text));
            if path.extension().is_some_and(|extension| extension == "rs") {
                found.extend(rust_findings(&name, &shown, &text));
            }
        }
    }
    for top in ["deploy", "docs", ".ci"] {
        for path in super::files(&root.join(top)) {
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let shown = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            found.extend(nowhere_findings(&shown, &text));
        }
    }
    found
}

fn nowhere_findings(shown: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for (halves, why) in NOWHERE {
            if line.contains(&halves.concat()) {
                found.push(format!("{shown}:{}: {}: {why}", number + 1, halves.concat()));
            }
        }
    }
    found
}

/// Every breach in a Rust file of crate `name`.
fn rust_findings(name: &str, shown: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    // A script's first line, or a licence, would have to come before; we have neither in Rust files.
    if !text.starts_with("//!") {
        found.push(format!("{shown}: begins without a chapter (//!)"));
    }
    let lines = lines_without_tests(shown, text);
    if lines > LINES_MAX {
        found.push(format!("{shown}: {lines} lines without its tests: split it by purpose"));
    }
    if DETERMINISTIC.contains(&name) && !shown.starts_with(ENGINE) && shown != SIM_COMMAND {
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for (word, why) in NOT_DETERMINISTIC {
                if has_word(code, word) {
                    found.push(format!("{shown}:{}: {word}: {why}", number + 1));
                }
            }
        }
    }
    found
}

/// Lines up to the tests; none for a file of tests.
fn lines_without_tests(shown: &str, text: &str) -> usize {
    if shown.ends_with("tests.rs") || shown.contains("/tests/") {
        return 0;
    }
    let mut previous = "";
    for (number, line) in text.lines().enumerate() {
        if previous == "#[cfg(test)]" && line.starts_with("mod ") {
            return number;
        }
        previous = line;
    }
    text.lines().count()
}

/// Whether `word` stands in `code` by itself, not as a part of another name.
fn has_word(code: &str, word: &str) -> bool {
    let is_name = |character: char| character.is_alphanumeric() || character == '_';
    code.match_indices(word).any(|(at, _)| {
        !code[..at].ends_with(is_name) && !code[at + word.len()..].starts_with(is_name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_whole_and_outside_comments() {
        assert!(has_word("let now = Instant::now();", "Instant::now"));
        assert!(!has_word("let tokio_like = 1;", "tokio"));
        let chapter = "//! A chapter.\n";
        let clean = format!("{chapter}// tokio would not do here\n");
        assert_eq!(rust_findings("raft", "crates/raft/src/x.rs", &clean), Vec::<String>::new());
        let used = format!("{chapter}use std::collections::HashMap;\n");
        assert_eq!(rust_findings("raft", "crates/raft/src/x.rs", &used).len(), 1);
        assert_eq!(rust_findings("node", "crates/node/src/x.rs", &used).len(), 0);
        assert_eq!(rust_findings("store", "crates/store/src/engine/x.rs", &used).len(), 0);
    }

    #[test]
    fn a_file_begins_with_its_chapter_and_stays_short() {
        assert_eq!(rust_findings("node", "crates/node/src/x.rs", "use std::fs;\n").len(), 1);
        let long = format!("//! A chapter.\n{}", "\n".repeat(LINES_MAX));
        assert_eq!(rust_findings("node", "crates/node/src/x.rs", &long).len(), 1);
        let tested =
            format!("//! A chapter.\n#[cfg(test)]\nmod tests {{\n{}}}\n", "\n".repeat(LINES_MAX));
        assert_eq!(rust_findings("node", "crates/node/src/x.rs", &tested).len(), 0);
    }

    #[test]
    fn what_is_said_nowhere_is_found_anywhere() {
        let unfinished = format!("fn f() {{ {} }}", NOWHERE[0].0.concat());
        assert_eq!(
            nowhere_findings("deploy/x", &unfinished),
            [format!("deploy/x:1: {}: unfinished", NOWHERE[0].0.concat())]
        );
    }
}
