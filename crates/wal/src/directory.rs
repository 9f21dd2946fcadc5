//! Files that appear under their names at once, and only when they are whole: what a power cut leaves of them.
//!
//! A file's content and its name in the directory are two things for a disk. A file that was written, renamed and not
//! synced may be there, empty; one that was synced and renamed may be gone, unless the directory was synced too
//! (etcd-io/etcd#6368). So whatever rests on a file comes after [`publish`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use bytes::Bytes;

/// What [`publish`] needs of a directory.
pub trait Directory {
    /// Makes the content of a file durable, whatever wrote it.
    ///
    /// # Errors
    /// When the system refuses; nothing may rest on the file then.
    fn sync_content(&mut self, name: &str) -> io::Result<()>;

    /// Gives a file another name, in the place of what had it.
    ///
    /// # Errors
    /// When the system refuses.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Makes all names durable.
    ///
    /// # Errors
    /// When the system refuses; nothing may rest on a name then.
    fn sync_names(&mut self) -> io::Result<()>;
}

/// Gives a file that was written as `part` its own name. When this returns, the file is there, whole, whatever
/// happens; before that there is what was there before.
///
/// # Errors
/// When a step fails; whether the file is there is not known then.
pub fn publish(directory: &mut dyn Directory, part: &str, name: &str) -> io::Result<()> {
    if !quorate_types::defect!(ContentNotSynced) {
        directory.sync_content(part)?;
    }
    directory.rename(part, name)?;
    if !quorate_types::defect!(NameNotSynced) {
        directory.sync_names()?;
    }
    Ok(())
}

/// A directory of the file system.
#[derive(Debug)]
pub struct DiskDirectory {
    path: PathBuf,
}

impl DiskDirectory {
    /// The directory at `path`, which exists.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl Directory for DiskDirectory {
    fn sync_content(&mut self, name: &str) -> io::Result<()> {
        File::open(self.path.join(name))?.sync_all()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn sync_names(&mut self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

/// The memory twin: names and contents that were not synced may be gone after a power cut.
///
/// Changes of names reach the disk in their order, as a journalling file system has it, and contents in any: a name may
/// be there before what it names.
#[derive(Clone, Debug, Default)]
pub struct MemDirectory {
    /// What every process sees.
    names: BTreeMap<String, u64>,
    /// What a power cut leaves for certain.
    durable_names: BTreeMap<String, u64>,
    /// Changes since then, oldest first.
    changes: Vec<Change>,
    files: BTreeMap<u64, MemFile>,
    last_file: u64,
}

#[derive(Clone, Debug)]
struct MemFile {
    content: Bytes,
    /// So much of it is durable.
    synced_bytes: usize,
}

#[derive(Clone, Debug)]
enum Change {
    Create { name: String, file: u64 },
    Rename { from: String, to: String },
    Remove { name: String },
}

impl MemDirectory {
    /// An empty directory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes a whole file, in the place of what had the name, and syncs nothing.
    pub fn write(&mut self, name: &str, content: Bytes) {
        self.last_file += 1;
        self.files.insert(self.last_file, MemFile { content, synced_bytes: 0 });
        self.change(Change::Create { name: name.to_owned(), file: self.last_file });
    }

    /// Removes a file, if it is there.
    pub fn remove(&mut self, name: &str) {
        self.change(Change::Remove { name: name.to_owned() });
    }

    /// What a file holds; `None` if there is none of this name.
    #[must_use]
    pub fn read(&self, name: &str) -> Option<Bytes> {
        let file = self.files.get(self.names.get(name)?)?;
        Some(file.content.clone())
    }

    /// Cuts the power: a prefix of the changes of names, and a prefix of each file, drawn from `seed`, survive of what
    /// was not synced.
    pub fn crash(&mut self, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        self.changes.truncate(random.usize(..=self.changes.len()));
        self.sync_all_names();
        for file in self.files.values_mut() {
            let kept = random.usize(file.synced_bytes..=file.content.len());
            file.content.truncate(kept);
            file.synced_bytes = kept;
        }
    }

    fn change(&mut self, change: Change) {
        carry_out(&mut self.names, &change);
        self.changes.push(change);
    }

    fn sync_all_names(&mut self) {
        for change in std::mem::take(&mut self.changes) {
            carry_out(&mut self.durable_names, &change);
        }
        self.names.clone_from(&self.durable_names);
        self.files.retain(|file, _| self.durable_names.values().any(|named| named == file));
    }
}

impl Directory for MemDirectory {
    fn sync_content(&mut self, name: &str) -> io::Result<()> {
        let file = self.names.get(name).and_then(|file| self.files.get_mut(file));
        let file = file.ok_or(io::ErrorKind::NotFound)?;
        file.synced_bytes = file.content.len();
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        if !self.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.change(Change::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    fn sync_names(&mut self) -> io::Result<()> {
        self.sync_all_names();
        Ok(())
    }
}

fn carry_out(names: &mut BTreeMap<String, u64>, change: &Change) {
    match change {
        Change::Create { name, file } => {
            names.insert(name.clone(), *file);
        }
        Change::Rename { from, to } => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        Change::Remove { name } => {
            names.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &[u8] = b"old";
    const NEW: &[u8] = b"newer";

    fn with_old() -> MemDirectory {
        let mut directory = MemDirectory::new();
        directory.write("part", Bytes::from_static(OLD));
        publish(&mut directory, "part", "file").expect("a memory directory");
        directory
    }

    /// What power cuts after the steps of `work` leave, over many seeds.
    fn left_by(work: impl Fn(&mut MemDirectory)) -> Vec<Option<Bytes>> {
        let mut found: Vec<_> = (0..200)
            .map(|seed| {
                let mut directory = with_old();
                work(&mut directory);
                directory.crash(seed);
                directory.read("file")
            })
            .collect();
        found.sort();
        found.dedup();
        found
    }

    #[test]
    fn what_is_published_survives_every_power_cut() {
        let found = left_by(|directory| {
            directory.write("part", Bytes::from_static(NEW));
            publish(directory, "part", "file").expect("a memory directory");
        });
        assert_eq!(found, [Some(Bytes::from_static(NEW))]);
    }

    #[test]
    fn a_power_cut_before_the_end_leaves_the_old_file_or_the_new_one() {
        let found = left_by(|directory| {
            directory.write("part", Bytes::from_static(NEW));
            directory.sync_content("part").expect("it is there");
            directory.rename("part", "file").expect("it is there");
        });
        assert_eq!(found, [Some(Bytes::from_static(NEW)), Some(Bytes::from_static(OLD))]);
    }

    #[test]
    fn a_name_without_a_synced_content_may_be_of_an_empty_file() {
        let found = left_by(|directory| {
            directory.write("part", Bytes::from_static(NEW));
            directory.rename("part", "file").expect("it is there");
            directory.sync_names().expect("a memory directory");
        });
        assert!(found.contains(&Some(Bytes::new())), "{found:?}");
    }

    #[test]
    fn a_new_file_whose_name_is_not_synced_may_be_gone() {
        let found: Vec<_> = (0..200)
            .map(|seed| {
                let mut directory = MemDirectory::new();
                directory.write("part", Bytes::from_static(NEW));
                directory.sync_content("part").expect("it is there");
                directory.rename("part", "file").expect("it is there");
                directory.crash(seed);
                directory.read("file")
            })
            .collect();
        assert!(found.contains(&None) && found.contains(&Some(Bytes::from_static(NEW))));
    }

    #[test]
    fn the_disk_does_what_its_twin_does() {
        let path = tempfile::tempdir().expect("a directory");
        let mut directory = DiskDirectory::new(path.path());
        fs::write(path.path().join("part"), NEW).expect("a file");
        publish(&mut directory, "part", "file").expect("published");
        assert_eq!(fs::read(path.path().join("file")).expect("the file"), NEW);
        assert!(!path.path().join("part").exists());
        let missing = publish(&mut directory, "part", "file").expect_err("there is no part");
        let mut twin = with_old();
        let of_twin = publish(&mut twin, "part", "file").expect_err("there is no part");
        assert_eq!(missing.kind(), of_twin.kind());
    }
}
