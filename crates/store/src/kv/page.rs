//! One page of a range.

use std::ops::ControlFlow;

use bytes::Bytes;
use prost::Message;
use quorate_types::KeyRange;
use quorate_types::kv::{Range, RangeOutcome};

use super::read::{Found, Refusal, View, pair};

/// Keys of a page at most.
const PAGE_KEYS_MAX: usize = 1_000;

impl View<'_> {
    /// The pairs of a range in the order of keys, as many as are `page_bytes` together, if the limit does not come
    /// first: one at least, however large, if there is any. `more` says that others follow. No more is read than the
    /// page and one pair.
    pub(super) fn page(&self, request: &Range) -> Result<RangeOutcome, Refusal> {
        let revision = self.readable(request.revision)?;
        let range = KeyRange::from_request(&request.key, &request.range_end);
        let limit = match request.limit {
            1.. => usize::try_from(request.limit).unwrap_or(usize::MAX).min(PAGE_KEYS_MAX),
            _ => PAGE_KEYS_MAX,
        };
        let (mut kvs, mut bytes, mut more, mut read) = (Vec::new(), 0, false, Ok(()));
        if range.is_empty() {
            return Ok(RangeOutcome { kvs, more, count: 0 });
        }
        self.each_at(revision, &range, &mut |key, record| {
            more = kvs.len() == limit;
            if more {
                return ControlFlow::Break(());
            }
            let found = Found { key: Bytes::copy_from_slice(key), record };
            let pair = match request.keys_only {
                true => Ok(pair(&found, Bytes::new())),
                false => self.pair(&found),
            };
            let pair = match pair {
                Ok(pair) => pair,
                Err(error) => {
                    read = Err(error);
                    return ControlFlow::Break(());
                }
            };
            bytes += pair.encoded_len() as u64;
            more = bytes > request.page_bytes && !kvs.is_empty();
            if more {
                return ControlFlow::Break(());
            }
            kvs.push(pair);
            ControlFlow::Continue(())
        })?;
        read?;
        Ok(RangeOutcome { kvs, more, count: 0 })
    }
}
