//! Disks that fill up: each node's data on a small ext4 of its own, in a file on a loop device.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use quorate_api::etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest};
use quorate_tests::client::{Client, runtime};
use quorate_tests::cluster::Cluster;
use quorate_tests::{programs, wait};
use tempfile::TempDir;
use tonic::{Code, Status};

/// How long something may take that is not quick on a slow machine.
const BOUND: Duration = Duration::from_secs(60);

/// The size of a node's disk: room for what a log and a state take at first, and more.
const DISK_MIB: u64 = 768;

/// What nodes keep free. Twice of it is wanted before writes resume.
const RESERVE_MIB: u64 = 64;

/// Disks on loop devices, unmounted in the end.
struct Disks {
    dir: TempDir,
    mounts: Vec<PathBuf>,
}

impl Disks {
    /// So many small disks; none, and a line that names `test` and the reason, without the rights.
    fn mount(test: &str, count: usize) -> Option<Self> {
        let dir =
            TempDir::with_prefix("quorate-disks-").expect("a temporary directory can be made");
        let mut disks = Self { dir, mounts: Vec::new() };
        for number in 1..=count {
            if let Err(reason) = disks.add(number) {
                programs::skip_without_rights(
                    test,
                    &format!("no small disk can be mounted: {reason}"),
                );
                return None;
            }
        }
        Some(disks)
    }

    fn add(&mut self, number: usize) -> Result<(), String> {
        let (image, mount) = (
            self.dir.path().join(format!("{number}.ext4")),
            self.dir.path().join(format!("{number}")),
        );
        let file = fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(DISK_MIB << 20).map_err(|error| error.to_string())?;
        fs::create_dir(&mount).map_err(|error| error.to_string())?;
        // No blocks that only root may use: what is free is free for the node.
        run(Command::new("mkfs.ext4").args(["-q", "-m", "0", "-F"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount))?;
        self.mounts.push(mount);
        Ok(())
    }

    /// Leaves `mib` MiB free on a disk, however much its node has written.
    fn leave_free(&self, number: usize, mib: u64) {
        let mount = &self.mounts[number];
        self.clear(number);
        let take = free_bytes(mount).saturating_sub(mib << 20);
        let mut fill = Command::new("fallocate");
        run(fill.args(["-l", &take.to_string()]).arg(mount.join("fill"))).expect("it fills up");
    }

    /// Gives the space back.
    fn clear(&self, number: usize) {
        // The first time there is nothing.
        let _ = fs::remove_file(self.mounts[number].join("fill"));
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for mount in &self.mounts {
            // A node that a failed test has left may still hold it: it goes when that does.
            let _ = Command::new("umount").arg("-l").arg(mount).status();
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

fn free_bytes(mount: &Path) -> u64 {
    let disk = rustix::fs::statvfs(mount).expect("it is mounted");
    disk.f_bavail * disk.f_frsize
}

/// The cluster's disks go after its processes: fields drop in this order.
struct Filled {
    cluster: Cluster,
    disks: Disks,
}

fn filled(test: &str) -> Option<Filled> {
    let disks = Disks::mount(test, 3)?;
    let reserve = (RESERVE_MIB << 20).to_string();
    let args = ["--disk-reserve-bytes", &reserve];
    let mut cluster = Cluster::prepare(test, &args)?;
    for (node, mount) in cluster.nodes.iter_mut().zip(&disks.mounts) {
        node.data = mount.join(&node.name);
    }
    cluster.start_all();
    Some(Filled { cluster, disks })
}

impl Filled {
    fn put(&self, number: usize, key: &'static str) -> Result<(), Status> {
        let endpoint = &self.cluster.nodes[number].client;
        runtime().block_on(async {
            let put = PutRequest { key: key.into(), value: "v".into(), ..PutRequest::default() };
            Client::new(endpoint).kv.put(put).await.map(drop)
        })
    }

    /// Waits until puts through every node are refused for want of space, by etcd's words.
    fn wait_refused(&self) {
        for number in 0..3 {
            wait::until("puts are refused", BOUND, || match self.put(number, "more") {
                Ok(()) => Err("it was taken".to_owned()),
                Err(status) if status.code() == Code::ResourceExhausted => {
                    assert_eq!(status.message(), "etcdserver: mvcc: database space exceeded");
                    Ok(())
                }
                Err(status) => Err(status.to_string()),
            });
        }
    }

    fn wait_taken(&self) {
        for number in 0..3 {
            wait::until("puts are taken", BOUND, || {
                self.put(number, "more").map_err(|status| status.to_string())
            });
        }
    }

    /// Everything that grows nothing: reads, deletes, compactions.
    fn rest_is_served(&self) {
        for node in &self.cluster.nodes {
            let served = runtime().block_on(async {
                let mut kv = Client::new(&node.client).kv;
                let get = RangeRequest { key: "kept".into(), ..RangeRequest::default() };
                let found = kv.range(get).await?.into_inner();
                assert_eq!(found.kvs.len(), 1, "what was put is there");
                let delete =
                    DeleteRangeRequest { key: "gone".into(), ..DeleteRangeRequest::default() };
                let deleted = kv.delete_range(delete).await?.into_inner();
                let revision = deleted.header.map_or(0, |header| header.revision);
                let compact = CompactionRequest { revision, ..CompactionRequest::default() };
                Ok::<_, Status>(kv.compact(compact).await.map(drop))
            });
            let compacted = served.expect("reads and deletes go on");
            // A second node has nothing more to compact.
            let is_known = |status: &Status| status.code() == Code::OutOfRange;
            assert!(compacted.is_ok() || compacted.as_ref().is_err_and(is_known), "{compacted:?}");
        }
    }
}

#[test]
fn writes_are_refused_while_too_few_disks_have_room_and_resume_by_themselves() {
    let test = "writes stop before disks are full";
    let Some(filled) = filled(test) else { return };
    for key in ["kept", "gone"] {
        wait::until("a put", BOUND, || filled.put(0, key).map_err(|status| status.to_string()));
    }
    // One of three: a quorum has room.
    filled.disks.leave_free(0, RESERVE_MIB * 3 / 4);
    filled.wait_taken();
    // Two of three.
    filled.disks.leave_free(1, RESERVE_MIB * 3 / 4);
    filled.wait_refused();
    filled.rest_is_served();
    // Above the reserve, but not twice of it: not yet.
    filled.disks.leave_free(1, RESERVE_MIB * 3 / 2);
    filled.wait_refused();
    filled.disks.clear(1);
    filled.wait_taken();
    filled.disks.clear(0);
    filled.rest_is_served();
}

#[test]
fn a_node_whose_disk_is_all_but_full_leads_nothing_and_catches_up_afterwards() {
    let test = "a node without room leads nothing";
    let Some(filled) = filled(test) else { return };
    wait::until("a put", BOUND, || filled.put(0, "kept").map_err(|status| status.to_string()));
    let full = filled.cluster.leader();
    filled.disks.leave_free(full, RESERVE_MIB / 4);
    wait::until("another leader", BOUND, || match filled.cluster.leader() {
        leader if leader != full => Ok(()),
        _ => Err("it still leads".to_owned()),
    });
    let unfit = |wanted: f64| {
        wait::until("it knows", BOUND, || {
            match filled.cluster.metric(full, "quorate_node_unfit") {
                Some(value) if value == wanted => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    };
    unfit(1.0);
    let other = (full + 1) % 3;
    let put = || filled.put(other, "more").map_err(|status| status.to_string());
    wait::until("puts are taken", BOUND, put);
    let revision = filled.cluster.revision();
    filled.disks.clear(full);
    unfit(0.0);
    wait::until("it has caught up", BOUND, || {
        let status = quorate_tests::client::status(&filled.cluster.nodes[full].client);
        let header = status.map_err(|status| status.to_string())?.header;
        match header.map_or(0, |header| header.revision) {
            now if now >= revision => Ok(()),
            now => Err(format!("{now} of {revision}")),
        }
    });
    filled.wait_taken();
}
