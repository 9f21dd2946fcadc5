//! Snapshots between this node and its peers: what is done off the actors, and reported to them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quorate_group::Descriptor;
use quorate_store::{SnapshotError as ContentError, SnapshotReader, StateEngine};
use quorate_transport::{SnapshotError, SnapshotOffer, SnapshotReceiver, Transport, Unfinished};
use quorate_types::codec::{put_frame_header, put_message, take_frame};
use quorate_types::{GroupId, LogIndex, Message, NodeId, SnapshotMeta};
use quorate_wal::Wal;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::spawn_blocking;

use super::export::{ExportError, Exports};
use super::files::{Files, Incoming, Received};
use super::installation::{InstallError, Installation, Step, Target};
use super::words::Announcement;
use crate::apply::{Applier, InstallTask};
use crate::background;
use crate::completions::LogCompletions;
use crate::engine::{Kinds, lock};

/// Content is gathered to so many bytes before it is written.
const GATHERED_BYTES: usize = 256 << 10;

/// Snapshots that are exported or sent at a time; those that wait their turn are not exported yet, so
/// that many groups do not fill the disk with files that wait. As many as the transport sends.
const SENDING_MAX: usize = 4;

/// Until then a snapshot counts as on its way. Longer than one takes: at the default rate some 80 GiB, written,
/// sent, and written as tables; who has not installed it by then is not about to.
const UNDERWAY_MAX: Duration = Duration::from_secs(4 * 3_600);

/// Everything that sending, receiving and installing a snapshot needs of a node.
pub(crate) struct Snapshots {
    pub(crate) node: NodeId,
    pub(crate) files: Files,
    pub(crate) exports: Exports,
    pub(crate) state: Arc<dyn StateEngine>,
    pub(crate) wal: Arc<Wal>,
    pub(crate) completions: Arc<LogCompletions>,
    pub(crate) applier: Applier,
    pub(crate) kinds: Kinds,
    turns: Semaphore,
    /// What the snapshots hold that are on their way, or were until a moment ago.
    sending: Mutex<BTreeMap<(GroupId, NodeId), Underway>>,
    /// Groups that a snapshot is being received or installed for: one at a time each.
    busy: Mutex<BTreeSet<GroupId>>,
}

/// Why a snapshot was not sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    /// There is none.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// Its file cannot be opened.
    #[error("file of the snapshot: {0}")]
    Io(#[from] io::Error),
    /// It did not get there.
    #[error(transparent)]
    Transport(#[from] SnapshotError),
}

/// Why a snapshot was not received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    /// The sender or the network failed.
    #[error(transparent)]
    Unfinished(#[from] Unfinished),
    /// The file.
    #[error("file of the snapshot: {0}")]
    Io(#[from] io::Error),
    /// What came is no whole snapshot, or not the one that was announced.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The sender is to try again.
    #[error("another snapshot of the group is being received or installed")]
    Busy,
    /// The announcement cannot be followed.
    #[error("{0}")]
    Refused(String),
}

/// A snapshot could be received but not be put in place: the node's disk or log has failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    /// Before anything was changed.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// A panic while it was staged, or no thread for that, before anything was changed.
    #[error("staging it panicked")]
    Panicked,
    /// The node is stopping, or its log has failed; the next start goes on.
    #[error("the node is stopping")]
    Stopping,
}

/// An announcement that was read and found sound.
#[derive(Debug)]
pub(crate) struct Announced {
    /// The leader's message to the replica.
    pub(crate) message: Message,
    pub(crate) descriptor: Descriptor,
    export: u64,
}

/// A snapshot that is here, whole and durable.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) file: Received,
    /// What it stands for.
    pub(crate) meta: SnapshotMeta,
    _busy: Busy,
}

/// A snapshot on its way to a peer.
#[derive(Clone, Copy, Debug)]
struct Underway {
    through: LogIndex,
    since: Instant,
}

/// A group's only place.
#[derive(Debug)]
struct Busy {
    snapshots: Arc<Snapshots>,
    group: GroupId,
}

impl Snapshots {
    pub(crate) fn new(
        node: NodeId,
        files: Files,
        state: Arc<dyn StateEngine>,
        wal: Arc<Wal>,
        completions: Arc<LogCompletions>,
        applier: Applier,
        kinds: Kinds,
    ) -> Self {
        Self {
            node,
            files,
            exports: Exports::default(),
            state,
            wal,
            completions,
            applier,
            kinds,
            turns: Semaphore::new(SENDING_MAX),
            sending: Mutex::default(),
            busy: Mutex::default(),
        }
    }

    /// Sends the state of `target` to `to`, as of the entry at `through` at least, when its turn comes. `message` makes the
    /// leader's message that goes with it, of what the snapshot turns out to stand for.
    ///
    /// # Errors
    /// When it is not known to be stored there.
    pub(crate) async fn send(
        self: Arc<Self>,
        transport: &Transport,
        target: Target,
        to: NodeId,
        through: LogIndex,
        message: impl FnOnce(SnapshotMeta) -> Message + Send,
    ) -> Result<SnapshotMeta, SendError> {
        let group = target.group;
        // Never closed.
        let _turn = self.turns.acquire().await;
        // What the snapshot will not hold is kept from now on, and not only when it leaves: writing the file
        // takes as long as sending it.
        self.note_sending(group, to, through);
        let (this, of) = (Arc::clone(&self), target.clone());
        let exported = background::run(move || {
            let range = of.descriptor.range.clone();
            this.exports.export(&*this.state, &this.files, group, &of.rows, range, through)
        });
        let exported = exported.await.map_err(io::Error::from).map_err(SendError::Io);
        let exported = exported
            .and_then(|exported| Ok(exported?))
            .inspect_err(|_| self.forget_sending(group, to))?;
        let row = &exported.header.row;
        let meta = SnapshotMeta { last: row.applied, membership: row.membership.clone() };
        self.note_sending(group, to, meta.last.index);
        let mut frame = BytesMut::new();
        put_frame_header(&mut frame);
        put_message(&mut frame, &message(meta.clone()));
        let descriptor = target.descriptor.encode();
        let words = Announcement::new(exported.export, descriptor, frame.freeze());
        let source = exported.source().inspect_err(|_| self.forget_sending(group, to))?;
        let bytes = match transport.send_snapshot(to, words.bytes(), source).await {
            Ok(bytes) => bytes,
            Err(error) => {
                // Where there is no place now it is tried again, with the same export.
                let again = matches!(error, SnapshotError::BusyHere | SnapshotError::BusyThere);
                if !again {
                    self.forget_sending(group, to);
                }
                return Err(error.into());
            }
        };
        tracing::info!(%group, peer = %to, last = %meta.last, bytes, "a snapshot was sent");
        self.exports.forget(group, exported.export);
        Ok(meta)
    }

    /// Through which entry `peer` will hold the log of `group` once it has the snapshot that was sent to
    /// it; `None` when there is none on its way, or when it holds that and more by now.
    pub(crate) fn on_its_way(
        &self,
        group: GroupId,
        peer: NodeId,
        held: LogIndex,
        now: Instant,
    ) -> Option<LogIndex> {
        let mut sending = lock(&self.sending);
        let Underway { through, since } = *sending.get(&(group, peer))?;
        if held >= through || now.saturating_duration_since(since) > UNDERWAY_MAX {
            sending.remove(&(group, peer));
            return None;
        }
        Some(through)
    }

    /// Lets go of the disk: whatever is being written ends with an error.
    pub(crate) fn stop(&self) {
        self.files.stop();
    }

    /// Rows could not be written beside the engine: that may be the end of the node and no fault of theirs.
    fn not_prepared(&self, error: InstallError) -> PlaceError {
        if self.files.is_stopped() { PlaceError::Stopping } else { error.into() }
    }

    fn note_sending(&self, group: GroupId, to: NodeId, through: LogIndex) {
        let underway = Underway { through, since: Instant::now() };
        lock(&self.sending).insert((group, to), underway);
    }

    fn forget_sending(&self, group: GroupId, to: NodeId) {
        lock(&self.sending).remove(&(group, to));
    }

    /// Reads what the peer `from` says of a snapshot.
    pub(crate) fn announced(&self, from: NodeId, words: &Bytes) -> Result<Announced, ReceiveError> {
        let refused = |why: &dyn std::fmt::Display| ReceiveError::Refused(why.to_string());
        let words = Announcement::read(words.clone()).map_err(|error| refused(&error))?;
        let descriptor = Descriptor::decode(&words.descriptor).map_err(|error| refused(&error))?;
        let (mut messages, _) = take_frame(words.frame).map_err(|error| refused(&error))?;
        match (messages.pop(), messages.is_empty()) {
            (Some(message), true) if message.from == from && message.to == self.node => {
                Ok(Announced { message, descriptor, export: words.export })
            }
            _ => Err(refused(&"not one message of this peer to this node")),
        }
    }

    /// Takes a snapshot of `target` in; it is whole, checked and durable when this returns. The sender
    /// waits to hear of it until the receiver's `confirm`.
    ///
    /// # Errors
    /// When there is no such snapshot here; the sender has heard why.
    pub(crate) async fn receive(
        self: Arc<Self>,
        offer: SnapshotOffer,
        announced: &Announced,
        target: Target,
    ) -> Result<(Arrived, SnapshotReceiver), ReceiveError> {
        let Some(busy) = Busy::take(&self, target.group) else {
            offer.busy().await;
            return Err(ReceiveError::Busy);
        };
        let (files, group, export) = (self.files.clone(), target.group, announced.export);
        let total_bytes = offer.total_bytes();
        let incoming = match blocking(move || files.incoming(group, export, total_bytes)).await {
            Ok(incoming) => incoming,
            Err(error) => {
                offer.refuse(&error.to_string()).await;
                return Err(error.into());
            }
        };
        let mut receiver = offer.accept(incoming.bytes()).await?;
        let arrived = async {
            let incoming = content(&mut receiver, incoming).await?;
            background::run(move || complete(incoming, &target)).await.map_err(io::Error::from)?
        };
        match arrived.await {
            Ok((file, meta)) => Ok((Arrived { file, meta, _busy: busy }, receiver)),
            Err(error) => {
                receiver.fail(&error.to_string()).await;
                Err(error)
            }
        }
    }

    /// Puts a snapshot that has arrived in the place of the group's state and log; its file is removed
    /// then. The replica must neither append nor apply until it hears of it.
    ///
    /// # Errors
    /// When it is not in place: nothing was changed, or the node is stopping and the next start goes on.
    pub(crate) async fn install(
        self: Arc<Self>,
        arrived: Arrived,
        target: Target,
    ) -> Result<SnapshotMeta, PlaceError> {
        let Arrived { mut file, meta, _busy } = arrived;
        let kind = self.kinds.get(&target.descriptor.kind).cloned().ok_or(PlaceError::Stopping)?;
        let group = target.group;
        let (this, name) = (Arc::clone(&self), file.name().to_owned());
        let prepare = move || Installation::prepare(&target, &this.files, &name, &*this.state);
        let prepared = background::run(prepare).await.map_err(|_| PlaceError::Panicked)?;
        let (installation, staged) = prepared.map_err(|error| self.not_prepared(error))?;
        assert_eq!(*installation.meta(), meta, "group {group}: another snapshot than arrived");
        let mut staged = Some(staged);
        // The intent names the file from the next write on, whether or not this node learns of it.
        file.keep();
        for step in installation.steps() {
            match step {
                Step::Log(write) => {
                    let written = self.completions.write(&self.wal, write).await;
                    written.map_err(|_| PlaceError::Stopping)?;
                }
                Step::Replace => {
                    let (done, replaced) = oneshot::channel();
                    let install = staged.take().expect("rows are replaced once in an installation");
                    let kind = Arc::clone(&kind);
                    self.applier.install(InstallTask { group, kind, install, done });
                    replaced.await.map_err(|_| PlaceError::Stopping)?;
                }
            }
        }
        file.release();
        Ok(meta)
    }

    /// Puts the rows of a snapshot that has arrived in the place of the group's state, and leaves the log:
    /// one change, so that a crash finds the old state or the new one, and the log fits both. The replica
    /// must not apply until it hears of it.
    ///
    /// # Errors
    /// When it is not in place.
    pub(crate) async fn rebuild(
        self: Arc<Self>,
        arrived: Arrived,
        target: Target,
    ) -> Result<SnapshotMeta, PlaceError> {
        let Arrived { file, meta, _busy } = arrived;
        let kind = self.kinds.get(&target.descriptor.kind).cloned().ok_or(PlaceError::Stopping)?;
        let group = target.group;
        let (this, name) = (Arc::clone(&self), file.name().to_owned());
        let prepare = move || Installation::prepare(&target, &this.files, &name, &*this.state);
        let prepared = background::run(prepare).await.map_err(|_| PlaceError::Panicked)?;
        let (installation, install) = prepared.map_err(|error| self.not_prepared(error))?;
        assert_eq!(*installation.meta(), meta, "group {group}: another snapshot than arrived");
        let (done, replaced) = oneshot::channel();
        self.applier.install(InstallTask { group, kind, install, done });
        replaced.await.map_err(|_| PlaceError::Stopping)?;
        Ok(meta)
    }
}

impl Busy {
    fn take(snapshots: &Arc<Snapshots>, group: GroupId) -> Option<Self> {
        let is_free = lock(&snapshots.busy).insert(group);
        is_free.then(|| Self { snapshots: Arc::clone(snapshots), group })
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        lock(&self.snapshots.busy).remove(&self.group);
    }
}

impl std::fmt::Debug for Snapshots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshots").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Writes what comes; it stays for the next attempt when the rest does not come.
async fn content(
    receiver: &mut SnapshotReceiver,
    mut incoming: Incoming,
) -> Result<Incoming, ReceiveError> {
    let mut gathered = BytesMut::with_capacity(GATHERED_BYTES);
    loop {
        let piece = receiver.next().await;
        let ended = !matches!(piece, Ok(Some(_)));
        if let Ok(Some(piece)) = &piece {
            gathered.extend_from_slice(piece);
        }
        if gathered.len() >= GATHERED_BYTES || ended && !gathered.is_empty() {
            let bytes = gathered.split().freeze();
            incoming = blocking(move || incoming.write(&bytes).map(|()| incoming)).await?;
        }
        match piece {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(incoming),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Checks a content that is all here, and makes it durable. One that is no whole snapshot is removed: the
/// next attempt begins anew.
fn complete(incoming: Incoming, target: &Target) -> Result<(Received, SnapshotMeta), ReceiveError> {
    match verify(&incoming.path(), target) {
        Ok(meta) => Ok((incoming.complete()?, meta)),
        Err(error) => {
            incoming.discard();
            Err(error.into())
        }
    }
}

fn verify(path: &Path, target: &Target) -> Result<SnapshotMeta, ContentError> {
    let row = target.read(path, None).and_then(SnapshotReader::verify)?.row;
    Ok(SnapshotMeta { last: row.applied, membership: row.membership })
}

/// Work on a disk, away from the runtime.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
#[path = "transfer_tests.rs"]
mod tests;
