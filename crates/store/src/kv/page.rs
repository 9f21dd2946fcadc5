//! One page of a range.

use std::ops::ControlFlow;

use bytes::Bytes;
use prost::Message;
use quorate_types::KeyRange;
use quorate_types::kv::{Range, RangeOutcome};

use super::read::{Found, Refusal, View, pair};

/// Keys of a page at most: what is looked up before a value is read.
const PAGE_KEYS_MAX: usize = 1_000;

impl View<'_> {
    /// The pairs of a range in the order of keys, until they are `page_bytes` or there are enough: one at least, if there
    /// is any. `more` says that others follow.
    pub(super) fn page(&self, request: &Range) -> Result<RangeOutcome, Refusal> {
        let revision = self.readable(request.revision)?;
        let range = KeyRange::from_request(&request.key, &request.range_end);
        let limit = match request.limit {
            1.. => usize::try_from(request.limit).unwrap_or(usize::MAX).min(PAGE_KEYS_MAX),
            _ => PAGE_KEYS_MAX,
        };
        let mut found = Vec::new();
        let mut more = false;
        if !range.is_empty() {
            self.each_at(revision, &range, &mut |key, record| {
                if found.len() == limit {
                    more = true;
                    return ControlFlow::Break(());
                }
                found.push(Found { key: Bytes::copy_from_slice(key), record });
                ControlFlow::Continue(())
            })?;
        }
        let (mut kvs, mut bytes) = (Vec::new(), 0);
        for one in &found {
            if bytes >= request.page_bytes {
                more = true;
                break;
            }
            let pair = match request.keys_only {
                true => pair(one, Bytes::new()),
                false => self.pair(one)?,
            };
            bytes += pair.encoded_len() as u64;
            kvs.push(pair);
        }
        Ok(RangeOutcome { kvs, more, count: 0 })
    }
}
