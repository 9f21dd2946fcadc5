//! Watchers: each follows the keyspace at one node, by what its machine tells, by the rows where that is not held any
//! more, and at another node when its own is gone or when it likes. What they are told is judged at once
//! ([`check::watch`](crate::check::watch)).

use bytes::Bytes;
use prost::Message;
use quorate_types::kv::{
    Events, EventsOutcome, Outcome, Query, Range, WatchEvent, WatchEvents, outcome, query,
};
use quorate_types::{GroupId, KeyRange, NodeId};

use crate::check::{Checked, Oracle, watch};
use crate::client::{key_of, range_of};
use crate::event::Event;
use crate::feed::Held;
use crate::world::World;

/// Mean time between two looks of a watcher.
const LOOK_US: u64 = 10_000;

/// Steps to the end of the history, when nothing changes any more.
const STEPS_MAX: usize = 100_000;

/// Somebody who wants to be told.
#[derive(Debug)]
pub(crate) struct Watcher {
    random: fastrand::Rng,
    node: NodeId,
    range: Range,
    /// It was told everything up to here.
    pub(crate) after: i64,
}

impl Watcher {
    /// Of one key, or of all, from the beginning.
    pub(crate) fn new(seed: u64, nodes: u64, keys: u32) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let key = random.bool().then(|| random.u32(..keys));
        let range = match (key, random.u8(..3)) {
            // Some, of those with leases too.
            (None, 0) => Range { key: key_of(0), range_end: key_of(51), ..Range::default() },
            _ => range_of(key, 0),
        };
        Self { node: NodeId(random.u64(1..=nodes)), range, random, after: 0 }
    }
}

impl World {
    pub(crate) fn on_watch(&mut self, number: usize) -> Checked {
        let nodes = self.nodes.len() as u64;
        let watcher = &mut self.watchers[number];
        // Now and then it is slow, and falls behind.
        let slow = if watcher.random.u8(..32) == 0 { 100 } else { 2 };
        let after_us = 1 + watcher.random.u64(..=LOOK_US * slow);
        let moves = watcher.random.u8(..64) == 0;
        self.queue.push(self.now_us + after_us, Event::Watch { number });
        let at = &self.nodes[watcher.node.value() as usize - 1];
        if at.process.is_none() || moves {
            watcher.node = NodeId(watcher.random.u64(1..=nodes));
            return Ok(());
        }
        if at.paused_until.is_some() {
            return Ok(());
        }
        for _ in 0..self.watchers[number].random.usize(1..4) {
            if !self.tell_watcher(number)? {
                break;
            }
        }
        Ok(())
    }

    /// A watcher hears what comes next, if there is something at its node.
    fn tell_watcher(&mut self, number: usize) -> Result<bool, crate::check::Violation> {
        let group = GroupId::FIRST_DATA;
        let (node, after) = (self.watchers[number].node, self.watchers[number].after);
        let Some(resident) = self.nodes[node.value() as usize - 1].resident(group) else {
            return Ok(false);
        };
        // What a wrong state says is not judged.
        if self.is_spoiled(node, group) || resident.group.is_distrusted() {
            return Ok(false);
        }
        match resident.ring.held(after) {
            Held::Nothing => Ok(false),
            Held::Feed(feed) => {
                let Some(WatchEvents(events)) = feed.payload.downcast_ref() else {
                    return Err(Oracle::Watch.broken(format!("node {node} tells {feed:?}")));
                };
                let range = &self.watchers[number].range;
                let keys = KeyRange::from_request(&range.key, &range.range_end);
                let is_new = |event: &&WatchEvent| event.revision() > after;
                let events = events.iter().filter(is_new);
                let events: Vec<_> =
                    events.filter(|event| keys.contains(&event.kv.key)).cloned().collect();
                self.told(number, feed.through, &events, false)?;
                Ok(true)
            }
            Held::Behind => {
                self.tell_from_rows(number)?;
                Ok(true)
            }
        }
    }

    /// The rows tell what the ring has not.
    fn tell_from_rows(&mut self, number: usize) -> Checked {
        let watcher = &mut self.watchers[number];
        let (node, after, range) = (watcher.node, watcher.after, watcher.range.clone());
        let prev_kv = watcher.random.bool();
        let asked = Events {
            after,
            key: range.key,
            range_end: range.range_end,
            prev_kv,
            bytes_max: if watcher.random.bool() { watcher.random.u64(1..400) } else { 0 },
            ..Events::default()
        };
        let body = Some(query::Body::Events(asked));
        let query: Bytes = Query { body, caller: None }.encode_to_vec().into();
        let answer = self.look_up(node, GroupId::FIRST_DATA, &query)?;
        let answer = Outcome::decode(answer);
        let Ok(Outcome { body: Some(outcome::Body::Events(found)), .. }) = answer else {
            return Err(Oracle::Watch.broken(format!("node {node} has no events: {answer:?}")));
        };
        let EventsOutcome { events, through, compacted, .. } = found;
        let Some(floor) = compacted else { return self.told(number, through, &events, prev_kv) };
        if let Some(model) = self.model() {
            watch::on_compacted(&self.watcher_name(number), model, after, floor)?;
        }
        // It begins anew with what there is.
        self.watchers[number].after = floor - 1;
        Ok(())
    }

    fn told(
        &mut self,
        number: usize,
        through: i64,
        events: &[WatchEvent],
        prev_kv: bool,
    ) -> Checked {
        let (range, after) = (&self.watchers[number].range, self.watchers[number].after);
        Oracle::Watch.check(through > after, || {
            format!("{} goes back to {through}", self.watcher_name(number))
        })?;
        if let Some(model) = self.model() {
            let who = self.watcher_name(number);
            watch::on_told(&who, model, range, (after, through), events, prev_kv)?;
        }
        self.counts.told_events += events.len() as u64;
        self.watchers[number].after = through;
        Ok(())
    }

    fn model(&self) -> Option<&crate::check::model::Model> {
        self.checks.groups.get(&GroupId::FIRST_DATA).and_then(|group| group.apply.model())
    }

    fn watcher_name(&self, number: usize) -> String {
        format!("watcher {number} at node {}", self.watchers[number].node)
    }

    /// In quiet, every watcher comes to the end of the history at any of `present`.
    pub(crate) fn watch_to_the_end(&mut self, present: &[NodeId]) -> Checked {
        let last = self.model().map_or(0, crate::check::model::Model::revision);
        for number in 0..self.watchers.len() {
            let Some(&node) = present.get(number % present.len().max(1)) else { return Ok(()) };
            self.watchers[number].node = node;
            for _ in 0..STEPS_MAX {
                if !self.tell_watcher(number)? {
                    break;
                }
            }
            let after = self.watchers[number].after;
            Oracle::Watch.check(after == last, || {
                format!("{} is never told beyond {after} of {last}", self.watcher_name(number))
            })?;
        }
        Ok(())
    }
}
