//! The late feeds of one group, up to a bound of bytes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use metrics::Gauge;
use quorate_types::GroupId;
use quorate_types::machine::Feed;
use tokio::sync::Notify;

use crate::engine::lock;

/// Bytes that a ring holds, at most: some seconds of a busy group.
const RING_BYTES_MAX: usize = 16 << 20;

/// What an empty feed takes.
const FEED_OVERHEAD_BYTES: usize = 128;

/// The rings of a node's groups.
#[derive(Default)]
pub(crate) struct Feeds {
    rings: Mutex<BTreeMap<GroupId, Arc<Ring>>>,
    bytes: Option<Gauge>,
}

/// The ring of one group; there whether the group is or not.
pub(crate) struct Ring {
    state: Mutex<State>,
    news: Notify,
    bytes: Option<Gauge>,
}

/// Invariant: the feeds follow on each other without a gap, from `start` to `end`.
#[derive(Debug)]
struct State {
    feeds: VecDeque<Feed>,
    bytes: usize,
    start: i64,
    /// Where the machine stands; `None` while there is none here.
    end: Option<i64>,
    /// Nothing is held for nobody.
    subscriptions: usize,
    bytes_max: usize,
}

/// What a ring has for a follower.
#[derive(Debug)]
pub(crate) enum Held {
    /// These follow on its position; never none.
    Feeds(Vec<Feed>),
    /// Nothing new.
    Nothing,
    /// What follows on its position is not held any more.
    Behind,
    /// The group does not live here.
    Absent,
}

impl Feeds {
    /// With a gauge of the bytes that all rings hold.
    pub(crate) fn new(bytes: Gauge) -> Self {
        Self { rings: Mutex::default(), bytes: Some(bytes) }
    }

    /// The ring of `group`.
    pub(crate) fn ring(&self, group: GroupId) -> Arc<Ring> {
        let mut rings = lock(&self.rings);
        let ring = || Arc::new(Ring::new(RING_BYTES_MAX, self.bytes.clone()));
        Arc::clone(rings.entry(group).or_insert_with(ring))
    }
}

impl Ring {
    fn new(bytes_max: usize, bytes: Option<Gauge>) -> Self {
        let state = State {
            feeds: VecDeque::new(),
            bytes: 0,
            start: 0,
            end: None,
            subscriptions: 0,
            bytes_max,
        };
        Self { state: Mutex::new(state), news: Notify::new(), bytes }
    }

    /// Adds what was written; it may be seen from now on.
    pub(crate) fn publish(&self, feed: Feed) {
        self.change(|state| state.publish(feed));
        self.news.notify_waiters();
    }

    /// The group has left this node, or its machine is lost.
    pub(crate) fn close(&self) {
        self.change(|state| {
            state.clear();
            state.end = None;
        });
        self.news.notify_waiters();
    }

    pub(crate) fn subscribe(&self) {
        lock(&self.state).subscriptions += 1;
    }

    pub(crate) fn unsubscribe(&self) {
        self.change(|state| {
            state.subscriptions -= 1;
            if state.subscriptions == 0 {
                state.clear();
            }
        });
    }

    /// What there is after `after`, up to `bytes_max` bytes but one feed at least.
    pub(crate) fn held(&self, after: i64, bytes_max: usize) -> Held {
        lock(&self.state).held(after, bytes_max)
    }

    /// Waits until there is something after `after`, or it is clear that there will not be.
    pub(crate) async fn until_news(&self, after: i64) {
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            if lock(&self.state).end.is_none_or(|end| end > after) {
                return;
            }
            news.await;
        }
    }

    /// Waits until the group lives here.
    pub(crate) async fn until_open(&self) {
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            if lock(&self.state).end.is_some() {
                return;
            }
            news.await;
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        let before = state.bytes;
        change(&mut state);
        if let Some(gauge) = &self.bytes
            && before != state.bytes
        {
            gauge.increment(state.bytes as f64 - before as f64);
        }
    }
}

impl State {
    fn publish(&mut self, feed: Feed) {
        let Feed { after, through, bytes, .. } = feed;
        assert!(after <= through, "a feed from {after} to {through}");
        if self.end != Some(after) {
            self.clear();
            self.start = after;
        }
        self.end = Some(through);
        if self.subscriptions == 0 {
            self.start = through;
            return;
        }
        if after == through {
            return;
        }
        self.bytes += bytes + FEED_OVERHEAD_BYTES;
        self.feeds.push_back(feed);
        while self.bytes > self.bytes_max
            && let Some(oldest) = self.feeds.pop_front()
        {
            self.bytes -= oldest.bytes + FEED_OVERHEAD_BYTES;
            self.start = oldest.through;
        }
    }

    fn clear(&mut self) {
        self.feeds.clear();
        self.bytes = 0;
        self.start = self.end.unwrap_or(0);
    }

    fn held(&self, after: i64, bytes_max: usize) -> Held {
        let Some(end) = self.end else { return Held::Absent };
        if after >= end {
            return Held::Nothing;
        }
        if after < self.start {
            return Held::Behind;
        }
        let from = self.feeds.partition_point(|feed| feed.through <= after);
        let (mut feeds, mut bytes) = (Vec::new(), 0);
        for feed in self.feeds.iter().skip(from) {
            if !feeds.is_empty() && bytes + feed.bytes > bytes_max {
                break;
            }
            bytes += feed.bytes;
            feeds.push(feed.clone());
        }
        assert!(!feeds.is_empty(), "a ring from {} to {end} has nothing after {after}", self.start);
        Held::Feeds(feeds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(after: i64, through: i64) -> Feed {
        Feed { after, through, bytes: 1_000, payload: Arc::new(()) }
    }

    /// The ends of the feeds after `after`; `None`: behind.
    fn ends(ring: &Ring, after: i64) -> Option<Vec<i64>> {
        match ring.held(after, usize::MAX) {
            Held::Feeds(feeds) => Some(feeds.iter().map(|feed| feed.through).collect()),
            Held::Nothing => Some(vec![]),
            Held::Behind => None,
            Held::Absent => panic!("the group is there"),
        }
    }

    fn ring() -> Ring {
        let ring = Ring::new(5_000, None);
        ring.subscribe();
        ring.publish(feed(7, 7));
        ring
    }

    #[test]
    fn whoever_keeps_up_misses_nothing_and_who_does_not_is_told() {
        let ring = ring();
        for at in 7..20 {
            ring.publish(feed(at, at + 1));
            assert_eq!(ends(&ring, at), Some(vec![at + 1]));
        }
        assert_eq!(ends(&ring, 16), Some(vec![17, 18, 19, 20]));
        assert_eq!(ends(&ring, 15), None, "the ring holds four of these");
        assert_eq!(ends(&ring, 20), Some(vec![]));
        assert_eq!(ends(&ring, 99), Some(vec![]), "a position that is still to come");
    }

    #[test]
    fn a_feed_that_spans_the_position_is_given_whole() {
        let ring = ring();
        ring.publish(feed(7, 10));
        assert_eq!(ends(&ring, 8), Some(vec![10]));
    }

    #[test]
    fn a_machine_that_stands_elsewhere_begins_the_ring_anew() {
        let ring = ring();
        ring.publish(feed(7, 8));
        // The machine was opened again where it had been: nobody need notice.
        ring.publish(feed(8, 8));
        assert_eq!(ends(&ring, 7), Some(vec![8]));
        // A snapshot: what lies between is on disk alone.
        ring.publish(feed(50, 50));
        assert_eq!(ends(&ring, 8), None);
        ring.publish(feed(50, 51));
        assert_eq!((ends(&ring, 49), ends(&ring, 50)), (None, Some(vec![51])));
    }

    #[test]
    fn nothing_is_held_for_nobody() {
        let ring = ring();
        ring.publish(feed(7, 8));
        ring.unsubscribe();
        ring.publish(feed(8, 9));
        ring.subscribe();
        assert_eq!((ends(&ring, 7), ends(&ring, 8), ends(&ring, 9)), (None, None, Some(vec![])));
        assert_eq!(lock(&ring.state).bytes, 0);
    }

    #[test]
    fn a_group_that_left_is_absent_until_it_is_back() {
        let ring = ring();
        ring.close();
        assert!(matches!(ring.held(7, usize::MAX), Held::Absent));
        ring.publish(feed(9, 9));
        assert_eq!((ends(&ring, 7), ends(&ring, 9)), (None, Some(vec![])));
    }

    #[tokio::test]
    async fn a_follower_wakes_when_there_is_something_for_it() {
        let ring = Arc::new(ring());
        let waiting = Arc::clone(&ring);
        let woken = tokio::spawn(async move { waiting.until_news(8).await });
        tokio::task::yield_now().await;
        ring.publish(feed(7, 8));
        tokio::task::yield_now().await;
        assert!(!woken.is_finished(), "that is not after 8");
        ring.publish(feed(8, 9));
        woken.await.expect("it wakes");
    }
}
