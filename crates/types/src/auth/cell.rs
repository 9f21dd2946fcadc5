//! Where a node's replica of the keyspace shows its directory to whoever asks on that node.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::directory::Directory;

/// No replica has shown anything, or the one that did is gone.
const UNKNOWN: u8 = 0;
/// Users do not count.
const OFF: u8 = 1;
/// Users count.
const ON: u8 = 2;

/// A place for the newest directory of a node. Whoever reads it may be behind what other nodes have applied,
/// never ahead of what is committed.
#[derive(Default, Debug)]
pub struct AuthCell {
    state: AtomicU8,
    shown: Mutex<Shown>,
}

#[derive(Default, Debug)]
struct Shown {
    /// Claims given so far.
    claims: u64,
    directory: Option<Arc<Directory>>,
}

/// The right of one machine to show its directory, until another one claims the cell or this is dropped.
#[derive(Debug)]
pub struct Claim {
    cell: Arc<AuthCell>,
    number: u64,
}

impl AuthCell {
    /// True when users do not count, as far as this node knows: one load.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.state.load(Ordering::Acquire) == OFF
    }

    /// The directory; `None` when no replica here shows one.
    #[must_use]
    pub fn directory(&self) -> Option<Arc<Directory>> {
        self.lock().directory.clone()
    }

    /// The cell for one machine, which takes it from any earlier one.
    #[must_use]
    pub fn claim(self: &Arc<Self>) -> Claim {
        let mut shown = self.lock();
        shown.claims += 1;
        Claim { cell: Arc::clone(self), number: shown.claims }
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        // No code under the lock can panic half way through a change.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, number: u64, directory: Option<Arc<Directory>>) {
        let mut shown = self.lock();
        if shown.claims != number {
            return;
        }
        let state = directory.as_ref().map_or(UNKNOWN, |now| if now.enabled() { ON } else { OFF });
        shown.directory = directory;
        // Under the lock: no other claim's state can come in between.
        self.state.store(state, Ordering::Release);
    }
}

impl Claim {
    /// Shows a directory, unless the cell has been claimed by another machine since.
    pub fn show(&self, directory: &Arc<Directory>) {
        self.cell.set(self.number, Some(Arc::clone(directory)));
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.cell.set(self.number, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_ends_late_does_not_take_what_its_successor_shows() {
        let cell = Arc::new(AuthCell::default());
        assert!(!cell.is_off(), "nothing is known yet, so nothing is open");
        let first = cell.claim();
        first.show(&Arc::default());
        assert!(cell.is_off());
        let second = cell.claim();
        second.show(&Arc::default());
        drop(first);
        assert!(cell.is_off() && cell.directory().is_some());
        drop(second);
        assert!(!cell.is_off() && cell.directory().is_none());
    }
}
