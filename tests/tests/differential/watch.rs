//! Watches: from random revisions, over all forms of ranges, with filters and pairs before, while generated
//! writes happen; created, told and cancelled the same as by etcd, and told the same of their progress.
//!
//! One sequence is one stream, and its writes go to the same node, which has applied what it acknowledged. Watches are
//! created, between them come writes; now and then one is cancelled, or how far the stream is asked, or history is
//! compacted. What is told before those would depend on time: so before them, and in the end, every key is put in one
//! transaction and deleted in another one, and every watch that is left must see that. How events are
//! cut into responses is open, but for one thing: the events of one revision come in one response.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use fastrand::Rng;
use quorate_api::etcdserverpb::watch_create_request::FilterType;
use quorate_api::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, WatchCreateRequest,
    request_op,
};
use quorate_api::mvccpb::Event;
use quorate_api::mvccpb::event::EventType;

use super::generate::{Generator, KEYS, Request};
use super::harness::{ETCD, QUORATE, Run};
use super::keys;
use super::known::Known;
use super::watch_stream::{Stream, Told};

/// Steps of a family that come to one action on the stream: each brings writes along.
const STEPS: usize = 4;

/// The most writes before an action.
const WRITES_MAX: usize = 6;

/// A watch that nobody created.
const UNKNOWN: i64 = 99;

/// One stream on each side.
struct Pair {
    node: usize,
    streams: [Stream; 2],
    /// The watches that are told what happens.
    live: BTreeMap<i64, WatchCreateRequest>,
    /// The watches whose cancel is answered: those that compaction has cancelled too.
    there: BTreeSet<i64>,
    /// At which revisions history was compacted.
    floors: BTreeSet<i64>,
    shown: Vec<String>,
}

/// One sequence.
pub(crate) async fn sequence(run: &mut Run) -> Result<(), String> {
    let node = run.rng.usize(..3);
    let streams = run.sides.each_ref().map(|side| Stream::new(side[node].clone()));
    let (live, there) = (BTreeMap::new(), BTreeSet::new());
    let floors = BTreeSet::from([run.generator.position().1]);
    let mut pair = Pair { node, streams, live, there, floors, shown: Vec::new() };
    for number in 0..run.steps / STEPS {
        for _ in 0..run.rng.usize(..WRITES_MAX) {
            let (_, request) = run.generator.next();
            if !matches!(request, Request::Range(_) | Request::Compact(_)) {
                pair.write(run, &request).await?;
            }
        }
        match run.rng.u32(..20) {
            // etcd says nothing before the first watch.
            _ if number == 0 => pair.create(run, number).await?,
            0..3 => pair.cancel(run).await?,
            3..5 => {
                pair.await_all(run).await?;
                pair.progress(run).await?;
            }
            5..7 => pair.hasty_progress(run).await?,
            7 => pair.compact(run).await?,
            _ => pair.create(run, number).await?,
        }
    }
    pair.await_all(run).await?;
    pair.progress(run).await?;
    pair.conclude(run)
}

impl Pair {
    async fn write(&mut self, run: &mut Run, request: &Request) -> Result<(), String> {
        self.shown.push(format!("{request:?}"));
        keys::ask(run, self.node, format!("{request:?}"), request).await.map(drop)
    }

    async fn create(&mut self, run: &mut Run, number: usize) -> Result<(), String> {
        let create = create(&mut run.rng, &mut run.generator, number);
        let [etcd, quorate] = &mut self.streams;
        let answers = tokio::join!(etcd.create(create.clone()), quorate.create(create.clone()));
        let part = |answer: &quorate_api::etcdserverpb::WatchResponse| {
            (answer.watch_id, answer.canceled, answer.cancel_reason.clone())
        };
        let answers = [part(&answers.0), part(&answers.1)];
        let (id, refused, _) = answers[ETCD];
        self.shown.push(format!("{create:?}"));
        run.judge(format!("{create:?}"), &answers, || None)?;
        if !refused {
            self.live.insert(id, create);
            self.there.insert(id);
        }
        Ok(())
    }

    /// Has every key put and deleted, and waits until all have been told.
    async fn await_all(&mut self, run: &mut Run) -> Result<(), String> {
        let put = |key: &&'static [u8]| {
            let put = PutRequest { key: Bytes::from_static(key), ..PutRequest::default() };
            RequestOp { request: Some(request_op::Request::RequestPut(put)) }
        };
        let all = TxnRequest { success: KEYS.iter().map(put).collect(), ..TxnRequest::default() };
        let zero = Bytes::from_static(b"\0");
        let none = DeleteRangeRequest { key: zero.clone(), range_end: zero, prev_kv: false };
        let mut ends = Vec::new();
        for request in [Request::Txn(all), Request::DeleteRange(none)] {
            self.write(run, &request).await?;
            ends.push(run.generator.position().0);
        }
        let end = |create: &WatchCreateRequest| {
            let has = |filter: FilterType| create.filters.contains(&filter.into());
            let end = match (has(FilterType::Noput), has(FilterType::Nodelete)) {
                (true, true) => None,
                (false, true) => Some(ends[0]),
                (_, false) => Some(ends[1]),
            };
            // One that begins later has nothing to be told.
            end.filter(|end| create.start_revision <= *end)
        };
        let last = self.live.iter().filter_map(|(id, create)| Some((*id, end(create)?))).collect();
        let [etcd, quorate] = &mut self.streams;
        tokio::join!(etcd.settle(&last), quorate.settle(&last));
        if quorate.early > 0 {
            return Err(format!("Quorate's progress is not true: {:#?}", quorate.told));
        }
        for _ in 0..std::mem::take(&mut etcd.early) {
            run.ledger.note(Known::ProgressBeforeEvents);
        }
        Ok(())
    }

    /// How far both streams are, when everything before was told.
    async fn progress(&mut self, run: &mut Run) -> Result<(), String> {
        let (revision, _) = run.generator.position();
        let [etcd, quorate] = &mut self.streams;
        let told = tokio::join!(etcd.progress(revision), quorate.progress(revision));
        self.shown.push("progress".to_owned());
        let told: [i64; 2] = told.into();
        let is_behind = told[QUORATE] < told[ETCD];
        run.judge("progress".to_owned(), &told, || is_behind.then_some(Known::ProgressBehind))
    }

    /// How far both streams are, while something may still be under way.
    async fn hasty_progress(&mut self, run: &mut Run) -> Result<(), String> {
        let (revision, _) = run.generator.position();
        let [etcd, quorate] = &mut self.streams;
        let told = tokio::join!(etcd.hasty_progress(), quorate.hasty_progress());
        self.shown.push("hasty progress".to_owned());
        // However far it is, not above what there is.
        let told = [told.0 <= revision, told.1 <= revision];
        run.judge(format!("hasty progress, up to {revision}"), &told, || None)
    }

    /// Cancels a watch, mostly one that is there; what is told next is progress.
    async fn cancel(&mut self, run: &mut Run) -> Result<(), String> {
        self.await_all(run).await?;
        let unknown = [UNKNOWN, 1, 2];
        let id = match run.rng.u32(..4) {
            0 => run.rng.choice(unknown),
            _ => run.rng.choice(&self.there).copied(),
        };
        let id = id.unwrap_or(UNKNOWN);
        let is_there = self.there.remove(&id);
        self.live.remove(&id);
        let [etcd, quorate] = &mut self.streams;
        tokio::join!(etcd.cancel(id, is_there), quorate.cancel(id, is_there));
        self.shown.push(format!("cancel {id}"));
        self.progress(run).await
    }

    /// Compacts what all have been told already.
    async fn compact(&mut self, run: &mut Run) -> Result<(), String> {
        self.await_all(run).await?;
        let (revision, compacted) = run.generator.position();
        let revision = run.rng.i64(compacted + 1..=revision);
        let request = CompactionRequest { revision, physical: run.rng.bool() };
        self.floors.insert(revision);
        self.write(run, &Request::Compact(request)).await
    }

    /// Whether both were told the same.
    fn conclude(self, run: &mut Run) -> Result<(), String> {
        let [etcd, quorate] = &self.streams;
        let at_floor = |event: &Event| {
            self.floors.contains(&event.kv.as_ref().map_or(0, |pair| pair.mod_revision))
        };
        let above = |told: &[Told]| -> Vec<Told> {
            let is_delete = |event: &Event| event.r#type == EventType::Delete as i32;
            let told = told.iter().filter_map(|told| match told {
                Told::Event(event) if at_floor(event) && is_delete(event) => None,
                Told::Event(event) if at_floor(event) => {
                    Some(Told::Event(Box::new(Event { prev_kv: None, ..(**event).clone() })))
                }
                other => Some(other.clone()),
            });
            told.collect()
        };
        for (id, expected) in &etcd.told {
            let found = quorate.told.get(id).map(Vec::as_slice).unwrap_or_default();
            let (all, ours) = (lives(expected), lives(found));
            for (at, expected) in all.iter().enumerate() {
                let found = ours.get(at).copied().unwrap_or_default();
                if found == *expected {
                    continue;
                }
                if above(found) == above(expected) {
                    run.ledger.note(Known::AtCompaction);
                } else {
                    return Err(format!(
                        "{}\nwatch {id}: etcd tells {expected:#?}\nQuorate tells {found:#?}",
                        self.shown.join("\n"),
                    ));
                }
            }
        }
        let told = [etcd, quorate].map(|stream| stream.told.len());
        run.judge("watches".to_owned(), &told, || None)
    }
}

/// The stories of the watches that had one id, one after the other.
fn lives(told: &[Told]) -> Vec<&[Told]> {
    let starts = told.iter().enumerate().filter(|(_, told)| matches!(told, Told::Created { .. }));
    let mut starts: Vec<_> = starts.map(|(at, _)| at).collect();
    starts.push(told.len());
    starts.windows(2).map(|pair| &told[pair[0]..pair[1]]).collect()
}

/// A watch; the last one had `number` before it.
fn create(rng: &mut Rng, generator: &mut Generator, number: usize) -> WatchCreateRequest {
    let (revision, compacted) = generator.position();
    let key = generator.key();
    let range_end = generator.range_end(&key);
    let (no_put, no_delete) = (FilterType::Noput, FilterType::Nodelete);
    let filters = [vec![], vec![], vec![no_put], vec![no_delete], vec![no_put, no_delete]];
    let filters = rng.choice(filters).expect("there are filters");
    // Of one that is told nothing it cannot be seen when it has come to the present.
    let mute = filters.len() == 2;
    WatchCreateRequest {
        key,
        range_end,
        start_revision: match rng.u32(..8) {
            _ if mute => 0,
            0 => compacted,
            1 => (compacted - 1).max(0),
            2 => revision + 1,
            3 => revision + rng.i64(2..8),
            4..7 => rng.i64(compacted..=revision),
            _ => 0,
        },
        filters: filters.into_iter().map(Into::into).collect(),
        prev_kv: rng.bool(),
        fragment: rng.u32(..4) == 0,
        // Sometimes one that is taken.
        watch_id: if rng.u32(..4) == 0 { rng.i64(1..=number as i64 + 1) } else { 0 },
        ..WatchCreateRequest::default()
    }
}
