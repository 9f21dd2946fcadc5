//! What nodes ask of each other on behalf of clients, as bytes of the request lane.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::{Message, Oneof};
use quorate_group::{Proposed, Refusal};
use quorate_types::{EntryId, GroupId, Incarnation, LogIndex, NodeId, Term};

/// The largest command or answer that goes from node to node: what a frame of the transport holds, less
/// room for what is around it.
pub(crate) const FORWARDED_BYTES_MAX: usize = 15 << 20;

/// A request to another node.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Request {
    /// The group that should serve it.
    #[prost(uint64, tag = "1")]
    pub(crate) group: u64,
    #[prost(oneof = "request::Body", tags = "2, 3, 4, 5, 6, 7, 8, 40")]
    pub(crate) body: Option<request::Body>,
}

pub(crate) mod request {
    use super::{Beat, Bytes, Empty, Follow, JoinRequest, Oneof};

    #[derive(Clone, PartialEq, Oneof)]
    pub(crate) enum Body {
        /// Propose this command, if you lead.
        #[prost(bytes = "bytes", tag = "2")]
        Propose(Bytes),
        /// Answer this query linearizably, if you lead.
        #[prost(bytes = "bytes", tag = "3")]
        Read(Bytes),
        /// The founders' table, if you have started.
        #[prost(message, tag = "4")]
        Founders(Empty),
        /// Let a node in that was added; of nodes without an id only.
        #[prost(message, tag = "5")]
        Join(JoinRequest),
        /// Which learners of the group have caught up, if you lead it?
        #[prost(message, tag = "6")]
        CaughtUp(Empty),
        /// How this node is. Nodes of before it existed answer that they do not know it.
        #[prost(message, tag = "7")]
        Beat(Beat),
        /// Answer this query once your replica has something new for it, or after a while.
        #[prost(message, tag = "40")]
        Follow(Follow),
        /// Answer this query as the leader, if you lead.
        #[prost(bytes = "bytes", tag = "8")]
        ReadLed(Bytes),
    }
}

/// A long poll of a group that does not live where it comes from.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Follow {
    /// The position after which something is new.
    #[prost(int64, tag = "1")]
    pub(crate) after: i64,
    /// The query that tells of it.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) query: Bytes,
}

/// What a node tells all others now and then, and whenever it changes.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Beat {
    /// Of its process, as in its hello.
    #[prost(fixed64, tag = "1")]
    pub(crate) session: u64,
    /// How many log batches are durable there.
    #[prost(uint64, tag = "2")]
    pub(crate) synced_batches: u64,
    /// Bytes that are free on its disk.
    #[prost(uint64, tag = "3")]
    pub(crate) free_bytes: u64,
    /// Bytes of it that it keeps free; 0 when it does not know.
    #[prost(uint64, tag = "4")]
    pub(crate) reserve_bytes: u64,
    /// It cannot lead.
    #[prost(bool, tag = "5")]
    pub(crate) unfit: bool,
}

/// A node asks to be let in. Its name stands in its certificate.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct JoinRequest {
    #[prost(string, tag = "1")]
    pub(crate) peer_address: String,
    #[prost(fixed64, tag = "2")]
    pub(crate) incarnation: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Empty {}

/// The answer to a [`Request`].
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Reply {
    #[prost(oneof = "reply::Body", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13")]
    pub(crate) body: Option<reply::Body>,
}

pub(crate) mod reply {
    use super::{Answer, Empty, FoundersTable, Joined, Nodes, NotLeader, Oneof};

    #[derive(Clone, PartialEq, Oneof)]
    pub(crate) enum Body {
        #[prost(message, tag = "1")]
        Answer(Answer),
        /// Nothing was proposed; safe to try elsewhere.
        #[prost(message, tag = "2")]
        NotLeader(NotLeader),
        /// Nothing was proposed; too much waits already.
        #[prost(message, tag = "3")]
        Overloaded(Empty),
        /// It may have been proposed.
        #[prost(message, tag = "4")]
        Unknown(Empty),
        /// The group does not live here.
        #[prost(message, tag = "5")]
        UnknownGroup(Empty),
        /// The query was refused or failed, in words.
        #[prost(string, tag = "6")]
        Failed(String),
        #[prost(message, tag = "7")]
        Founders(FoundersTable),
        /// The answer has so many bytes that no frame carries it.
        #[prost(uint64, tag = "8")]
        TooLarge(u64),
        /// The node is let in.
        #[prost(message, tag = "9")]
        Joined(Joined),
        /// It is not, and asking again does not help.
        #[prost(string, tag = "10")]
        Refused(String),
        #[prost(message, tag = "11")]
        CaughtUp(Nodes),
        /// Nothing was proposed; too few disks have room.
        #[prost(message, tag = "12")]
        NoSpace(Empty),
        /// A beat was heard.
        #[prost(message, tag = "13")]
        Heard(Empty),
    }
}

/// Everything that a node needs to know to take part.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Joined {
    /// Its id.
    #[prost(uint64, tag = "1")]
    pub(crate) node: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) cluster_digest: Bytes,
    #[prost(message, optional, tag = "3")]
    pub(crate) founders: Option<FoundersTable>,
    /// The placement map.
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) map: Bytes,
    /// What the cluster was restored from, as the identity has it; empty if it was not.
    #[prost(bytes = "bytes", tag = "5")]
    pub(crate) restored: Bytes,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Nodes {
    #[prost(uint64, repeated, tag = "1")]
    pub(crate) nodes: Vec<u64>,
}

/// An outcome, or the answer to a query.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Answer {
    #[prost(uint64, tag = "1")]
    pub(crate) term: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) index: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) outcome: Bytes,
}

/// Who leads instead.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct NotLeader {
    /// 0: nobody that the node knows of.
    #[prost(uint64, tag = "1")]
    pub(crate) leader: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) term: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct FoundersTable {
    #[prost(btree_map = "fixed64, fixed64", tag = "1")]
    pub(crate) incarnations: BTreeMap<u64, u64>,
}

impl Request {
    pub(crate) fn propose(group: GroupId, command: Bytes) -> Bytes {
        Self::encoded(group, request::Body::Propose(command))
    }

    /// `led`: only the leader itself can answer.
    pub(crate) fn read(group: GroupId, query: Bytes, led: bool) -> Bytes {
        let body = match led {
            true => request::Body::ReadLed(query),
            false => request::Body::Read(query),
        };
        Self::encoded(group, body)
    }

    pub(crate) fn founders() -> Bytes {
        Self::encoded(GroupId::ZERO, request::Body::Founders(Empty {}))
    }

    pub(crate) fn join(request: JoinRequest) -> Bytes {
        Self::encoded(GroupId::ZERO, request::Body::Join(request))
    }

    pub(crate) fn caught_up(group: GroupId) -> Bytes {
        Self::encoded(group, request::Body::CaughtUp(Empty {}))
    }

    pub(crate) fn follow(group: GroupId, follow: Follow) -> Bytes {
        Self::encoded(group, request::Body::Follow(follow))
    }

    pub(crate) fn beat(beat: Beat) -> Bytes {
        Self::encoded(GroupId::ZERO, request::Body::Beat(beat))
    }

    fn encoded(group: GroupId, body: request::Body) -> Bytes {
        Self { group: group.value(), body: Some(body) }.encode_to_vec().into()
    }
}

impl Reply {
    pub(crate) fn encoded(body: reply::Body) -> Bytes {
        Self { body: Some(body) }.encode_to_vec().into()
    }

    pub(crate) fn of_proposal(result: Result<Proposed, Refusal>) -> Bytes {
        Self::encoded(match result {
            Ok(Proposed { id, outcome }) => reply::Body::Answer(Answer {
                term: id.term.value(),
                index: id.index.value(),
                outcome,
            }),
            Err(refusal) => Self::of_refusal(refusal),
        })
    }

    pub(crate) fn of_refusal(refusal: Refusal) -> reply::Body {
        match refusal {
            Refusal::NotLeader { leader, term } => {
                let leader = match leader {
                    Some(leader) => leader.value(),
                    None => 0,
                };
                reply::Body::NotLeader(NotLeader { leader, term: term.value() })
            }
            Refusal::Overloaded => reply::Body::Overloaded(Empty {}),
            Refusal::NoSpace => reply::Body::NoSpace(Empty {}),
            Refusal::Membership(error) => reply::Body::Failed(error.to_string()),
            Refusal::Unknown => reply::Body::Unknown(Empty {}),
        }
    }

    pub(crate) fn of_founders(table: &BTreeMap<NodeId, Incarnation>) -> Bytes {
        Self::encoded(reply::Body::Founders(FoundersTable::of(table)))
    }
}

impl Answer {
    pub(crate) fn into_proposed(self) -> Proposed {
        Proposed { id: EntryId::new(Term(self.term), LogIndex(self.index)), outcome: self.outcome }
    }
}

impl NotLeader {
    pub(crate) const fn leader(self) -> Option<NodeId> {
        if self.leader == 0 { None } else { Some(NodeId(self.leader)) }
    }
}

impl FoundersTable {
    pub(crate) fn of(table: &BTreeMap<NodeId, Incarnation>) -> Self {
        let pairs = table.iter().map(|(node, incarnation)| (node.value(), incarnation.value()));
        Self { incarnations: pairs.collect() }
    }

    pub(crate) fn into_table(self) -> BTreeMap<NodeId, Incarnation> {
        let pairs = self.incarnations.into_iter();
        pairs.map(|(node, incarnation)| (NodeId(node), Incarnation(incarnation))).collect()
    }
}
