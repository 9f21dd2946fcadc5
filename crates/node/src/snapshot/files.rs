//! The directory of a node's snapshots: those on their way out, and those on their way in.
//!
//! Snapshots are large, and a full disk ends a node: none is begun without room for it, and one that meets
//! the reserve on its way is given up.
//!
//! Whatever lies there at a start belongs to an earlier process and is removed, but for the snapshots
//! that the log's intents name.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quorate_group::disk::reserve_bytes;
use quorate_types::GroupId;
use quorate_wal::directory::{DiskDirectory, publish};
use rustix::fs::{Advice, fadvise};
use tokio::runtime::Handle;

use super::pace::DiskPace;

/// So much is written at a time and sent on its way to the disk at once. Left to the system, or to a sync of
/// all of it, it would go in bursts, and the log's syncs on the same disk would wait behind them.
const STEP_BYTES: usize = 256 << 10;

/// So much of a file is removed at a time.
const REMOVED_BYTES: u64 = 4 << 20;

/// What is removed counts for a part of what is written.
const REMOVED_SHARE: u64 = 4;

/// A step of a removal waits so many times, not longer each than a step of a write.
const REMOVED_TURNS: u64 = REMOVED_BYTES / REMOVED_SHARE / STEP_BYTES as u64;

/// The room on the disk is looked at whenever so many bytes were written.
const LOOK_BYTES: usize = 8 << 20;

/// What a file's name ends with until it is complete.
const PART: &str = "part";

/// The directory.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    directory: Arc<Path>,
    /// What snapshots leave alone of the disk, if not the default.
    reserve_bytes: Option<u64>,
    /// How fast files are written; `None` while the node does not serve yet.
    pace: Option<Arc<DiskPace>>,
}

/// A file that is written evenly, and sent to the disk as it is written, without waiting for that.
#[derive(Debug)]
pub(crate) struct EvenFile {
    file: File,
    reserve_bytes: Option<u64>,
    pace: Option<Arc<DiskPace>>,
    bytes: u64,
    unlooked_bytes: usize,
}

/// A snapshot that is being received: its bytes so far outlive the attempt.
#[derive(Debug)]
pub(crate) struct Incoming {
    files: Files,
    name: String,
    file: EvenFile,
}

/// A complete and durable snapshot of this directory. Dropped, it is removed, unless it was kept.
#[derive(Debug)]
pub(crate) struct Received {
    files: Files,
    name: String,
    keep: bool,
}

impl Files {
    /// Takes the directory below a node's own, and makes it if need be.
    pub(crate) fn open(data_dir: &Path) -> io::Result<Self> {
        let directory = data_dir.join("snapshots");
        if !directory.is_dir() {
            DirBuilder::new().mode(0o700).create(&directory)?;
            File::open(data_dir)?.sync_all()?;
        }
        Ok(Self { directory: directory.into(), reserve_bytes: None, pace: None })
    }

    /// From now on files are written, and installed, at this pace.
    pub(crate) fn with_pace(self, pace: Arc<DiskPace>) -> Self {
        Self { pace: Some(pace), ..self }
    }

    /// Ends whatever is being written, at the end of the node.
    pub(crate) fn stop(&self) {
        if let Some(pace) = &self.pace {
            pace.stop();
        }
    }

    /// True once the node ends.
    pub(crate) fn is_stopped(&self) -> bool {
        self.pace.as_ref().is_some_and(|pace| pace.is_stopped())
    }

    /// The pace, if there is one.
    pub(crate) fn pace(&self) -> Option<Arc<DiskPace>> {
        self.pace.clone()
    }

    /// Leaves so many bytes of the disk alone instead of the default.
    pub(crate) fn with_reserve(self, reserve_bytes: Option<u64>) -> Self {
        Self { reserve_bytes, ..self }
    }

    /// Removes everything but the files of these names.
    pub(crate) fn remove_all_but(&self, kept: &BTreeSet<String>) -> io::Result<()> {
        for file in fs::read_dir(&self.directory)? {
            let file = file?;
            let name = file.file_name();
            if !name.to_str().is_some_and(|name| kept.contains(name)) {
                match fs::remove_file(file.path()) {
                    // What an earlier life in this process was still removing.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    removed => removed?,
                }
            }
        }
        Ok(())
    }

    /// Removes a file that may be large, which takes a while, on a thread of its own if the caller's serves
    /// a runtime. At once it is out of the way of another of its name. If it stays, the next start removes it.
    pub(crate) fn remove_aside(&self, path: &Path) {
        static REMOVED: AtomicU64 = AtomicU64::new(0);
        let number = REMOVED.fetch_add(1, Ordering::Relaxed);
        let aside = path.with_file_name(format!("gone-{number}"));
        if fs::rename(path, &aside).is_err() {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return drop(fs::remove_file(aside)) };
        let (file, files) = (private().write(true).open(&aside), self.clone());
        drop(runtime.spawn_blocking(move || {
            // At the end of the node a large file is left to the next start, and the end waits for nothing.
            let is_left = file.is_ok_and(|file| files.shrink(&file).is_err()) && files.is_stopped();
            if !is_left {
                drop(fs::remove_file(aside));
            }
        }));
    }

    /// Lets go of a file without a name, as [`Files::remove_aside`] does of one that has one. What is left of it
    /// when the node ends goes at once.
    pub(crate) fn drop_aside(&self, file: File) {
        let Ok(runtime) = Handle::try_current() else { return };
        let files = self.clone();
        drop(runtime.spawn_blocking(move || drop(files.shrink(&file))));
    }

    /// Makes a file empty from its end on. The blocks of a large one, given back at once, make one large transaction
    /// of the file system, and one large discard where it tells the disk: syncs were seen to wait 100 ms for 256 MiB.
    fn shrink(&self, file: &File) -> io::Result<()> {
        let Some(pace) = &self.pace else { return Ok(()) };
        let mut bytes = file.metadata()?.len();
        // On a disk that is full the room is wanted at once.
        while bytes > 0 && room(file, self.reserve_bytes)? > 0 {
            let step = bytes.min(REMOVED_BYTES);
            // Nothing is written: it waits for a part of what a write would.
            for _ in 0..REMOVED_TURNS {
                pace.wait((step / (REMOVED_TURNS * REMOVED_SHARE)) as usize)?;
            }
            bytes -= step;
            file.set_len(bytes)?;
        }
        Ok(())
    }

    /// Where the file of this name lies; names are those of [`Received::name`].
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A new file for a snapshot on its way out, which may be read back too.
    pub(crate) fn outgoing(&self, group: GroupId, export: u64) -> io::Result<(PathBuf, EvenFile)> {
        let path = self.path(&format!("out-{}-{export:016x}", group.value()));
        let file = private().create(true).truncate(true).read(true).write(true).open(&path)?;
        Ok((path, EvenFile::new(file, 0, self)))
    }

    /// Goes on with what an earlier attempt left of a snapshot, or begins; parts of other snapshots of
    /// the group are removed.
    pub(crate) fn incoming(
        &self,
        group: GroupId,
        export: u64,
        bytes_max: u64,
    ) -> io::Result<Incoming> {
        let prefix = format!("in-{}-", group.value());
        let name = format!("{prefix}{export:016x}");
        let part = format!("{name}.{PART}");
        for file in fs::read_dir(&self.directory)? {
            let file = file?;
            let other = file.file_name();
            let other = other.to_string_lossy();
            if other.starts_with(&prefix) && other.ends_with(PART) && other != part {
                self.remove_aside(&file.path());
            }
        }
        let file = private().create(true).append(true).open(self.path(&part))?;
        let mut bytes = file.metadata()?.len();
        // The rest of it, and all of it once more as tables beside the engine.
        let needed = bytes_max.saturating_mul(2).saturating_sub(bytes);
        if needed > room(&file, self.reserve_bytes)? {
            return Err(no_room());
        }
        if bytes > bytes_max {
            file.set_len(0)?;
            bytes = 0;
        }
        let file = EvenFile::new(file, bytes, self);
        Ok(Incoming { files: self.clone(), name, file })
    }
}

/// How files are opened: nobody else may read what is in them.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// Bytes that the disk of `file` has above the reserve.
fn room(file: &File, reserve: Option<u64>) -> io::Result<u64> {
    let disk = rustix::fs::fstatvfs(file)?;
    let total = disk.f_blocks.saturating_mul(disk.f_frsize);
    let available = disk.f_bavail.saturating_mul(disk.f_frsize);
    Ok(available.saturating_sub(reserve.unwrap_or_else(|| reserve_bytes(total))))
}

fn no_room() -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, "the disk has no room for a snapshot")
}

impl EvenFile {
    /// A file of `bytes` so far.
    fn new(file: File, bytes: u64, of: &Files) -> Self {
        let Files { reserve_bytes, pace, .. } = of.clone();
        Self { file, reserve_bytes, pace, bytes, unlooked_bytes: 0 }
    }

    /// The file itself, for those who write in another order.
    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    /// The file itself, when all is written.
    pub(crate) fn into_file(self) -> File {
        self.file
    }

    /// Appends all of `bytes`, in its turn. Blocks.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        for step in bytes.chunks(STEP_BYTES) {
            if let Some(pace) = &self.pace {
                pace.wait(step.len())?;
            }
            self.file.write_all(step)?;
            self.send_off(step.len() as u64);
            self.bytes += step.len() as u64;
        }
        self.unlooked_bytes += bytes.len();
        if self.unlooked_bytes >= LOOK_BYTES {
            self.unlooked_bytes = 0;
            if room(&self.file, self.reserve_bytes)? == 0 {
                return Err(no_room());
            }
        }
        Ok(())
    }

    /// The advice that these bytes are not needed in memory has Linux begin to write them, and keep them until
    /// that is done; unlike a sync it waits neither for the disk nor for the file system's journal.
    fn send_off(&self, bytes: u64) {
        // Where it does nothing they are written later, at the latest by the sync when the file is complete.
        let _ = fadvise(&self.file, self.bytes, NonZeroU64::new(bytes), Advice::DontNeed);
    }
}

impl Incoming {
    /// How much of it is here.
    pub(crate) const fn bytes(&self) -> u64 {
        self.file.bytes
    }

    /// Adds what follows.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write(bytes)
    }

    /// Where the part lies, to be read before it is complete.
    pub(crate) fn path(&self) -> PathBuf {
        self.files.path(&format!("{}.{PART}", self.name))
    }

    /// Removes it: its bytes are of no use.
    pub(crate) fn discard(self) {
        self.files.remove_aside(&self.path());
    }

    /// Makes it durable, under its own name. One that cannot be synced is removed: a later sync would say nothing
    /// of the bytes that this one has lost.
    pub(crate) fn complete(self) -> io::Result<Received> {
        let part = format!("{}.{PART}", self.name);
        let mut directory = DiskDirectory::new(&*self.files.directory);
        if let Err(error) = publish(&mut directory, &part, &self.name) {
            self.discard();
            return Err(error);
        }
        Ok(Received { files: self.files, name: self.name, keep: false })
    }
}

impl Received {
    /// The file's name in the directory, which an intent may carry.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> PathBuf {
        self.files.path(&self.name)
    }

    /// From now on it is not removed by itself: an intent that names it is on its way into the log.
    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }

    /// Nothing names it any more.
    pub(crate) fn release(mut self) {
        self.keep = false;
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if !self.keep {
            self.files.remove_aside(&self.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(2);

    fn names(files: &Files) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&files.directory)
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_second_attempt_goes_on_where_the_first_stopped() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path()).unwrap();
        let mut first = files.incoming(GROUP, 7, 100).unwrap();
        first.write(b"abc").unwrap();
        drop(first);
        let mut second = files.incoming(GROUP, 7, 100).unwrap();
        assert_eq!(second.bytes(), 3);
        second.write(b"def").unwrap();
        let received = second.complete().unwrap();
        assert_eq!(fs::read(received.path()).unwrap(), b"abcdef");
        drop(received);
        assert_eq!(names(&files), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_file_that_a_runtime_drops_is_out_of_the_way_at_once_and_removed_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path()).unwrap();
        let complete = || files.incoming(GROUP, 7, 9).unwrap().complete().unwrap();
        drop(complete());
        let again = complete();
        assert!(again.path().exists());
        while names(&files) != [again.name()] {
            tokio::task::yield_now().await;
        }
        drop(again);
        while !names(&files).is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn a_file_is_emptied_at_the_pace_until_the_node_stops() {
        let (directory, file) = (tempfile::tempdir().unwrap(), tempfile::tempfile().unwrap());
        let bytes = || file.metadata().unwrap().len();
        let files = Files::open(directory.path()).unwrap().with_reserve(Some(0));
        file.set_len(3 * REMOVED_BYTES - 1).unwrap();
        files.shrink(&file).unwrap();
        assert_eq!(bytes(), 3 * REMOVED_BYTES - 1, "without a pace it goes at once, with its name");
        let files = files.with_pace(Arc::new(DiskPace::new(u64::MAX)));
        files.shrink(&file).unwrap();
        assert_eq!(bytes(), 0);
        file.set_len(REMOVED_BYTES).unwrap();
        files.stop();
        files.shrink(&file).unwrap_err();
        assert_eq!(bytes(), REMOVED_BYTES);
    }

    #[test]
    fn a_large_file_that_the_end_of_the_node_meets_is_left_to_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path()).unwrap().with_reserve(Some(0));
        let files = files.with_pace(Arc::new(DiskPace::new(u64::MAX)));
        let (path, out) = files.outgoing(GROUP, 3).unwrap();
        out.file().set_len(REMOVED_BYTES).unwrap();
        files.stop();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async { files.remove_aside(&path) });
        // Its end waits for what its threads do.
        drop(runtime);
        assert_eq!(names(&files).len(), 1);
        files.remove_all_but(&BTreeSet::new()).unwrap();
        assert_eq!(names(&files), Vec::<String>::new());
    }

    #[test]
    fn a_group_has_one_part_and_other_groups_theirs() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path()).unwrap();
        drop(files.incoming(GROUP, 1, 9).unwrap());
        drop(files.incoming(GroupId(22), 1, 9).unwrap());
        drop(files.incoming(GROUP, 2, 9).unwrap());
        assert_eq!(names(&files), ["in-2-0000000000000002.part", "in-22-0000000000000001.part"]);
    }

    #[test]
    fn a_part_larger_than_the_whole_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path()).unwrap();
        files.incoming(GROUP, 1, 9).unwrap().write(b"0123456789").unwrap();
        assert_eq!(files.incoming(GROUP, 1, 9).unwrap().bytes(), 0);
    }

    #[test]
    fn a_snapshot_that_the_disk_has_no_room_for_is_not_begun() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path()).unwrap();
        for bytes in [1 << 60, u64::MAX] {
            let error = files.incoming(GROUP, 1, bytes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
    }

    #[test]
    fn a_start_keeps_what_intents_name_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path()).unwrap();
        let mut kept = files.incoming(GROUP, 1, 9).unwrap().complete().unwrap();
        kept.keep();
        let name = kept.name().to_owned();
        drop(kept);
        drop(files.incoming(GROUP, 2, 9).unwrap());
        drop(files.outgoing(GROUP, 3).unwrap());
        let files = Files::open(directory.path()).unwrap();
        files.remove_all_but(&BTreeSet::from([name.clone()])).unwrap();
        assert_eq!(names(&files), [name]);
    }
}
