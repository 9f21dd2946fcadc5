//! Requests from a seed.
//!
//! The key space is small, so that requests meet each other's keys; ranges come in all of etcd's forms; and
//! about one request in ten is one that must be refused. What would set the stores apart for good is left out, by its
//! name in [`known`](super::known).

use bytes::Bytes;
use fastrand::Rng;
use quorate_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use quorate_api::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest, compare, request_op,
};

use super::compare::Answer;
use super::known::Known;

/// The keys. Some are prefixes of others, some sort beside the edges of prefixes.
pub(crate) const KEYS: [&[u8]; 16] = [
    b"a",
    b"a/",
    b"a/1",
    b"a/10",
    b"a/2",
    b"a0",
    b"b",
    b"ba",
    b"c",
    b"d",
    b"e",
    b"\0",
    b"\0\0",
    b"\xff",
    b"\xff\xff",
    b"z",
];

/// The values; one is empty.
const VALUES: [&[u8]; 6] = [b"", b"0", b"1", b"10", b"x", b"a longer value"];

/// A lease that nobody granted.
const UNKNOWN_LEASE: i64 = 0x0dea_d1ea;

/// How deep transactions nest.
const TXN_DEPTH_MAX: usize = 2;

/// One request.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    /// `KV.Range`.
    Range(RangeRequest),
    /// `KV.Put`.
    Put(PutRequest),
    /// `KV.DeleteRange`.
    DeleteRange(DeleteRangeRequest),
    /// `KV.Txn`.
    Txn(TxnRequest),
    /// `KV.Compact`.
    Compact(CompactionRequest),
}

/// Draws requests, with the store's revisions in mind.
pub(crate) struct Generator {
    rng: Rng,
    revision: i64,
    compacted: i64,
    /// The node that served the last change, which alone is sure to have applied it.
    last_writer: usize,
    /// What was drawn and made harmless.
    pub(crate) left_out: Vec<Known>,
}

impl Generator {
    /// Begins with a store at `revision`, compacted at `compacted`.
    pub(crate) fn new(seed: u64, revision: i64, compacted: i64) -> Self {
        let left_out = Vec::new();
        Self { rng: Rng::with_seed(seed), revision, compacted, last_writer: 0, left_out }
    }

    /// The store's revision and its compaction, as far as answers have shown.
    pub(crate) fn position(&self) -> (i64, i64) {
        (self.revision, self.compacted)
    }

    /// The next request, and the number of the node that it goes to.
    pub(crate) fn next(&mut self) -> (usize, Request) {
        let node = self.rng.usize(0..3);
        let request = match self.rng.u32(0..100) {
            0..40 => Request::Range(self.range()),
            40..65 => Request::Put(self.put()),
            65..75 => Request::DeleteRange(self.delete_range()),
            75..96 => Request::Txn(self.txn()),
            _ => Request::Compact(self.compact()),
        };
        match request {
            Request::Range(range) if self.rng.u32(0..8) == 0 => {
                let range = RangeRequest { serializable: true, ..range };
                (self.last_writer, Request::Range(range))
            }
            other => (node, other),
        }
        .noting(|node, request| {
            if !matches!(request, Request::Range(_)) {
                self.last_writer = node;
            }
        })
    }

    /// Takes the revisions in the peer's answer for the next draws.
    pub(crate) fn learn(&mut self, request: &Request, answer: &Answer) {
        if let Some(revision) = answer.revision() {
            self.revision = self.revision.max(revision);
            if let Request::Compact(compact) = request {
                self.compacted = compact.revision;
            }
        }
    }

    fn one_in(&mut self, count: u32) -> bool {
        self.rng.u32(0..count) == 0
    }

    /// A key; rarely an empty one, which most requests must not have.
    pub(crate) fn key(&mut self) -> Bytes {
        if self.one_in(60) {
            return Bytes::new();
        }
        Bytes::from_static(self.rng.choice(KEYS).expect("there are keys"))
    }

    fn value(&mut self) -> Bytes {
        Bytes::from_static(self.rng.choice(VALUES).expect("there are values"))
    }

    /// An end for a range that begins at `key`.
    pub(crate) fn range_end(&mut self, key: &Bytes) -> Bytes {
        match self.rng.u32(0..10) {
            0..3 => Bytes::new(),
            3..6 => prefix_end(key),
            6 => Bytes::from_static(b"\0"),
            7 => [key, &b"\0"[..]].concat().into(),
            // Below the key or equal to it as well: an empty range.
            _ => self.key(),
        }
    }

    /// A revision to read at: mostly none, else around everything that matters.
    fn read_revision(&mut self) -> i64 {
        match self.rng.u32(0..12) {
            0 => self.compacted,
            1 => self.compacted - 1,
            2 => self.revision,
            3 => self.revision + 1,
            4..7 => self.rng.i64(self.compacted..=self.revision),
            _ => 0,
        }
    }

    /// A bound on create or mod revisions: mostly none.
    fn revision_bound(&mut self) -> i64 {
        if self.one_in(8) { self.rng.i64(0..=self.revision + 1) } else { 0 }
    }

    fn range(&mut self) -> RangeRequest {
        let order = [SortOrder::None, SortOrder::Ascend, SortOrder::Descend];
        let target = [
            SortTarget::Key,
            SortTarget::Version,
            SortTarget::Create,
            SortTarget::Mod,
            SortTarget::Value,
        ];
        let sorted = self.one_in(3);
        let mut range = self.plain_range();
        if sorted {
            range.sort_order = self.rng.choice(order).expect("there are orders").into();
            range.sort_target = self.rng.choice(target).expect("there are targets").into();
        }
        range
    }

    /// A range without a sort.
    fn plain_range(&mut self) -> RangeRequest {
        let key = self.key();
        let mut revision = self.read_revision();
        if revision == 0 && self.one_in(20) {
            revision = -1;
        }
        RangeRequest {
            range_end: self.range_end(&key),
            key,
            limit: self.rng.choice([0, 0, 0, 0, 1, 2, 3, 5, 100, -1]).expect("there are limits"),
            revision,
            keys_only: self.one_in(5),
            count_only: self.one_in(8),
            min_mod_revision: self.revision_bound(),
            max_mod_revision: self.revision_bound(),
            min_create_revision: self.revision_bound(),
            max_create_revision: self.revision_bound(),
            ..RangeRequest::default()
        }
    }

    fn put(&mut self) -> PutRequest {
        let ignore_value = self.one_in(10);
        PutRequest {
            key: self.key(),
            value: if ignore_value && !self.one_in(4) { Bytes::new() } else { self.value() },
            lease: if self.one_in(25) { UNKNOWN_LEASE } else { 0 },
            prev_kv: self.one_in(3),
            ignore_value,
            ignore_lease: self.one_in(12),
        }
    }

    fn delete_range(&mut self) -> DeleteRangeRequest {
        let key = self.key();
        // Deleting everything too often leaves nothing to test on.
        let range_end = if self.one_in(2) { Bytes::new() } else { self.range_end(&key) };
        DeleteRangeRequest { key, range_end, prev_kv: self.one_in(2) }
    }

    /// A transaction; one that only reads may read at any revision.
    fn txn(&mut self) -> TxnRequest {
        let only_reads = self.one_in(4);
        let mut txn = self.nested_txn(0, only_reads);
        if any_operation(&mut txn, &mut |operation| is_delete_from(operation)) {
            let mut kept = false;
            any_operation(&mut txn, &mut |operation| {
                kept |= keep_nothing(operation);
                false
            });
            self.left_out.extend(kept.then_some(Known::KeepAfterDeleteFrom));
        }
        txn
    }

    fn nested_txn(&mut self, depth: usize, only_reads: bool) -> TxnRequest {
        let compares = self.rng.usize(0..4);
        TxnRequest {
            compare: (0..compares).map(|_| self.compare()).collect(),
            success: self.operations(depth, only_reads),
            failure: self.operations(depth, only_reads),
        }
    }

    fn operations(&mut self, depth: usize, only_reads: bool) -> Vec<RequestOp> {
        let count = self.rng.usize(0..4);
        (0..count).map(|_| RequestOp { request: self.operation(depth, only_reads) }).collect()
    }

    fn operation(&mut self, depth: usize, only_reads: bool) -> Option<request_op::Request> {
        use request_op::Request as Operation;
        match self.rng.u32(0..100) {
            88..99 if depth < TXN_DEPTH_MAX => {
                Some(Operation::RequestTxn(self.nested_txn(depth + 1, only_reads)))
            }
            99 => None,
            kind if kind < 40 || only_reads => {
                let mut range = self.plain_range();
                let is_there = (self.compacted..=self.revision).contains(&range.revision);
                if !only_reads && range.revision != 0 && !is_there {
                    self.left_out.push(Known::ReadElsewhereAndWrite);
                    range.revision = 0;
                }
                Some(Operation::RequestRange(range))
            }
            75..88 => Some(Operation::RequestDeleteRange(self.delete_range())),
            _ => Some(Operation::RequestPut(self.put())),
        }
    }

    fn compare(&mut self) -> Compare {
        use compare::{CompareResult, CompareTarget, TargetUnion};
        let key = self.key();
        let range_end = if self.one_in(5) { self.range_end(&key) } else { Bytes::new() };
        let results = [
            CompareResult::Equal,
            CompareResult::Greater,
            CompareResult::Less,
            CompareResult::NotEqual,
        ];
        let revision = if self.one_in(3) { 0 } else { self.rng.i64(0..=self.revision) };
        let (target, union) = match self.rng.u32(0..5) {
            0 => (CompareTarget::Version, TargetUnion::Version(self.rng.i64(0..4))),
            1 => (CompareTarget::Create, TargetUnion::CreateRevision(revision)),
            2 => (CompareTarget::Mod, TargetUnion::ModRevision(revision)),
            3 => (CompareTarget::Value, TargetUnion::Value(self.value())),
            _ => (CompareTarget::Lease, TargetUnion::Lease(self.rng.i64(0..2))),
        };
        Compare {
            result: self.rng.choice(results).expect("there are results").into(),
            target: target.into(),
            key,
            range_end,
            target_union: (!self.one_in(20)).then_some(union),
        }
    }

    fn compact(&mut self) -> CompactionRequest {
        let revision = match self.rng.u32(0..8) {
            0 => self.compacted,
            1 => self.revision + 1,
            2 => self.compacted - 1,
            // Not too far, or there is no history left to read.
            _ => {
                let newest = self.compacted + (self.revision - self.compacted) / 3;
                self.rng.i64(self.compacted..=newest) + 1
            }
        };
        CompactionRequest { revision, physical: self.one_in(3) }
    }
}

/// Whether `holds` for an operation of a transaction or of those within it; stops at the first.
fn any_operation(
    txn: &mut TxnRequest,
    holds: &mut dyn FnMut(&mut request_op::Request) -> bool,
) -> bool {
    let operations = txn.success.iter_mut().chain(&mut txn.failure);
    operations.filter_map(|operation| operation.request.as_mut()).any(|request| match request {
        request_op::Request::RequestTxn(nested) => any_operation(nested, holds),
        other => holds(other),
    })
}

/// Whether it deletes "from this key on".
fn is_delete_from(operation: &request_op::Request) -> bool {
    let request_op::Request::RequestDeleteRange(delete) = operation else { return false };
    delete.range_end == b"\0"[..]
}

/// Makes a put set both the value and the lease; says whether it would not have.
fn keep_nothing(operation: &mut request_op::Request) -> bool {
    let request_op::Request::RequestPut(put) = operation else { return false };
    let keeps = put.ignore_value || put.ignore_lease;
    (put.ignore_value, put.ignore_lease) = (false, false);
    keeps
}

/// A pair that is looked at on its way.
trait Noting: Sized {
    fn noting(self, note: impl FnOnce(usize, &Request)) -> Self;
}

impl Noting for (usize, Request) {
    fn noting(self, note: impl FnOnce(usize, &Request)) -> Self {
        note(self.0, &self.1);
        self
    }
}

/// The end of the range of all keys that begin with `key`.
fn prefix_end(key: &[u8]) -> Bytes {
    let mut end = key.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    Bytes::from_static(b"\0")
}
