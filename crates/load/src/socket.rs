//! A socket on which small requests leave together.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// From this on a payload does not go through `h2`'s buffer, whatever the socket can do.
const LARGE_BYTES: usize = 1024;

/// Passes bytes through, and says whether it can write several buffers in one call. Where that is so, `h2` sends
/// every frame of 256 bytes or more in a call of its own, which is most of what a put of that size costs its
/// client. Where it is not, frames below 1 KiB leave together, but larger ones take two calls each.
pub(crate) struct Socket {
    stream: TcpStream,
    writes_vectored: bool,
}

impl Socket {
    /// The best for requests of about `request_bytes`.
    pub(crate) const fn new(stream: TcpStream, request_bytes: usize) -> Self {
        Self { stream, writes_vectored: request_bytes >= LARGE_BYTES }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.writes_vectored
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
