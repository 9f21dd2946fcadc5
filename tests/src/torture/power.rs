//! Power loss: what was written and not synced is gone, for the file system too.
//!
//! Each node's data lies on an ext4 of its own, in a file, by a loop device. The cut is ext4's own shutdown:
//! from one moment to the next nothing is written any more, neither data nor journal. Then the process is
//! killed, the file system unmounted and mounted again, as after a power failure. It was tried that a
//! synced prefix is there afterwards, and that an append or a file without a sync is not
//! (`a_cut_takes_what_was_not_synced_and_nothing_else`).

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::ioctl::{Setter, ioctl, opcode};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tempfile::TempDir;

use super::Session;
use crate::cluster::Cluster;
use crate::programs::skip_without_rights;
use crate::verify::await_writes;
use crate::wait;

/// Bytes of a disk. The file is sparse.
const DISK_BYTES: u64 = 1 << 30;

/// How long a file system may be busy after its only user was killed.
const UNMOUNT_BOUND: Duration = Duration::from_secs(30);

/// `EXT4_IOC_SHUTDOWN` with this: at once, without writing the journal.
const NO_LOG_FLUSH: u32 = 2;

/// A file system of its own that can lose its power.
pub struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    /// A fresh one, mounted below `directory`.
    ///
    /// # Errors
    /// What this machine or its user lacks.
    pub fn new(directory: &Path, name: &str) -> Result<Self, String> {
        own_mounts()?;
        let (image, mount) = (directory.join(format!("{name}.img")), directory.join(name));
        let made = File::create(&image).and_then(|file| file.set_len(DISK_BYTES));
        made.and_then(|()| fs::create_dir(&mount)).map_err(|error| error.to_string())?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image))?;
        let disk = Self { image, mount };
        disk.mount()?;
        Ok(disk)
    }

    /// Where its files are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Nothing reaches the disk from now on. Whoever uses it gets errors.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn cut(&self) {
        shut_down(&self.mount).unwrap_or_else(|error| panic!("{}: {error}", self.mount.display()));
    }

    /// The power is back: mounts it again. Nobody may use it.
    ///
    /// # Panics
    /// When it cannot be.
    pub fn restore(&self) {
        self.unmount();
        self.mount().expect("a file system that was cut mounts again");
    }

    fn mount(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "loop"]).args([&self.image, &self.mount]))
    }

    fn unmount(&self) {
        let what = format!("{} is unmounted", self.mount.display());
        wait::until(&what, UNMOUNT_BOUND, || run(Command::new("umount").arg(&self.mount)));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // When a test has failed it stays as it is; with the last process that sees it, it is unmounted.
        if !std::thread::panicking() {
            self.unmount();
        }
    }
}

/// Takes this thread, and what it starts from now on, into a mount namespace of its own. A file system that
/// is mounted in two of them does not go away when it is unmounted in one: what else runs on this machine
/// must not get a copy of ours.
#[expect(
    unsafe_code,
    reason = "the wrapper leaves it to us that no other thread shares our mounts"
)]
fn own_mounts() -> Result<(), String> {
    thread_local!(static OWN: Cell<bool> = const { Cell::new(false) });
    if OWN.get() {
        return Ok(());
    }
    // SAFETY: only the mounts that this thread sees change, and its working directory stays as it is.
    let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNS) };
    unshared.map_err(|error| format!("unshare: {error}"))?;
    run(Command::new("mount").args(["--make-rprivate", "/"]))?;
    OWN.set(true);
    Ok(())
}

#[expect(unsafe_code, reason = "ext4's ioctl has no wrapper")]
fn shut_down(mount: &Path) -> io::Result<()> {
    // In the kernel's header it is _IOR('X', 125, __u32), though it reads from us.
    type Shutdown = Setter<{ opcode::read::<u32>(b'X', 125) }, u32>;
    let directory = File::open(mount)?;
    // SAFETY: the number is that of EXT4_IOC_SHUTDOWN, which takes a pointer to a u32 and keeps nothing.
    unsafe { ioctl(&directory, Shutdown::new(NO_LOG_FLUSH)) }.map_err(io::Error::from)
}

/// Runs a command of the system.
fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{program}: {}", said.trim())) }
}

/// A directory with a disk in it, or none and a line that says why `test` is skipped.
#[must_use]
pub fn disk(test: &str) -> Option<(Disk, TempDir)> {
    let directory = TempDir::with_prefix("quorate-disks-").expect("a temporary directory");
    match Disk::new(directory.path(), "disk") {
        Ok(disk) => Some((disk, directory)),
        Err(reason) => {
            skip_without_rights(
                test,
                &format!("file systems cannot be made and mounted here: {reason}"),
            );
            None
        }
    }
}

/// A cluster under load, each of its nodes on a disk of its own.
pub struct PowerSession {
    /// The cluster and its load.
    pub session: Session,
    disks: Vec<Disk>,
    images: Images,
}

/// Where the disks lie. Kept when a round has failed.
struct Images(TempDir);

impl Drop for Images {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.disable_cleanup(true);
            crate::verify::say(&format!("--- kept, to be mounted: {}", self.0.path().display()));
        }
    }
}

/// A fresh cluster on disks of its own, under load; none where the rights for it are missing.
///
/// # Panics
/// When it does not come to serve.
#[must_use]
pub fn begin(test: &str) -> Option<PowerSession> {
    // One is tried before a cluster is made.
    drop(disk(test)?);
    let images = TempDir::with_prefix("quorate-disks-").expect("a temporary directory");
    let images = Images(images);
    let mut cluster = Cluster::prepare(test, &[])?;
    let mut disks = Vec::new();
    for node in &mut cluster.nodes {
        let disk = Disk::new(images.0.path(), &node.name).expect("one was made before");
        node.data = disk.path().join("data");
        disks.push(disk);
    }
    cluster.start_all();
    let session = Session::begin(cluster, &["--every-endpoint"]);
    Some(PowerSession { session, disks, images })
}

impl PowerSession {
    /// Cuts the power of `nodes`, sees that those who are left go on, restores it, and sees that all serve
    /// again.
    ///
    /// # Panics
    /// When they do not.
    pub fn round(&mut self, nodes: &[usize]) {
        let Self { session, disks, .. } = self;
        let kind = if nodes.len() == disks.len() { "power: all" } else { "power: one" };
        session.announce(kind);
        // The processes first, as with the power: a sync that is under way while ext4 is shut down may succeed
        // although its data is gone (Linux 6.18: 4 of 60 tries), and nobody must hear of that.
        nodes.iter().for_each(|&number| session.cluster.freeze(number));
        nodes.iter().for_each(|&number| disks[number].cut());
        nodes.iter().for_each(|&number| session.cluster.kill(number));
        nodes.iter().for_each(|&number| disks[number].restore());
        if nodes.len() < 2 {
            await_writes(&session.cluster);
        }
        session.restart(nodes);
        await_writes(&session.cluster);
        session.tally.round(kind);
    }

    /// As [`Session::end`].
    ///
    /// # Panics
    /// When something is lost.
    #[must_use]
    pub fn end(self) -> super::Tally {
        // Its processes are gone when it has ended; only then can disks be unmounted, and removed last.
        let Self { images: _images, disks: _disks, session } = self;
        session.end()
    }
}
