//! What waits to be sent to one peer: a queue per lane, each bounded in bytes, and the requests that
//! wait for replies.
//!
//! Senders never block. While there is no connection nothing waits: messages are dropped and
//! requests refused at once, so that a peer that returns is not met with what has gone stale.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;
use quorate_types::codec::{put_frame_header, put_message};
use quorate_types::{Body, Entry, GroupId, Message, NodeId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::config::Limits;
use crate::frame::{Frame, HEADER_BYTES};
use crate::metrics::{LaneKind, Metrics};
use crate::request::{ITEM_OVERHEAD_BYTES, Item, NotSent, RequestError, Unknown, frame_of};
use crate::writer::Source;

/// The control lane's place among the lanes of a connection; the first, as it is drained first.
pub(crate) const CONTROL_LANE: usize = 0;
/// The request lane's place.
pub(crate) const REQUEST_LANE: usize = 1;
/// The place of the first append lane.
pub(crate) const APPEND_LANES: usize = 2;

/// What a message takes in a frame beside its entries, at most: its length, kind, five ids and its
/// fields, of up to ten bytes each.
const MESSAGE_OVERHEAD_BYTES: usize = 96;

pub(crate) struct Outbox {
    limits: Limits,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
}

struct State {
    /// True between [`Outbox::connect`] and [`Outbox::disconnect`].
    connected: bool,
    control: Queue<Message>,
    appends: Vec<Queue<Message>>,
    requests: Queue<Waiting>,
    /// Requests without a reply, by id; those that wait to be written are here too.
    pending: BTreeMap<u64, Pending>,
    request_id: u64,
    /// The writer, when it sleeps, and the lanes for which it wants to be woken.
    waker: Option<(Waker, u32)>,
}

/// Things that wait on one lane, with what each of them costs.
struct Queue<T> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
}

struct Waiting {
    id: u64,
    body: Bytes,
    deadline: Instant,
}

struct Pending {
    reply: oneshot::Sender<Result<Bytes, RequestError>>,
    /// Whether the request was handed to the network.
    written: bool,
}

/// A request that waits for its reply. Dropping it gives the request up.
pub(crate) struct Waiter {
    outbox: Arc<Outbox>,
    id: u64,
    reply: oneshot::Receiver<Result<Bytes, RequestError>>,
}

impl Outbox {
    pub(crate) fn new(lanes: usize, limits: Limits, metrics: Arc<Metrics>) -> Self {
        let state = State {
            connected: false,
            control: Queue::new(),
            appends: (0..lanes).map(|_| Queue::new()).collect(),
            requests: Queue::new(),
            pending: BTreeMap::new(),
            request_id: 0,
            waker: None,
        };
        Self { limits, metrics, state: Mutex::new(state) }
    }

    /// Opens the queues for a new connection.
    pub(crate) fn connect(&self) {
        self.state().connected = true;
    }

    /// Empties the queues, and fails every request that waits.
    pub(crate) fn disconnect(&self) {
        let mut state = self.state();
        state.connected = false;
        state.waker = None;
        let (messages, bytes) = state.control.clear();
        self.metrics.lane(LaneKind::Control).queue_shrank(bytes);
        let mut dropped = messages;
        for queue in &mut state.appends {
            let (messages, bytes) = queue.clear();
            self.metrics.lane(LaneKind::Append).queue_shrank(bytes);
            dropped += messages;
        }
        self.metrics.dropped.disconnected.increment(dropped as u64);
        let (_, bytes) = state.requests.clear();
        self.metrics.lane(LaneKind::Request).queue_shrank(bytes);
        let pending = std::mem::take(&mut state.pending);
        drop(state);
        for request in pending.into_values() {
            let error = if request.written {
                RequestError::Unknown(Unknown::ConnectionLost)
            } else {
                RequestError::NotSent(NotSent::NotConnected)
            };
            // A caller that has gone meanwhile needs no answer.
            let _ = request.reply.send(Err(error));
        }
    }

    /// Queues messages, each on its lane.
    pub(crate) fn push(&self, messages: Vec<Message>) {
        let mut guard = self.state();
        let state = &mut *guard;
        if !state.connected {
            self.metrics.dropped.disconnected.increment(messages.len() as u64);
            return;
        }
        let (mut control_bytes, mut append_bytes, mut lanes) = (0, 0, 0u32);
        for message in messages {
            let cost = cost_bytes(&message);
            if cost + HEADER_BYTES > self.limits.frame_bytes_max {
                self.metrics.dropped.oversized.increment(1);
            } else if message.body.is_control() {
                state.control.push(message, cost);
                control_bytes += cost;
                lanes |= 1 << CONTROL_LANE;
            } else {
                let lane = lane_of(message.group, state.appends.len());
                let queue = &mut state.appends[lane];
                if queue.bytes + cost > self.limits.lane_bytes_max {
                    self.metrics.dropped.full.increment(1);
                    continue;
                }
                queue.push(message, cost);
                append_bytes += cost;
                lanes |= 1 << (APPEND_LANES + lane);
            }
        }
        if control_bytes > 0 {
            self.metrics.lane(LaneKind::Control).queue_grew(control_bytes);
            while state.control.bytes > self.limits.control_bytes_max {
                let Some((_, cost)) = state.control.pop() else { break };
                self.metrics.lane(LaneKind::Control).queue_shrank(cost);
                self.metrics.dropped.full.increment(1);
            }
        }
        if append_bytes > 0 {
            self.metrics.lane(LaneKind::Append).queue_grew(append_bytes);
        }
        wake(guard, lanes);
    }

    /// Queues a request.
    pub(crate) fn request(
        self: &Arc<Self>,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Waiter, NotSent> {
        let cost = body.len() + ITEM_OVERHEAD_BYTES;
        if cost + HEADER_BYTES >= self.limits.frame_bytes_max {
            return Err(NotSent::TooLarge);
        }
        let mut state = self.state();
        if !state.connected {
            return Err(NotSent::NotConnected);
        }
        if state.pending.len() >= self.limits.requests_max
            || state.requests.bytes + cost > self.limits.request_bytes_max
        {
            return Err(NotSent::QueueFull);
        }
        state.request_id += 1;
        let id = state.request_id;
        let (sender, reply) = oneshot::channel();
        state.pending.insert(id, Pending { reply: sender, written: false });
        state.requests.push(Waiting { id, body, deadline }, cost);
        self.metrics.lane(LaneKind::Request).queue_grew(cost);
        wake(state, 1 << REQUEST_LANE);
        Ok(Waiter { outbox: self.clone(), id, reply })
    }

    /// Hands the replies of one frame to whom they belong. Replies that nobody waits for any more
    /// are ignored; requests among them are the peer's mistake.
    pub(crate) fn on_replies(&self, items: Vec<Item>) {
        let mut state = self.state();
        for item in items {
            let (id, result) = match item {
                Item::Reply { id, body } => (id, Ok(body)),
                Item::Busy { id } => (id, Err(RequestError::NotSent(NotSent::Busy))),
                Item::Dropped { id } => (id, Err(RequestError::Unknown(Unknown::Dropped))),
                Item::Request { .. } => continue,
            };
            if let Some(request) = state.pending.remove(&id) {
                let _ = request.reply.send(result);
            }
        }
    }

    /// How many requests wait for a reply.
    pub(crate) fn pending_requests(&self) -> usize {
        self.state().pending.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what makes one frame from a queue of messages, and its cost.
    fn take_messages(
        &self,
        kind: LaneKind,
        pick: impl FnOnce(&mut State) -> &mut Queue<Message>,
    ) -> Option<(Vec<Message>, usize)> {
        let state = &mut *self.state();
        let (messages, bytes) = pick(state).take(self.limits.frame_bytes_target)?;
        self.metrics.lane(kind).queue_shrank(bytes);
        Some((messages, bytes))
    }

    fn message_frame(
        &self,
        kind: LaneKind,
        pick: impl FnOnce(&mut State) -> &mut Queue<Message>,
    ) -> Option<Frame> {
        // Encoded without the lock, which senders on other threads wait for.
        let (messages, bytes) = self.take_messages(kind, pick)?;
        let mut buf = Frame::begin(1 + bytes);
        put_frame_header(&mut buf);
        messages.iter().for_each(|message| put_message(&mut buf, message));
        Some(Frame::finish(buf, messages.len()))
    }

    /// Takes what makes one frame of requests, and its cost.
    fn take_requests(&self) -> Option<(Vec<Item>, usize)> {
        let state = &mut *self.state();
        let (waiting, bytes) = state.requests.take(self.limits.frame_bytes_target)?;
        self.metrics.lane(LaneKind::Request).queue_shrank(bytes);
        let now = Instant::now();
        let items = waiting.into_iter().filter_map(|Waiting { id, body, deadline }| {
            // Given up while it waited: never sent.
            state.pending.get_mut(&id)?.written = true;
            let remaining = deadline.saturating_duration_since(now).as_millis();
            let deadline_ms = u32::try_from(remaining).unwrap_or(u32::MAX).max(1);
            Some(Item::Request { id, deadline_ms, body })
        });
        Some((items.collect(), bytes))
    }

    fn request_frame(&self) -> Option<Frame> {
        loop {
            let (items, bytes) = self.take_requests()?;
            if !items.is_empty() {
                return Some(frame_of(&items, bytes));
            }
        }
    }
}

impl Source for Outbox {
    fn next_frame(&self, lane: usize) -> Option<Frame> {
        match lane {
            CONTROL_LANE => self.message_frame(LaneKind::Control, |state| &mut state.control),
            REQUEST_LANE => self.request_frame(),
            _ => {
                let lane = lane - APPEND_LANES;
                self.message_frame(LaneKind::Append, |state| &mut state.appends[lane])
            }
        }
    }

    fn park(&self, open: u32, waker: &Waker) -> bool {
        let state = &mut *self.state();
        let appends = state.appends.iter().map(|queue| queue.items.is_empty());
        let lanes = [state.control.items.is_empty(), state.requests.items.is_empty()];
        for (lane, is_empty) in lanes.into_iter().chain(appends).enumerate() {
            if open & (1 << lane) != 0 && !is_empty {
                return false;
            }
        }
        match &mut state.waker {
            Some((known, lanes)) if known.will_wake(waker) => *lanes = open,
            other => *other = Some((waker.clone(), open)),
        }
        true
    }
}

impl Waiter {
    /// Waits for the reply, until `deadline`.
    pub(crate) async fn wait(mut self, deadline: Instant) -> Result<Bytes, RequestError> {
        match tokio::time::timeout_at(deadline, &mut self.reply).await {
            Ok(Ok(result)) => result,
            // The sender lives in `pending` and is used when it leaves it.
            Ok(Err(_)) => Err(RequestError::Unknown(Unknown::ConnectionLost)),
            Err(_) => match self.outbox.state().pending.remove(&self.id) {
                Some(Pending { written: false, .. }) => {
                    Err(RequestError::NotSent(NotSent::DeadlineElapsed))
                }
                Some(Pending { written: true, .. }) | None => {
                    Err(RequestError::Unknown(Unknown::DeadlineElapsed))
                }
            },
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.outbox.state().pending.remove(&self.id);
    }
}

impl<T> Queue<T> {
    const fn new() -> Self {
        Self { items: VecDeque::new(), bytes: 0 }
    }

    fn push(&mut self, item: T, cost: usize) {
        self.items.push_back((item, cost));
        self.bytes += cost;
    }

    fn pop(&mut self) -> Option<(T, usize)> {
        let (item, cost) = self.items.pop_front()?;
        self.bytes -= cost;
        Some((item, cost))
    }

    /// Takes items from the front until they cost `bytes_target`, but one at least; says what they
    /// cost. `None` when there are none.
    fn take(&mut self, bytes_target: usize) -> Option<(Vec<T>, usize)> {
        let (mut count, mut bytes) = (0, 0);
        for (_, cost) in &self.items {
            if count > 0 && bytes + cost > bytes_target {
                break;
            }
            count += 1;
            bytes += cost;
        }
        if count == 0 {
            return None;
        }
        self.bytes -= bytes;
        Some((self.items.drain(..count).map(|(item, _)| item).collect(), bytes))
    }

    /// Empties the queue; says how many items and bytes it held.
    fn clear(&mut self) -> (usize, usize) {
        let items = std::mem::take(&mut self.items).len();
        (items, std::mem::take(&mut self.bytes))
    }
}

/// Wakes the writer if it sleeps and waits for one of `lanes`, after the lock is given back.
fn wake(mut state: MutexGuard<'_, State>, lanes: u32) {
    let waker = state.waker.take_if(|(_, wanted)| *wanted & lanes != 0);
    drop(state);
    if let Some((waker, _)) = waker {
        waker.wake();
    }
}

/// The append lane of a group: one group's messages keep their order. Group numbers are small and
/// consecutive, so they are spread by their high bits after a multiplication.
fn lane_of(group: GroupId, lanes: usize) -> usize {
    let hash = group.value().wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((u128::from(hash) * lanes as u128) >> 64) as usize
}

/// What a message takes in a frame, at most.
fn cost_bytes(message: &Message) -> usize {
    let entries = match &message.body {
        Body::Append { entries, .. } => entries.iter().map(Entry::cost_bytes).sum(),
        Body::Snapshot { meta } => meta.membership.nodes().len() * size_of::<NodeId>(),
        Body::PreVote { .. }
        | Body::PreVoteReply { .. }
        | Body::Vote { .. }
        | Body::VoteReply { .. }
        | Body::AppendAccepted { .. }
        | Body::AppendRejected { .. }
        | Body::Commit { .. }
        | Body::Heartbeat { .. }
        | Body::HeartbeatReply { .. }
        | Body::ReadIndex { .. }
        | Body::ReadIndexReply { .. }
        | Body::TimeoutNow
        | Body::Sleep { .. }
        | Body::Asleep { .. }
        | Body::Wake
        | Body::Digest { .. } => 0,
    };
    MESSAGE_OVERHEAD_BYTES + entries
}
