//! The Watch service.
//!
//! The life of an event: the backend's feed brings it ([`Backend::follow`](crate::Backend::follow)); the hub,
//! one for each gateway, hands the feed's batch to the registry; that looks up whose ranges hold the key, and
//! puts a note (which events of which batch) into the queue of each stream concerned; the stream's task
//! makes a response of it. No event is copied on the way, and nobody waits for anybody: a queue that is full
//! makes its watcher one that lags, which reads what it lacks from the rows, at its client's pace, until it
//! can join the others again; if compaction is faster, it is cancelled with the compaction's revision.
//!
//! - `ranges`: which of many ranges hold a key.
//! - `batch`: events as they are shared.
//! - `registry`: all watchers of a gateway, as a value.
//! - `hub`: the registry between the backend's feed and the streams.
//! - `catch_up`: events from the rows.
//! - `prev_kvs`: the pairs before events.
//! - `ending`: which streams have to end without a leader.
//! - `permits`: whether a client may watch what it watches.
//! - `respond`: events as responses; fragments.
//! - `stream`: one client's stream.
//! - `service`: the RPC.
//! - `subscription`: a watch of the gateway's own.

mod batch;
mod catch_up;
mod ending;
mod hub;
mod permits;
mod prev_kvs;
mod ranges;
mod registry;
mod respond;
mod service;
mod stream;
mod subscription;

pub(crate) use hub::Hub;
pub(crate) use service::WatchService;
pub(crate) use subscription::{Subscription, Told};
