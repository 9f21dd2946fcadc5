//! A long poll of a group that lives on other nodes only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_group::Refusal;
use quorate_transport::{Replier, RequestError};
use quorate_types::{GroupId, LogIndex, NodeId, Term};
use tokio::time::timeout;

use crate::actor::ReadGrant;
use crate::forward::{Answer, Empty, Follow, Reply, Request, reply};
use crate::router::{EngineError, ReadAnswer, Resident, Router, refusal_of};

/// How long a member waits for something to happen before it answers that nothing did.
const PATIENCE: Duration = Duration::from_millis(2_000);

/// What the way there and back may take beside; then another member is asked.
const ON_THE_WAY: Duration = Duration::from_millis(2_000);

/// For so long a member that did not serve is asked after those that may: its trouble is over by then as a rule,
/// and if it is not, one question in this time was for nothing.
const PASSED_OVER: Duration = Duration::from_secs(10);

/// Members that did not serve lately.
#[derive(Debug, Default)]
pub(super) struct PassedOver {
    since: BTreeMap<NodeId, Instant>,
}

impl PassedOver {
    fn note(&mut self, member: NodeId, now: Instant) {
        self.since.insert(member, now);
    }

    fn has(&self, member: NodeId, now: Instant) -> bool {
        let since = self.since.get(&member);
        since.is_some_and(|since| now.saturating_duration_since(*since) < PASSED_OVER)
    }
}

impl Router {
    /// Asks members of `group`, beginning with the nearest of those that served when they were last asked.
    pub(super) async fn follow_elsewhere(
        &self,
        group: GroupId,
        after: i64,
        query: Bytes,
        passed_over: &mut PassedOver,
    ) -> Result<ReadAnswer, EngineError> {
        let deadline = Instant::now() + self.request_timeout;
        let mut search = self.search(group, |member| passed_over.has(member, Instant::now()))?;
        loop {
            let request = Request::follow(group, Follow { after, query: query.clone() });
            let until = Instant::now() + PATIENCE + ON_THE_WAY;
            let member = search.next();
            self.metrics.follows_asked.increment(1);
            match self.ask_member(member, request, until).await {
                Ok(reply::Body::Answer(Answer { term, outcome, .. })) => {
                    return Ok(ReadAnswer { answer: outcome, term: Term(term) });
                }
                // Who leads does not matter: any replica serves. Another one does not help where the query has
                // no answer, or one that is too large.
                Ok(other) => drop(refusal_of(other)?),
                // It changes nothing: the next one may be asked whatever has become of it.
                Err(RequestError::NotSent(_) | RequestError::Unknown(_)) => {}
            }
            passed_over.note(member, Instant::now());
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
    let lost_leader = tokio::select! {
        biased;
        // Either way there is an answer.
        _ = timeout(PATIENCE, ring.until_news(follow.after)) => false,
        () = leaderless(&resident) => true,
    };
    let term = resident.leadership.borrow().term;
    if lost_leader {
        // That nothing happens here says nothing then: others may know better.
        let refusal = Reply::of_refusal(Refusal::NotLeader { leader: None, term });
        return replier.send(Reply::encoded(refusal));
    }
    router.metrics.follows_answered.increment(1);
    let grant = ReadGrant { term, index: LogIndex::ZERO };
    resident.state.answer_remote(grant, follow.query, false, replier);
}

/// Waits until the replica knows of no leader.
async fn leaderless(resident: &Resident) {
    let mut leadership = resident.leadership.clone();
    if leadership.wait_for(|now| now.leader.is_none()).await.is_err() {
        // It has left this node, and its ring tells.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_did_not_serve_is_passed_over_for_a_while() {
        let (mut passed_over, now) = (PassedOver::default(), Instant::now());
        passed_over.note(NodeId(2), now);
        assert!(!passed_over.has(NodeId(1), now));
        assert!(passed_over.has(NodeId(2), now + PASSED_OVER / 2));
        assert!(!passed_over.has(NodeId(2), now + PASSED_OVER));
    }
}
