//! Whose turn it is, for locks and elections.
//!
//! Whoever wants to own a name puts a key of its own under it, attached to a lease. The oldest key owns the
//! name; every other waits until the one before it is gone, and looks again. So nobody is woken for nothing,
//! and owners follow each other in the order in which they came. [`turn`] decides; [`Queues`] does the rest.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quorate_api::etcdserverpb::ResponseHeader;
use quorate_types::KeyRange;
use quorate_types::kv::{
    self, Compare, CompareResult, EventKind, KeyValue, Op, Put, Range, SortOrder, SortTarget, Txn,
    TxnOutcome, command, compare::Target, op, outcome, query,
};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::auth::caller::Identity;
use crate::backend::Backend;
use crate::desk::Desk;
use crate::error::ApiError;
use crate::lease::LeaseIds;
use crate::metrics::UndoMetrics;
use crate::undo::{UndoBounds, Undos};
use crate::watch::{Hub, Subscription, Told};

/// Time to live of a lease that the server grants for a call that names none, in seconds; etcd's.
const SESSION_TTL_S: i64 = 60;

/// Pause before something that nobody answered is asked again: an election goes on for longer.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What a waiter learns from a look at the keys under a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Turn {
    /// It owns the name.
    Own,
    /// It comes after this key, or after keys that come after this key.
    After(Bytes),
    /// Its own key is gone, with its lease or by somebody's hand.
    Lost,
}

/// The turn of the key that was created at revision `created`. The look is of one revision: its own key as
/// it is, and the youngest of the keys that are older.
pub(crate) fn turn(created: i64, own: Option<&KeyValue>, before: Option<&KeyValue>) -> Turn {
    match (own, before) {
        (Some(own), None) if own.create_revision == created => Turn::Own,
        (Some(own), Some(before)) if own.create_revision == created => {
            Turn::After(before.key.clone())
        }
        _ => Turn::Lost,
    }
}

/// What the keys of a name begin with.
pub(crate) fn prefix(name: &Bytes) -> Bytes {
    [name.as_ref(), b"/"].concat().into()
}

/// The key of a lease under a name: its id in hexadecimal, with a sign if it is negative.
fn own_key(prefix: &Bytes, lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    [prefix.as_ref(), format!("{sign}{:x}", lease.unsigned_abs()).as_bytes()].concat().into()
}

/// The first of the keys under a prefix by their age, `before` some revision if that is not 0.
pub(crate) fn oldest(prefix: &Bytes) -> Range {
    Range {
        sort_order: SortOrder::Ascend as i32,
        sort_target: SortTarget::Create as i32,
        limit: 1,
        ..under(prefix)
    }
}

fn under(prefix: &Bytes) -> Range {
    let end = KeyRange::prefix(prefix).end.unwrap_or_else(|| Bytes::from_static(&[0]));
    Range { key: prefix.clone(), range_end: end, ..Range::default() }
}

/// A call's place in the queue of a name.
#[derive(Clone, Debug)]
struct Place {
    prefix: Bytes,
    key: Bytes,
    /// The key's create revision.
    created: i64,
    /// The revision at which this call wrote the key: made it, or took it over from an earlier call.
    written: i64,
}

/// An owner.
#[derive(Clone, Debug)]
pub(crate) struct Owned {
    pub(crate) key: Bytes,
    /// The key's create revision: the fencing token.
    pub(crate) created: i64,
    pub(crate) lease: i64,
    /// Of the transaction by which the call took its place.
    pub(crate) entered: ResponseHeader,
    /// Of the look by which it was found to be the owner.
    pub(crate) found: ResponseHeader,
}

/// Who wants to own what.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) name: Bytes,
    pub(crate) lease: i64,
    /// The value of the key; `None` is an empty one, or that which it has.
    pub(crate) value: Option<Bytes>,
    pub(crate) by: Option<Identity>,
    /// What the call is refused with when the key is gone before it owns the name.
    pub(crate) lost: ApiError,
}

/// The queues of all names, as one gateway's calls see them.
pub(crate) struct Queues<B> {
    pub(crate) hub: Arc<Hub<B>>,
    ids: LeaseIds,
    undos: Undos,
    /// The calls that wait, and those that have ended and are undone.
    calls: Mutex<JoinSet<()>>,
}

impl<B: Backend> Queues<B> {
    pub(crate) fn new(hub: Arc<Hub<B>>, undos: UndoMetrics) -> Self {
        let undos = Undos::new(UndoBounds::default(), undos);
        Self { hub, ids: LeaseIds::default(), undos, calls: Mutex::default() }
    }

    pub(crate) fn desk(&self) -> &Desk<B> {
        &self.hub.desk
    }

    /// Waits until the wish is fulfilled, or the gateway goes down. Whoever stops waiting gives the place up: that
    /// goes on in a task, which ends with what is under way.
    pub(crate) async fn own(self: &Arc<Self>, wish: Wish) -> Result<Owned, Status> {
        let (reply, answer) = oneshot::channel();
        {
            let mut calls = self.calls();
            while calls.try_join_next().is_some() {}
            calls.spawn(Arc::clone(self).run(wish, reply));
        }
        tokio::select! {
            biased;
            answer = answer => answer.unwrap_or_else(|_| Err(ApiError::Stopped.into())),
            () = self.hub.closed() => Err(ApiError::Stopped.into()),
        }
    }

    /// Waits until all that calls have left behind is undone; if this is dropped before, the rest is given up. For
    /// a gateway that goes down: its calls have ended.
    pub(crate) async fn settle(&self) {
        let mut calls = std::mem::take(&mut *self.calls());
        while calls.join_next().await.is_some() {}
    }

    /// Gives up what calls have left behind.
    pub(crate) fn abandon(&self) {
        self.calls().abort_all();
    }

    fn calls(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(self: Arc<Self>, wish: Wish, mut reply: oneshot::Sender<Result<Owned, Status>>) {
        let entered = self.enter(&wish).await;
        let (place, mut owned, owns) = match entered {
            Ok(entered) => entered,
            // Whoever has gone hears nothing.
            Err(status) => return drop(reply.send(Err(status))),
        };
        if !owns {
            let waited = tokio::select! {
                biased;
                () = reply.closed() => None,
                waited = self.wait(&place, &wish) => Some(waited),
            };
            match waited {
                Some(Ok(found)) => owned.found = found,
                Some(Err(status)) => {
                    let lost = status.message() == wish.lost.text();
                    drop(reply.send(Err(status)));
                    if !lost {
                        self.undo(place, wish).await;
                    }
                    return;
                }
                None => return self.undo(place, wish).await,
            }
        }
        // Nobody was told that this key owns the name, unless another call has had it before.
        if reply.send(Ok(owned)).is_err() && place.created == place.written {
            self.undo(place, wish).await;
        }
    }

    /// Takes a place. A key that the lease has already keeps its age, and gets the value, if there is one. The
    /// write makes the place this call's, so that what an earlier call of the same lease takes back is never this
    /// one's.
    async fn enter(&self, wish: &Wish) -> Result<(Place, Owned, bool), Status> {
        let by = wish.by.as_ref();
        let lease = self.session(wish.lease, by).await?;
        let prefix = prefix(&wish.name);
        let key = own_key(&prefix, lease);
        let put = Put {
            key: key.clone(),
            value: wish.value.clone().unwrap_or_default(),
            lease,
            prev_kv: true,
            ..Put::default()
        };
        let again = Put { ignore_value: wish.value.is_none(), ..put.clone() };
        let put_and_look =
            |put| vec![do_op(op::Body::Put(put)), do_op(op::Body::Range(oldest(&prefix)))];
        let is_new = compare(&key, Target::CreateRevision(0));
        let (success, failure) = (put_and_look(put), put_and_look(again));
        let txn = Txn { compares: vec![is_new], success, failure };
        let (header, outcome) = self.carry_out(txn, by).await?;
        let mut found = outcome.responses.into_iter().map(|response| response.body);
        let (Some(Some(outcome::Body::Put(put))), Some(Some(outcome::Body::Range(owner)))) =
            (found.next(), found.next())
        else {
            return Err(ApiError::UnexpectedOutcome.into());
        };
        let written = header.revision;
        let created = match (outcome.succeeded, put.prev_kv) {
            (true, _) => written,
            (false, Some(before)) => before.create_revision,
            (false, None) => return Err(ApiError::UnexpectedOutcome.into()),
        };
        let owns = owner.kvs.first().is_some_and(|owner| owner.create_revision == created);
        let owned = Owned { key: key.clone(), created, lease, entered: header, found: header };
        Ok((Place { prefix, key, created, written }, owned, owns))
    }

    /// The lease of a call; a new one where it names none.
    pub(crate) async fn session(&self, lease: i64, by: Option<&Identity>) -> Result<i64, Status> {
        if lease != 0 {
            return Ok(lease);
        }
        let grant = kv::LeaseGrant { id: self.ids.draw(), ttl_s: SESSION_TTL_S };
        match self.desk().carry_out(command::Body::LeaseGrant(grant), by).await? {
            (_, outcome::Body::LeaseGrant(granted)) => Ok(granted.id),
            _ => Err(ApiError::UnexpectedOutcome.into()),
        }
    }

    /// Until the place is the oldest: the header of the look that found it so.
    async fn wait(&self, place: &Place, wish: &Wish) -> Result<ResponseHeader, Status> {
        loop {
            let (header, turn) = persist(async || self.look(place, wish).await).await?;
            match turn {
                Turn::Own => return Ok(header),
                Turn::Lost => return Err(wish.lost.into()),
                Turn::After(before) => {
                    self.await_deletion([&before, &place.key], header.revision).await?;
                }
            }
        }
    }

    /// One linearizable look: the own key and the one before it, as of one revision.
    async fn look(&self, place: &Place, wish: &Wish) -> Result<(ResponseHeader, Turn), Status> {
        let own = Range { key: place.key.clone(), ..Range::default() };
        let before = Range {
            max_create_revision: place.created - 1,
            sort_order: SortOrder::Descend as i32,
            ..oldest(&place.prefix)
        };
        let success = vec![do_op(op::Body::Range(own)), do_op(op::Body::Range(before))];
        let txn = Txn { compares: Vec::new(), success, failure: Vec::new() };
        let answer = self.desk().ask(query::Body::Txn(txn), wish.by.as_ref()).await?;
        let (header, outcome::Body::Txn(outcome)) = answer else {
            return Err(ApiError::UnexpectedOutcome.into());
        };
        let mut found = outcome.responses.into_iter().map(|response| response.body);
        let (Some(Some(outcome::Body::Range(own))), Some(Some(outcome::Body::Range(before)))) =
            (found.next(), found.next())
        else {
            return Err(ApiError::UnexpectedOutcome.into());
        };
        Ok((header, turn(place.created, own.kvs.first(), before.kvs.first())))
    }

    /// Until one of two keys is deleted after a revision, or it cannot be said that none was.
    async fn await_deletion(&self, keys: [&Bytes; 2], after: i64) -> Result<(), Status> {
        let open = async || Subscription::open(&self.hub, keys.map(KeyRange::single), after).await;
        let mut subscription = persist(open).await?;
        loop {
            match subscription.next(false).await {
                Ok(Told::Events(events)) => {
                    if events.iter().any(|event| event.kind == EventKind::Delete as i32) {
                        return Ok(());
                    }
                }
                Ok(Told::Compacted) => return Ok(()),
                Err(status) if passes(&status) => tokio::time::sleep(RETRY_PAUSE).await,
                Err(status) => return Err(status),
            }
        }
    }

    /// Takes a place back, unless a later call of the same lease has it by now.
    async fn undo(&self, place: Place, wish: Wish) {
        let Place { key, written, .. } = place;
        // It may take a while, and what was wished for may be large.
        drop(wish);
        self.undos.take_back(&*self.desk().backend, key, written).await;
    }

    /// Runs a transaction of the services' own, within the limits of clients'.
    pub(crate) async fn carry_out(
        &self,
        txn: Txn,
        by: Option<&Identity>,
    ) -> Result<(ResponseHeader, TxnOutcome), Status> {
        let body = command::Body::Txn(txn);
        let command = kv::Command { body: Some(body.clone()), ..kv::Command::default() };
        if command.encoded_len() > self.desk().config.max_request_bytes {
            return Err(ApiError::RequestTooLarge.into());
        }
        match self.desk().carry_out(body, by).await? {
            (header, outcome::Body::Txn(outcome)) => Ok((header, outcome)),
            _ => Err(ApiError::UnexpectedOutcome.into()),
        }
    }
}

pub(crate) const fn do_op(body: op::Body) -> Op {
    Op { body: Some(body) }
}

/// The compare of a key with what it must be.
pub(crate) fn compare(key: &Bytes, target: Target) -> Compare {
    let result = CompareResult::Equal as i32;
    Compare { key: key.clone(), range_end: Bytes::new(), result, target: Some(target) }
}

/// Asks what changes nothing until there is an answer: a waiter does not lose its place because nobody leads
/// for a moment. Its client sets the end.
pub(crate) async fn persist<T, F>(mut ask: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    loop {
        match ask().await {
            Err(status) if passes(&status) => tokio::time::sleep(RETRY_PAUSE).await,
            result => return result,
        }
    }
}

/// Whether a refusal passes by itself.
pub(crate) fn passes(status: &Status) -> bool {
    let passing = ApiError::ALL.iter().filter(|error| error.passes());
    passing.map(|error| error.text()).any(|text| text == status.message())
}

/// A refusal as these services of etcd say it: what the services beneath refuse for good has no code of its own.
pub(crate) fn in_their_words(status: Status) -> Status {
    match status.code() {
        Code::InvalidArgument | Code::NotFound => Status::unknown(status.message()),
        _ => status,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One of several who compete, as far as it has come.
    #[derive(Clone, Copy, Default)]
    struct Competitor {
        /// Its key's create revision, while it has one.
        key: Option<i64>,
        /// The revision that its call goes by.
        created: Option<i64>,
        owns: bool,
    }

    fn pair(number: usize, created: i64) -> KeyValue {
        let key = Bytes::from(number.to_string());
        KeyValue { key, create_revision: created, ..KeyValue::default() }
    }

    proptest! {
        #[test]
        fn there_are_never_two_owners_and_they_come_in_order(
            steps in proptest::collection::vec((0usize..5, 0u8..4), 0..200)
        ) {
            let mut all = [Competitor::default(); 5];
            let (mut revision, mut last_owner) = (1, 0);
            for (number, step) in steps {
                match step {
                    // It takes a place.
                    0 if all[number].key.is_none() => {
                        revision += 1;
                        let key = Some(revision);
                        all[number] = Competitor { key, created: key, owns: false };
                    }
                    // Its lease ends, or it gives up; its call may not know.
                    1 => all[number].key = None,
                    // Its call looks.
                    2 | 3 if !all[number].owns => {
                        let Some(created) = all[number].created else { continue };
                        let keys = all.iter().enumerate();
                        let keys = keys.filter_map(|(n, one)| Some(pair(n, one.key?)));
                        let keys: Vec<_> = keys.collect();
                        let own = keys.iter().find(|kv| kv.key == number.to_string().as_bytes());
                        let older = keys.iter().filter(|kv| kv.create_revision < created);
                        let before = older.max_by_key(|kv| kv.create_revision);
                        match turn(created, own, before) {
                            Turn::Own => {
                                let rivals = all.iter().filter(|one| one.owns && one.key.is_some());
                                prop_assert_eq!(rivals.count(), 0);
                                prop_assert!(created > last_owner, "out of order");
                                last_owner = created;
                                all[number].owns = true;
                            }
                            Turn::After(key) => prop_assert!(before.is_some_and(|kv| kv.key == key)),
                            Turn::Lost => prop_assert!(all[number].key.is_none()),
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn keys_are_named_as_etcd_names_them() {
        let of = |name: &'static str, lease| own_key(&prefix(&name.into()), lease);
        assert_eq!(of("n", 0x0a1b), Bytes::from("n/a1b"));
        assert_eq!(of("", 10), Bytes::from("/a"));
        assert_eq!(of("n", -5), Bytes::from("n/-5"));
        assert_eq!(of("n", i64::MIN), Bytes::from("n/-8000000000000000"));
    }

    #[test]
    fn a_key_that_was_made_again_is_not_the_own_one() {
        assert_eq!(turn(3, Some(&pair(1, 3)), None), Turn::Own);
        assert_eq!(turn(3, Some(&pair(1, 4)), None), Turn::Lost);
        assert_eq!(turn(3, Some(&pair(1, 4)), Some(&pair(0, 2))), Turn::Lost);
        assert_eq!(turn(3, None, None), Turn::Lost);
    }
}
