//! Clients that take locks: with transactions, as etcd's own clients do, or through the service `Lock`.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use quorate_api::etcdserverpb::{RangeRequest, ResponseHeader};
use tonic::codegen::http::uri::PathAndQuery;

use super::Shared;
use super::calls::call;
use super::leases::{grant, keep_alive, revoke, third};
use super::servers::{Failure, Servers};
use crate::check::history::{Action, Hold, Record};

/// Locks that clients compete for.
const LOCKS: usize = 2;

/// How often a waiter looks whether it is its turn.
const LOOK_EVERY: Duration = Duration::from_millis(30);

/// How long a client waits for a lock before it gives its place up.
const PATIENCE: Duration = Duration::from_secs(5);

/// `v3lockpb.LockRequest`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct LockRequest {
    #[prost(bytes = "bytes", tag = "1")]
    name: Bytes,
    #[prost(int64, tag = "2")]
    lease: i64,
}

/// `v3lockpb.LockResponse`, as far as etcd knows it.
#[derive(Clone, PartialEq, prost::Message)]
struct LockResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<ResponseHeader>,
    #[prost(bytes = "bytes", tag = "2")]
    key: Bytes,
}

/// `v3lockpb.UnlockRequest`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct UnlockRequest {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
}

/// A client of locks.
struct Locker {
    shared: Arc<Shared>,
    servers: Servers,
    number: u32,
    rng: fastrand::Rng,
}

/// A lock that was just taken.
struct Taken {
    lock: String,
    token: i64,
    acquired_us: u64,
    key: Bytes,
}

/// Takes and gives up locks until the round ends.
pub(super) async fn work(
    shared: Arc<Shared>,
    servers: Servers,
    number: usize,
    by_service: bool,
    rng: fastrand::Rng,
) {
    let mut locker = Locker { shared, servers, number: number as u32, rng };
    while !locker.shared.stopped() {
        let Some(lease) = grant(&locker.shared, &mut locker.servers).await else {
            locker.shared.pause(LOOK_EVERY).await;
            continue;
        };
        let name = locker.rng.usize(0..LOCKS);
        let served = locker.shared.lock_service.lock().map_or(None, |served| *served);
        let by_service = by_service && served != Some(false);
        let taken = match by_service {
            true => locker.by_service(name, lease).await,
            false => locker.by_txn(name, lease).await,
        };
        if let Some(taken) = taken {
            locker.hold(taken, lease, by_service).await;
        }
        // Whatever is left of a failed try goes with the lease.
        revoke(&locker.shared, &mut locker.servers, lease).await;
    }
}

impl Locker {
    /// The lock is whose key under its name has the least create revision.
    async fn by_txn(&mut self, name: usize, lease: i64) -> Option<Taken> {
        let lock = format!("m/{name}");
        let key = format!("{lock}/{lease:x}");
        let action = Action::Cas { expect: 0, write: self.shared.write(&key, lease) };
        let answer = call(&self.shared, &mut self.servers, self.number, action, false).await;
        let token = answer.ok().flatten().filter(|answer| answer.wrote)?.revision;
        let begin = self.shared.sent(&format!("{lock}/"));
        let mut end = begin.to_vec();
        *end.last_mut()? += 1;
        let request = RangeRequest {
            key: begin,
            range_end: end.into(),
            sort_order: SortOrder::Ascend.into(),
            sort_target: SortTarget::Create.into(),
            ..RangeRequest::default()
        };
        let sent_key = self.shared.sent(&key);
        let until = Instant::now() + PATIENCE;
        let mut kept = Instant::now();
        while !self.shared.stopped() && Instant::now() < until {
            let mut kv = self.servers.kv();
            if let Ok(range) = self.servers.answer(kv.range(request.clone())).await {
                let acquired_us = self.shared.now_us();
                if range.kvs.first().is_some_and(|first| first.key == sent_key) {
                    return Some(Taken { lock, token, acquired_us, key: sent_key });
                }
                if range.kvs.iter().all(|pair| pair.key != sent_key) {
                    return None;
                }
            }
            if kept.elapsed() > third(&self.shared) {
                kept = Instant::now();
                if !keep_alive(&self.shared, &mut self.servers, lease).await {
                    return None;
                }
            }
            self.shared.pause(LOOK_EVERY).await;
        }
        None
    }

    /// The server waits for its turn; the token is read from the key that it answers.
    async fn by_service(&mut self, name: usize, lease: i64) -> Option<Taken> {
        let lock = format!("{}{name}", self.shared.service_prefix);
        let request = LockRequest { name: lock.clone().into(), lease };
        let channel = self.servers.channel();
        let asked = unary::<_, LockResponse>(channel, request, "/v3lockpb.Lock/Lock");
        // The wait must not outlive the lease: it is kept by another connection meanwhile.
        let (shared, mut keeper) = (Arc::clone(&self.shared), self.keeper()?);
        let mut asked = Box::pin(self.servers.answer_within(PATIENCE, asked));
        let answer = loop {
            tokio::select! {
                answer = &mut asked => break answer,
                () = tokio::time::sleep(third(&shared)) => {
                    keep_alive(&shared, &mut keeper, lease).await;
                }
            }
        };
        drop(asked);
        let served = match &answer {
            Ok(_) => Some(true),
            Err(Failure::Refused(status)) if status.code() == tonic::Code::Unimplemented => {
                Some(false)
            }
            Err(_) => None,
        };
        if served.is_some() {
            *shared.lock_service.lock().unwrap_or_else(PoisonError::into_inner) = served;
        }
        let answer = answer.ok()?;
        let acquired_us = shared.now_us();
        let mut kv = self.servers.kv();
        let get = RangeRequest { key: answer.key.clone(), ..RangeRequest::default() };
        let owned = self.servers.answer(kv.range(get)).await.ok()?;
        let token = owned.kvs.first()?.create_revision;
        Some(Taken { lock: format!("s/{name}"), token, acquired_us, key: answer.key })
    }

    fn keeper(&self) -> Option<Servers> {
        let args = &self.shared.args;
        Servers::new(&args.endpoints, self.number as usize, args.timeout).ok()
    }

    /// Holds a lock for a while; one in six does not give it up, and loses it with its lease.
    async fn hold(&mut self, taken: Taken, lease: i64, by_service: bool) {
        let shared = Arc::clone(&self.shared);
        let gives_up = self.rng.u32(0..6) != 0;
        let released_us = if gives_up {
            let time = Duration::from_millis(self.rng.u64(0..300));
            shared.pause(time).await;
            Some(shared.now_us())
        } else {
            None
        };
        let Taken { lock, token, acquired_us, key } = taken;
        let holder = self.number;
        shared.record(Record::Hold(Hold { lock, holder, lease, token, acquired_us, released_us }));
        if !gives_up {
            let ttl = Duration::from_secs(u64::try_from(shared.args.ttl).unwrap_or(1));
            shared.pause(ttl + LOOK_EVERY).await;
        } else if by_service {
            let channel = self.servers.channel();
            let unlock =
                unary::<_, LockResponse>(channel, UnlockRequest { key }, "/v3lockpb.Lock/Unlock");
            // The lease is revoked next, which does the same.
            let _ = self.servers.answer(unlock).await;
        } else {
            let action = Action::Delete(shared.shown(&key));
            let _ = call(&shared, &mut self.servers, self.number, action, false).await;
        }
    }
}

/// A call of a service that the API's crate may not have.
async fn unary<Q, A>(
    channel: tonic::transport::Channel,
    request: Q,
    path: &'static str,
) -> Result<tonic::Response<A>, tonic::Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut client = tonic::client::Grpc::new(channel);
    let unready = |error| tonic::Status::unavailable(format!("{error}"));
    client.ready().await.map_err(unready)?;
    let codec = tonic_prost::ProstCodec::<Q, A>::default();
    client.unary(tonic::Request::new(request), PathAndQuery::from_static(path), codec).await
}
