//! The late feeds of a group on a node, as `node::feed` keeps them: a bounded run without a gap, published once the rows
//! are written.

use std::collections::VecDeque;

use quorate_types::machine::Feed;

/// Few, so that followers fall out of it all the time.
const FEEDS_MAX: usize = 6;

/// Invariant: the feeds follow on each other without a gap, from `start` to `end`.
#[derive(Default, Debug)]
pub(crate) struct Ring {
    feeds: VecDeque<Feed>,
    start: i64,
    /// Where the machine stands; `None` before it has said so.
    end: Option<i64>,
}

/// What a ring has for a follower.
#[derive(Debug)]
pub(crate) enum Held {
    /// This follows on its position.
    Feed(Feed),
    /// Nothing new.
    Nothing,
    /// What follows on its position is not held any more.
    Behind,
}

impl Ring {
    pub(crate) fn publish(&mut self, feed: Feed) {
        if self.end != Some(feed.after) {
            self.feeds.clear();
            self.start = feed.after;
        }
        self.end = Some(feed.through);
        if feed.after == feed.through {
            return;
        }
        self.feeds.push_back(feed);
        if self.feeds.len() > FEEDS_MAX
            && let Some(oldest) = self.feeds.pop_front()
        {
            self.start = oldest.through;
        }
    }

    pub(crate) fn held(&self, after: i64) -> Held {
        if self.end.is_none_or(|end| after >= end) {
            return Held::Nothing;
        }
        if after < self.start {
            return Held::Behind;
        }
        let next = self.feeds.iter().find(|feed| feed.through > after);
        Held::Feed(next.cloned().expect("feeds follow on each other up to the end"))
    }
}
