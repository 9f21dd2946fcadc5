//! [`Subscription`]: a group, followed from a position on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quorate_types::GroupId;
use quorate_types::machine::Feed;
use tokio::time::timeout;

use super::elsewhere::PassedOver;
use super::ring::{Held, Ring};
use crate::router::{EngineError, ReadAnswer, Router};

/// How long a machine may take to load until others are asked for what it would tell.
const LOADING_PATIENCE: Duration = Duration::from_millis(1_000);

/// Bytes of feeds that are handed out at a time.
const TAKEN_BYTES_MAX: usize = 1 << 20;

/// What a group's commands did after a position, as this node's replica applies them.
///
/// While there is one, the group's ring holds late feeds, up to its bound.
pub struct Subscription {
    router: Arc<Router>,
    ring: Arc<Ring>,
    group: GroupId,
    after: i64,
    /// Of the other members.
    passed_over: PassedOver,
}

/// What [`Subscription::next`] has found.
#[derive(Debug)]
pub enum Followed {
    /// What happened next, in order and without a gap; the first of them may begin before the position.
    Feeds(Vec<Feed>),
    /// What follows on the position is not in memory any more: read it by a query, then
    /// [`seek`](Subscription::seek) to where that ends.
    Behind,
    /// The group does not live here: ask those who have it ([`Subscription::ask`]), then seek.
    Absent,
}

impl Subscription {
    pub(crate) fn new(router: Arc<Router>, group: GroupId, after: i64) -> Self {
        let ring = router.feeds.ring(group);
        ring.subscribe();
        Self { router, ring, group, after, passed_over: PassedOver::default() }
    }

    /// Up to where everything was given.
    #[must_use]
    pub const fn position(&self) -> i64 {
        self.after
    }

    /// Goes on from `through`.
    pub const fn seek(&mut self, through: i64) {
        self.after = through;
    }

    /// Waits until there is something after the position. Dropping the future loses nothing.
    ///
    /// # Errors
    /// When the node is stopping.
    pub async fn next(&mut self) -> Result<Followed, EngineError> {
        loop {
            match self.router.resident(self.group) {
                Err(EngineError::UnknownGroup(_)) => return Ok(Followed::Absent),
                resident => drop(resident?),
            }
            match self.ring.held(self.after, TAKEN_BYTES_MAX) {
                Held::Feeds(feeds) => {
                    self.after = feeds.last().map_or(self.after, |feed| feed.through);
                    return Ok(Followed::Feeds(feeds));
                }
                Held::Nothing => self.ring.until_news(self.after).await,
                Held::Behind => return Ok(Followed::Behind),
                // Its machine is being loaded.
                Held::Absent => {
                    if timeout(LOADING_PATIENCE, self.ring.until_open()).await.is_err() {
                        return Ok(Followed::Absent);
                    }
                }
            }
        }
    }

    /// Answers `query` by a replica of another node, the nearest that serves, once that has something after the
    /// position, or after a while without.
    ///
    /// # Errors
    /// When no such replica can be reached that hears of the cluster, or the query has no answer, or one that is
    /// too large for a frame.
    pub async fn ask(&mut self, query: Bytes) -> Result<ReadAnswer, EngineError> {
        let (group, after) = (self.group, self.after);
        self.router.follow_elsewhere(group, after, query, &mut self.passed_over).await
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.ring.unsubscribe();
    }
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Subscription({} after {})", self.group, self.after)
    }
}
