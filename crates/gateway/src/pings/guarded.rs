//! A connection that passes bytes through, watches the frames in them, and ends when pings are too many.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use metrics::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::frames::Frames;
use super::policy::PingPolicy;

/// `GOAWAY` (RFC 9113, section 6.8) with `ENHANCE_YOUR_CALM`, and the words that gRPC's clients know:
/// they ping half as often from then on. Its last stream is the highest there can be: no call is said
/// to be safe to send again.
const GOAWAY: &[u8] =
    b"\x00\x00\x16\x07\x00\x00\x00\x00\x00\x7f\xff\xff\xff\x00\x00\x00\x0btoo_many_pings";

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Guarded<T> {
    io: T,
    received: Frames,
    sent: Frames,
    policy: PingPolicy,
    refused: Counter,
}

impl<T> Guarded<T> {
    /// Guards `io`, whose client begins with `preface_bytes` before its first frame. `refused` counts the
    /// connections that are ended.
    pub(crate) const fn new(
        io: T,
        preface_bytes: u64,
        min_time: Duration,
        refused: Counter,
    ) -> Self {
        Self {
            io,
            received: Frames::after(preface_bytes),
            sent: Frames::after(0),
            policy: PingPolicy::new(min_time),
            refused,
        }
    }

    fn on_written(&mut self, bytes: &[u8]) {
        let policy = &mut self.policy;
        self.sent.feed(bytes, |frame| policy.on_sent(frame));
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(context, buffer))?;
        let policy = &mut this.policy;
        let mut is_calm = true;
        this.received.feed(&buffer.filled()[before..], |frame| {
            is_calm &= policy.on_received(frame, Instant::now);
        });
        if is_calm {
            return Poll::Ready(Ok(()));
        }
        this.refused.increment(1);
        // In the middle of a frame, or with a socket that takes no more, the client is cut off without a
        // word: it has room for nothing.
        if this.sent.is_between() {
            let _ = Pin::new(&mut this.io).poll_write(context, GOAWAY);
            let _ = Pin::new(&mut this.io).poll_shutdown(context);
        }
        Poll::Ready(Err(io::Error::other("too many pings")))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(context, bytes))?;
        self.on_written(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(context, slices))?;
        let mut left = written;
        for slice in slices {
            let part = left.min(slice.len());
            self.on_written(&slice[..part]);
            left -= part;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
