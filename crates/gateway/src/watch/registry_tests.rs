//! Random clients, however slow, against a log of everything that happened.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use quorate_types::kv::{EventKind, KeyValue, WatchEvent, WatchEvents};
use quorate_types::{KeyRange, Term};
use tokio::sync::Notify;

use super::{Batch, Bounds, Census, Note, Registry, StreamId, Wish, cost_bytes};
use crate::backend::EventBatch;

/// So little that everything is exceeded soon; one watcher may have a few notes.
const BOUNDS: Bounds =
    Bounds { watcher_bytes: 1_200, stream_bytes: 2_500, held_bytes: 4_000, recent_bytes: 1_000 };

#[derive(Clone, Debug)]
enum Step {
    /// Revisions happen, of one batch; each writes these keys.
    Feed(Vec<Vec<u8>>),
    /// A watch on a stream: which, its keys, how far from now it begins, and what it leaves out.
    Create(usize, u8, u8, i64, bool),
    Cancel(usize, usize),
    /// A stream sends so many notes.
    Send(usize, usize),
    /// A stream sends the first events of a note, and puts the rest back.
    SendPart(usize, usize),
    /// A stream's lagging watcher reads so many revisions.
    Read(usize, i64),
    /// The feed begins anew, after revisions that it does not tell of.
    Restart(Vec<u8>),
}

/// What a watcher asked for, from where on, and what it was told.
type Watched = (Wish, i64, Vec<(i64, Bytes)>);

fn step() -> impl Strategy<Value = Step> {
    let keys = || vec(0u8..6, 1..4);
    prop_oneof![
        10 => vec(keys(), 1..4).prop_map(Step::Feed),
        4 => (0usize..3, 0u8..6, 0u8..6, -30i64..5, any::<bool>())
            .prop_map(|(stream, from, to, at, no_put)| Step::Create(stream, from, to, at, no_put)),
        1 => (0usize..3, 0usize..20).prop_map(|(stream, watch)| Step::Cancel(stream, watch)),
        8 => (0usize..3, 1usize..6).prop_map(|(stream, notes)| Step::Send(stream, notes)),
        3 => (0usize..3, 1usize..4).prop_map(|(stream, events)| Step::SendPart(stream, events)),
        8 => (0usize..3, 1i64..9).prop_map(|(stream, revisions)| Step::Read(stream, revisions)),
        1 => keys().prop_map(Step::Restart),
    ]
}

struct World {
    registry: Registry,
    streams: Vec<StreamId>,
    log: Vec<WatchEvent>,
    revision: i64,
    /// By stream and number: the wish, where it began, and what it was told.
    watchers: BTreeMap<(usize, i64), Watched>,
    last_read: i64,
    /// Of the largest batch.
    batch_bytes: usize,
}

impl Registry {
    /// Everything that is held is counted, and it is no more than the bounds say, or one batch.
    fn check(&self, batch_bytes: usize) {
        let (bounds, mut pending) = (self.bounds, 0);
        for stream in self.streams.values() {
            let check = |notes: Vec<&Note>, counted: usize, bytes_max: usize| {
                let held = |note: &&Note| cost_bytes(&note.batch, &note.picks);
                assert_eq!(counted, notes.iter().map(held).sum::<usize>());
                assert!(counted <= bytes_max || notes.len() == 1, "{counted} of {bytes_max}");
            };
            check(stream.queue.iter().collect(), stream.bytes, bounds.stream_bytes);
            for (watch, watcher) in &stream.watchers {
                let own = stream.queue.iter().filter(|note| note.watch == *watch);
                check(own.collect(), watcher.bytes, bounds.watcher_bytes);
                assert_eq!(watcher.live, !stream.lagging.contains(watch));
            }
            for note in &stream.queue {
                // Looked at each time that a quarter of the bound has come, and one may join to what is recent.
                let held = bounds.held_bytes + bounds.held_bytes / 4 + bounds.recent_bytes as u64;
                let age = self.fed_bytes - note.batch.at;
                assert!(age <= held + 2 * batch_bytes as u64, "{age}");
                pending += note.picks.len();
            }
        }
        assert_eq!(self.census.pending, pending);
        assert_eq!(self.recent_bytes, self.recent.iter().map(|batch| batch.bytes).sum::<usize>());
        assert!(self.recent_bytes <= bounds.recent_bytes);
    }
}

fn shown(event: &WatchEvent) -> (i64, Bytes) {
    (event.revision(), event.kv.key.clone())
}

impl World {
    fn new() -> Self {
        let mut registry = Registry::new(BOUNDS);
        let streams = (0..3).map(|_| registry.open_stream(Arc::new(Notify::new()))).collect();
        registry.restart(1, Term(1));
        let (log, watchers) = (Vec::new(), BTreeMap::new());
        let (last_read, batch_bytes) = (-1, 0);
        Self { registry, streams, log, revision: 1, watchers, last_read, batch_bytes }
    }

    /// Every key of a revision is written once, the odd ones are deleted.
    fn happen(&mut self, mut keys: Vec<u8>) {
        keys.sort_unstable();
        keys.dedup();
        self.revision += 1;
        for key in keys {
            let kind = if key % 2 == 0 { EventKind::Put } else { EventKind::Delete } as i32;
            let (key, mod_revision) = (Bytes::from(vec![key]), self.revision);
            let kv = KeyValue { key, mod_revision, ..KeyValue::default() };
            self.log.push(WatchEvent { kind, kv, prev_kv: None });
        }
    }

    fn after(&self, revision: i64) -> Vec<WatchEvent> {
        self.log.iter().filter(|event| event.revision() > revision).cloned().collect()
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Feed(revisions) => {
                let before = self.revision;
                revisions.into_iter().for_each(|keys| self.happen(keys));
                let events = Arc::new(WatchEvents(self.after(before)));
                let batch = EventBatch { through: self.revision, raft_term: Term(1), events };
                let at = self.registry.fed_bytes();
                let batch = Batch::new(batch, at);
                self.batch_bytes = self.batch_bytes.max(batch.bytes);
                self.registry.deliver(batch);
            }
            Step::Create(stream, from, to, at, no_put) => {
                let range = KeyRange {
                    start: Bytes::from(vec![from]),
                    end: Some(Bytes::from(vec![from.max(to) + 1])),
                };
                let wish = Wish { range, no_put, no_delete: false };
                let start = (self.registry.through() + 1 + at).max(1);
                let created = self.registry.create(self.streams[stream], 0, wish.clone(), start);
                let watch = created.expect("a fresh number");
                self.watchers.insert((stream, watch), (wish, start, Vec::new()));
            }
            Step::Cancel(stream, nth) => {
                let own = self.watchers.keys().filter(|(of, _)| *of == stream);
                if let Some(&(_, watch)) = own.cloned().collect::<Vec<_>>().get(nth) {
                    assert!(self.registry.cancel(self.streams[stream], watch));
                    self.watchers.remove(&(stream, watch));
                }
            }
            Step::Send(stream, notes) => {
                for _ in 0..notes {
                    self.send(stream, usize::MAX);
                }
            }
            Step::SendPart(stream, events) => drop(self.send(stream, events)),
            Step::Read(stream, revisions) => self.read(stream, revisions),
            Step::Restart(keys) => {
                self.happen(keys);
                self.registry.restart(self.revision, Term(1));
            }
        }
        self.registry.check(self.batch_bytes);
    }

    /// So many events of a note, and the rest of their revision; true if there was something.
    fn send(&mut self, stream: usize, events: usize) -> bool {
        let Some(note) = self.registry.take(self.streams[stream]) else { return false };
        let (_, _, told) = self.watchers.get_mut(&(stream, note.watch)).expect("not cancelled");
        let revision = |place: &u32| note.batch.events()[*place as usize].revision();
        let last = revision(&note.picks[events.min(note.picks.len()) - 1]);
        let picks = &note.picks[..note.picks.partition_point(|place| revision(place) <= last)];
        told.extend(picks.iter().map(|place| shown(&note.batch.events()[*place as usize])));
        self.registry.put_back(self.streams[stream], &note, picks.len());
        true
    }

    /// One chunk; if anybody lags for whom nothing waits.
    fn read(&mut self, stream: usize, revisions: i64) {
        let id = self.streams[stream];
        let Some((watch, wish, next)) = self.registry.next_lagging(id, self.last_read) else {
            return;
        };
        self.last_read = watch;
        assert!(self.registry.is_lagging(id, &(watch, wish.clone(), next)));
        let through = (next + revisions - 1).min(self.revision).max(next - 1);
        let events = self.after(next - 1).into_iter();
        let found = events.filter(|event| {
            event.revision() <= through && wish.range.contains(&event.kv.key) && wish.wants(event)
        });
        let (_, _, told) = self.watchers.get_mut(&(stream, watch)).expect("not cancelled");
        told.extend(found.map(|event| shown(&event)));
        self.registry.join(id, watch, through + 1);
    }

    /// Everybody is told everything, in order, once.
    fn finish(mut self) {
        for stream in 0..self.streams.len() {
            while self.send(stream, usize::MAX)
                || self.registry.next_lagging(self.streams[stream], self.last_read).is_some()
            {
                self.read(stream, i64::MAX / 2);
            }
            let progress = self.registry.progress(self.streams[stream]);
            assert_eq!(progress, Some(self.revision));
        }
        for (who, (wish, start, told)) in &self.watchers {
            let events = self.after(*start - 1).into_iter();
            let wanted =
                events.filter(|event| wish.range.contains(&event.kv.key) && wish.wants(event));
            let expected: Vec<_> = wanted.map(|event| shown(&event)).collect();
            assert_eq!(*told, expected, "{who:?}, {wish:?} from {start}");
        }
        for stream in self.streams {
            self.registry.close_stream(stream);
        }
        assert_eq!(self.registry.census(), Census::default());
    }
}

proptest! {
    #[test]
    fn every_watcher_is_told_everything_once_however_slow_it_is_and_little_is_held(
        steps in vec(step(), 1..150),
    ) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.run(step));
        world.finish();
    }
}
