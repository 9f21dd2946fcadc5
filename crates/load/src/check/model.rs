//! Histories as a right server would give them, from a seed: calls that overlap, answers that get lost, watchers
//! that break and resume, leases that are kept and end, locks that pass from hand to hand.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::history::{
    Action, Answer, Call, Delivery, Event, History, Hold, LeaseAction, LeaseAnswer, LeaseCall,
    Pair, Record, Scope, Seen, Watch, Watcher, Write,
};

/// Keys that are read and written.
const KEYS: u32 = 4;

/// A right history.
pub(crate) fn right(seed: u64) -> History {
    Model::new(seed).run()
}

/// A server whose calls take effect one after the other, each somewhere between its sending and its answer.
struct Model {
    rng: Rng,
    now_us: u64,
    revision: i64,
    values: u64,
    pairs: BTreeMap<String, Pair>,
    /// The modification revisions of each key that answers have shown.
    shown: BTreeMap<String, Vec<i64>>,
    /// Every change, in order.
    log: Vec<Event>,
    /// When each client's last call was answered.
    free_us: Vec<u64>,
    records: Vec<(u64, Record)>,
}

impl Model {
    fn new(seed: u64) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            now_us: 1_000,
            revision: 1,
            values: 0,
            pairs: BTreeMap::new(),
            shown: BTreeMap::new(),
            log: Vec::new(),
            free_us: vec![0; 5],
            records: Vec::new(),
        }
    }

    fn run(mut self) -> History {
        let begin = self.revision;
        let calls = self.rng.usize(10..80);
        let leases = self.rng.i64(1..4);
        let mut open: Vec<(i64, u64, Vec<String>)> = Vec::new();
        for number in 0..calls {
            self.call();
            if number % 20 == 5 {
                let id = 100 + number as i64;
                if open.len() < usize::try_from(leases).unwrap_or(1) {
                    open.push(self.lease(id));
                }
            }
        }
        for (id, until_us, keys) in open {
            self.expire(id, until_us, &keys);
        }
        self.locks();
        // The end, which every watcher has to come to.
        let keys: Vec<String> = (0..KEYS).map(|key| format!("k/{key}")).collect();
        let writes = keys.iter().map(|key| self.write(key, 0)).collect();
        let (client, sent_us) = self.client();
        let seen = self.take(&Action::Put(writes));
        self.answered(client, sent_us, seen);
        self.watchers(begin);
        let end = self.revision;
        self.records.push((u64::MAX, Record::Settled(end)));
        // Watchers stand before what they see; else everything is recorded when it is known.
        self.records.sort_by_key(|(at_us, _)| *at_us);
        History { records: self.records.into_iter().map(|(_, record)| record).collect() }
    }

    fn write(&mut self, key: &str, lease: i64) -> Write {
        self.values += 1;
        Write { key: key.to_owned(), value: self.values.to_string(), lease }
    }

    /// A client that is free, and when it sends: some time ago, so that calls overlap.
    fn client(&mut self) -> (u32, u64) {
        self.now_us += self.rng.u64(1..2_000);
        let client = self.rng.usize(0..self.free_us.len());
        let early = self.rng.u64(0..3_000);
        let sent_us = self.now_us.saturating_sub(early).max(self.free_us[client] + 1);
        self.now_us = self.now_us.max(sent_us + 1);
        self.free_us[client] = self.now_us + self.rng.u64(1..3_000);
        (client as u32, sent_us)
    }

    /// One call on one or two keys; one in eight has no answer, and happens or not.
    fn call(&mut self) {
        let (client, sent_us) = self.client();
        let key = format!("k/{}", self.rng.u32(0..KEYS));
        let action = match self.rng.u32(0..10) {
            0..4 => Action::Get(key),
            4..6 => Action::Put(vec![self.write(&key, 0)]),
            6 => {
                let other = format!("k/{}", (key.as_bytes()[2] - b'0' + 1) % KEYS as u8);
                Action::Put(vec![self.write(&key, 0), self.write(&other, 0)])
            }
            7 => Action::Delete(key),
            _ => {
                // Clients expect what an answer has shown them.
                let shown = self.shown.get(&key).map_or(&[0][..], Vec::as_slice);
                let expect = match self.rng.u32(0..4) {
                    0 => 0,
                    1 => *self.rng.choice(shown).expect("0 at least"),
                    _ => *shown.last().expect("0 at least"),
                };
                Action::Cas { expect, write: self.write(&key, 0) }
            }
        };
        if self.rng.u32(0..8) == 0 {
            if matches!(action, Action::Get(_)) {
                return;
            }
            if self.rng.bool() {
                self.take(&action);
            }
            let call = Call { client, sent_us, action, answer: None };
            self.records.push((self.now_us + 5_000, Record::Call(call)));
            return;
        }
        let taken = self.take(&action);
        self.answered(client, sent_us, taken);
    }

    /// An action takes effect.
    fn take(&mut self, action: &Action) -> (Action, Answer) {
        let key = action.keys().next().expect("every call has a key").to_owned();
        let seen = match self.pairs.get(&key) {
            Some(pair) => Seen::Pair(pair.clone()),
            None => Seen::Nothing,
        };
        let there = self.pairs.get(&key).map_or(0, |pair| pair.modified);
        let (wrote, seen) = match action {
            Action::Get(_) => (false, Some(seen)),
            // Half of them ask for the pair before.
            Action::Put(_) => (true, self.rng.bool().then_some(seen)),
            Action::Delete(_) => (there != 0, self.rng.bool().then_some(seen)),
            Action::Cas { expect, .. } if *expect == there => (true, None),
            Action::Cas { .. } => (false, Some(seen)),
        };
        let seen = if action.puts().len() > 1 { None } else { seen };
        if wrote {
            self.revision += self.rng.i64(1..3);
            match action {
                Action::Delete(key) => self.delete(key),
                _ => action.puts().iter().for_each(|write| self.put(write)),
            }
        }
        (action.clone(), Answer { at_us: 0, revision: self.revision, wrote, seen })
    }

    fn answered(&mut self, client: u32, sent_us: u64, (action, answer): (Action, Answer)) {
        let at_us = self.free_us[client as usize];
        for key in action.keys() {
            let shown = self.shown.entry(key.to_owned()).or_default();
            match &answer.seen {
                _ if answer.wrote => shown.push(answer.revision),
                Some(Seen::Pair(pair)) => shown.push(pair.modified),
                Some(Seen::Nothing) | None => shown.push(0),
            }
        }
        let call = Call { client, sent_us, action, answer: Some(Answer { at_us, ..answer }) };
        self.records.push((at_us, Record::Call(call)));
    }

    fn put(&mut self, write: &Write) {
        let prev = self.pairs.get(&write.key).cloned();
        let pair = Pair {
            value: write.value.clone(),
            create: prev.as_ref().map_or(self.revision, |prev| prev.create),
            modified: self.revision,
            version: prev.as_ref().map_or(1, |prev| prev.version + 1),
        };
        self.pairs.insert(write.key.clone(), pair.clone());
        let key = write.key.clone();
        self.log.push(Event { key, revision: self.revision, put: Some(pair), prev });
    }

    fn delete(&mut self, key: &str) {
        let prev = self.pairs.remove(key);
        let key = key.to_owned();
        self.log.push(Event { key, revision: self.revision, put: None, prev });
    }

    /// A lease with two or three keys, kept alive a few times. Returns until when it lives.
    fn lease(&mut self, id: i64) -> (i64, u64, Vec<String>) {
        let mut until_us = 0;
        for number in 0..self.rng.u32(1..4) {
            let sent_us = self.now_us;
            self.now_us += self.rng.u64(100..900_000);
            let action = if number == 0 { LeaseAction::Grant } else { LeaseAction::KeepAlive };
            let answer = Some(LeaseAnswer { at_us: self.now_us, ttl_s: 2 });
            let call = LeaseCall { lease: id, sent_us, action, answer };
            self.records.push((self.now_us, Record::Lease(call)));
            until_us = self.now_us + 2_000_000;
        }
        let keys: Vec<String> =
            (0..self.rng.u32(2..4)).map(|key| format!("l/{id}/{key}")).collect();
        for key in &keys {
            let (client, sent_us) = self.client();
            let action = Action::Put(vec![self.write(key, id)]);
            let taken = self.take(&action);
            self.answered(client, sent_us, taken);
        }
        (id, until_us, keys)
    }

    /// A lease ends: by itself, or revoked; its keys vanish in one revision.
    fn expire(&mut self, id: i64, until_us: u64, keys: &[String]) {
        if self.rng.bool() {
            let sent_us = self.now_us;
            self.now_us += 1;
            let action = LeaseAction::Revoke;
            let answer = self.rng.bool().then_some(LeaseAnswer { at_us: sent_us + 1, ttl_s: 0 });
            let call = LeaseCall { lease: id, sent_us, action, answer };
            self.records.push((sent_us + 1, Record::Lease(call)));
        } else {
            self.now_us = self.now_us.max(until_us);
        }
        self.revision += 1;
        keys.iter().for_each(|key| self.delete(key));
        let (client, sent_us) = self.client();
        let taken = self.take(&Action::Get(keys[0].clone()));
        self.answered(client, sent_us, taken);
    }

    /// Holders of one lock, one after the other; some lose it with their lease.
    fn locks(&mut self) {
        for number in 0..self.rng.u32(2..5) {
            let lease = 1_000 + i64::from(number);
            let sent_us = self.now_us;
            let answer = Some(LeaseAnswer { at_us: sent_us + 10, ttl_s: 2 });
            let call = LeaseCall { lease, sent_us, action: LeaseAction::Grant, answer };
            self.records.push((sent_us + 10, Record::Lease(call)));
            self.revision += 1;
            let acquired_us = sent_us + self.rng.u64(20..1_000);
            let released_us = self.rng.bool().then(|| acquired_us + self.rng.u64(0..1_000_000));
            let hold = Hold {
                lock: "m/0".to_owned(),
                holder: number,
                lease,
                token: self.revision,
                acquired_us,
                released_us,
            };
            self.now_us = released_us.unwrap_or(sent_us + 2_000_000) + 1;
            self.records.push((self.now_us, Record::Hold(hold)));
        }
    }

    /// Watchers of everything, of a prefix and of a key, each in its own portions.
    fn watchers(&mut self, begin: i64) {
        let scopes = [
            Scope::Prefix(String::new()),
            Scope::Prefix("k/".to_owned()),
            Scope::Key("k/1".to_owned()),
            Scope::Prefix(String::new()),
        ];
        for (watcher, scope) in (0..).zip(scopes) {
            let prev_kv = self.rng.bool();
            let record = Record::Watcher(Watcher { watcher, scope: scope.clone(), prev_kv });
            self.records.push((0, record));
            self.watcher(watcher, &scope, prev_kv, begin);
        }
    }

    fn watcher(&mut self, watcher: u32, scope: &Scope, prev_kv: bool, begin: i64) {
        let mut at_us = self.now_us;
        let mut revisions: BTreeMap<i64, Vec<Event>> = BTreeMap::new();
        for event in self.log.iter().filter(|event| scope.covers(&event.key)) {
            let event = Event { prev: event.prev.clone().filter(|_| prev_kv), ..event.clone() };
            revisions.entry(event.revision).or_default().push(event);
        }
        let end = self.revision;
        let mut records = Vec::new();
        let mut next = if self.rng.bool() { begin + 1 } else { 0 };
        let mut deliver = |what| {
            at_us += 10;
            records.push((at_us, Record::Watch(Watch { watcher, at_us, what })));
        };
        deliver(Delivery::Created { start: next, revision: if next == 0 { begin } else { end } });
        let mut portion = Vec::new();
        for (revision, events) in revisions {
            portion.extend(events);
            if self.rng.bool() {
                continue;
            }
            deliver(Delivery::Events(std::mem::take(&mut portion)));
            next = revision + 1;
            match self.rng.u32(0..6) {
                0 => deliver(Delivery::Progress(revision)),
                1 => {
                    deliver(Delivery::Lost("reset".to_owned()));
                    deliver(Delivery::Created { start: next, revision: end });
                }
                _ => {}
            }
        }
        if !portion.is_empty() {
            deliver(Delivery::Events(portion));
        }
        deliver(Delivery::Progress(end));
        self.records.extend(records);
    }
}
