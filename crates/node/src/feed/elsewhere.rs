//! A long poll of a group that lives on other nodes only.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_transport::{Replier, RequestError};
use quorate_types::{GroupId, LogIndex, Term};
use tokio::time::timeout;

use crate::actor::ReadGrant;
use crate::forward::{Answer, Empty, Follow, Reply, Request, reply};
use crate::router::{EngineError, ReadAnswer, Router};

/// How long a member waits for something to happen before it answers that nothing did.
const PATIENCE: Duration = Duration::from_millis(2_000);

/// What the way there and back may take beside; then another member is asked.
const ON_THE_WAY: Duration = Duration::from_millis(2_000);

impl Router {
    /// Asks members of `group` in turn.
    pub(crate) async fn follow_elsewhere(
        &self,
        group: GroupId,
        after: i64,
        query: Bytes,
    ) -> Result<ReadAnswer, EngineError> {
        let deadline = Instant::now() + self.request_timeout;
        let mut search = self.search(group)?;
        loop {
            let request = Request::follow(group, Follow { after, query: query.clone() });
            let until = Instant::now() + PATIENCE + ON_THE_WAY;
            match self.ask_member(search.next(), request, until).await {
                Ok(reply::Body::Answer(Answer { term, outcome, .. })) => {
                    return Ok(ReadAnswer { answer: outcome, term: Term(term) });
                }
                Ok(reply::Body::Failed(reason)) => return Err(EngineError::Read(reason)),
                // It changes nothing: the next one may be asked whatever has become of it. Who leads does
                // not matter: any replica serves.
                Ok(_) | Err(RequestError::NotSent(_) | RequestError::Unknown(_)) => {}
            }
            self.go_on(&mut search, None, deadline).await?;
        }
    }
}

/// Answers the long poll of a node without a replica. Each node has one for each group that it follows.
pub(crate) async fn answer_follower(
    router: Arc<Router>,
    group: GroupId,
    follow: Follow,
    replier: Replier,
) {
    let unknown = || Reply::encoded(reply::Body::UnknownGroup(Empty {}));
    let Ok(resident) = router.resident(group) else { return replier.send(unknown()) };
    // Right after a restart the state may be older than what the asker has seen.
    if !resident.caught_up.load(Ordering::Acquire) {
        return replier.send(unknown());
    }
    let ring = router.feeds.ring(group);
    // Either way there is an answer.
    drop(timeout(PATIENCE, ring.until_news(follow.after)).await);
    let term = resident.leadership.borrow().term;
    let grant = ReadGrant { term, index: LogIndex::ZERO };
    resident.state.answer_remote(grant, follow.query, false, replier);
}
