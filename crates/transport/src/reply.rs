//! Answering: the replies that wait to be sent back to one peer, and the handle to give one.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;

use crate::config::Limits;
use crate::frame::{Frame, HEADER_BYTES};
use crate::metrics::{LaneKind, Metrics};
use crate::request::{Item, frame_of};
use crate::writer::Source;

/// The answer to one request: given once, from any thread. Dropped without one, it tells the peer
/// that the request may have run.
pub struct Replier {
    id: u64,
    /// `None` once it has answered.
    queue: Option<Arc<ReplyQueue>>,
}

impl Replier {
    /// Sends the reply. A reply larger than a frame, or one more than the peer's queue holds, becomes
    /// an error at the peer; one to a peer that has gone is dropped.
    pub fn send(mut self, body: Bytes) {
        if let Some(queue) = self.queue.take() {
            queue.finish(Item::Reply { id: self.id, body });
        }
    }
}

impl Drop for Replier {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            queue.finish(Item::Dropped { id: self.id });
        }
    }
}

impl fmt::Debug for Replier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replier").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Replies on their way back over one connection.
pub(crate) struct ReplyQueue {
    limits: Limits,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    bytes: usize,
    /// Requests that were accepted and not answered.
    running: usize,
    /// A stream carries the replies.
    is_claimed: bool,
    /// The connection is gone; nothing is kept for it.
    is_closed: bool,
    waker: Option<Waker>,
}

impl ReplyQueue {
    pub(crate) fn new(limits: Limits, metrics: Arc<Metrics>) -> Self {
        Self { limits, metrics, state: Mutex::default() }
    }

    /// Lets a request in, or tells the peer that too many of its requests run.
    pub(crate) fn accept(self: &Arc<Self>, id: u64) -> Option<Replier> {
        let mut state = self.state();
        if state.running >= self.limits.requests_max {
            self.push(state, Item::Busy { id });
            return None;
        }
        state.running += 1;
        Some(Replier { id, queue: Some(self.clone()) })
    }

    /// Drops what waits, and whatever will come.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        state.items.clear();
        state.waker = None;
        self.metrics.lane(LaneKind::Reply).queue_shrank(std::mem::take(&mut state.bytes));
    }

    /// True for the first caller: only one stream carries the replies of a connection.
    pub(crate) fn claim(&self) -> bool {
        !std::mem::replace(&mut self.state().is_claimed, true)
    }

    /// Takes what makes one frame, and its cost.
    fn take(&self) -> Option<(Vec<Item>, usize)> {
        let mut state = self.state();
        let (mut count, mut bytes) = (0, 0);
        for item in &state.items {
            let cost = item.cost_bytes();
            if count > 0 && bytes + cost > self.limits.frame_bytes_target {
                break;
            }
            count += 1;
            bytes += cost;
        }
        if count == 0 {
            return None;
        }
        state.bytes -= bytes;
        self.metrics.lane(LaneKind::Reply).queue_shrank(bytes);
        Some((state.items.drain(..count).collect(), bytes))
    }

    fn finish(&self, item: Item) {
        let mut state = self.state();
        state.running -= 1;
        let cost = item.cost_bytes();
        let fits = cost + HEADER_BYTES < self.limits.frame_bytes_max
            && state.bytes + cost <= self.limits.request_bytes_max;
        let item = match item {
            // Errors always fit: there are at most as many as requests that may run.
            Item::Reply { id, .. } if !fits => {
                self.metrics.dropped.oversized.increment(1);
                Item::Dropped { id }
            }
            item => item,
        };
        self.push(state, item);
    }

    fn push(&self, mut state: MutexGuard<'_, State>, item: Item) {
        if state.is_closed {
            return;
        }
        let cost = item.cost_bytes();
        state.bytes += cost;
        state.items.push_back(item);
        self.metrics.lane(LaneKind::Reply).queue_grew(cost);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for ReplyQueue {
    fn next_frame(&self, _lane: usize) -> Option<Frame> {
        let (items, bytes) = self.take()?;
        Some(frame_of(&items, bytes))
    }

    fn park(&self, open: u32, waker: &Waker) -> bool {
        let mut state = self.state();
        if open != 0 && !state.items.is_empty() {
            return false;
        }
        // A writer that the network holds up is woken by the network alone.
        state.waker = (open != 0).then(|| waker.clone());
        true
    }
}
