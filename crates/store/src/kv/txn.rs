//! Transactions: compares, then one of two branches, in one revision or not at all.
//!
//! In the order in which etcd does it, since the order decides which error a client sees:
//!
//! 1. [`check_form`] looks at both branches of every level: what needs no state.
//! 2. [`Plan::new`] evaluates all compares against the state before the transaction.
//! 3. [`Plan::check`] looks at the operations that will run: first all puts, then all ranges.
//! 4. [`Plan::run`] executes. Nothing that can fail is left, except the engine.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::ControlFlow;

use bytes::Bytes;
use quorate_types::KeyRange;
use quorate_types::kv::compare::Target;
use quorate_types::kv::{
    Compare, CompareResult, DeleteRange, KvError, Op, Outcome, Put, Range, Txn, TxnOutcome, op,
    outcome,
};

use super::interval::Covered;
use super::read::{Refusal, Sort, View};
use super::write::Writer;

/// How deeply transactions may be nested, the outermost one included. Deeper ones are malformed: their
/// outcomes would be nested deeper than Protobuf decoders go.
pub const TXN_DEPTH_MAX: usize = 32;

/// Looks at what can be seen without the state.
///
/// # Errors
/// [`KvError::Malformed`] for an operation without a body, a put without a key, or too deep a nesting;
/// [`KvError::InvalidSort`]; [`KvError::DuplicateKey`].
pub(crate) fn check_form(txn: &Txn) -> Result<(), KvError> {
    check_ops(txn, 1)?;
    written(&txn.success)?;
    written(&txn.failure)?;
    Ok(())
}

/// True when no branch at any level writes.
pub(crate) fn is_read_only(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).all(|op| match &op.body {
        Some(op::Body::Range(_)) | None => true,
        Some(op::Body::Txn(txn)) => is_read_only(txn),
        Some(op::Body::Put(_) | op::Body::DeleteRange(_)) => false,
    })
}

fn check_ops(txn: &Txn, depth: usize) -> Result<(), KvError> {
    if depth > TXN_DEPTH_MAX {
        return Err(KvError::Malformed);
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match &op.body {
            Some(op::Body::Range(range)) => {
                Sort::of(range)?;
            }
            Some(op::Body::Put(put)) if put.key.is_empty() => return Err(KvError::Malformed),
            Some(op::Body::Put(_) | op::Body::DeleteRange(_)) => {}
            Some(op::Body::Txn(txn)) => check_ops(txn, depth + 1)?,
            None => return Err(KvError::Malformed),
        }
    }
    Ok(())
}

/// The keys that some way through `ops` puts, and those that one deletes.
///
/// Gateways check this before they propose; it is checked again here because a second write to a key
/// would otherwise depend on how it is done.
///
/// etcd's rule, with its gaps, since clients may live in them: a put collides with another put, with a
/// delete of its own level, and with a delete in a nested transaction that stands *before* the nested
/// one of the put; not with one that stands after it. A range "from key on" collides with nothing,
/// because its end, one zero byte, is read as a key here.
///
/// # Errors
/// [`KvError::DuplicateKey`].
fn written(ops: &[Op]) -> Result<(BTreeSet<Bytes>, Covered), KvError> {
    let mut deleted = Covered::default();
    for delete in ops.iter().filter_map(delete_of) {
        if delete.range_end.is_empty() {
            let range = KeyRange::single(&delete.key);
            deleted.add(&range.start, range.end.as_ref());
        } else {
            deleted.add(&delete.key, Some(&delete.range_end));
        }
    }
    let mut put: BTreeSet<Bytes> = BTreeSet::new();
    for txn in ops.iter().filter_map(txn_of) {
        let (success, deleted_by_success) = written(&txn.success)?;
        let (failure, deleted_by_failure) = written(&txn.failure)?;
        for key in success.iter().chain(failure.difference(&success)) {
            if deleted.contains(key) || !put.insert(key.clone()) {
                return Err(KvError::DuplicateKey);
            }
        }
        deleted.append(&deleted_by_success);
        deleted.append(&deleted_by_failure);
    }
    for Put { key, .. } in ops.iter().filter_map(put_of) {
        if deleted.contains(key) || !put.insert(key.clone()) {
            return Err(KvError::DuplicateKey);
        }
    }
    Ok((put, deleted))
}

fn delete_of(op: &Op) -> Option<&DeleteRange> {
    if let Some(op::Body::DeleteRange(delete)) = &op.body { Some(delete) } else { None }
}

fn put_of(op: &Op) -> Option<&Put> {
    if let Some(op::Body::Put(put)) = &op.body { Some(put) } else { None }
}

fn txn_of(op: &Op) -> Option<&Txn> {
    if let Some(op::Body::Txn(txn)) = &op.body { Some(txn) } else { None }
}

/// A transaction whose compares are evaluated: what will run, in order.
pub(crate) struct Plan<'t> {
    succeeded: bool,
    steps: Vec<Step<'t>>,
}

enum Step<'t> {
    Range(&'t Range),
    Put(&'t Put),
    DeleteRange(&'t DeleteRange),
    Txn(Plan<'t>),
}

impl<'t> Plan<'t> {
    /// Evaluates the compares of `txn`, and of the nested ones that will run, in `view`. The form of
    /// `txn` must have been checked.
    pub(crate) fn new(txn: &'t Txn, view: &View<'_>) -> Result<Self, Refusal> {
        let mut succeeded = true;
        for compare in &txn.compares {
            if !holds(compare, view)? {
                succeeded = false;
                break;
            }
        }
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let steps = ops.iter().map(|op| match &op.body {
            Some(op::Body::Range(range)) => Ok(Step::Range(range)),
            Some(op::Body::Put(put)) => Ok(Step::Put(put)),
            Some(op::Body::DeleteRange(delete)) => Ok(Step::DeleteRange(delete)),
            Some(op::Body::Txn(txn)) => Self::new(txn, view).map(Step::Txn),
            None => Err(KvError::Malformed.into()),
        });
        Ok(Self { succeeded, steps: steps.collect::<Result<_, _>>()? })
    }

    /// Looks for what would fail on the way, in the state before the transaction.
    pub(crate) fn check(&self, view: &View<'_>) -> Result<(), Refusal> {
        self.check_puts(view, &mut Covered::default())?;
        self.check_ranges(view)?;
        Ok(())
    }

    /// `gone` is what earlier steps delete: a put may not keep a value that is no longer there when
    /// its turn comes. (etcd 3.5 stops working at that point, on every member.)
    fn check_puts(&self, view: &View<'_>, gone: &mut Covered) -> Result<(), Refusal> {
        for step in &self.steps {
            match step {
                Step::Put(put) => {
                    let keeps = put.ignore_value || put.ignore_lease;
                    if keeps && (gone.contains(&put.key) || view.current(&put.key)?.is_none()) {
                        return Err(KvError::KeyNotFound.into());
                    }
                    view.check_lease(put)?;
                }
                Step::DeleteRange(delete) => {
                    let range = KeyRange::from_request(&delete.key, &delete.range_end);
                    gone.add(&range.start, range.end.as_ref());
                }
                Step::Txn(plan) => plan.check_puts(view, gone)?,
                Step::Range(_) => {}
            }
        }
        Ok(())
    }

    /// Stricter than a range by itself: a negative revision is taken as it is, and the transaction's
    /// own revision lies in the future.
    fn check_ranges(&self, view: &View<'_>) -> Result<(), KvError> {
        for step in &self.steps {
            match step {
                Step::Range(range) if range.revision > view.revision => {
                    return Err(KvError::FutureRevision);
                }
                Step::Range(range) if range.revision != 0 && range.revision < view.floor => {
                    return Err(KvError::Compacted);
                }
                Step::Txn(plan) => plan.check_ranges(view)?,
                Step::Range(_) | Step::Put(_) | Step::DeleteRange(_) => {}
            }
        }
        Ok(())
    }

    /// Executes the steps.
    pub(crate) fn run(&self, target: &mut Access<'_, '_>) -> Result<TxnOutcome, Refusal> {
        let responses = self.steps.iter().map(|step| {
            let body = match step {
                Step::Range(range) => outcome::Body::Range(target.view().range(range)?),
                Step::Put(put) => outcome::Body::Put(target.writer()?.put(put)?),
                Step::DeleteRange(delete) => {
                    outcome::Body::DeleteRange(target.writer()?.delete_range(delete)?)
                }
                // etcd leaves the revision of a nested transaction's header out.
                Step::Txn(plan) => {
                    let body = Some(outcome::Body::Txn(plan.run(target)?));
                    return Ok(Outcome { revision: 0, body });
                }
            };
            Ok(Outcome { revision: target.view().revision, body: Some(body) })
        });
        let responses = responses.collect::<Result<_, Refusal>>()?;
        Ok(TxnOutcome { succeeded: self.succeeded, responses })
    }
}

/// What a plan runs on.
pub(crate) enum Access<'a, 'r> {
    /// A view: the transaction is one of reads only.
    Read(View<'r>),
    /// The batch.
    Write(&'a mut Writer<'r>),
}

impl<'r> Access<'_, 'r> {
    fn view(&self) -> View<'_> {
        match self {
            Self::Read(view) => *view,
            Self::Write(writer) => writer.view(),
        }
    }

    fn writer(&mut self) -> Result<&mut Writer<'r>, KvError> {
        match self {
            Self::Read(_) => Err(KvError::Malformed),
            Self::Write(writer) => Ok(writer),
        }
    }
}

/// Whether a compare holds for every key of its range. A range without keys compares like a key whose
/// numbers are all 0, but has no value: no compare of values holds there.
fn holds(compare: &Compare, view: &View<'_>) -> Result<bool, Refusal> {
    let target = compare.target.as_ref();
    let mut any = false;
    let mut all = true;
    let mut failed = Ok(());
    let mut one = |key: &[u8], record: &super::record::Record| {
        any = true;
        let order = match target {
            Some(Target::Version(version)) => record.version.cmp(version),
            Some(Target::CreateRevision(revision)) => record.create.cmp(revision),
            Some(Target::ModRevision(revision)) => record.modified.revision.cmp(revision),
            Some(Target::Lease(lease)) => record.lease.cmp(lease),
            Some(Target::Value(value)) => match view.value(key, record.modified) {
                Ok(stored) => stored.cmp(value),
                Err(error) => {
                    failed = Err(error);
                    return ControlFlow::Break(());
                }
            },
            // What a decoder makes of no field at all: the version, against 0.
            None => record.version.cmp(&0),
        };
        all = accepts(compare.result, order);
        if all { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    if compare.range_end.is_empty() {
        if let Some(record) = view.current(&compare.key)? {
            let _ = one(&compare.key, &record);
        }
    } else {
        let range = KeyRange::from_request(&compare.key, &compare.range_end);
        view.each_current(&range, &mut |key, record| one(key, &record))?;
    }
    failed?;
    if any {
        return Ok(all);
    }
    let order = match target {
        Some(Target::Value(_)) => return Ok(false),
        Some(
            Target::Version(given)
            | Target::CreateRevision(given)
            | Target::ModRevision(given)
            | Target::Lease(given),
        ) => 0.cmp(given),
        None => Ordering::Equal,
    };
    Ok(accepts(compare.result, order))
}

/// Whether `order`, of the stored against the given, is what `result` asks for. A result that does not
/// exist asks for nothing.
fn accepts(result: i32, order: Ordering) -> bool {
    match CompareResult::try_from(result) {
        Ok(CompareResult::Equal) => order.is_eq(),
        Ok(CompareResult::NotEqual) => order.is_ne(),
        Ok(CompareResult::Greater) => order.is_gt(),
        Ok(CompareResult::Less) => order.is_lt(),
        Err(_) => true,
    }
}
