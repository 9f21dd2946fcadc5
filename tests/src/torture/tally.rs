//! What has been survived so far, over many runs.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The format of the file that this build writes and reads.
const FORMAT: u32 = 1;

/// Sums over rounds. Nothing in it was lost: what is lost ends the run.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    format: u32,
    /// Rounds, by what was done and how it went.
    pub rounds: BTreeMap<String, u64>,
    /// Writes that were acknowledged while faults happened.
    pub acknowledged: u64,
    /// Times that one of them was looked for in the end, each through each node, and found.
    pub looked_for: u64,
    /// Reads that were answered meanwhile, none of them stale or wrong.
    pub reads: u64,
    /// From each restart until the node served, milliseconds.
    pub serving_ms: Vec<u64>,
    /// What the checks of the contract have seen and held against it, by kind.
    #[serde(default)]
    pub checked: BTreeMap<String, u64>,
    /// Calls with bytes that no honest client sends.
    #[serde(default)]
    pub hostile_calls: u64,
    /// Runs that found something wrong: where the data was kept.
    pub failures: Vec<String>,
}

impl Tally {
    /// The file at `path`, or nothing when there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is something else.
    pub fn load(path: &Path) -> Result<Self, String> {
        let at = |error: &dyn fmt::Display| format!("{}: {error}", path.display());
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(at(&error)),
        };
        let tally: Self = serde_json::from_slice(&text).map_err(|error| at(&error))?;
        if tally.format != FORMAT {
            return Err(at(&format!("format {}, not {FORMAT}", tally.format)));
        }
        Ok(tally)
    }

    /// Writes the file at `path`, as a whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&mut self, path: &Path) -> Result<(), String> {
        self.format = FORMAT;
        let text = serde_json::to_vec_pretty(self).map_err(|error| error.to_string())?;
        let next = path.with_extension("next");
        let parent = path.parent().unwrap_or_else(|| Path::new("."));
        let written = fs::create_dir_all(parent)
            .and_then(|()| fs::write(&next, text))
            .and_then(|()| fs::rename(&next, path));
        written.map_err(|error| format!("{}: {error}", path.display()))
    }

    /// One more round of `kind`.
    pub fn round(&mut self, kind: &str) {
        *self.rounds.entry(kind.to_owned()).or_default() += 1;
    }

    /// Rounds of exactly this kind.
    #[must_use]
    pub fn count_of(&self, kind: &str) -> u64 {
        self.rounds.get(kind).copied().unwrap_or_default()
    }

    /// Rounds whose kind begins with `kind`.
    #[must_use]
    pub fn count(&self, kind: &str) -> u64 {
        let of_kind = self.rounds.iter().filter(|(name, _)| name.starts_with(kind));
        of_kind.map(|(_, count)| count).sum()
    }

    /// Adds what another run has survived.
    pub fn add(&mut self, other: Self) {
        for (kind, count) in other.rounds {
            *self.rounds.entry(kind).or_default() += count;
        }
        self.acknowledged += other.acknowledged;
        self.looked_for += other.looked_for;
        self.reads += other.reads;
        for (what, count) in other.checked {
            *self.checked.entry(what).or_default() += count;
        }
        self.serving_ms.extend(other.serving_ms);
        self.hostile_calls += other.hostile_calls;
        self.failures.extend(other.failures);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, count) in &self.rounds {
            writeln!(f, "{count:>6}  {kind}")?;
        }
        if self.acknowledged > 0 {
            writeln!(
                f,
                "{} writes acknowledged and looked for {} times, {} reads: none lost, none wrong",
                self.acknowledged, self.looked_for, self.reads
            )?;
        }
        if !self.checked.is_empty() {
            let seen = self.checked.iter().map(|(what, count)| format!("{what} {count}"));
            let seen: Vec<_> = seen.collect();
            writeln!(f, "the contract was kept in what the checks saw: {}", seen.join(", "))?;
        }
        if self.hostile_calls > 0 {
            writeln!(f, "{} hostile calls survived", self.hostile_calls)?;
        }
        let mut sorted = self.serving_ms.clone();
        sorted.sort_unstable();
        if let (Some(median), Some(most)) = (sorted.get(sorted.len() / 2), sorted.last()) {
            let p99 = sorted[(sorted.len() * 99 / 100).min(sorted.len() - 1)];
            writeln!(
                f,
                "{} restarts: serving again after {median} ms (median), {p99} ms (p99), {most} ms (most)",
                sorted.len()
            )?;
        }
        for failure in &self.failures {
            writeln!(f, "FAILED: {failure}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_add_up_over_files() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("below").join("tally.json");
        let mut total = Tally::load(&path).expect("there is none");
        let mut run = Tally { acknowledged: 5, serving_ms: vec![7], ..Tally::default() };
        run.checked.insert("events".to_owned(), 3);
        run.round("kill: leader");
        run.round("kill: all");
        total.add(run.clone());
        total.save(&path).expect("written");
        let mut total = Tally::load(&path).expect("it is there");
        total.add(run);
        assert_eq!(
            (total.count("kill"), total.count("kill: leader"), total.acknowledged),
            (4, 2, 10)
        );
        assert_eq!(total.serving_ms, [7, 7]);
        assert_eq!(total.checked["events"], 6);
        assert!(total.to_string().contains("events 6"));
    }

    #[test]
    fn a_file_that_is_something_else_is_left_alone() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("tally.json");
        fs::write(&path, "[]").expect("written");
        assert!(Tally::load(&path).is_err());
        fs::write(&path, "{\"format\": 2}").expect("written");
        assert!(Tally::load(&path).is_err());
    }
}
