//! When two answers are the same.

use quorate_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use quorate_api::etcdserverpb::{
    CompactionResponse, DeleteRangeResponse, PutResponse, RangeRequest, RangeResponse,
    ResponseHeader, TxnResponse, response_op,
};
use quorate_api::mvccpb::KeyValue;
use tonic::Code;

use super::generate::Request;

/// What a request came to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// Of `KV.Range`.
    Range(RangeResponse),
    /// Of `KV.Put`.
    Put(PutResponse),
    /// Of `KV.DeleteRange`.
    DeleteRange(DeleteRangeResponse),
    /// Of `KV.Txn`.
    Txn(TxnResponse),
    /// Of `KV.Compact`.
    Compact(CompactionResponse),
    /// A status.
    Error {
        /// The gRPC code.
        code: Code,
        /// Its text, which clients match.
        text: String,
    },
}

macro_rules! answers {
    ($($kind:ident($response:ident)),*) => {
        $(impl From<$response> for Answer {
            fn from(response: $response) -> Self {
                Self::$kind(response)
            }
        })*

        impl Answer {
            fn header_mut(&mut self) -> Option<&mut ResponseHeader> {
                match self {
                    $(Self::$kind(response) => response.header.as_mut(),)*
                    Self::Error { .. } => None,
                }
            }

            /// The revision in the header; none for an error.
            pub(crate) fn revision(&self) -> Option<i64> {
                match self {
                    $(Self::$kind(response) => Some(response.header.as_ref()?.revision),)*
                    Self::Error { .. } => None,
                }
            }
        }
    };
}

answers!(
    Range(RangeResponse),
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
    Compact(CompactionResponse)
);

/// How `found` differs from `expected`, if it does.
pub(crate) fn difference(
    request: &Request,
    expected: &Answer,
    found: &Answer,
) -> Option<&'static str> {
    let (mut expected, mut found) = (expected.clone(), found.clone());
    for answer in [&mut expected, &mut found] {
        if answer.header_mut().is_none() && !matches!(answer, Answer::Error { .. }) {
            return Some("an answer has no header");
        }
        forget_identities(answer);
        if let (Request::Range(request), Answer::Range(range)) = (request, answer) {
            order_ties(request, range);
        }
    }
    (expected != found).then_some("the answers differ")
}

/// Clusters have different ids and terms.
fn forget_identities(answer: &mut Answer) {
    if let Some(header) = answer.header_mut() {
        forget(header);
    }
    if let Answer::Txn(txn) = answer {
        forget_nested(txn);
    }
}

fn forget(header: &mut ResponseHeader) {
    *header = ResponseHeader { revision: header.revision, ..ResponseHeader::default() };
}

fn forget_nested(txn: &mut TxnResponse) {
    use response_op::Response;
    txn.header.iter_mut().for_each(forget);
    for operation in &mut txn.responses {
        match &mut operation.response {
            Some(Response::ResponseRange(range)) => range.header.iter_mut().for_each(forget),
            Some(Response::ResponsePut(put)) => put.header.iter_mut().for_each(forget),
            Some(Response::ResponseDeleteRange(range)) => range.header.iter_mut().for_each(forget),
            Some(Response::ResponseTxn(txn)) => forget_nested(txn),
            None => {}
        }
    }
}

/// etcd's sort is not stable: pairs with equal sort fields come in any order, and which of them a limit
/// cuts off is open too. So they are ordered by key, and of a group that may be cut only the sort field
/// is kept.
fn order_ties(request: &RangeRequest, range: &mut RangeResponse) {
    let target = SortTarget::try_from(request.sort_target).unwrap_or_default();
    let descending = request.sort_order == i32::from(SortOrder::Descend);
    if target == SortTarget::Key {
        return;
    }
    let field = |pair: &KeyValue| match target {
        SortTarget::Key => (0, Vec::new()),
        SortTarget::Version => (pair.version, Vec::new()),
        SortTarget::Create => (pair.create_revision, Vec::new()),
        SortTarget::Mod => (pair.mod_revision, Vec::new()),
        SortTarget::Value => (0, pair.value.to_vec()),
    };
    // With keys_only the values that it was sorted by are not shown, so nothing is left to order by.
    if request.keys_only && target == SortTarget::Value {
        if range.more {
            range.kvs.iter_mut().for_each(|pair| *pair = KeyValue::default());
        }
        range.kvs.sort_by(|one, other| one.key.cmp(&other.key));
        return;
    }
    let in_order = range.kvs.is_sorted_by(|one, next| {
        if descending { field(one) >= field(next) } else { field(one) <= field(next) }
    });
    if !in_order {
        // Left as it is: it will differ from an answer that is in order.
        return;
    }
    let last = range.kvs.last().map(field);
    if range.more {
        for pair in range.kvs.iter_mut().filter(|pair| Some(field(pair)) == last) {
            *pair = KeyValue {
                version: if target == SortTarget::Version { pair.version } else { 0 },
                create_revision: if target == SortTarget::Create {
                    pair.create_revision
                } else {
                    0
                },
                mod_revision: if target == SortTarget::Mod { pair.mod_revision } else { 0 },
                value: if target == SortTarget::Value {
                    pair.value.clone()
                } else {
                    Default::default()
                },
                ..KeyValue::default()
            };
        }
    }
    range.kvs.sort_by(|one, other| field(one).cmp(&field(other)).then(one.key.cmp(&other.key)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(keys: &[(&'static str, i64)], more: bool) -> Answer {
        let pair = |&(key, version): &(&'static str, i64)| KeyValue {
            key: key.into(),
            version,
            ..KeyValue::default()
        };
        let header =
            ResponseHeader { revision: 5, member_id: keys.len() as u64, ..Default::default() };
        let kvs = keys.iter().map(pair).collect();
        Answer::Range(RangeResponse { header: Some(header), kvs, more, count: 9 })
    }

    fn by_version() -> Request {
        Request::Range(RangeRequest {
            sort_order: SortOrder::Ascend.into(),
            sort_target: SortTarget::Version.into(),
            ..RangeRequest::default()
        })
    }

    #[test]
    fn ties_may_be_in_any_order_and_nothing_else_may() {
        let request = by_version();
        let one = range(&[("a", 1), ("b", 1), ("c", 2)], false);
        assert_eq!(difference(&request, &one, &one), None);
        let tied = range(&[("b", 1), ("a", 1), ("c", 2)], false);
        assert_eq!(difference(&request, &one, &tied), None);
        let wrong = range(&[("a", 1), ("c", 2), ("b", 1)], false);
        assert!(difference(&request, &one, &wrong).is_some());
        let other = range(&[("a", 1), ("b", 1), ("d", 2)], false);
        assert!(difference(&request, &one, &other).is_some());
    }

    #[test]
    fn a_limit_may_cut_any_of_a_tie() {
        let request = by_version();
        let one = range(&[("a", 1), ("b", 2)], true);
        let cut = range(&[("a", 1), ("c", 2)], true);
        assert_eq!(difference(&request, &one, &cut), None);
        let wrong = range(&[("c", 1), ("b", 2)], true);
        assert!(difference(&request, &one, &wrong).is_some());
    }

    #[test]
    fn revisions_count_and_identities_do_not() {
        let put = |revision, member_id| {
            let header = ResponseHeader { revision, member_id, ..ResponseHeader::default() };
            Answer::Put(PutResponse { header: Some(header), prev_kv: None })
        };
        let request = Request::Put(Default::default());
        assert_eq!(difference(&request, &put(5, 1), &put(5, 2)), None);
        assert!(difference(&request, &put(5, 1), &put(6, 1)).is_some());
        let error = |text: &str| Answer::Error { code: Code::Internal, text: text.to_owned() };
        assert!(difference(&request, &error("a"), &error("b")).is_some());
        assert_eq!(difference(&request, &error("a"), &error("a")), None);
    }
}
