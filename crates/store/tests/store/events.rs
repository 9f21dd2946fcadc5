//! What watchers are told as it happens, and what they read later, from the rows: the same.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use quorate_store::MemState;
use quorate_types::KeyRange;
use quorate_types::kv::{
    Command, Compact, EventKind, Events, EventsOutcome, KeyValue, Query, Range, WatchEvent,
    WatchEvents, command, outcome, query,
};

use crate::generate::{command, range};
use crate::host::Host;

#[derive(Clone, Debug)]
enum Step {
    Apply(Vec<Command>),
    /// Compact at this many hundredths of the present revision.
    Compact(i64),
    Sweep(usize),
    Restart,
    /// Read a range from this many hundredths of the present revision on, so many bytes at a time.
    Read(Box<Range>, i64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => vec(command(), 1..4).prop_map(Step::Apply),
        1 => (0i64..=100).prop_map(Step::Compact),
        3 => (0usize..6).prop_map(Step::Sweep),
        1 => Just(Step::Restart),
        8 => (range(), -10i64..=110, prop_oneof![Just(0), Just(1), 100u64..2_000])
            .prop_map(|(range, from, bytes)| Step::Read(Box::new(range), from, bytes)),
    ]
}

/// A watcher that was there from the beginning.
struct Watcher {
    host: Host<MemState>,
    told: Vec<WatchEvent>,
    through: Option<i64>,
}

impl Watcher {
    fn listen(&mut self) {
        let Some(feed) = self.host.take_feed() else { return };
        assert_eq!(feed.after, self.through.unwrap_or(feed.after), "a gap");
        self.through = Some(feed.through);
        let events = feed.payload.downcast::<WatchEvents>().expect("events").0.clone();
        assert!(events.iter().all(|e| feed.after < e.revision() && e.revision() <= feed.through));
        assert_eq!(events.last().map_or(feed.after, WatchEvent::revision), feed.through);
        self.told.extend(events);
    }

    fn events(&self, asked: Events) -> EventsOutcome {
        let query = Query { body: Some(query::Body::Events(asked)), caller: None };
        match self.host.read(&query).expect("an answer").body {
            Some(outcome::Body::Events(found)) => found,
            other => panic!("{other:?}"),
        }
    }

    /// What was told of a range after a revision, with the pairs before.
    fn expected(&self, range: &KeyRange, after: i64) -> Vec<WatchEvent> {
        let mut pairs: BTreeMap<Bytes, KeyValue> = BTreeMap::new();
        let mut events = Vec::new();
        for revision in self.told.chunk_by(|a, b| a.revision() == b.revision()) {
            let before = pairs.clone();
            for event in revision {
                let key = &event.kv.key;
                match event.kind == EventKind::Put as i32 {
                    true => drop(pairs.insert(key.clone(), event.kv.clone())),
                    false => drop(pairs.remove(key)),
                }
                if event.revision() > after && range.contains(key) {
                    // What a transaction deletes and makes again has no pair before, as with etcd.
                    let prev_kv = before.get(key).filter(|_| !event.is_create()).cloned();
                    events.push(WatchEvent { prev_kv, ..event.clone() });
                }
            }
        }
        events
    }

    /// The same events in parts of any size, which end anywhere and leave nothing out.
    fn check_parts(&self, range: &Range, after: i64, bytes_max: u64, expected: &[WatchEvent]) {
        let now = self.through.expect("it listens");
        let (mut through, mut from, mut read) = (after, 0, Vec::new());
        while through < now {
            let (key, range_end) = (range.key.clone(), range.range_end.clone());
            let asked = Events {
                after: through,
                key,
                range_end,
                prev_kv: true,
                bytes_max,
                through: 0,
                parts: true,
                from,
            };
            let found = self.events(asked);
            assert_eq!(found.compacted, None);
            assert!((found.through, found.rest_from) > (through, from), "it comes to an end");
            assert!(bytes_max != 1 || found.events.len() <= 1, "a part ends after any event");
            (through, from) = (found.through, found.rest_from);
            read.extend(found.events);
        }
        assert_eq!((read.as_slice(), from), (expected, 0));
    }

    fn check(&self, range: &Range, mut after: i64, bytes_max: u64) {
        let from = after;
        let floor = self.events(Events { after: -10, ..Events::default() }).compacted;
        let floor = floor.expect("below every floor");
        let (key, range_end) = (range.key.clone(), range.range_end.clone());
        let expected = self.expected(&KeyRange::from_request(&key, &range_end), after);
        let mut read = Vec::new();
        loop {
            let (key, range_end) = (key.clone(), range_end.clone());
            let asked =
                Events { after, key, range_end, prev_kv: true, bytes_max, ..Events::default() };
            let found = self.events(asked);
            if after + 1 < floor {
                assert_eq!((found.compacted, found.events.len()), (Some(floor), 0));
                return;
            }
            assert_eq!((found.compacted, found.rest_from), (None, 0));
            let now = self.through.expect("it listens");
            assert!(found.through > after || found.through >= now, "it comes to an end");
            read.extend(found.events);
            after = found.through;
            if after >= now {
                break;
            }
        }
        assert_eq!(read, expected);
        self.check_parts(range, from, bytes_max, &expected);
    }
}

proptest! {
    #[test]
    fn what_is_told_and_what_is_read_later_are_the_same(steps in vec(step(), 1..60)) {
        let host = Host::new(MemState::new());
        let mut watcher = Watcher { host, told: Vec::new(), through: None };
        watcher.listen();
        for step in steps {
            let now = watcher.through.expect("it listens");
            match step {
                Step::Apply(commands) => {
                    let encode = |command: Command| prost::Message::encode_to_vec(&command).into();
                    watcher.host.apply_all(commands.into_iter().map(encode));
                }
                Step::Compact(hundredths) => {
                    let revision = now * hundredths / 100;
                    let body = Some(command::Body::Compact(Compact { revision }));
                    watcher.host.apply(&Command { body, ..Command::default() });
                }
                Step::Sweep(budget_rows) => {
                    watcher.host.sweep(budget_rows);
                },
                Step::Restart => watcher.host.restart(),
                Step::Read(range, hundredths, bytes_max) => {
                    watcher.check(&range, now * hundredths / 100, bytes_max);
                }
            }
            watcher.listen();
        }
        let all = Range { range_end: Bytes::from_static(b"\0"), ..Range::default() };
        watcher.check(&all, 0, 0);
    }
}
