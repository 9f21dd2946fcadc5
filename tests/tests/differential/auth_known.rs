//! What of users is known to differ, and what is left out of transactions.

use quorate_api::etcdserverpb::{self as pb, RequestOp, request_op::Request as Op};
use tonic::Code;

use super::auth::{Answer, Users};
use super::auth_steps::{Step, has_no_key};
use super::harness::Run;
use super::known::Known;

/// Which row of the table a difference is; `enabled` says whether users counted.
pub(super) fn excuse(step: &Step, enabled: bool, [expected, found]: &[Answer; 2]) -> Option<Known> {
    use Answer::{Refused, Said};
    let range = match step {
        Step::Range(range) | Step::NestedRead(range) => Some((&range.key, &range.range_end)),
        Step::Delete(delete) => Some((&delete.key, &delete.range_end)),
        _ => None,
    };
    let has_no_key = range.is_some_and(|(key, end)| has_no_key(key, end));
    match (step, expected, found) {
        (_, Said(_), refused) | (_, refused, Said(_)) if has_no_key && is_denied(refused) => {
            Some(Known::RangeWithoutKeys)
        }
        (Step::NestedRead(_), Said(_), refused) if is_denied(refused) || is_nobody(refused) => {
            Some(Known::NestedReadUnchecked)
        }
        (Step::Txn(txn), Said(_), refused) if is_empty(txn) && is_nobody(refused) => {
            Some(Known::EmptyTxnForAll)
        }
        (Step::Compact(_), compacted, refused)
            if is_compacted(compacted) && (is_denied(refused) || is_nobody(refused)) =>
        {
            Some(Known::CompactionForAll)
        }
        (Step::Stranger(_), refused, Said(_)) if !enabled && is_invalid(refused) => {
            Some(Known::UnknownTokenWhileOpen)
        }
        (Step::Authenticate(_), Refused(Code::Unknown, theirs), Refused(code, ours)) => {
            let none = "authentication failed, password was given for no password user";
            let same = theirs.ends_with(none) && ours.ends_with(none);
            (same && *code == Code::InvalidArgument).then_some(Known::PasswordOfNone)
        }
        (Step::Txn(_), twice, refused) if is_twice(twice) && is_invalid(refused) => {
            Some(Known::DuplicateAndUnknown)
        }
        _ => None,
    }
}

/// A user may not.
fn is_denied(answer: &Answer) -> bool {
    is_refusal(answer, Code::PermissionDenied, "etcdserver: permission denied")
}

/// Nobody may.
fn is_nobody(answer: &Answer) -> bool {
    is_refusal(answer, Code::InvalidArgument, "etcdserver: user name is empty")
}

/// It is compacted already.
fn is_compacted(answer: &Answer) -> bool {
    let text = "etcdserver: mvcc: required revision has been compacted";
    is_refusal(answer, Code::OutOfRange, text)
}

/// It writes a key twice.
fn is_twice(answer: &Answer) -> bool {
    let text = "etcdserver: duplicate key given in txn request";
    is_refusal(answer, Code::InvalidArgument, text)
}

/// The token is nobody's.
fn is_invalid(answer: &Answer) -> bool {
    is_refusal(answer, Code::Unauthenticated, "etcdserver: invalid auth token")
}

fn is_refusal(answer: &Answer, code: Code, text: &str) -> bool {
    *answer == Answer::Refused(code, text.to_owned())
}

fn is_empty(txn: &pb::TxnRequest) -> bool {
    txn.compare.is_empty() && txn.success.is_empty() && txn.failure.is_empty()
}

/// Takes out of a transaction that etcd writes what its user may not read, by asking for each part by itself. Where it
/// writes nothing or is refused for another reason, all nodes agree.
pub(super) async fn leave_out(
    run: &mut Run,
    users: &mut Users,
    txn: &mut pb::TxnRequest,
) -> Result<(), String> {
    let only_reads = ops(txn).all(|op| matches!(op, Op::RequestRange(_)));
    let is_refused = writes_twice(&txn.success) || writes_twice(&txn.failure);
    if !users.has_rights() || only_reads || is_refused {
        return Ok(());
    }
    let compared = txn.compare.iter().map(|compare| read(&compare.key, &compare.range_end));
    let written = ops(txn).filter_map(|op| match op {
        Op::RequestRange(_) => None,
        Op::RequestPut(put) => {
            Some(Op::RequestPut(pb::PutRequest { prev_kv: false, ..put.clone() }))
        }
        other => Some(other.clone()),
    });
    for op in compared.chain(written).collect::<Vec<_>>() {
        if !may(run, users, op).await? {
            return Ok(());
        }
    }
    let mut met = [None; 2];
    for branch in [&mut txn.success, &mut txn.failure] {
        for mut op in std::mem::take(branch) {
            let asked = match &op.request {
                Some(Op::RequestPut(put)) if put.prev_kv => Some(read(&put.key, &[])),
                Some(Op::RequestRange(range)) => Some(Op::RequestRange(range.clone())),
                _ => None,
            };
            let is_denied = match asked {
                Some(asked) => !may(run, users, asked).await?,
                None => false,
            };
            match &mut op.request {
                Some(Op::RequestPut(put)) if is_denied => {
                    put.prev_kv = false;
                    met[0] = Some(Known::PreviousValueInTxn);
                }
                Some(Op::RequestRange(_)) if is_denied => {
                    met[1] = Some(Known::ReadDeniedAndWrite);
                    continue;
                }
                _ => {}
            }
            branch.push(op);
        }
    }
    met.into_iter().flatten().for_each(|known| run.ledger.note(known));
    Ok(())
}

fn ops(txn: &pb::TxnRequest) -> impl Iterator<Item = &Op> {
    txn.success.iter().chain(&txn.failure).filter_map(|op| op.request.as_ref())
}

fn read(key: &[u8], end: &[u8]) -> Op {
    let (key, range_end) = (key.to_vec().into(), end.to_vec().into());
    Op::RequestRange(pb::RangeRequest { key, range_end, ..Default::default() })
}

/// Whether both sides let the caller do so: in the branch of a transaction that does not run.
async fn may(run: &mut Run, users: &mut Users, op: Op) -> Result<bool, String> {
    let failure = vec![RequestOp { request: Some(op) }];
    users.ask(run, &Step::Txn(pb::TxnRequest { failure, ..Default::default() })).await
}

/// Whether etcd says of a branch that a key is written twice.
fn writes_twice(branch: &[RequestOp]) -> bool {
    let puts = |op: &RequestOp| match &op.request {
        Some(Op::RequestPut(put)) => Some(put.key.clone()),
        _ => None,
    };
    let puts: Vec<_> = branch.iter().filter_map(puts).collect();
    let is_deleted = |op: &RequestOp| match &op.request {
        Some(Op::RequestDeleteRange(pb::DeleteRangeRequest { key, range_end, .. })) => {
            puts.iter().any(|put| put == key || (key..range_end).contains(&put))
        }
        _ => false,
    };
    let is_twice = (1..puts.len()).any(|at| puts[..at].contains(&puts[at]));
    is_twice || branch.iter().any(is_deleted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: Code, text: &str) -> Answer {
        Answer::Refused(code, format!("etcdserver: {text}"))
    }

    #[test]
    fn a_stranger_may_be_served_only_while_users_do_not_count() {
        let step = Step::Stranger(pb::RangeRequest::default());
        let invalid = refused(Code::Unauthenticated, "invalid auth token");
        let served = [invalid, Answer::Said(String::new())];
        assert_eq!(excuse(&step, false, &served), Some(Known::UnknownTokenWhileOpen));
        assert_eq!(excuse(&step, true, &served), None);
    }

    #[test]
    fn only_nobody_may_be_refused_a_transaction_without_keys() {
        let step = Step::Txn(pb::TxnRequest::default());
        let answers = |code, text| [Answer::Said(String::new()), refused(code, text)];
        let nobody = answers(Code::InvalidArgument, "user name is empty");
        assert_eq!(excuse(&step, true, &nobody), Some(Known::EmptyTxnForAll));
        let denied = answers(Code::PermissionDenied, "permission denied");
        assert_eq!(excuse(&step, true, &denied), None);
    }

    #[test]
    fn who_is_known_hears_of_a_key_that_is_written_twice() {
        let step = Step::Txn(pb::TxnRequest::default());
        let twice = refused(Code::InvalidArgument, "duplicate key given in txn request");
        let invalid = [twice.clone(), refused(Code::Unauthenticated, "invalid auth token")];
        assert_eq!(excuse(&step, true, &invalid), Some(Known::DuplicateAndUnknown));
        let denied = [twice, refused(Code::PermissionDenied, "permission denied")];
        assert_eq!(excuse(&step, true, &denied), None);
    }
}
