//! One side of the family of locks and elections: calls that wait, observers, and the leases that servers drew.
//!
//! Nothing is told from time. Whether a call waits is seen in the store: its key is there, and an older one too. When
//! it has to end is seen there as well, and then its answer is awaited.

use bytes::Bytes;
use quorate_api::etcdserverpb::{RangeRequest, ResponseHeader};
use quorate_api::mvccpb::KeyValue;
use quorate_api::v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, LeaderResponse};
use quorate_api::v3lockpb::LockRequest;
use quorate_tests::client::Client;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};

use super::harness::{BOUND, LOOK};

/// A call that may wait.
#[derive(Debug, Clone)]
pub(crate) enum Call {
    Lock(LockRequest),
    Campaign(CampaignRequest),
}

/// What somebody was told, without who told it. A key that was written again on one side only has no version, mod
/// revision and value here.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// Only that, at a revision.
    Done(i64),
    Key {
        revision: i64,
        key: Bytes,
        rev: i64,
        lease: i64,
    },
    Leader(i64, Option<KeyValue>),
    Keys(i64, Vec<KeyValue>),
    Revoked(i64),
    /// It waits.
    Waits,
    Refused(Code, String),
}

impl Answer {
    pub(crate) fn refused(status: Status) -> Self {
        Self::Refused(status.code(), status.message().to_owned())
    }

    pub(crate) fn revision(header: Option<ResponseHeader>) -> i64 {
        header.expect("every answer has a header").revision
    }
}

/// A call that waits.
pub(crate) struct Waiting {
    /// Its number among all calls.
    pub(crate) number: usize,
    pub(crate) call: Call,
    pub(crate) key: Bytes,
    created: i64,
    task: JoinHandle<Answer>,
}

impl Waiting {
    /// Whether a key is the one that the call made.
    fn is_own(&self, pair: &KeyValue) -> bool {
        pair.key == self.key && pair.create_revision == self.created
    }
}

/// A call that waited, and has ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) number: usize,
    pub(crate) call: Call,
    pub(crate) answer: Answer,
    /// Its key was gone, or another one, when it ended.
    pub(crate) lost: bool,
}

struct Observer {
    prefix: Bytes,
    told: mpsc::UnboundedReceiver<Result<LeaderResponse, Status>>,
    /// The last that it was told: key, create revision, mod revision.
    last: Option<(Bytes, i64, i64)>,
    task: JoinHandle<()>,
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One side.
pub(crate) struct Side {
    clients: Vec<Client>,
    /// Whoever has no key any more is told so at once, and not at its turn.
    tells_at_once: bool,
    pub(crate) waiting: Vec<Waiting>,
    observers: Vec<Observer>,
    /// Keys whose leases the server drew.
    pub(crate) drawn: Vec<KeyValue>,
    /// Keys, by their create revisions, that were written again on one side only, maybe with another value.
    pub(crate) rewritten: Vec<(Bytes, i64)>,
}

impl Side {
    pub(crate) fn new(clients: &[Client], tells_at_once: bool) -> Self {
        Self {
            clients: clients.to_vec(),
            tells_at_once,
            waiting: Vec::new(),
            observers: Vec::new(),
            drawn: Vec::new(),
            rewritten: Vec::new(),
        }
    }

    /// The keys of a name, the oldest first.
    pub(crate) async fn keys(&mut self, prefix: &Bytes) -> (i64, Vec<KeyValue>) {
        let (revision, mut keys) = self.all_keys().await;
        keys.retain(|pair| pair.key.starts_with(prefix));
        (revision, keys)
    }

    /// All keys, the oldest first.
    async fn all_keys(&mut self) -> (i64, Vec<KeyValue>) {
        let all = Bytes::from_static(b"\0");
        let request = RangeRequest { key: all.clone(), range_end: all, ..RangeRequest::default() };
        let found = self.clients[0].kv.range(request).await.expect("a read").into_inner();
        let mut keys = found.kvs;
        keys.sort_by_key(|pair| pair.create_revision);
        (Answer::revision(found.header), keys)
    }

    /// Makes a call, and waits until it is answered or waits itself.
    pub(crate) async fn start(&mut self, number: usize, node: usize, call: &Call) -> Answer {
        let (client, prefix, key) = (self.clients[node].clone(), call.prefix(), call.key());
        let task = tokio::spawn(call.clone().make(client));
        let began = Instant::now();
        while !task.is_finished() {
            assert!(began.elapsed() < BOUND, "{call:?} neither waits nor ends");
            let (_, keys) = self.keys(&prefix).await;
            let own = keys.iter().position(|pair| pair.key == key);
            if let Some(own) = own.filter(|own| *own > 0) {
                let created = keys[own].create_revision;
                let call = call.clone();
                self.waiting.push(Waiting { number, call, key, created, task });
                return Answer::Waits;
            }
            sleep(LOOK).await;
        }
        let answer = task.await.expect("it does not panic");
        if call.lease() == 0
            && let Answer::Key { key, .. } = &answer
        {
            let keys = self.keys(&prefix).await.1;
            self.drawn.extend(keys.into_iter().find(|pair| pair.key == *key));
        }
        self.neutral(answer)
    }

    /// Awaits the calls that have to end by now, and looks that no other has.
    pub(crate) async fn ended(&mut self) -> Vec<Ended> {
        let mut ended = Vec::new();
        if self.waiting.is_empty() {
            return ended;
        }
        let (_, all) = self.all_keys().await;
        for waiting in std::mem::take(&mut self.waiting) {
            let keys = under(&all, &waiting.call.prefix());
            let lost = !keys.iter().any(|pair| waiting.is_own(pair));
            let is_first = keys.iter().all(|pair| pair.create_revision >= waiting.created);
            let Waiting { number, call, task, .. } = waiting;
            if is_first || lost && self.tells_at_once {
                let answer = timeout(BOUND, task).await;
                let answer = answer.unwrap_or_else(|_| panic!("{call:?} does not end"));
                let answer = self.neutral(answer.expect("it does not panic"));
                ended.push(Ended { number, call, answer, lost });
            } else if task.is_finished() {
                panic!("{call:?} has ended before its turn: {:?}", task.await);
            } else {
                let (key, created) = (waiting.key, waiting.created);
                self.waiting.push(Waiting { number, call, key, created, task });
            }
        }
        ended
    }

    /// The client of a call that waits goes; waits until the place is given up.
    pub(crate) async fn give_up(&mut self, number: usize) {
        let at = self.waiting.iter().position(|waiting| waiting.number == number);
        let waiting = self.waiting.remove(at.expect("it waits"));
        waiting.task.abort();
        let began = Instant::now();
        while self.all_keys().await.1.iter().any(|pair| waiting.is_own(pair)) {
            let side = if self.tells_at_once { "Quorate" } else { "etcd" };
            assert!(began.elapsed() < BOUND, "{side}: {:?} is not given up", waiting.call);
            sleep(LOOK).await;
        }
    }

    /// The numbers and keys of the calls that wait and have their keys.
    pub(crate) async fn in_place(&mut self) -> Vec<(usize, Bytes)> {
        let (_, all) = self.all_keys().await;
        let has_key = |waiting: &&Waiting| all.iter().any(|pair| waiting.is_own(pair));
        let in_place = self.waiting.iter().filter(has_key);
        in_place.map(|waiting| (waiting.number, waiting.key.clone())).collect()
    }

    pub(crate) fn observers(&self) -> usize {
        self.observers.len()
    }

    pub(crate) fn observe(&mut self, node: usize, name: &Bytes) {
        let (mut election, name) = (self.clients[node].election.clone(), name.clone());
        let (tell, told) = mpsc::unbounded_channel();
        let prefix = prefix(&name);
        let task = tokio::spawn(async move {
            // etcd's side of a stream begins with its first response: while nobody leads this does not return.
            let mut stream = match election.observe(LeaderRequest { name }).await {
                Ok(stream) => stream.into_inner(),
                Err(status) => return drop(tell.send(Err(status))),
            };
            loop {
                let next = match stream.message().await {
                    Ok(Some(next)) => Ok(next),
                    Ok(None) => Err(Status::unknown("the stream ends")),
                    Err(status) => Err(status),
                };
                let is_over = next.is_err();
                if tell.send(next).is_err() || is_over {
                    return;
                }
            }
        });
        self.observers.push(Observer { prefix, told, last: None, task });
    }

    /// What each observer is told by now: all of what it has to be told, and whatever else has come.
    pub(crate) async fn observed(&mut self) -> Vec<Vec<Answer>> {
        let mut all = Vec::new();
        if self.observers.is_empty() {
            return all;
        }
        let (_, keys) = self.all_keys().await;
        for at in 0..self.observers.len() {
            let leader = under(&keys, &self.observers[at].prefix).into_iter().next();
            let leader =
                leader.map(|pair| (pair.key.clone(), pair.create_revision, pair.mod_revision));
            let observer = &mut self.observers[at];
            let mut told = Vec::new();
            while leader.is_some() && observer.last != leader {
                let next = timeout(BOUND, observer.told.recv()).await;
                let next =
                    next.unwrap_or_else(|_| panic!("nobody is told of {leader:?}: {told:?}"));
                let next = next.expect("an end is told");
                let kv = next.as_ref().ok().and_then(|told| told.kv.as_ref());
                observer.last =
                    kv.map(|pair| (pair.key.clone(), pair.create_revision, pair.mod_revision));
                let is_over = next.is_err();
                told.push(next);
                if is_over {
                    break;
                }
            }
            while let Ok(next) = observer.told.try_recv() {
                told.push(next);
            }
            let answer = |told: Result<LeaderResponse, Status>| match told {
                Ok(told) => Answer::Leader(Answer::revision(told.header), told.kv),
                Err(status) => Answer::refused(status),
            };
            let told: Vec<_> = told.into_iter().map(answer).collect();
            all.push(told.into_iter().map(|answer| self.neutral(answer)).collect());
        }
        all
    }

    /// An answer without what servers drew, and without what was written on one side only.
    pub(crate) fn neutral(&self, mut answer: Answer) -> Answer {
        match &mut answer {
            Answer::Key { key, lease, .. } => {
                if let Some(place) = self.drawn.iter().position(|drawn| drawn.key == *key) {
                    *key = format!("drawn {place}").into();
                    *lease = 0;
                }
            }
            Answer::Leader(_, Some(pair)) => self.without_chance(pair),
            Answer::Keys(_, pairs) => {
                pairs.iter_mut().for_each(|pair| self.without_chance(pair));
                pairs.sort_by_key(|pair| pair.create_revision);
            }
            _ => {}
        }
        answer
    }

    fn without_chance(&self, pair: &mut KeyValue) {
        if self.rewritten.contains(&(pair.key.clone(), pair.create_revision)) {
            (pair.version, pair.mod_revision, pair.value) = (0, 0, Bytes::new());
        }
        if let Some(place) = self.drawn.iter().position(|drawn| drawn.key == pair.key) {
            (pair.key, pair.lease) = (format!("drawn {place}").into(), 0);
        }
    }
}

impl Call {
    pub(crate) fn prefix(&self) -> Bytes {
        match self {
            Self::Lock(lock) => prefix(&lock.name),
            Self::Campaign(campaign) => prefix(&campaign.name),
        }
    }

    pub(crate) const fn lease(&self) -> i64 {
        match self {
            Self::Lock(lock) => lock.lease,
            Self::Campaign(campaign) => campaign.lease,
        }
    }

    /// The key that it makes.
    pub(crate) fn key(&self) -> Bytes {
        own_key(&self.prefix(), self.lease())
    }

    async fn make(self, mut client: Client) -> Answer {
        match self {
            Self::Lock(request) => match client.lock.lock(request).await {
                Ok(locked) => {
                    let locked = locked.into_inner();
                    let revision = Answer::revision(locked.header);
                    Answer::Key { revision, key: locked.key, rev: 0, lease: 0 }
                }
                Err(status) => Answer::refused(status),
            },
            Self::Campaign(request) => match client.election.campaign(request).await {
                Ok(led) => {
                    let led = led.into_inner();
                    let revision = Answer::revision(led.header);
                    let LeaderKey { key, rev, lease, .. } = led.leader.expect("its key");
                    Answer::Key { revision, key, rev, lease }
                }
                Err(status) => Answer::refused(status),
            },
        }
    }
}

/// The keys under a prefix.
fn under<'a>(keys: &'a [KeyValue], prefix: &Bytes) -> Vec<&'a KeyValue> {
    keys.iter().filter(|pair| pair.key.starts_with(prefix)).collect()
}

/// What the keys of a name begin with.
pub(crate) fn prefix(name: &Bytes) -> Bytes {
    [name.as_ref(), b"/"].concat().into()
}

/// The key of a lease under a name.
pub(crate) fn own_key(prefix: &Bytes, lease: i64) -> Bytes {
    let sign = if lease < 0 { "-" } else { "" };
    [prefix.as_ref(), format!("{sign}{:x}", lease.unsigned_abs()).as_bytes()].concat().into()
}
