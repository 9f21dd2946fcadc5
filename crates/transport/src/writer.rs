//! Sending: one task per connection drains every lane, the control lane first.
//!
//! Whatever waits on a lane becomes one frame, and what comes while that frame is written becomes
//! the next: batches form by themselves, without timers. A lane that the network holds up does not
//! hold up the others. One task instead of one per lane, so that a burst over several lanes costs
//! one wake-up here and one in QUIC, and shares packets.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use metrics::Gauge;
use quinn::{SendStream, WriteError};
use quorate_types::NodeId;
use tokio::time::{Instant, Sleep};

use crate::frame::Frame;
use crate::link::Link;
use crate::metrics::{LaneKind, Metrics};

/// A frame enters QUIC's buffers in pieces of this size: memory is given back piece by piece as the
/// peer acknowledges it.
const PIECE_BYTES: usize = 64 << 10;

/// What is encoded and written in one turn, before other tasks of the thread (QUIC, which has to send
/// it, among them) have theirs.
const TURN_BYTES: usize = 2 << 20;

/// How long a request frame waits that the link did not deliver, before it is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// How often the round trip time is shown, while something is sent.
const RTT_INTERVAL: Duration = Duration::from_secs(1);

/// Where frames come from.
pub(crate) trait Source: Send + Sync {
    /// Everything that waits on `lane`, up to the target size of a frame; `None` if nothing does.
    fn next_frame(&self, lane: usize) -> Option<Frame>;

    /// Goes to sleep until something comes on one of the lanes in the mask `open`; false, without
    /// sleeping, when something waits there already.
    fn park(&self, open: u32, waker: &Waker) -> bool;
}

pub(crate) struct Writer<S> {
    lanes: Vec<Lane>,
    source: Arc<S>,
    route: Route,
    metrics: Arc<Metrics>,
    /// Runs while a frame is held back; made when the first one is.
    timer: Option<Pin<Box<Sleep>>>,
    rtt: Option<RttProbe>,
}

/// Which link the frames take.
pub(crate) struct Route {
    pub(crate) link: Arc<dyn Link>,
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    /// Bytes per lane that the link may hold back; what comes after waits in its queue.
    pub(crate) held_bytes_max: usize,
}

struct RttProbe {
    connection: quinn::Connection,
    gauge: Gauge,
    next: Instant,
}

struct Lane {
    stream: SendStream,
    kind: LaneKind,
    /// Pieces of the frame that is being written; those before `written` are gone.
    pieces: Vec<Bytes>,
    written: usize,
    held: VecDeque<Held>,
    held_bytes: usize,
}

/// A frame that the link holds back.
struct Held {
    due: Instant,
    frame: Frame,
    /// True when it was not delivered, and the link is to be asked again.
    retry: bool,
}

/// What a lane has to do.
enum Next {
    Write(Frame),
    /// Nothing before this instant.
    Hold(Instant),
    Nothing,
}

impl<S: Source> Writer<S> {
    pub(crate) fn new(
        streams: Vec<(SendStream, LaneKind)>,
        source: Arc<S>,
        route: Route,
        metrics: Arc<Metrics>,
    ) -> Self {
        let lanes = streams.into_iter().map(|(stream, kind)| Lane {
            stream,
            kind,
            pieces: Vec::new(),
            written: 0,
            held: VecDeque::new(),
            held_bytes: 0,
        });
        Self { lanes: lanes.collect(), source, route, metrics, timer: None, rtt: None }
    }

    /// Shows the connection's round trip time from now on.
    pub(crate) fn observe_rtt(mut self, connection: quinn::Connection, gauge: Gauge) -> Self {
        self.rtt = Some(RttProbe { connection, gauge, next: Instant::now() });
        self
    }

    /// Sends whatever comes, until a stream fails.
    pub(crate) async fn run(mut self) -> WriteError {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<WriteError> {
        let mut budget = TURN_BYTES;
        loop {
            let mut open = 0u32;
            let mut due: Option<Instant> = None;
            let mut sent = false;
            for (number, lane) in self.lanes.iter_mut().enumerate() {
                loop {
                    match lane.poll_write(cx) {
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(error)) => return Poll::Ready(error),
                        Poll::Pending => break,
                    }
                    match lane.next(number, &*self.source, &self.route, &self.metrics) {
                        Next::Write(frame) => {
                            let traffic = &self.metrics.lane(lane.kind).sent;
                            traffic.count(frame.bytes.len(), frame.messages);
                            budget = budget.saturating_sub(frame.bytes.len());
                            lane.load(frame.bytes);
                            sent = true;
                            if budget == 0 {
                                cx.waker().wake_by_ref();
                                return Poll::Pending;
                            }
                        }
                        Next::Hold(at) => {
                            due = Some(due.map_or(at, |due| due.min(at)));
                            if lane.held_bytes < self.route.held_bytes_max {
                                open |= 1 << number;
                            }
                            break;
                        }
                        Next::Nothing => {
                            open |= 1 << number;
                            break;
                        }
                    }
                }
            }
            if sent && let Some(rtt) = &mut self.rtt {
                rtt.observe();
            }
            if let Some(due) = due
                && self.poll_timer(due, cx).is_ready()
            {
                continue;
            }
            if self.source.park(open, cx.waker()) {
                return Poll::Pending;
            }
        }
    }

    fn poll_timer(&mut self, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(cx)
    }
}

impl RttProbe {
    fn observe(&mut self) {
        let now = Instant::now();
        if now >= self.next {
            self.gauge.set(self.connection.rtt().as_micros() as f64);
            self.next = now + RTT_INTERVAL;
        }
    }
}

impl Lane {
    fn load(&mut self, mut bytes: Bytes) {
        self.pieces.clear();
        self.written = 0;
        while bytes.len() > PIECE_BYTES {
            self.pieces.push(bytes.split_to(PIECE_BYTES));
        }
        self.pieces.push(bytes);
    }

    /// Ready when nothing is left to be written.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), WriteError>> {
        while self.written < self.pieces.len() {
            // Writing is cancel-safe, so a future that has to wait may be thrown away: its waker
            // stays with the stream, and the pieces have not moved.
            let write = pin!(self.stream.write_chunks(&mut self.pieces[self.written..]));
            match write.poll(cx) {
                Poll::Ready(Ok(written)) => self.written += written.chunks,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn next(
        &mut self,
        number: usize,
        source: &impl Source,
        route: &Route,
        metrics: &Metrics,
    ) -> Next {
        // Take what waits even behind a held frame: its own delay begins now.
        while self.held_bytes < route.held_bytes_max {
            let Some(frame) = source.next_frame(number) else { break };
            let fate = route.link.fate(route.from, route.to);
            if fate.deliver && fate.delay.is_zero() && self.held.is_empty() {
                return Next::Write(frame);
            }
            let retry = !fate.deliver;
            if retry && self.is_lossy() {
                metrics.dropped.link.increment(frame.messages as u64);
                continue;
            }
            let wait = if retry { RETRY_INTERVAL } else { fate.delay };
            self.hold(frame, Instant::now() + wait, retry);
        }
        let Some(first) = self.held.front_mut() else { return Next::Nothing };
        let now = Instant::now();
        if first.due > now {
            return Next::Hold(first.due);
        }
        if first.retry && !route.link.fate(route.from, route.to).deliver {
            first.due = now + RETRY_INTERVAL;
            return Next::Hold(first.due);
        }
        let Some(held) = self.held.pop_front() else { return Next::Nothing };
        self.held_bytes -= held.frame.bytes.len();
        Next::Write(held.frame)
    }

    /// Keeps the order of the lane: no frame is due before the one in front of it.
    fn hold(&mut self, frame: Frame, due: Instant, retry: bool) {
        let due = self.held.back().map_or(due, |last| last.due.max(due));
        self.held_bytes += frame.bytes.len();
        self.held.push_back(Held { due, frame, retry });
    }

    /// Whether a frame that is not delivered is gone.
    const fn is_lossy(&self) -> bool {
        match self.kind {
            LaneKind::Control | LaneKind::Append => true,
            LaneKind::Request | LaneKind::Reply => false,
        }
    }
}
