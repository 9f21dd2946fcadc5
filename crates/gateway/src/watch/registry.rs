//! All watchers of a gateway, as a value.
//!
//! A watcher is *live* or it *lags*. Live ones are found by the keys of a batch, and get a note of it into
//! their stream's queue. A watcher whose queue is full lags from there on; one whose notes hold on to batches
//! for too long loses them too. Its position says from where it reads the rows. From there it joins the live ones as
//! soon as its position is among the batches that are kept for that.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use quorate_types::kv::{EventKind, WatchEvent};
use quorate_types::{KeyRange, Term};
use tokio::sync::Notify;

use super::batch::Batch;
use super::ranges::Ranges;

/// Bounds of what is held for watchers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Bytes of events that wait for one watcher. One batch may always wait.
    pub(crate) watcher_bytes: usize,
    /// Bytes of events that wait for one stream. One batch may always wait.
    pub(crate) stream_bytes: usize,
    /// Bytes of all batches since the oldest that any queue holds on to: what all streams together can keep
    /// in memory, however slow they are.
    pub(crate) held_bytes: u64,
    /// Bytes of the late batches that are kept for those who join.
    pub(crate) recent_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            watcher_bytes: 1 << 20,
            stream_bytes: 8 << 20,
            held_bytes: 64 << 20,
            recent_bytes: 4 << 20,
        }
    }
}

/// A stream of a client.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct StreamId(u64);

/// A watcher: its stream, and its number there.
type Who = (StreamId, i64);

/// What a watcher wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Wish {
    pub(crate) range: KeyRange,
    pub(crate) no_put: bool,
    pub(crate) no_delete: bool,
}

impl Wish {
    /// Whether the watcher wants an event of its range.
    pub(crate) fn wants(&self, event: &WatchEvent) -> bool {
        match event.kind == EventKind::Put as i32 {
            true => !self.no_put,
            false => !self.no_delete,
        }
    }
}

/// Events of one batch for one watcher.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) watch: i64,
    pub(crate) batch: Arc<Batch>,
    /// Places in the batch; never none.
    pub(crate) picks: Vec<u32>,
    bytes: usize,
}

#[derive(Debug)]
struct Watcher {
    wish: Wish,
    /// The first revision of interest that was not put into the queue or read.
    next: i64,
    live: bool,
    /// Of its notes.
    bytes: usize,
}

#[derive(Debug)]
struct Stream {
    watchers: BTreeMap<i64, Watcher>,
    lagging: BTreeSet<i64>,
    queue: VecDeque<Note>,
    bytes: usize,
    news: Arc<Notify>,
    next_id: i64,
    /// Numbers of watchers that compaction has ended: to etcd they are taken until their client cancels them too.
    compacted: BTreeSet<i64>,
}

impl Stream {
    fn is_taken(&self, watch: i64) -> bool {
        self.watchers.contains_key(&watch) || self.compacted.contains(&watch)
    }
}

/// Watchers that compaction has ended and that are remembered for that, for each stream: beyond, the smallest
/// numbers are free again.
const COMPACTED_MAX: usize = 1_000;

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Census {
    pub(crate) streams: usize,
    pub(crate) watchers: usize,
    pub(crate) lagging: usize,
    /// Events in queues.
    pub(crate) pending: usize,
}

/// Why a watch is not created; etcd's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unwatchable {
    Empty,
    Duplicate,
}

impl Unwatchable {
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Empty => "mvcc: watcher range is empty",
            Self::Duplicate => "mvcc: duplicate watch ID provided on the WatchStream",
        }
    }
}

/// Invariants: a watcher is in `ranges` exactly while it is live, and in its stream's `lagging` exactly
/// while it is not; everything up to `through` is in queues, was sent, or is wanted by nobody live.
#[derive(Debug)]
pub(crate) struct Registry {
    bounds: Bounds,
    streams: HashMap<StreamId, Stream>,
    ranges: Ranges<Who>,
    recent: VecDeque<Arc<Batch>>,
    recent_bytes: usize,
    /// After this revision, `recent` is complete.
    recent_after: i64,
    through: i64,
    raft_term: Term,
    /// Bytes of all batches so far.
    fed_bytes: u64,
    checked_bytes: u64,
    next_stream: u64,
    census: Census,
}

impl Registry {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            streams: HashMap::new(),
            ranges: Ranges::default(),
            recent: VecDeque::new(),
            recent_bytes: 0,
            recent_after: 0,
            through: 0,
            raft_term: Term::ZERO,
            fed_bytes: 0,
            checked_bytes: 0,
            next_stream: 0,
            census: Census::default(),
        }
    }

    pub(crate) const fn census(&self) -> Census {
        self.census
    }

    /// Up to which revision the feed has come.
    pub(crate) const fn through(&self) -> i64 {
        self.through
    }

    pub(crate) const fn raft_term(&self) -> Term {
        self.raft_term
    }

    pub(crate) fn open_stream(&mut self, news: Arc<Notify>) -> StreamId {
        let id = StreamId(self.next_stream);
        self.next_stream += 1;
        self.census.streams += 1;
        let stream = Stream {
            watchers: BTreeMap::new(),
            lagging: BTreeSet::new(),
            queue: VecDeque::new(),
            bytes: 0,
            news,
            next_id: 0,
            compacted: BTreeSet::new(),
        };
        self.streams.insert(id, stream);
        id
    }

    pub(crate) fn close_stream(&mut self, id: StreamId) {
        let watches: Vec<i64> = self.stream(id).watchers.keys().copied().collect();
        for watch in watches {
            self.remove(id, watch);
        }
        self.streams.remove(&id);
        self.census.streams -= 1;
    }

    /// The feed begins anew after `through`: nothing older is known of. Live watchers that would miss
    /// something lag.
    pub(crate) fn restart(&mut self, through: i64, raft_term: Term) {
        if through > self.through {
            let live: Vec<Who> = self.live_below(through + 1);
            live.into_iter().for_each(|who| self.retire(who));
        }
        self.recent.clear();
        (self.recent_bytes, self.recent_after) = (0, through);
        (self.through, self.raft_term) = (through, raft_term);
    }

    fn live_below(&self, revision: i64) -> Vec<Who> {
        let mut who = Vec::new();
        for (id, stream) in &self.streams {
            let below = stream.watchers.iter().filter(|(_, w)| w.live && w.next < revision);
            who.extend(below.map(|(watch, _)| (*id, *watch)));
        }
        who
    }

    /// Adds a watcher from revision `start` on. It lags if it begins in the past.
    pub(crate) fn create(
        &mut self,
        id: StreamId,
        chosen: i64,
        wish: Wish,
        start: i64,
    ) -> Result<i64, Unwatchable> {
        if wish.range.is_empty() {
            return Err(Unwatchable::Empty);
        }
        let stream = self.streams.get_mut(&id).expect("the stream is open");
        let watch = match chosen {
            0 => {
                while stream.is_taken(stream.next_id) {
                    stream.next_id += 1;
                }
                stream.next_id += 1;
                stream.next_id - 1
            }
            chosen if stream.is_taken(chosen) => return Err(Unwatchable::Duplicate),
            chosen => chosen,
        };
        stream.watchers.insert(watch, Watcher { wish, next: start, live: false, bytes: 0 });
        stream.lagging.insert(watch);
        self.census.watchers += 1;
        self.census.lagging += 1;
        // What lies behind is read, though it may be in memory: only rows tell whether it is compacted.
        if start > self.through {
            self.join(id, watch, start);
        }
        Ok(watch)
    }

    /// Removes a watcher with all that waits for it; false if there is none, nor one that compaction has ended.
    pub(crate) fn cancel(&mut self, id: StreamId, watch: i64) -> bool {
        self.remove(id, watch) || self.stream_mut(id).compacted.remove(&watch)
    }

    /// As [`Self::cancel`], but the number is not free before its client cancels it.
    pub(crate) fn end_compacted(&mut self, id: StreamId, watch: i64) {
        if self.remove(id, watch) {
            let compacted = &mut self.stream_mut(id).compacted;
            compacted.insert(watch);
            if compacted.len() > COMPACTED_MAX {
                compacted.pop_first();
            }
        }
    }

    fn remove(&mut self, id: StreamId, watch: i64) -> bool {
        self.retire((id, watch));
        self.drop_notes((id, watch));
        let stream = self.stream_mut(id);
        if stream.watchers.remove(&watch).is_none() {
            return false;
        }
        stream.lagging.remove(&watch);
        self.census.watchers -= 1;
        self.census.lagging -= 1;
        true
    }

    /// Makes a watcher lag; its notes stay, and go out before it reads. No effect if it lags already.
    fn retire(&mut self, who: Who) {
        let (id, watch) = who;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let Some(watcher) = stream.watchers.get_mut(&watch).filter(|watcher| watcher.live) else {
            return;
        };
        watcher.live = false;
        stream.lagging.insert(watch);
        stream.news.notify_one();
        self.census.lagging += 1;
        self.ranges.remove(&watcher.wish.range, &who);
    }

    /// Takes the notes of a lagging watcher away: it will read what they were of.
    fn drop_notes(&mut self, (id, watch): Who) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let Some(watcher) = stream.watchers.get_mut(&watch) else { return };
        if watcher.bytes == 0 {
            return;
        }
        (stream.bytes, watcher.bytes) = (stream.bytes - watcher.bytes, 0);
        stream.queue.retain(|note| {
            if note.watch == watch {
                let first = note.batch.events()[note.picks[0] as usize].revision();
                watcher.next = watcher.next.min(first);
                self.census.pending -= note.picks.len();
            }
            note.watch != watch
        });
    }

    /// A lagging watcher has read everything below `next`, and wants to be live; false if it has to read
    /// more first.
    pub(crate) fn join(&mut self, id: StreamId, watch: i64, next: i64) -> bool {
        let joins = next > self.recent_after;
        let Some(watcher) = self.watcher_mut(id, watch) else { return true };
        (watcher.next, watcher.live) = (next, joins);
        if !joins {
            return false;
        }
        let wish = watcher.wish.clone();
        self.stream_mut(id).lagging.remove(&watch);
        self.census.lagging -= 1;
        self.ranges.insert(&wish.range, (id, watch));
        let missed = self.recent.iter().filter(|batch| batch.through >= next);
        for batch in missed.cloned().collect::<Vec<_>>() {
            let places = (0u32..).zip(batch.events());
            let own = places.filter(|(_, event)| wish.range.contains(&event.kv.key));
            let picks = own.map(|(place, _)| place).collect();
            self.note(&batch, (id, watch), picks);
        }
        true
    }

    /// The feed goes on.
    pub(crate) fn deliver(&mut self, batch: Batch) {
        let batch = Arc::new(batch);
        let through = batch.through;
        let mut found: BTreeMap<Who, Vec<u32>> = BTreeMap::new();
        for (place, event) in (0u32..).zip(batch.events()) {
            if event.revision() > self.through {
                self.ranges.each(&event.kv.key, &mut |who| {
                    found.entry(*who).or_default().push(place);
                });
            }
        }
        for (who, picks) in found {
            self.note(&batch, who, picks);
        }
        (self.through, self.raft_term) = (through.max(self.through), batch.raft_term);
        self.fed_bytes += batch.bytes as u64;
        self.recent_bytes += batch.bytes;
        self.recent.push_back(batch);
        while self.recent_bytes > self.bounds.recent_bytes
            && let Some(oldest) = self.recent.pop_front()
        {
            self.recent_bytes -= oldest.bytes;
            self.recent_after = oldest.through;
        }
        self.let_go_of_old();
    }

    /// Bytes of the feed up to now; where the next batch begins.
    pub(crate) const fn fed_bytes(&self) -> u64 {
        self.fed_bytes
    }

    /// Puts a note of the events that a live watcher wants into its queue, or makes it lag.
    fn note(&mut self, batch: &Arc<Batch>, who: Who, mut picks: Vec<u32>) {
        let (id, watch) = who;
        let bounds = self.bounds;
        let stream = self.stream_mut(id);
        let Some(watcher) = stream.watchers.get_mut(&watch).filter(|watcher| watcher.live) else {
            return;
        };
        let event = |place: &u32| &batch.events()[*place as usize];
        picks.retain(|place| {
            event(place).revision() >= watcher.next && watcher.wish.wants(event(place))
        });
        let Some(first) = picks.first() else { return };
        let bytes = cost_bytes(batch, &picks);
        let over = |held: usize, bound: usize| held > 0 && held + bytes > bound;
        if over(watcher.bytes, bounds.watcher_bytes) || over(stream.bytes, bounds.stream_bytes) {
            watcher.next = event(first).revision();
            self.retire(who);
            return;
        }
        watcher.next = event(picks.last().expect("there is a first")).revision() + 1;
        watcher.bytes += bytes;
        stream.bytes += bytes;
        let pending = picks.len();
        stream.queue.push_back(Note { watch, batch: Arc::clone(batch), picks, bytes });
        stream.news.notify_one();
        self.census.pending += pending;
    }

    /// Streams that hold on to batches which are too old lose them: they read the rows instead.
    fn let_go_of_old(&mut self) {
        if self.fed_bytes - self.checked_bytes < self.bounds.held_bytes / 4 {
            return;
        }
        self.checked_bytes = self.fed_bytes;
        let oldest = self.fed_bytes.saturating_sub(self.bounds.held_bytes);
        let is_old =
            |stream: &Stream| stream.queue.front().is_some_and(|note| note.batch.at < oldest);
        let streams = self.streams.iter().filter(|(_, stream)| is_old(stream));
        let old: BTreeSet<Who> = streams
            .flat_map(|(id, stream)| stream.queue.iter().map(|note| (*id, note.watch)))
            .collect();
        for who in old {
            self.retire(who);
            self.drop_notes(who);
        }
    }

    /// The next note for a stream.
    pub(crate) fn take(&mut self, id: StreamId) -> Option<Note> {
        let stream = self.stream_mut(id);
        let note = stream.queue.pop_front()?;
        stream.bytes -= note.bytes;
        if let Some(watcher) = stream.watchers.get_mut(&note.watch) {
            watcher.bytes -= note.bytes;
        }
        self.census.pending -= note.picks.len();
        Some(note)
    }

    /// Puts back what is left of a note that was taken just now, from a pick on that begins a revision: it goes out
    /// next. What came meanwhile stays, so that as much may be held over a bound.
    pub(crate) fn put_back(&mut self, id: StreamId, note: &Note, from: usize) {
        let picks = note.picks[from..].to_vec();
        let stream = self.stream_mut(id);
        let Some(watcher) = stream.watchers.get_mut(&note.watch).filter(|_| !picks.is_empty())
        else {
            return;
        };
        let (watch, batch) = (note.watch, Arc::clone(&note.batch));
        let bytes = cost_bytes(&batch, &picks);
        watcher.bytes += bytes;
        stream.bytes += bytes;
        let pending = picks.len();
        stream.queue.push_front(Note { watch, batch, picks, bytes });
        self.census.pending += pending;
    }

    /// The next watcher after `last` that lags and for which nothing waits: its number, its wish, and where
    /// it stands.
    pub(crate) fn next_lagging(&self, id: StreamId, last: i64) -> Option<(i64, Wish, i64)> {
        let stream = self.stream(id);
        let (until, after) = (..=last, last.saturating_add(1)..);
        let in_turn = stream.lagging.range(after).chain(stream.lagging.range(until));
        let mut ready = in_turn.filter(|watch| stream.watchers[*watch].bytes == 0);
        let watch = *ready.next()?;
        let watcher = &stream.watchers[&watch];
        Some((watch, watcher.wish.clone(), watcher.next))
    }

    /// Whether nothing has become of a lagging watcher since it was given out.
    pub(crate) fn is_lagging(&self, id: StreamId, (watch, wish, next): &(i64, Wish, i64)) -> bool {
        let watcher = self.stream(id).watchers.get(watch);
        watcher.is_some_and(|now| !now.live && now.wish == *wish && now.next == *next)
    }

    /// Up to which revision the client has everything, provided that what was taken was sent; `None` while
    /// something waits or lags.
    pub(crate) fn progress(&self, id: StreamId) -> Option<i64> {
        let stream = self.stream(id);
        (stream.queue.is_empty() && stream.lagging.is_empty()).then_some(self.through)
    }

    /// As [`Self::progress`], of one watcher.
    pub(crate) fn progress_of(&self, id: StreamId, watch: i64) -> Option<i64> {
        let watcher = self.stream(id).watchers.get(&watch)?;
        (watcher.live && watcher.bytes == 0).then_some(self.through)
    }

    fn watcher_mut(&mut self, id: StreamId, watch: i64) -> Option<&mut Watcher> {
        self.stream_mut(id).watchers.get_mut(&watch)
    }

    fn stream(&self, id: StreamId) -> &Stream {
        self.streams.get(&id).expect("the stream is open")
    }

    fn stream_mut(&mut self, id: StreamId) -> &mut Stream {
        self.streams.get_mut(&id).expect("the stream is open")
    }
}

/// What a note of these events counts.
fn cost_bytes(batch: &Batch, picks: &[u32]) -> usize {
    picks.iter().map(|place| batch.events()[*place as usize].cost_bytes()).sum()
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
