//! The directory of one group in memory: written by its machine, read by whoever reads the keyspace.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quorate_types::auth::{AuthCell, Claim, Directory};

/// What the machine has applied last. It may be ahead of a view, never behind what was written.
#[derive(Debug)]
pub(crate) struct Live(Mutex<State>);

#[derive(Debug)]
struct State {
    now: Arc<Directory>,
    /// None once the machine has ended.
    shown: Option<Claim>,
}

impl Live {
    /// Begins with `directory`, and shows it in `cell`.
    pub(crate) fn new(directory: Directory, cell: &Arc<AuthCell>) -> Self {
        let (now, shown) = (Arc::new(directory), cell.claim());
        shown.show(&now);
        Self(Mutex::new(State { now, shown: Some(shown) }))
    }

    /// The directory as of the last command.
    pub(crate) fn now(&self) -> Arc<Directory> {
        Arc::clone(&self.lock().now)
    }

    /// Takes the place of the last one.
    pub(crate) fn set(&self, directory: Directory) {
        let mut state = self.lock();
        state.now = Arc::new(directory);
        if let Some(shown) = &state.shown {
            shown.show(&state.now);
        }
    }

    /// The machine is gone: this node knows nothing of users any more, unless another one has taken over.
    pub(crate) fn end(&self) {
        self.lock().shown = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can panic half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
