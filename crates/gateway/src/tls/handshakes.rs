//! Which handshakes are under way.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use metrics::{Counter, Gauge};
use tokio::sync::oneshot;

/// The handshakes under way, `max` of them at most. One more ends the one that has lasted longest: a client
/// needs a few round trips, so what has lasted longest has most likely stopped, and many that never speak
/// keep nobody out.
pub(crate) struct Handshakes {
    max: usize,
    under_way: Mutex<UnderWay>,
    count: Gauge,
    cut_total: Counter,
}

#[derive(Default)]
struct UnderWay {
    next: u64,
    /// By age. Dropping a sender ends its handshake.
    turns: BTreeMap<u64, oneshot::Sender<()>>,
}

impl Handshakes {
    pub(crate) fn new(max: usize, count: Gauge, cut_total: Counter) -> Self {
        assert!(max > 0, "no client could ever connect");
        Self { max, under_way: Mutex::default(), count, cut_total }
    }

    /// Begins a handshake.
    pub(crate) fn begin(&self) -> Handshake<'_> {
        let (sender, cut) = oneshot::channel();
        let mut under_way = self.lock();
        let turn = under_way.next;
        under_way.next += 1;
        under_way.turns.insert(turn, sender);
        if under_way.turns.len() > self.max {
            under_way.turns.pop_first();
            self.cut_total.increment(1);
        }
        self.count.set(under_way.turns.len() as f64);
        Handshake { handshakes: self, turn, cut }
    }

    fn lock(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One handshake; over when it is dropped.
pub(crate) struct Handshake<'h> {
    handshakes: &'h Handshakes,
    turn: u64,
    cut: oneshot::Receiver<()>,
}

impl Handshake<'_> {
    /// Resolves when this handshake has to make room for others.
    pub(crate) async fn is_cut(&mut self) {
        // Nothing is ever sent: the sender's end is the word.
        let _ = (&mut self.cut).await;
    }
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        let mut under_way = self.handshakes.lock();
        under_way.turns.remove(&self.turn);
        self.handshakes.count.set(under_way.turns.len() as f64);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn one_too_many_ends_the_oldest_and_no_other() {
        let handshakes = Handshakes::new(2, Gauge::noop(), Counter::noop());
        let mut first = handshakes.begin();
        let mut second = handshakes.begin();
        assert!(first.is_cut().now_or_never().is_none());
        let mut third = handshakes.begin();
        assert!(first.is_cut().now_or_never().is_some());
        assert!(second.is_cut().now_or_never().is_none());
        drop(second);
        let mut fourth = handshakes.begin();
        assert!(third.is_cut().now_or_never().is_none(), "a place had become free");
        drop(first);
        assert!(fourth.is_cut().now_or_never().is_none());
        assert_eq!(handshakes.lock().turns.len(), 2, "one that was cut is not counted twice");
        drop((third, fourth));
        assert!(handshakes.lock().turns.is_empty());
    }
}
