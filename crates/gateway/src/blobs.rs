//! A file as a stream of messages: backups on their way to a client.

use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tonic::Status;

use crate::backend::Backup;
use crate::error::ApiError;

/// Bytes of a message.
const BLOB_BYTES: usize = 64 << 10;

/// Messages that wait for a slow client at most.
const WAITING_MAX: usize = 4;

/// A part of a file.
pub(crate) struct Blob {
    pub(crate) bytes: Bytes,
    /// What of the file is still to come.
    pub(crate) remaining_bytes: u64,
}

/// The messages of one file; the last one carries the SHA-256 of all others. The file is gone when this is.
pub(crate) struct Blobs<T> {
    messages: mpsc::Receiver<Result<T, Status>>,
}

impl<T: Send + 'static> Blobs<T> {
    /// Reads `backup` on a thread of its own, as fast as its client takes it.
    pub(crate) fn new(backup: Backup, message: impl Fn(Blob) -> T + Send + 'static) -> Self {
        let (sender, messages) = mpsc::channel(WAITING_MAX);
        // It ends with the file, or when nobody listens any more.
        drop(tokio::task::spawn_blocking(move || {
            if let Err(error) = send(backup, &sender, message) {
                tracing::error!(%error, "a backup cannot be read back");
                drop(sender.blocking_send(Err(ApiError::SnapshotFailed.into())));
            }
        }));
        Self { messages }
    }
}

fn send<T>(
    mut backup: Backup,
    sender: &mpsc::Sender<Result<T, Status>>,
    message: impl Fn(Blob) -> T,
) -> io::Result<()> {
    let (mut sha, mut remaining_bytes) = (Sha256::new(), backup.bytes);
    while remaining_bytes > 0 {
        let length = usize::try_from(remaining_bytes).unwrap_or(usize::MAX).min(BLOB_BYTES);
        let mut bytes = vec![0; length];
        backup.content.read_exact(&mut bytes)?;
        sha.update(&bytes);
        remaining_bytes -= length as u64;
        if sender.blocking_send(Ok(message(Blob { bytes: bytes.into(), remaining_bytes }))).is_err()
        {
            return Ok(());
        }
    }
    let last = Blob { bytes: sha.finalize().to_vec().into(), remaining_bytes: 0 };
    drop(sender.blocking_send(Ok(message(last))));
    Ok(())
}

impl<T> Stream for Blobs<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.messages.poll_recv(context)
    }
}
