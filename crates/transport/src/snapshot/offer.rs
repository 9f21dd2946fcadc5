//! The receiving side: an announced snapshot, and its content.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use quinn::{Connection, SendStream, VarInt};
use quorate_types::NodeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::coop::consume_budget;
use tokio::time::timeout;
use tracing::debug;

use super::pace::Pace;
use super::patience::Patience;
use super::wire::{ANNOUNCEMENT_BYTES_MAX, Announcement, Verdict};
use crate::close::Close;
use crate::frame::{FrameError, FrameReader};
use crate::metrics::{Outcome, Under};
use crate::shared::Shared;

/// The code of streams that are ended early. QUIC wants one; nobody looks at it.
const ENDED_EARLY: VarInt = VarInt::from_u32(1);

/// Snapshots that a peer may announce in quick succession, over one connection: a peer that is refused
/// comes back after a while, and not at once.
const ANNOUNCEMENTS_MAX: usize = 64;

/// One more announcement every so often: as many milliseconds.
const ANNOUNCEMENT_INTERVAL_MS: u64 = 250;

/// What one connection may send of snapshots.
pub(crate) struct Receiving {
    places: Arc<Semaphore>,
    /// Paces announcements: an announcement is a "byte" of it.
    announcements: Mutex<Pace>,
}

impl Receiving {
    pub(crate) fn new(per_peer_max: usize) -> Self {
        let pace = Pace::new(1_000 / ANNOUNCEMENT_INTERVAL_MS);
        Self { places: Arc::new(Semaphore::new(per_peer_max)), announcements: Mutex::new(pace) }
    }

    /// False for a flood.
    fn may_announce(&self) -> bool {
        let now = Instant::now();
        let mut pace = self.announcements.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead = pace.reserve(now, 1).saturating_duration_since(now);
        ahead.as_millis() as u64 <= ANNOUNCEMENTS_MAX as u64 * ANNOUNCEMENT_INTERVAL_MS
    }
}

/// One stream that a peer has opened for a snapshot.
pub(crate) async fn attend(
    shared: Arc<Shared>,
    from: NodeId,
    connection: Connection,
    receiving: Arc<Receiving>,
    mut send: SendStream,
    mut frames: FrameReader,
) {
    if !receiving.may_announce() {
        return Close::malformed("too many snapshots").apply(&connection);
    }
    let limits = &shared.config.limits;
    let read = timeout(limits.handshake_timeout, frames.next(ANNOUNCEMENT_BYTES_MAX)).await;
    let announcement = match read {
        Ok(Ok(frame)) => Announcement::read(frame),
        // It was given up before it began.
        Ok(Err(FrameError::Read(_) | FrameError::Ended)) => return,
        Ok(Err(error)) => return error.close().apply(&connection),
        Err(_) => return Close::malformed("a snapshot without words").apply(&connection),
    };
    let Some(Announcement { header, total_bytes, .. }) = announcement else {
        return Close::malformed("malformed announcement of a snapshot").apply(&connection);
    };
    let places = (
        shared.snapshots_receiving.clone().try_acquire_owned(),
        receiving.places.clone().try_acquire_owned(),
    );
    let (Ok(of_node), Ok(of_peer)) = places else {
        shared.metrics.snapshots.received.count(Outcome::Busy);
        return answer(&mut send, Verdict::Busy(true)).await;
    };
    let under = Some(shared.metrics.snapshots.received.begin());
    let content = Content {
        send: Some(send),
        frames,
        patience: Patience::new(limits),
        shared: shared.clone(),
        under,
        _places: [of_node, of_peer],
    };
    shared.handler.on_snapshot(SnapshotOffer { from, header, total_bytes, content });
}

/// A snapshot that a peer wants to send: to be accepted or refused. Dropped, it is refused.
pub struct SnapshotOffer {
    from: NodeId,
    header: Bytes,
    total_bytes: u64,
    content: Content,
}

/// A snapshot on its way in. Dropped before [`SnapshotReceiver::confirm`], it has failed.
pub struct SnapshotReceiver {
    content: Content,
    /// What is still to come.
    left: u64,
}

/// The streams of a snapshot, and its places among the others.
struct Content {
    /// `None` once everything was said.
    send: Option<SendStream>,
    frames: FrameReader,
    patience: Patience,
    shared: Arc<Shared>,
    under: Option<Under>,
    _places: [OwnedSemaphorePermit; 2],
}

/// The sender did not send what it had announced: it or the network failed, or it was too slow.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the snapshot was not received: {0}")]
pub struct Unfinished(pub String);

impl SnapshotOffer {
    /// Who sends it.
    #[must_use]
    pub const fn from(&self) -> NodeId {
        self.from
    }

    /// What the sender says of it; at most [`super::SNAPSHOT_HEADER_BYTES_MAX`] bytes.
    #[must_use]
    pub const fn header(&self) -> &Bytes {
        &self.header
    }

    /// How large the sender says that it is. Nothing was reserved for it.
    #[must_use]
    pub const fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Lets the content come, without the first `offset` bytes, which are here already.
    ///
    /// # Errors
    /// When the sender has gone, or `offset` lies beyond the end.
    pub async fn accept(self, offset: u64) -> Result<SnapshotReceiver, Unfinished> {
        let Self { mut content, total_bytes, .. } = self;
        let Some(left) = total_bytes.checked_sub(offset) else {
            return Err(Unfinished(format!("offset {offset} lies beyond {total_bytes} bytes")));
        };
        content.say(Verdict::Accepted(offset)).await?;
        Ok(SnapshotReceiver { content, left })
    }

    /// Does not take it now; the sender tries again after a while.
    pub async fn busy(mut self) {
        // A sender that has gone needs no answer.
        drop(self.content.say(Verdict::Busy(true)).await);
        self.content.end(Outcome::Busy);
    }

    /// Does not take it; the sender reads the reason.
    pub async fn refuse(mut self, reason: &str) {
        // A sender that has gone needs no answer.
        drop(self.content.say(Verdict::refused(reason)).await);
        self.content.end(Outcome::Refused);
    }
}

impl SnapshotReceiver {
    /// The next piece of the content, as the network has cut it; `None` when all of it was received. The
    /// sender waits, in the end, when this is not called.
    ///
    /// # Errors
    /// When it will not come: the sender failed, sent another size, or was too slow.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Unfinished> {
        let Content { frames, patience, shared, .. } = &mut self.content;
        // QUIC's streams do not yield by themselves while they have data.
        consume_budget().await;
        let piece = match patience.wait(frames.next_piece()).await {
            Ok(Ok(piece)) => piece,
            Ok(Err(error)) => return Err(Unfinished(error.to_string())),
            Err(_) => return Err(Unfinished("the sender was too slow".to_owned())),
        };
        let Some(piece) = piece else {
            return match self.left {
                0 => Ok(None),
                left => Err(Unfinished(format!("it ended {left} bytes early"))),
            };
        };
        let Some(left) = self.left.checked_sub(piece.len() as u64) else {
            return Err(Unfinished("it is larger than was announced".to_owned()));
        };
        self.left = left;
        patience.progressed(piece.len());
        shared.metrics.snapshots.received.bytes.increment(piece.len() as u64);
        Ok(Some(piece))
    }

    /// Tells the sender that all of it is where it belongs.
    ///
    /// # Errors
    /// When the sender has gone; then it may send it again.
    pub async fn confirm(mut self) -> Result<(), Unfinished> {
        let said = self.content.say(Verdict::Stored(true)).await;
        self.content.end(Outcome::Done);
        said
    }

    /// Gives it up; the sender reads the reason.
    pub async fn fail(mut self, reason: &str) {
        // A sender that has gone needs no answer.
        drop(self.content.say(Verdict::failed(reason)).await);
        self.content.end(Outcome::Failed);
    }
}

impl Content {
    async fn say(&mut self, verdict: Verdict) -> Result<(), Unfinished> {
        let Some(send) = &mut self.send else {
            return Err(Unfinished("everything was said".to_owned()));
        };
        let written = self.patience.wait(send.write_chunk(verdict.frame())).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Unfinished(error.to_string())),
            Err(_) => Err(Unfinished("the sender does not listen".to_owned())),
        }
    }

    /// Lets what was said arrive, and takes nothing more.
    fn end(&mut self, outcome: Outcome) {
        if let Some(mut send) = self.send.take() {
            // It fails only when the connection has.
            drop(send.finish());
        }
        self.frames.stop(ENDED_EARLY);
        if let Some(under) = self.under.take() {
            under.end(outcome);
        }
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        if let Some(mut send) = self.send.take() {
            debug!("a snapshot was given up");
            drop(send.reset(ENDED_EARLY));
            self.frames.stop(ENDED_EARLY);
        }
    }
}

impl fmt::Debug for SnapshotOffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotOffer")
            .field("from", &self.from)
            .field("total_bytes", &self.total_bytes)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SnapshotReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotReceiver").field("left", &self.left).finish_non_exhaustive()
    }
}

/// The last words on a stream.
async fn answer(send: &mut SendStream, verdict: Verdict) {
    // A sender that has gone needs none.
    drop(send.write_chunk(verdict.frame()).await);
    drop(send.finish());
}
