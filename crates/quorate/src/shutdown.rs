//! How the process ends: signals, bounds, and exit codes.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | done, or stopped cleanly by Ctrl-C or SIGTERM |
//! | 1 | could not start, did not stop in time, or (`status`) an endpoint did not answer |
//! | 2 | wrong usage or wrong configuration; nothing was touched |
//! | 3 | a part of a node ended by itself |
//! | 4 | the node has been removed from its cluster; it need not be started again |
//! | 5 | the node's data directory is an older copy of what it had, or a second copy in use |
//! | 6 | the node is fenced: its log or state is damaged ([`quorate_node::EXIT_FENCED`]); replace it. `check`: it found damage |
//! | 70 | a node's log or state could not be written ([`quorate_node::EXIT_STORAGE_FAILED`]) |
//! | 130 | a second Ctrl-C or SIGTERM ended it at once |

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How long the engine may take to stop: it flushes its state and syncs its log. The gateway has its own
/// grace before that.
pub const ENGINE_STOP_MAX: Duration = Duration::from_secs(10);

/// Why a command did not end well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// It could not start, or did not stop in time.
    Failed,
    /// Wrong usage or configuration.
    Usage,
    /// A part of a node ended by itself.
    Broken,
    /// The node has been removed from its cluster.
    Removed,
    /// The node's data directory is a copy that must not be used.
    Copy,
    /// What is on disk is not what was written.
    Damaged,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Broken => 3,
            Exit::Removed => 4,
            Exit::Copy => 5,
            // The process ends by the same number when the damage is met while it runs.
            Exit::Damaged => quorate_node::EXIT_FENCED as u8,
        })
    }
}

/// The exit code of a second signal: the shell's for "ended by Ctrl-C".
const EXIT_AT_ONCE: i32 = 130;

/// The wish that the process stop; clones hear of the same one.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// A stop and what requests it.
    #[must_use]
    pub fn channel() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Resolves once it is requested; also when whoever could request it is gone.
    pub async fn requested(&self) {
        // An error means that the sender is gone, which is a stop too.
        drop(self.0.clone().wait_for(|stop| *stop).await);
    }
}

/// A stop that the first SIGINT or SIGTERM requests; the second ends the process at once.
///
/// # Errors
/// When the system refuses to deliver signals.
pub fn on_signals() -> io::Result<Stop> {
    let (sender, stop) = Stop::channel();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        };
        tracing::info!(signal = name, "stopping; a second signal ends the process at once");
        sender.send_replace(true);
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(EXIT_AT_ONCE);
    });
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stop_is_heard_by_every_clone_before_and_after() {
        let (sender, stop) = Stop::channel();
        let early = tokio::spawn({
            let stop = stop.clone();
            async move { stop.requested().await }
        });
        sender.send_replace(true);
        early.await.unwrap();
        stop.requested().await;
    }

    #[tokio::test]
    async fn a_stop_whose_sender_is_gone_counts_as_requested() {
        let (sender, stop) = Stop::channel();
        drop(sender);
        stop.requested().await;
    }
}
