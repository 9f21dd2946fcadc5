//! OS threads with a tokio runtime of their own.
//!
//! By default a node has one current-thread runtime for its engine and its gateway: a request then goes
//! from the one to the other without waking a thread, which costs more than all else that is done for a
//! small request. On many cores threads of its own for the gateway, or more for either, are a setting.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How long tasks that block may hold up the end of a runtime.
const SHUTDOWN_MAX: Duration = Duration::from_secs(1);

/// A thread that runs one future, and what that future spawns, to its end.
#[derive(Debug)]
pub struct RuntimeThread<T> {
    ended: oneshot::Receiver<T>,
    handle: Handle,
}

/// A part of a node: on a thread of its own, or on that of another part.
#[derive(Debug)]
pub enum Part<T> {
    /// On its own.
    Own(RuntimeThread<T>),
    /// On another's.
    Guest(JoinHandle<T>),
}

impl<T: Send + 'static> Part<T> {
    /// True once the future has returned or panicked. Its result is then lost.
    pub fn has_ended(&mut self) -> bool {
        match self {
            Self::Own(thread) => thread.has_ended(),
            Self::Guest(task) => task.is_finished(),
        }
    }

    /// What the future returned; `None` if it panicked.
    pub async fn ended(&mut self) -> Option<T> {
        match self {
            Self::Own(thread) => thread.ended().await,
            Self::Guest(task) => task.await.ok(),
        }
    }
}

impl<T: Send + 'static> RuntimeThread<T> {
    /// Runs `main` on a runtime of `threads` threads called `node-part`. With one thread, everything runs
    /// on the thread that `main` runs on, and its log lines carry the node's name: several nodes may
    /// share a process.
    ///
    /// # Errors
    /// When the system gives no thread or no event queue.
    pub fn start<F, M>(node: &str, part: &str, threads: usize, main: F) -> io::Result<Self>
    where
        F: FnOnce() -> M + Send + 'static,
        M: Future<Output = T>,
    {
        let name = format!("{node}-{part}");
        let runtime = runtime(&name, threads)?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel();
        // An error's span is there whatever level is logged.
        let span = tracing::error_span!("on", node);
        std::thread::Builder::new().name(name).spawn(move || {
            let _named = span.entered();
            let result = runtime.block_on(async { main().await });
            runtime.shutdown_timeout(SHUTDOWN_MAX);
            // Nobody waits any more: then nobody wants the result.
            drop(end.send(result));
        })?;
        Ok(Self { ended, handle })
    }

    /// Runs another part's `main` beside this one's, on the same threads.
    pub fn take_in<U, F>(&self, main: F) -> Part<U>
    where
        U: Send + 'static,
        F: Future<Output = U> + Send + 'static,
    {
        Part::Guest(self.handle.spawn(main))
    }

    /// True once the future has returned or panicked and its runtime is gone. Its result is then lost.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.ended.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }

    /// What the future returned, once the runtime is gone; `None` if it panicked.
    pub async fn ended(&mut self) -> Option<T> {
        (&mut self.ended).await.ok()
    }
}

fn runtime(name: &str, threads: usize) -> io::Result<Runtime> {
    let mut builder =
        if threads == 1 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    if threads > 1 {
        builder.worker_threads(threads);
    }
    builder.thread_name(name).enable_all().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        runtime("test", 1).unwrap().block_on(future)
    }

    #[test]
    fn a_thread_gives_back_what_its_future_returns() {
        for threads in [1, 2] {
            let mut thread = RuntimeThread::start("n1", "t", threads, move || async move {
                tokio::spawn(async move { threads * 10 }).await.unwrap()
            })
            .unwrap();
            assert_eq!(block_on(thread.ended()), Some(threads * 10));
        }
    }

    #[test]
    fn a_panic_is_seen_by_whoever_waits() {
        let mut thread: RuntimeThread<()> =
            RuntimeThread::start("n1", "t", 1, || async { panic!("on purpose") }).unwrap();
        assert_eq!(block_on(thread.ended()), None);
    }
}
