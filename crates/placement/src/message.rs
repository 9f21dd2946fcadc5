//! The sent form of commands, outcomes and queries: protobuf, whose fields are added and never renumbered.

use prost::{Message, Oneof};
use quorate_types::GroupId;

use crate::members::MemberRefusal;
use crate::record::{GroupRecord, MapRecord, NodeRecord, StandingRecord};

/// A command to the placement machine.
#[derive(Clone, PartialEq, Message)]
pub struct Command {
    /// The version of the map that the proposer looked at; 0 when it saw none. Anything else than the
    /// version in force is refused as [`Conflict`].
    #[prost(uint64, tag = "1")]
    pub expected_version: u64,
    /// What to do.
    #[prost(oneof = "command::Body", tags = "2, 4, 5, 6, 7, 8, 9, 10")]
    pub body: Option<command::Body>,
}

/// The kinds of [`Command`].
pub mod command {
    use super::{AddNode, GroupRecord, JoinNode, MapRecord, NodeRecord, Oneof, ReplaceNode};

    /// The kinds of a command.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum Body {
        /// Make this the first map.
        #[prost(message, tag = "2")]
        Bootstrap(MapRecord),
        /// Change a node's addresses and labels. Its name and incarnation must be as they are: a node
        /// with another data directory is another node.
        #[prost(message, tag = "4")]
        UpdateNode(NodeRecord),
        /// Add a node, which gets an id.
        #[prost(message, tag = "5")]
        AddNode(AddNode),
        /// Give a node that was added its data directory.
        #[prost(message, tag = "6")]
        JoinNode(JoinNode),
        /// Mean the node of this id to vote.
        #[prost(uint64, tag = "7")]
        PromoteNode(u64),
        /// Mean the node of this id to leave.
        #[prost(uint64, tag = "8")]
        RemoveNode(u64),
        /// Add a node in the place of another.
        #[prost(message, tag = "9")]
        ReplaceNode(ReplaceNode),
        /// Take in where a group's replicas are.
        #[prost(message, tag = "10")]
        Report(GroupRecord),
    }
}

/// Adds a node.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct AddNode {
    /// Its name; empty if only its address is known yet.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Where other nodes will reach it.
    #[prost(string, tag = "2")]
    pub peer_address: String,
    /// Voter or learner.
    #[prost(enumeration = "StandingRecord", tag = "3")]
    pub standing: i32,
}

/// Gives a node that was added its data directory.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct JoinNode {
    /// The name in its certificate.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Where other nodes reach it.
    #[prost(string, tag = "2")]
    pub peer_address: String,
    /// The incarnation of its data directory.
    #[prost(fixed64, tag = "3")]
    pub incarnation: u64,
}

/// Adds a node in the place of another.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ReplaceNode {
    /// The node to replace.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Where other nodes will reach the new one; empty: where they reach the old one.
    #[prost(string, tag = "2")]
    pub peer_address: String,
}

/// What applying a [`Command`] gave; the same on every replica.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Outcome {
    /// The version of the map after the command; 0 while there is none.
    #[prost(uint64, tag = "1")]
    pub version: u64,
    /// The result.
    #[prost(oneof = "outcome::Body", tags = "2, 3, 4")]
    pub body: Option<outcome::Body>,
}

/// The kinds of [`Outcome`].
pub mod outcome {
    use super::{Applied, Conflict, Oneof, Rejected};

    /// The kinds of an outcome.
    #[derive(Clone, PartialEq, Eq, Oneof)]
    pub enum Body {
        /// The map has changed.
        #[prost(message, tag = "2")]
        Applied(Applied),
        /// Nothing has: the proposer looked at another version. It may look again and decide anew.
        #[prost(message, tag = "3")]
        Conflict(Conflict),
        /// Nothing has: no map can be changed in this way.
        #[prost(message, tag = "4")]
        Rejected(Rejected),
    }
}

/// The map has changed.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Applied {
    /// The node that the command was about; 0 if it was about none.
    #[prost(uint64, tag = "1")]
    pub node: u64,
}

/// The command was made for another version.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Conflict {}

/// The command makes no sense.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Rejected {
    /// Why, for people.
    #[prost(string, tag = "1")]
    pub reason: String,
    /// Why, for programs, if nodes cannot change so.
    #[prost(enumeration = "RefusalRecord", tag = "2")]
    pub refusal: i32,
    /// The group that a refusal is about.
    #[prost(uint64, tag = "3")]
    pub group: u64,
}

/// A [`MemberRefusal`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum RefusalRecord {
    /// None of these, or one that this build does not know.
    Other = 0,
    /// [`MemberRefusal::NotFound`].
    NotFound = 1,
    /// [`MemberRefusal::NameTaken`].
    NameTaken = 2,
    /// [`MemberRefusal::AddressTaken`].
    AddressTaken = 3,
    /// [`MemberRefusal::NoAddress`].
    NoAddress = 4,
    /// [`MemberRefusal::NotLearner`].
    NotLearner = 5,
    /// [`MemberRefusal::TooManyLearners`].
    TooManyLearners = 6,
    /// [`MemberRefusal::NotEnoughStarted`].
    NotEnoughStarted = 7,
    /// [`MemberRefusal::OtherDirectory`].
    OtherDirectory = 8,
    /// [`MemberRefusal::Replicas`].
    Replicas = 9,
}

impl From<&MemberRefusal> for Rejected {
    fn from(refusal: &MemberRefusal) -> Self {
        let (record, group) = match refusal {
            MemberRefusal::NotFound => (RefusalRecord::NotFound, GroupId::ZERO),
            MemberRefusal::NameTaken => (RefusalRecord::NameTaken, GroupId::ZERO),
            MemberRefusal::AddressTaken => (RefusalRecord::AddressTaken, GroupId::ZERO),
            MemberRefusal::NoAddress => (RefusalRecord::NoAddress, GroupId::ZERO),
            MemberRefusal::NotLearner => (RefusalRecord::NotLearner, GroupId::ZERO),
            MemberRefusal::TooManyLearners => (RefusalRecord::TooManyLearners, GroupId::ZERO),
            MemberRefusal::NotEnoughStarted => (RefusalRecord::NotEnoughStarted, GroupId::ZERO),
            MemberRefusal::OtherDirectory => (RefusalRecord::OtherDirectory, GroupId::ZERO),
            MemberRefusal::Replicas(group) => (RefusalRecord::Replicas, *group),
        };
        Self { reason: refusal.to_string(), refusal: record as i32, group: group.value() }
    }
}

impl Rejected {
    /// The refusal of a change of nodes, if it is one that this build knows.
    #[must_use]
    pub fn member_refusal(&self) -> Option<MemberRefusal> {
        Some(match self.refusal() {
            RefusalRecord::Other => return None,
            RefusalRecord::NotFound => MemberRefusal::NotFound,
            RefusalRecord::NameTaken => MemberRefusal::NameTaken,
            RefusalRecord::AddressTaken => MemberRefusal::AddressTaken,
            RefusalRecord::NoAddress => MemberRefusal::NoAddress,
            RefusalRecord::NotLearner => MemberRefusal::NotLearner,
            RefusalRecord::TooManyLearners => MemberRefusal::TooManyLearners,
            RefusalRecord::NotEnoughStarted => MemberRefusal::NotEnoughStarted,
            RefusalRecord::OtherDirectory => MemberRefusal::OtherDirectory,
            RefusalRecord::Replicas => MemberRefusal::Replicas(GroupId(self.group)),
        })
    }
}

/// A question to the placement machine.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Query {
    /// What is asked.
    #[prost(oneof = "query::Body", tags = "1")]
    pub body: Option<query::Body>,
}

/// The kinds of [`Query`].
pub mod query {
    use super::{Oneof, WholeMap};

    /// The kinds of a query.
    #[derive(Clone, Copy, PartialEq, Eq, Oneof)]
    pub enum Body {
        /// The map in force.
        #[prost(message, tag = "1")]
        WholeMap(WholeMap),
    }
}

/// Asks for the map in force.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct WholeMap {}

/// The answer to a [`Query`].
#[derive(Clone, PartialEq, Message)]
pub struct AnswerRecord {
    /// The map in force; absent before the first.
    #[prost(message, optional, tag = "1")]
    pub map: Option<MapRecord>,
}
