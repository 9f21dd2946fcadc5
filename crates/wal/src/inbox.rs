//! The queue of a thread: a channel whose reader goes to sleep at once when there is nothing.
//!
//! The channel's own `recv` first spins and then yields a few times. That is worth it where the next item is
//! nanoseconds away. Here it is a sync or a message of another node away, and cores that spin for one node
//! are what the others of the machine wait for.

use std::thread::{self, Thread};
use std::time::Instant;

use crossbeam_channel::{
    Receiver, RecvTimeoutError, SendError, Sender, TryRecvError, TrySendError,
};

/// The reader's side: of one thread, the one that [`InboxSender`] was told of.
#[derive(Debug)]
pub struct Inbox<T> {
    items: Receiver<T>,
}

/// The way into an [`Inbox`]. The reader ends when the last one is gone.
#[derive(Debug)]
pub struct InboxSender<T> {
    /// `None` only while it is dropped.
    items: Option<Sender<T>>,
    reader: Thread,
}

/// The sending half before its reader's thread is known.
#[derive(Debug)]
pub struct Unattended<T> {
    items: Sender<T>,
}

/// An inbox of `capacity` items, or of any number.
#[must_use]
pub fn inbox<T>(capacity: Option<usize>) -> (Unattended<T>, Inbox<T>) {
    let (items, read) = match capacity {
        Some(capacity) => crossbeam_channel::bounded(capacity),
        None => crossbeam_channel::unbounded(),
    };
    (Unattended { items }, Inbox { items: read })
}

impl<T> Unattended<T> {
    /// The inbox was handed to the thread `reader`, which alone reads it.
    #[must_use]
    pub fn read_by(self, reader: &Thread) -> InboxSender<T> {
        InboxSender { items: Some(self.items), reader: reader.clone() }
    }
}

impl<T> InboxSender<T> {
    /// Puts an item in if there is room; never waits.
    ///
    /// # Errors
    /// With the item, when the inbox is full or its reader has ended.
    pub fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        let Some(items) = &self.items else { return Err(TrySendError::Disconnected(item)) };
        items.try_send(item)?;
        // After the item: the reader looks again once it is woken, and a wake-up that comes before it sleeps is
        // kept for it.
        self.reader.unpark();
        Ok(())
    }

    /// Puts an item in; waits while there is no room, which an inbox for any number never lacks.
    ///
    /// # Errors
    /// With the item, when the reader has ended.
    pub fn send(&self, item: T) -> Result<(), SendError<T>> {
        let Some(items) = &self.items else { return Err(SendError(item)) };
        items.send(item)?;
        self.reader.unpark();
        Ok(())
    }
}

impl<T> Clone for InboxSender<T> {
    fn clone(&self) -> Self {
        Self { items: self.items.clone(), reader: self.reader.clone() }
    }
}

impl<T> Drop for InboxSender<T> {
    fn drop(&mut self) {
        // First gone, then woken: otherwise the reader could look too early, and sleep for ever.
        drop(self.items.take());
        self.reader.unpark();
    }
}

impl<T> Inbox<T> {
    /// The next item, if there is one.
    #[must_use]
    pub fn try_recv(&self) -> Option<T> {
        self.items.try_recv().ok()
    }

    /// The next item, once there is one; `None` when no sender is left and all is read.
    #[must_use]
    pub fn recv(&self) -> Option<T> {
        loop {
            match self.items.try_recv() {
                Ok(item) => return Some(item),
                Err(TryRecvError::Disconnected) => return None,
                // May return without a cause, or for an item that was read already.
                Err(TryRecvError::Empty) => thread::park(),
            }
        }
    }

    /// The next item, until `deadline`.
    ///
    /// # Errors
    /// When none has come until then, or no sender is left and all is read.
    pub fn recv_deadline(&self, deadline: Instant) -> Result<T, RecvTimeoutError> {
        loop {
            match self.items.try_recv() {
                Ok(item) => return Ok(item),
                Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(RecvTimeoutError::Timeout);
            }
            thread::park_timeout(left);
        }
    }

    /// How many items wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_reader_that_sleeps_gets_every_item_and_then_the_end() {
        const ITEMS: u64 = 20_000;
        let (unattended, inbox) = inbox(Some(2));
        let (asked, asks) = mpsc::channel();
        let reader = thread::spawn(move || {
            let mut read = Vec::new();
            while let Some(item) = inbox.recv() {
                read.push(item);
                // Every other item comes only when the inbox is empty and its reader likely asleep.
                if item % 2 == 0 {
                    asked.send(()).unwrap();
                }
            }
            read
        });
        let sender = unattended.read_by(reader.thread());
        for item in 0..ITEMS {
            sender.clone().send(item).unwrap();
            if item % 2 == 0 {
                asks.recv().unwrap();
            }
        }
        drop(sender);
        assert_eq!(reader.join().unwrap(), (0..ITEMS).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_inbox_gives_the_item_back_and_one_without_a_reader_too() {
        let (unattended, inbox) = inbox(Some(1));
        let sender = unattended.read_by(&thread::current());
        sender.try_send(1).unwrap();
        assert_eq!(sender.try_send(2), Err(TrySendError::Full(2)));
        assert_eq!((inbox.len(), inbox.try_recv(), inbox.is_empty()), (1, Some(1), true));
        drop(inbox);
        assert_eq!(sender.try_send(3), Err(TrySendError::Disconnected(3)));
        assert_eq!(sender.send(4), Err(SendError(4)));
    }

    #[test]
    fn a_deadline_ends_the_wait_and_what_was_there_before_it_is_read_first() {
        let (unattended, inbox) = inbox(None);
        let sender = unattended.read_by(&thread::current());
        sender.send(1).unwrap();
        let past = Instant::now();
        assert_eq!(inbox.recv_deadline(past), Ok(1));
        assert_eq!(inbox.recv_deadline(past), Err(RecvTimeoutError::Timeout));
        let soon = Instant::now() + Duration::from_millis(1);
        assert_eq!(inbox.recv_deadline(soon), Err(RecvTimeoutError::Timeout));
        drop(sender);
        assert_eq!(inbox.recv_deadline(soon), Err(RecvTimeoutError::Disconnected));
        assert_eq!(inbox.recv(), None);
    }
}
