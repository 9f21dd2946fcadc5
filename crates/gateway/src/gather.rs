//! A connection whose small answers leave together.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is copied to wait for more, at most. More than that leaves at once: a call of its own is the smaller
/// part of what it costs.
const HELD_BYTES_MAX: usize = 4 * 1024;

/// Passes bytes through, but not as `h2` would by itself. Where a connection can write several buffers at a
/// time, `h2` sends every frame of 256 bytes or more in a call of its own: a batch of answers of 300 bytes
/// costs one call for each of them, which was a fifth of the CPU of a read. Told that it cannot, `h2` gathers
/// all frames below 1 KiB in its buffer; but for a larger one it writes that buffer and then the payload. So the
/// first is held here until the second, or a flush, comes, and both leave in one call.
///
/// What it has taken and not written is written by [`poll_flush`](AsyncWrite::poll_flush), as of any buffered
/// writer.
#[derive(Debug)]
pub(crate) struct Gather<T> {
    io: T,
    /// Taken and not written yet, from `written` on; at most [`HELD_BYTES_MAX`].
    held: Vec<u8>,
    written: usize,
}

impl<T> Gather<T> {
    pub(crate) const fn new(io: T) -> Self {
        Self { io, held: Vec::new(), written: 0 }
    }
}

impl<T: AsyncWrite + Unpin> Gather<T> {
    /// Writes what is held, and `bytes` behind it as far as they go along. Returns how many of those did: 0
    /// when they did not, though nothing is held any more.
    fn poll_write_held(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        while self.written < self.held.len() {
            let held = &self.held[self.written..];
            let count = if bytes.is_empty() {
                ready!(Pin::new(&mut self.io).poll_write(context, held))?
            } else {
                let both = [IoSlice::new(held), IoSlice::new(bytes)];
                ready!(Pin::new(&mut self.io).poll_write_vectored(context, &both))?
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let left = held.len();
            self.written += count.min(left);
            if count > left {
                self.forget();
                return Poll::Ready(Ok(count - left));
            }
        }
        self.forget();
        Poll::Ready(Ok(0))
    }

    /// Nothing is held. The memory goes too: most connections are idle.
    fn forget(&mut self) {
        self.held = Vec::new();
        self.written = 0;
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gather<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gather<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let along = ready!(this.poll_write_held(context, bytes))?;
        if along > 0 || bytes.is_empty() {
            return Poll::Ready(Ok(along));
        }
        if bytes.len() > HELD_BYTES_MAX {
            return Pin::new(&mut this.io).poll_write(context, bytes);
        }
        this.held.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    /// See [`Gather`].
    fn is_write_vectored(&self) -> bool {
        false
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_held(context, &[]))?;
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_held(context, &[]))?;
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A socket that takes so many bytes with each call: none means "not now". When nothing is said any more
    /// it takes everything.
    #[derive(Default)]
    struct Socket {
        takes: VecDeque<usize>,
        taken: Vec<u8>,
        calls: usize,
    }

    impl AsyncWrite for Socket {
        fn poll_write(
            self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(context, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.calls += 1;
            let room = self.takes.pop_front().unwrap_or(usize::MAX);
            if room == 0 {
                return Poll::Pending;
            }
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
            let count = room.min(all.len());
            self.taken.extend_from_slice(&all[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Until all of `bytes` is taken.
    fn write(gather: &mut Gather<Socket>, mut bytes: &[u8]) {
        let mut context = Context::from_waker(Waker::noop());
        while !bytes.is_empty() {
            if let Poll::Ready(count) = Pin::new(&mut *gather).poll_write(&mut context, bytes) {
                bytes = &bytes[count.expect("a whole socket")..];
            }
        }
    }

    fn flush(gather: &mut Gather<Socket>) {
        let mut context = Context::from_waker(Waker::noop());
        while Pin::new(&mut *gather).poll_flush(&mut context).is_pending() {}
    }

    #[test]
    fn a_head_and_its_payload_leave_in_one_call_and_so_does_what_is_flushed_alone() {
        let mut gather = Gather::new(Socket::default());
        write(&mut gather, &[1; 40]);
        assert_eq!(gather.io.calls, 0, "more may follow");
        write(&mut gather, &[2; 5_000]);
        assert_eq!((gather.io.calls, gather.io.taken.len()), (1, 5_040));
        flush(&mut gather);
        assert_eq!(gather.io.calls, 1, "nothing is held");
        write(&mut gather, &[3; 300]);
        flush(&mut gather);
        assert_eq!((gather.io.calls, gather.io.taken.len()), (2, 5_340));
        assert_eq!(gather.held.capacity(), 0, "an idle connection holds no memory");
    }

    #[test]
    fn a_socket_that_takes_nothing_ends_the_connection() {
        let mut context = Context::from_waker(Waker::noop());
        let mut full = Gather::new(io::Cursor::new(Box::<[u8]>::default()));
        assert!(Pin::new(&mut full).poll_write(&mut context, b"x").is_ready());
        let flushed = Pin::new(&mut full).poll_flush(&mut context);
        assert!(
            matches!(flushed, Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::WriteZero)
        );
    }

    proptest! {
        #[test]
        fn whatever_a_socket_takes_at_a_time_it_gets_all_bytes_in_order(
            writes in vec((0..9_000usize, any::<bool>()), 1..20),
            takes in vec(prop_oneof![Just(0), 1..6_000usize], 0..40),
        ) {
            let mut gather = Gather::new(Socket { takes: takes.into(), ..Socket::default() });
            let mut expected = Vec::new();
            for (length, flushes) in writes {
                let bytes: Vec<_> = (0..length).map(|at| (expected.len() + at) as u8).collect();
                write(&mut gather, &bytes);
                expected.extend(bytes);
                prop_assert!(gather.held.len() <= HELD_BYTES_MAX);
                if flushes {
                    flush(&mut gather);
                    prop_assert_eq!(&gather.io.taken, &expected);
                }
            }
            flush(&mut gather);
            prop_assert_eq!(gather.io.taken, expected);
        }
    }
}
