//! The sending side.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{SendStream, WriteError};
use quorate_types::NodeId;
use tokio::sync::Semaphore;
use tokio::time::{sleep, sleep_until, timeout};

use super::patience::Patience;
use super::wire::{ANSWER_BYTES_MAX, Announcement, SNAPSHOT_HEADER_BYTES_MAX, Verdict};
use crate::frame::{FrameReader, StreamKind};
use crate::metrics::Outcome;
use crate::peer::Peer;
use crate::shared::Shared;

/// QUIC sends streams of higher priority first: everything else is above.
const PRIORITY: i32 = 0;

/// What is handed to QUIC at a time: small enough that the rate is even, large enough to be cheap.
const PIECE_BYTES: usize = 64 << 10;

/// How long a piece waits that the link did not deliver, before it is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Where a snapshot's content comes from.
pub trait SnapshotSource: Send {
    /// How many bytes there are.
    fn total_bytes(&self) -> u64;

    /// Some bytes from `offset` on, which is below the end: one at least, and none beyond the end.
    fn read(&mut self, offset: u64) -> impl Future<Output = io::Result<Bytes>> + Send;
}

/// Why a snapshot was not sent. None of these is for ever: try again, later or with another one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SnapshotError {
    /// This node sends as many as it may, in total or to this peer.
    #[error("too many snapshots are being sent")]
    BusyHere,
    /// The peer receives as many as it may, in total or from this node.
    #[error("the peer receives too many snapshots")]
    BusyThere,
    /// There is no connection to the peer.
    #[error("the peer is not connected")]
    NotConnected,
    /// The header is larger than [`SNAPSHOT_HEADER_BYTES_MAX`].
    #[error("the header has {0} bytes")]
    HeaderTooLarge(usize),
    /// The peer does not want it.
    #[error("refused by the peer: {0}")]
    Refused(String),
    /// The peer wanted it and could not take it.
    #[error("the peer failed: {0}")]
    Failed(String),
    /// The peer does not go on, or too slowly.
    #[error("the peer is too slow")]
    Stalled,
    /// The stream or the connection ended.
    #[error("lost: {0}")]
    Lost(String),
    /// The content could not be read, or has another size than was said.
    #[error("the content cannot be read: {0}")]
    Source(String),
}

/// What a node may send of snapshots.
pub(crate) struct Sending {
    pub(crate) places: Arc<Semaphore>,
}

/// One snapshot to one peer.
struct Snapshot<'s> {
    shared: &'s Shared,
    to: NodeId,
    patience: Patience,
}

/// Sends one; gives the number of bytes that were sent.
pub(crate) async fn send<S: SnapshotSource>(
    shared: &Shared,
    peer: &Peer,
    header: Bytes,
    source: S,
) -> Result<u64, SnapshotError> {
    let metrics = &shared.metrics.snapshots.sent;
    if header.len() > SNAPSHOT_HEADER_BYTES_MAX {
        return Err(SnapshotError::HeaderTooLarge(header.len()));
    }
    let places = (shared.snapshots_sending.places.try_acquire(), peer.snapshots.try_acquire());
    let (Ok(_of_node), Ok(_of_peer)) = places else {
        metrics.count(Outcome::Busy);
        return Err(SnapshotError::BusyHere);
    };
    let under = metrics.begin();
    let patience = Patience::new(&shared.config.limits);
    let result = Snapshot { shared, to: peer.node, patience }.run(peer, header, source).await;
    under.end(match &result {
        Ok(_) => Outcome::Done,
        Err(SnapshotError::BusyHere | SnapshotError::BusyThere) => Outcome::Busy,
        Err(SnapshotError::Refused(_)) => Outcome::Refused,
        Err(
            SnapshotError::NotConnected
            | SnapshotError::HeaderTooLarge(_)
            | SnapshotError::Failed(_)
            | SnapshotError::Stalled
            | SnapshotError::Lost(_)
            | SnapshotError::Source(_),
        ) => Outcome::Failed,
    });
    result
}

impl Snapshot<'_> {
    async fn run<S: SnapshotSource>(
        mut self,
        peer: &Peer,
        header: Bytes,
        mut source: S,
    ) -> Result<u64, SnapshotError> {
        let limits = &self.shared.config.limits;
        let connection = peer.connection().ok_or(SnapshotError::NotConnected)?;
        // The peer allows so many streams; one that is ending may still be among them.
        let opened = self.patience.wait(connection.open_bi()).await;
        let (mut stream, answers) = opened.map_err(stalled)?.map_err(lost)?;
        let mut answers = FrameReader::new(answers);
        stream.set_priority(PRIORITY).map_err(lost)?;
        let total = source.total_bytes();
        let preface = Bytes::copy_from_slice(&StreamKind::Snapshot.preface(0));
        for words in [preface, Announcement::new(header, total).frame()] {
            self.patience.wait(stream.write_chunk(words)).await.map_err(stalled)?.map_err(lost)?;
        }
        let offset = match self.verdict(&mut answers, limits.snapshot_stall_timeout).await? {
            Verdict::Accepted(offset) if offset <= total => offset,
            Verdict::Busy(_) => return Err(SnapshotError::BusyThere),
            Verdict::Refused(reason) => return Err(SnapshotError::Refused(reason)),
            Verdict::Failed(reason) => return Err(SnapshotError::Failed(reason)),
            Verdict::Accepted(_) | Verdict::Stored(_) => return Err(senseless()),
        };
        match self.content(&mut stream, &mut source, offset, total).await {
            Ok(()) => stream.finish().map_err(lost)?,
            // The peer takes no more, and says why.
            Err(Interrupted::Stopped) => {}
            Err(Interrupted::Failed(error)) => return Err(error),
        }
        match self.verdict(&mut answers, limits.snapshot_confirm_timeout).await? {
            Verdict::Stored(_) => Ok(total - offset),
            Verdict::Failed(reason) => Err(SnapshotError::Failed(reason)),
            Verdict::Refused(reason) => Err(SnapshotError::Refused(reason)),
            Verdict::Accepted(_) | Verdict::Busy(_) => Err(senseless()),
        }
    }

    async fn content<S: SnapshotSource>(
        &mut self,
        stream: &mut SendStream,
        source: &mut S,
        mut offset: u64,
        total: u64,
    ) -> Result<(), Interrupted> {
        self.travel().await;
        while offset < total {
            let failed = |why: String| Interrupted::Failed(SnapshotError::Source(why));
            let mut bytes = source.read(offset).await.map_err(|error| failed(error.to_string()))?;
            if bytes.is_empty() || bytes.len() as u64 > total - offset {
                let why = format!("{} bytes at {offset} of {total}", bytes.len());
                return Err(failed(why));
            }
            offset += bytes.len() as u64;
            while !bytes.is_empty() {
                let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
                self.write(stream, piece).await?;
            }
        }
        Ok(())
    }

    async fn write(&mut self, stream: &mut SendStream, piece: Bytes) -> Result<(), Interrupted> {
        let size = piece.len();
        let at = self.shared.snapshot_pace().reserve(Instant::now(), size);
        sleep_until(at.into()).await;
        self.pass_link().await;
        match self.patience.wait(stream.write_chunk(piece)).await {
            Ok(Ok(())) => {
                self.patience.progressed(size);
                self.shared.metrics.snapshots.sent.bytes.increment(size as u64);
                Ok(())
            }
            Ok(Err(WriteError::Stopped(_))) => Err(Interrupted::Stopped),
            Ok(Err(error)) => Err(Interrupted::Failed(lost(error))),
            Err(_) => Err(Interrupted::Failed(SnapshotError::Stalled)),
        }
    }

    /// What the link holds up: a stream's delay shifts all of it by the same time.
    async fn travel(&self) {
        let fate = self.shared.link.fate(self.shared.config.node, self.to);
        if !fate.delay.is_zero() {
            sleep(fate.delay).await;
        }
    }

    /// A piece that is lost is sent again, as QUIC would.
    async fn pass_link(&self) {
        while !self.shared.link.fate(self.shared.config.node, self.to).deliver {
            sleep(RETRY_INTERVAL).await;
        }
    }

    async fn verdict(
        &self,
        answers: &mut FrameReader,
        patience: Duration,
    ) -> Result<Verdict, SnapshotError> {
        let frame = timeout(patience, answers.next(ANSWER_BYTES_MAX)).await;
        let frame = frame.map_err(|_| SnapshotError::Stalled)?.map_err(lost)?;
        Verdict::read(frame).ok_or_else(senseless)
    }
}

/// Why the content was not sent to its end.
enum Interrupted {
    Stopped,
    Failed(SnapshotError),
}

fn lost(error: impl std::fmt::Display) -> SnapshotError {
    SnapshotError::Lost(error.to_string())
}

fn stalled(_: super::patience::Exhausted) -> SnapshotError {
    SnapshotError::Stalled
}

fn senseless() -> SnapshotError {
    SnapshotError::Lost("the peer's answer makes no sense".to_owned())
}
