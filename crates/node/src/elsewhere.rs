//! Requests to a group that this node has no part in, or none any more: it was fenced or quarantined here.
//!
//! Nobody here knows who leads. The placement map names the members: one after the other is asked, the nearest
//! first and those whose connection is gone last, and each either serves the request or says who does. A proposal
//! goes on to the next only when it is certain that it was not proposed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quorate_group::{Proposed, Refusal};
use quorate_transport::{RequestError, Unknown};
use quorate_types::{GroupId, NodeId, Term};
use tokio::time::sleep;

use crate::engine::lock;
use crate::forward::{Answer, Request, reply};
use crate::router::{EngineError, LOOK_AGAIN, ReadAnswer, Router, refusal_of};

/// How long one member may take to answer a read before the next one is asked; the leader answers sooner,
/// unless all is slow, and then asking again costs little.
const READ_PATIENCE: Duration = Duration::from_millis(1_000);

/// How a member looks from here; the least is asked first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Outlook {
    /// Nothing is heard of its node.
    gone: bool,
    /// It did not serve lately.
    passed_over: bool,
    far: Far,
}

/// How far a node is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Far {
    /// So far, there and back.
    By(Duration),
    /// Nobody knows yet.
    Unknown,
}

/// The members in the order in which they are asked.
fn in_order(members: impl IntoIterator<Item = (NodeId, Outlook)>) -> Vec<NodeId> {
    let mut members: Vec<_> = members.into_iter().collect();
    members.sort_by_key(|(member, outlook)| (*outlook, *member));
    members.into_iter().map(|(member, _)| member).collect()
}

/// Whom to ask next for a group that does not live here.
#[derive(Debug)]
pub(crate) struct Search {
    /// The members, in the order in which they are asked.
    members: VecDeque<NodeId>,
    /// Who leads, as the last one has said.
    hint: Option<NodeId>,
    /// How many were asked since the last round began.
    asked: usize,
}

impl Search {
    /// Among `members`, of which there is at least one.
    fn new(members: impl IntoIterator<Item = NodeId>) -> Option<Self> {
        let members: VecDeque<_> = members.into_iter().collect();
        (!members.is_empty()).then_some(Self { members, hint: None, asked: 0 })
    }

    pub(crate) fn next(&mut self) -> NodeId {
        self.asked += 1;
        let hinted =
            self.hint.take().and_then(|hint| self.members.iter().position(|at| *at == hint));
        let next = self.members.remove(hinted.unwrap_or(0)).expect("a member");
        self.members.push_back(next);
        next
    }

    /// The last one does not serve; `leader` does, it says. True when all were asked: then there may be no
    /// leader now, and it is time to wait a little.
    fn refused(&mut self, leader: Option<NodeId>) -> bool {
        self.hint = leader;
        let all = self.asked >= self.members.len();
        if all {
            self.asked = 0;
        }
        all
    }
}

impl Router {
    pub(crate) async fn propose_elsewhere(
        &self,
        group: GroupId,
        command: Bytes,
        deadline: Instant,
    ) -> Result<Proposed, EngineError> {
        let mut search = self.search(group, |_| false)?;
        // Of the same bound as proposals here: what waits is held in memory.
        let _permit = self.permit(command.len())?;
        loop {
            let request = Request::propose(group, command.clone());
            let refusal = match self.ask_member(search.next(), request, deadline).await {
                Ok(reply::Body::Answer(answer)) => return Ok(answer.into_proposed()),
                Ok(other) => refusal_of(other)?,
                Err(RequestError::NotSent(_)) => NOBODY,
                Err(RequestError::Unknown(_)) => return Err(EngineError::TimedOut),
            };
            match refusal {
                Refusal::NotLeader { leader, .. } => {
                    self.go_on(&mut search, leader, deadline).await?;
                }
                Refusal::Overloaded => return Err(EngineError::Overloaded),
                Refusal::NoSpace => return Err(EngineError::NoSpace),
                Refusal::Membership(_) | Refusal::Unknown => return Err(EngineError::TimedOut),
            }
        }
    }

    pub(crate) async fn read_elsewhere(
        &self,
        group: GroupId,
        query: Bytes,
        led: bool,
        deadline: Instant,
    ) -> Result<ReadAnswer, EngineError> {
        let mut search = self.search(group, |_| false)?;
        loop {
            let request = Request::read(group, query.clone(), led);
            let until = deadline.min(Instant::now() + READ_PATIENCE);
            let leader = match self.ask_member(search.next(), request, until).await {
                Ok(reply::Body::Answer(Answer { term, outcome, .. })) => {
                    return Ok(ReadAnswer { answer: outcome, term: Term(term) });
                }
                Ok(other) => match refusal_of(other)? {
                    Refusal::NotLeader { leader, .. } => leader,
                    _ => None,
                },
                // It changes nothing: the next one may be asked whatever has become of it.
                Err(RequestError::NotSent(_) | RequestError::Unknown(_)) => None,
            };
            self.go_on(&mut search, leader, deadline).await?;
        }
    }

    /// The other members of `group`, if the map has it; those that are to be passed over come after the others.
    pub(crate) fn search(
        &self,
        group: GroupId,
        passed_over: impl Fn(NodeId) -> bool,
    ) -> Result<Search, EngineError> {
        let map = self.map.load();
        let members = map.group(group).map(|group| group.replicas.nodes()).unwrap_or_default();
        let others = members.into_iter().filter(|member| *member != self.node);
        let wheel = lock(&self.wheel);
        let outlook = |member| {
            let far = self.distances.of(member).map_or(Far::Unknown, Far::By);
            let (gone, passed_over) = (wheel.is_gone(member), passed_over(member));
            (member, Outlook { gone, passed_over, far })
        };
        Search::new(in_order(others.map(outlook))).ok_or(EngineError::UnknownGroup(group))
    }

    pub(crate) async fn go_on(
        &self,
        search: &mut Search,
        leader: Option<NodeId>,
        deadline: Instant,
    ) -> Result<(), EngineError> {
        if search.refused(leader) {
            sleep(LOOK_AGAIN).await;
        }
        match Instant::now() < deadline {
            true => Ok(()),
            false => Err(EngineError::NoLeader),
        }
    }

    /// Asks a member, and gives up when nothing is heard of its node any more.
    pub(crate) async fn ask_member(
        &self,
        member: NodeId,
        request: Bytes,
        deadline: Instant,
    ) -> Result<reply::Body, RequestError> {
        tokio::select! {
            // First: a request that cannot be sent was certainly not proposed.
            biased;
            answer = self.ask(member, request, deadline) => answer,
            () = self.until_gone(member) => Err(RequestError::Unknown(Unknown::ConnectionLost)),
        }
    }
}

const NOBODY: Refusal = Refusal::NotLeader { leader: None, term: Term::ZERO };

#[cfg(test)]
mod tests {
    use super::*;

    fn search() -> Search {
        Search::new([2, 3, 4].map(NodeId)).expect("there are members")
    }

    #[test]
    fn the_nearest_is_asked_first_and_then_who_is_not_known_who_was_of_no_use_and_who_is_gone() {
        let by = |ms| Far::By(Duration::from_millis(ms));
        let outlook = |gone, passed_over, far| Outlook { gone, passed_over, far };
        let members = [
            (1, outlook(true, false, by(1))),
            (2, outlook(false, true, by(1))),
            (3, outlook(false, false, Far::Unknown)),
            (4, outlook(false, false, by(70))),
            (5, outlook(false, false, by(3))),
            (6, outlook(false, true, by(40))),
            (7, outlook(true, true, by(1))),
            (8, outlook(false, false, by(70))),
        ];
        let order = in_order(members.map(|(member, outlook)| (NodeId(member), outlook)));
        let order: Vec<_> = order.into_iter().map(NodeId::value).collect();
        assert_eq!(order, [5, 4, 8, 3, 2, 6, 1, 7]);
    }

    #[test]
    fn members_are_asked_in_turn_and_after_each_round_there_is_a_pause() {
        let mut search = search();
        for _ in 0..2 {
            let round: Vec<_> =
                (0..3).map(|_| (search.next().value(), search.refused(None))).collect();
            assert_eq!(round, [(2, false), (3, false), (4, true)]);
        }
        assert!(Search::new([]).is_none());
    }

    #[test]
    fn who_is_said_to_lead_is_asked_next_if_it_is_a_member() {
        let mut search = search();
        assert_eq!(search.next(), NodeId(2));
        assert!(!search.refused(Some(NodeId(4))));
        assert_eq!(search.next(), NodeId(4));
        assert!(!search.refused(Some(NodeId(9))));
        assert_eq!(search.next(), NodeId(3));
    }

    #[test]
    fn members_that_name_each_other_are_not_asked_without_a_pause() {
        let mut search = search();
        let mut pauses = 0;
        for _ in 0..30 {
            let asked = search.next();
            let other = if asked == NodeId(2) { NodeId(3) } else { NodeId(2) };
            pauses += usize::from(search.refused(Some(other)));
        }
        assert_eq!(pauses, 10);
    }
}
