//! The rate at which all snapshots of a node use its disk.
//!
//! As fast as the disk gives, an export or the tables of an installation would take all of it for seconds, and
//! every sync of the log would wait behind: puts had a p99 of twenty times the usual one.

use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use quorate_transport::Pace;

use crate::engine::lock;

/// Lets whoever writes a snapshot wait for its turn, on a thread that may block.
#[derive(Debug)]
pub(crate) struct DiskPace {
    pace: Mutex<Pace>,
    stopped: Mutex<bool>,
    stop: Condvar,
}

impl DiskPace {
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        let pace = Mutex::new(Pace::new(bytes_per_second));
        Self { pace, stopped: Mutex::default(), stop: Condvar::new() }
    }

    /// Blocks until `bytes` more may be written.
    ///
    /// # Errors
    /// When the node stops.
    pub(crate) fn wait(&self, bytes: usize) -> io::Result<()> {
        let now = Instant::now();
        let left = lock(&self.pace).reserve(now, bytes).saturating_duration_since(now);
        let stopped = self.stop.wait_timeout_while(lock(&self.stopped), left, |stopped| !*stopped);
        // Nobody panics who holds it.
        let (stopped, _) = stopped.unwrap_or_else(std::sync::PoisonError::into_inner);
        if *stopped { Err(io::Error::other("the node is stopping")) } else { Ok(()) }
    }

    /// True once nobody may wait any more.
    pub(crate) fn is_stopped(&self) -> bool {
        *lock(&self.stopped)
    }

    /// Ends the wait of all, now and later: a node that goes down does not stay for a snapshot.
    pub(crate) fn stop(&self) {
        *lock(&self.stopped) = true;
        self.stop.notify_all();
    }
}

/// Reads no faster than what is made of it may be written.
#[derive(Debug)]
pub(crate) struct Paced<R> {
    source: R,
    pace: Option<Arc<DiskPace>>,
}

impl<R> Paced<R> {
    /// Without a pace as fast as it goes.
    pub(crate) const fn new(source: R, pace: Option<Arc<DiskPace>>) -> Self {
        Self { source, pace }
    }
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buf)?;
        if let Some(pace) = &self.pace {
            pace.wait(read)?;
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_for_a_turn_that_is_far_away_is_sent_home_by_the_end_of_the_node() {
        let pace = Arc::new(DiskPace::new(1));
        pace.wait(1_000_000).unwrap();
        let mut waits = Paced::new(&b"abc"[..], Some(Arc::clone(&pace)));
        let waiting =
            std::thread::spawn(move || waits.read(&mut [0; 3]).map_err(|e| e.to_string()));
        pace.stop();
        assert_eq!(waiting.join().unwrap().unwrap_err(), "the node is stopping");
        pace.wait(1).unwrap_err();
    }

    #[test]
    fn what_is_read_is_what_there_is() {
        let pace = Some(Arc::new(DiskPace::new(u64::MAX)));
        for pace in [pace, None] {
            let mut read = Vec::new();
            Paced::new(&b"abc"[..], pace).read_to_end(&mut read).unwrap();
            assert_eq!(read, b"abc");
        }
    }
}
