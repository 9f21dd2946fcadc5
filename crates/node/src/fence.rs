//! Fences: which groups must not take part any more with what this data directory holds.
//!
//! A replica whose log has lost something that was synced cannot be trusted with anything: it may have
//! acknowledged an entry that it does not know of, or forgotten a vote, and would help to elect a leader
//! without that entry. No later start may come to another conclusion, whatever it finds; so a fence is
//! written down, and nothing takes it away but a new directory under a new id.
//!
//! The file is text, for the person who finds it:
//!
//! ```text
//! quorate fence 1
//! all: the log is damaged: log file 000012 at byte 4711: ...
//! group 7: log of group 7 is damaged at index 12: checksum does not match
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quorate_store::OnDamage;
use quorate_types::GroupId;
use quorate_wal::LogError;

use crate::identity::{DataDir, DataDirError};
use crate::open::OpenError;

/// The exit code of a node that is fenced as a whole: starting it again does not help.
pub const EXIT_FENCED: i32 = 6;

const FILE: &str = "fence";
const HEADER: &str = "quorate fence 1";

/// What must not take part any more, and why.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Fence {
    /// All groups, and whatever may come.
    all: Option<String>,
    groups: BTreeMap<GroupId, String>,
}

impl Fence {
    /// The fence in a data directory. A file that cannot be understood fences everything.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn load(data_dir: &DataDir) -> Result<Self, DataDirError> {
        Self::read(data_dir.path())
    }

    /// The fence in the data directory at `path`.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub(crate) fn read(path: &Path) -> Result<Self, DataDirError> {
        let path = path.join(FILE);
        match fs::read(&path) {
            Ok(file) => Ok(Self::decode(&file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(DataDirError::Io { path, source }),
        }
    }

    /// Fences what `error` concerns; true if that is news.
    pub(crate) fn add(&mut self, error: &LogError) -> bool {
        match error {
            LogError::Damaged { group, .. } => self.add_group(*group, error.to_string()),
            _ => self.add_all(error.to_string()),
        }
    }

    /// Fences one group; true if that is news.
    pub(crate) fn add_group(&mut self, group: GroupId, reason: String) -> bool {
        let is_new = !self.groups.contains_key(&group);
        self.groups.entry(group).or_insert(reason);
        is_new
    }

    /// Fences everything; true if that is news.
    pub(crate) fn add_all(&mut self, reason: String) -> bool {
        let is_new = self.all.is_none();
        self.all.get_or_insert(reason);
        is_new
    }

    /// Ends a look at what is damaged: writes news down, before anybody hears of this node. `groups` are
    /// all that there are, if that is known: with none of them left there is nothing to take part in.
    ///
    /// # Errors
    /// [`OpenError::Fenced`] when nothing may take part; when the system refuses.
    pub(crate) fn settle(
        &mut self,
        mut news: bool,
        groups: Option<&[GroupId]>,
        data_dir: &DataDir,
        node: &str,
    ) -> Result<(), OpenError> {
        let is_fenced = |group: &GroupId| self.groups.contains_key(group);
        if !self.groups.is_empty() && groups.is_some_and(|groups| groups.iter().all(is_fenced)) {
            let reasons: Vec<_> = self.groups.values().map(String::as_str).collect();
            news |= self.add_all(reasons.join("; "));
        }
        if news {
            self.store(data_dir)?;
        }
        self.admit(data_dir, node)
    }

    /// Whether a node may start behind it.
    ///
    /// # Errors
    /// [`OpenError::Fenced`] when nothing may take part.
    pub(crate) fn admit(&self, data_dir: &DataDir, node: &str) -> Result<(), OpenError> {
        let Some(reason) = self.all.clone() else { return Ok(()) };
        Err(Fenced { path: data_dir.path().to_owned(), node: node.to_owned(), reason }.into())
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// When the system refuses.
    pub(crate) fn store(&self, data_dir: &DataDir) -> Result<(), DataDirError> {
        data_dir.replace_file(FILE, self.encode().as_bytes())
    }

    /// Why nothing at all may take part.
    pub(crate) fn all(&self) -> Option<&str> {
        self.all.as_deref()
    }

    /// The groups that may not take part.
    pub(crate) const fn groups(&self) -> &BTreeMap<GroupId, String> {
        &self.groups
    }

    fn encode(&self) -> String {
        // A reason is one line, whatever it quotes.
        let line = |reason: &String| reason.replace(['\n', '\r'], " ");
        let all = self.all.iter().map(|reason| format!("all: {}\n", line(reason)));
        let groups = self.groups.iter();
        let groups = groups.map(|(group, reason)| format!("group {group}: {}\n", line(reason)));
        format!("{HEADER}\n{}", all.chain(groups).collect::<String>())
    }

    fn decode(file: &[u8]) -> Self {
        Self::parse(file).unwrap_or_else(|| Self {
            all: Some("the file that says what is fenced cannot be read".to_owned()),
            groups: BTreeMap::new(),
        })
    }

    fn parse(file: &[u8]) -> Option<Self> {
        let text = str::from_utf8(file).ok()?;
        let mut fence = Self::default();
        for line in text.strip_prefix(HEADER)?.strip_prefix('\n')?.lines() {
            let (what, reason) = line.split_once(": ")?;
            match what.strip_prefix("group ") {
                Some(group) => {
                    fence.groups.insert(GroupId(group.parse().ok()?), reason.to_owned());
                }
                None if what == "all" => fence.all = Some(reason.to_owned()),
                None => return None,
            }
        }
        // A file that fences nothing is one that was cut.
        (fence != Self::default()).then_some(fence)
    }
}

/// What a running node does when somebody meets damage in its state, which is served to nobody: it fences
/// itself and ends. (What is wrong with the log is judged at a start.)
pub(crate) fn on_state_damage(data_dir: Arc<DataDir>) -> OnDamage {
    Box::new(move |what: &str| {
        let mut fence = Fence::load(&data_dir).unwrap_or_default();
        fence.add_all(format!("the state is damaged: {what}"));
        let stored = fence.store(&data_dir);
        tracing::error!(what, ?stored, "the state is damaged: the node is fenced, replace it");
        std::process::exit(EXIT_FENCED);
    })
}

/// What a node says that does not start because it is fenced.
#[derive(Debug, thiserror::Error)]
#[error(
    "the disk does not hold any more what was written to it, and this node must not take part again with \
     {path}: {reason}. Replace it: `quorate member replace {node}` at a healthy node, then start this one \
     with `--join` and an empty data directory. `quorate check --data-dir {path}` tells more."
)]
pub struct Fenced {
    /// The data directory.
    pub path: PathBuf,
    /// The node's name.
    pub node: String,
    /// What was found.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damaged(group: u64, what: &str) -> LogError {
        let index = quorate_types::LogIndex(3);
        LogError::Damaged { group: GroupId(group), index, what: what.to_owned() }
    }

    #[test]
    fn a_fence_outlives_the_process_and_keeps_its_first_reason() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(directory.path()).unwrap();
        assert_eq!(Fence::load(&data_dir).unwrap(), Fence::default());
        let mut fence = Fence::default();
        assert!(fence.add(&damaged(7, "first\nof all")));
        assert!(!fence.add(&damaged(7, "second")));
        fence.store(&data_dir).unwrap();
        let loaded = Fence::load(&data_dir).unwrap();
        assert_eq!(loaded.all(), None);
        let reason = "log of group 7 is damaged at index 3: first of all";
        assert_eq!(loaded.groups().get(&GroupId(7)).map(String::as_str), Some(reason));
        assert!(fence.add(&LogError::DamagedEngine("its files".to_owned())));
        fence.store(&data_dir).unwrap();
        let loaded = Fence::load(&data_dir).unwrap();
        assert_eq!(loaded.all(), Some("the log is damaged: its files"));
        assert_eq!(loaded.groups().len(), 1);
    }

    #[test]
    fn a_file_that_cannot_be_understood_fences_everything() {
        let fence =
            Fence { all: None, groups: BTreeMap::from([(GroupId(7), "reason".to_owned())]) };
        let file = fence.encode().into_bytes();
        assert_eq!(Fence::decode(&file), fence);
        for length in 0..HEADER.len() + 1 {
            assert!(Fence::decode(&file[..length]).all().is_some(), "{length} bytes");
        }
        for other in [&b"quorate fence 1\ngroup x: y\n"[..], b"quorate fence 2\nall: y\n", b"\xff"]
        {
            assert!(Fence::decode(other).all().is_some());
        }
    }
}
