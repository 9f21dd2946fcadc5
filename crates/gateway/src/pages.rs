//! A range in parts, as of one revision: etcd 3.7's `RangeStream`.
//!
//! The replica reads a page at a time and remembers nothing between two: the next one begins after the last key of
//! the one before, at the same revision. So a stream holds one page in memory however large its range is, a client that
//! takes its time holds up nobody, and a compaction in the middle ends the stream with etcd's error. Who asks is looked
//! at with each page.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream, Stream};
use quorate_api::etcdserverpb::{RangeRequest, RangeResponse, RangeStreamResponse, ResponseHeader};
use quorate_types::kv::{self, RangeOutcome, outcome, query};
use tonic::Status;

use crate::auth::caller::Identity;
use crate::backend::{Backend, Consistency};
use crate::error::ApiError;
use crate::kv::{KvService, consistency};
use crate::translate;

/// The parts of a range.
pub(crate) type Parts = BoxStream<'static, Result<RangeStreamResponse, Status>>;

/// A range whose first pages were read.
pub(crate) struct Pages<B> {
    service: KvService<B>,
    by: Option<Identity>,
    consistency: Consistency,
    /// What is left of the range.
    rest: kv::Range,
    /// How many pairs may still come; `None` for all.
    limit: Option<i64>,
    /// Of the first page; the range is as of its revision.
    header: Option<ResponseHeader>,
    /// Pairs so far.
    count: i64,
    ended: bool,
}

impl<B: Backend> Pages<B> {
    /// Nothing is read yet.
    pub(crate) fn new(service: KvService<B>, by: Option<Identity>, request: RangeRequest) -> Self {
        let consistency = consistency(request.serializable);
        let mut rest = translate::range(request);
        // Where there is no order, there is nothing to order by.
        rest.sort_target = kv::SortTarget::Key as i32;
        rest.page_bytes = service.desk.config.max_request_bytes as u64;
        let limit = (rest.limit > 0).then_some(rest.limit);
        Self { service, by, consistency, rest, limit, header: None, count: 0, ended: false }
    }

    /// The parts, of which the first is read now.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) async fn into_parts(
        mut self,
    ) -> Result<impl Stream<Item = Result<RangeStreamResponse, Status>> + use<B>, Status> {
        let first = self.next().await?;
        let others = stream::try_unfold(self, |mut pages| async {
            if pages.ended {
                return Ok(None);
            }
            Ok(Some((pages.next().await?, pages)))
        });
        Ok(stream::iter([Ok(first)]).chain(others))
    }

    async fn next(&mut self) -> Result<RangeStreamResponse, Status> {
        if self.rest.count_only {
            let (header, RangeOutcome { count, .. }) = self.read(0).await?;
            self.ended = true;
            return Ok(part(header, RangeOutcome { kvs: Vec::new(), more: false, count }));
        }
        let (header, mut page) = self.read(self.rest.page_bytes).await?;
        let read = page.kvs.len() as i64;
        self.count += read;
        if let Some(last) = page.kvs.last() {
            self.rest.key = after(&last.key);
        }
        if let Some(limit) = &mut self.limit {
            *limit -= read;
            self.rest.limit = *limit;
        }
        self.ended = !page.more || self.limit == Some(0);
        match self.ended {
            false => page.more = false,
            true => page.count = self.count + self.count_rest(page.more).await?,
        }
        Ok(part(header, page))
    }

    /// Pairs that the limit has left out.
    async fn count_rest(&mut self, any: bool) -> Result<i64, Status> {
        if !any {
            return Ok(0);
        }
        self.rest.count_only = true;
        Ok(self.read(0).await?.1.count)
    }

    async fn read(&mut self, page_bytes: u64) -> Result<(ResponseHeader, RangeOutcome), Status> {
        let range = kv::Range { page_bytes, ..self.rest.clone() };
        let body = query::Body::Range(range);
        match self.service.read(body, self.consistency, self.by.as_ref()).await? {
            (header, outcome::Body::Range(range)) => {
                let first = self.header.get_or_insert(header);
                if self.rest.revision == 0 {
                    self.rest.revision = first.revision;
                }
                Ok((*first, range))
            }
            _ => Err(ApiError::UnexpectedOutcome.into()),
        }
    }
}

fn part(header: ResponseHeader, range: RangeOutcome) -> RangeStreamResponse {
    let range_response: RangeResponse = translate::range_response(header, range);
    RangeStreamResponse { range_response: Some(range_response) }
}

/// The first key after `key`.
fn after(key: &[u8]) -> Bytes {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    next.into()
}
