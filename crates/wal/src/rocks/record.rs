//! The binary form of rows.
//!
//! ```text
//! value = checksum u32, version u8, body
//! body of a batch record = term of the entry before the first v, entries (codec of quorate-types)
//! bodies of the others   = protobuf
//! ```
//!
//! The checksum (CRC-32C) covers the key, the version and the body: a record that turns up under another
//! group or index is as wrong as one with a flipped bit. The term before lets recovery see that a record is
//! missing even when the indexes happen to fit.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use quorate_types::codec::{self, DecodeError};
use quorate_types::{
    Entry, EntryId, GroupId, HardState, LogIndex, Membership, NodeId, SnapshotMeta, Term,
};

use super::index::GroupLog;

/// The version of records that this build writes, and the only one it reads.
const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;

/// The name of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Key {
    /// About the whole store.
    Store,
    /// That a group exists, and where its log begins.
    Group(GroupId),
    /// A group's hard state.
    HardState(GroupId),
    /// The batch record that begins at an index.
    Batch(GroupId, LogIndex),
    /// What is about to be done with a group.
    Intent(GroupId),
    /// The host's words about the node.
    Note,
}

/// Their order is that of recovery's scan: a group is known before its entries come.
const TAG_STORE: u8 = 1;
const TAG_GROUP: u8 = 2;
const TAG_HARD_STATE: u8 = 3;
const TAG_BATCH: u8 = 4;
const TAG_INTENT: u8 = 5;
const TAG_NOTE: u8 = 6;

/// All rows of one kind. They lie together, in the order of their groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Table {
    /// [`Key::Store`].
    Store,
    /// [`Key::Group`].
    Groups,
    /// [`Key::HardState`].
    HardStates,
    /// [`Key::Batch`].
    Batches,
    /// [`Key::Intent`].
    Intents,
}

impl Table {
    /// The first key that may be one of them, and the first behind them.
    pub(super) fn span(self) -> (Vec<u8>, Vec<u8>) {
        (vec![self.tag()], vec![self.tag() + 1])
    }

    /// As [`Self::span`], of one group.
    pub(super) fn span_of(self, group: GroupId) -> (Vec<u8>, Vec<u8>) {
        let start = [&[self.tag()][..], &group.value().to_be_bytes()].concat();
        // No first index is so high, and other rows have none.
        let end = [&start[..], &[u8::MAX; 9]].concat();
        (start, end)
    }

    const fn tag(self) -> u8 {
        match self {
            Self::Store => TAG_STORE,
            Self::Groups => TAG_GROUP,
            Self::HardStates => TAG_HARD_STATE,
            Self::Batches => TAG_BATCH,
            Self::Intents => TAG_INTENT,
        }
    }
}

impl Key {
    pub(super) fn encode(self) -> EncodedKey {
        let (tag, group, index, length) = match self {
            Self::Store => (TAG_STORE, 0, 0, 1),
            Self::Group(group) => (TAG_GROUP, group.value(), 0, 9),
            Self::HardState(group) => (TAG_HARD_STATE, group.value(), 0, 9),
            Self::Batch(group, first) => (TAG_BATCH, group.value(), first.value(), 17),
            Self::Intent(group) => (TAG_INTENT, group.value(), 0, 9),
            Self::Note => (TAG_NOTE, 0, 0, 1),
        };
        let mut bytes = [0; EncodedKey::BYTES_MAX];
        bytes[0] = tag;
        bytes[1..9].copy_from_slice(&group.to_be_bytes());
        bytes[9..17].copy_from_slice(&index.to_be_bytes());
        EncodedKey { bytes, length }
    }

    /// `None` for what is no key of ours.
    pub(super) fn decode(key: &[u8]) -> Option<Self> {
        let (tag, numbers) = key.split_first()?;
        let number = |at: usize| {
            numbers.get(at..at + 8).map(|bytes| {
                u64::from_be_bytes(bytes.try_into().expect("the slice has eight bytes"))
            })
        };
        match (*tag, numbers.len()) {
            (TAG_STORE, 0) => Some(Self::Store),
            (TAG_NOTE, 0) => Some(Self::Note),
            (TAG_GROUP, 8) => Some(Self::Group(GroupId(number(0)?))),
            (TAG_HARD_STATE, 8) => Some(Self::HardState(GroupId(number(0)?))),
            (TAG_INTENT, 8) => Some(Self::Intent(GroupId(number(0)?))),
            (TAG_BATCH, 16) => Some(Self::Batch(GroupId(number(0)?), LogIndex(number(8)?))),
            _ => None,
        }
    }
}

/// A key's bytes, without an allocation.
#[derive(Clone, Copy)]
pub(super) struct EncodedKey {
    bytes: [u8; Self::BYTES_MAX],
    length: usize,
}

impl EncodedKey {
    const BYTES_MAX: usize = 17;
}

impl AsRef<[u8]> for EncodedKey {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Why a value cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error("checksum does not match")]
    Checksum,
    #[error("record version {0}")]
    Version(u8),
    #[error("{0}")]
    Body(String),
}

impl From<DecodeError> for RecordError {
    fn from(error: DecodeError) -> Self {
        Self::Body(error.to_string())
    }
}

impl From<prost::DecodeError> for RecordError {
    fn from(error: prost::DecodeError) -> Self {
        Self::Body(error.to_string())
    }
}

/// Fills `buf` with the value of `key` whose body is written by `body`.
pub(super) fn encode(buf: &mut BytesMut, key: &EncodedKey, body: impl FnOnce(&mut BytesMut)) {
    buf.clear();
    buf.put_u32_le(0);
    buf.put_u8(VERSION);
    body(buf);
    let checksum = checksum(key.as_ref(), &buf[CHECKSUM_BYTES..]);
    buf[..CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
}

/// The body of a value, copied out of the engine's memory.
pub(super) fn decode(key: &[u8], value: &[u8]) -> Result<Bytes, RecordError> {
    let Some((expected, rest)) = value.split_first_chunk() else {
        return Err(RecordError::Checksum);
    };
    if checksum(key, rest) != u32::from_le_bytes(*expected) {
        return Err(RecordError::Checksum);
    }
    match rest.split_first() {
        Some((&VERSION, body)) => Ok(Bytes::copy_from_slice(body)),
        Some((version, _)) => Err(RecordError::Version(*version)),
        None => Err(RecordError::Checksum),
    }
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), value)
}

pub(super) fn put_batch(buf: &mut BytesMut, term_before: Term, entries: &[Entry]) {
    codec::put_varint(buf, term_before.value());
    codec::put_entries(buf, entries);
}

/// The term before the first entry, and the entries: at least one, the first at `first`.
pub(super) fn take_batch(
    mut body: Bytes,
    first: LogIndex,
) -> Result<(Term, Vec<Entry>), RecordError> {
    let term_before = Term(codec::take_varint(&mut body)?);
    let entries = codec::take_entries(&mut body)?;
    if entries.first().is_none_or(|entry| entry.id.index != first) {
        return Err(RecordError::Body("entries do not begin at the record's index".to_owned()));
    }
    let terms = std::iter::once(term_before).chain(entries.iter().map(|entry| entry.id.term));
    if !terms.is_sorted() {
        return Err(RecordError::Body("terms decrease".to_owned()));
    }
    Ok((term_before, entries))
}

#[derive(Clone, PartialEq, Message)]
struct StoreBody {
    #[prost(uint64, tag = "1")]
    synced_batches: u64,
}

pub(super) fn put_store(buf: &mut BytesMut, synced_batches: u64) {
    append(buf, &StoreBody { synced_batches });
}

pub(super) fn take_store(body: Bytes) -> Result<u64, RecordError> {
    Ok(StoreBody::decode(body)?.synced_batches)
}

#[derive(Clone, PartialEq, Message)]
struct HardStateBody {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, optional, tag = "2")]
    vote: Option<u64>,
    #[prost(uint64, tag = "3")]
    commit: u64,
}

pub(super) fn put_hard_state(buf: &mut BytesMut, state: &HardState) {
    let HardState { term, vote, commit } = *state;
    let vote = vote.map(NodeId::value);
    append(buf, &HardStateBody { term: term.value(), vote, commit: commit.value() });
}

pub(super) fn take_hard_state(body: Bytes) -> Result<HardState, RecordError> {
    let HardStateBody { term, vote, commit } = HardStateBody::decode(body)?;
    Ok(HardState { term: Term(term), vote: vote.map(NodeId), commit: LogIndex(commit) })
}

#[derive(Clone, PartialEq, Message)]
struct GroupBody {
    #[prost(bytes = "bytes", tag = "1")]
    label: Bytes,
    #[prost(uint64, tag = "2")]
    base_term: u64,
    #[prost(uint64, tag = "3")]
    base_index: u64,
    #[prost(uint64, repeated, tag = "4")]
    voters: Vec<u64>,
    #[prost(uint64, repeated, tag = "5")]
    outgoing: Vec<u64>,
    #[prost(uint64, repeated, tag = "6")]
    learners: Vec<u64>,
    #[prost(uint64, repeated, tag = "7")]
    promote: Vec<u64>,
    #[prost(bool, tag = "8")]
    auto_leave: bool,
}

pub(super) fn put_group(buf: &mut BytesMut, log: &GroupLog) {
    let (label, SnapshotMeta { last, membership }) = (log.label(), log.snapshot());
    let numbers = |nodes: &std::collections::BTreeSet<NodeId>| {
        nodes.iter().map(|node| node.value()).collect()
    };
    let body = GroupBody {
        label: label.clone(),
        base_term: last.term.value(),
        base_index: last.index.value(),
        voters: numbers(&membership.voters),
        outgoing: numbers(&membership.outgoing),
        learners: numbers(&membership.learners),
        promote: numbers(&membership.promote),
        auto_leave: membership.auto_leave,
    };
    append(buf, &body);
}

pub(super) fn take_group(body: Bytes) -> Result<(Bytes, SnapshotMeta), RecordError> {
    let body = GroupBody::decode(body)?;
    let nodes = |numbers: Vec<u64>| numbers.into_iter().map(NodeId).collect();
    let membership = Membership {
        voters: nodes(body.voters),
        outgoing: nodes(body.outgoing),
        learners: nodes(body.learners),
        promote: nodes(body.promote),
        auto_leave: body.auto_leave,
    };
    let last = EntryId::new(Term(body.base_term), LogIndex(body.base_index));
    // The label outlives the record it came in; without a copy it would keep the whole body alive.
    Ok((Bytes::copy_from_slice(&body.label), SnapshotMeta { last, membership }))
}

fn append(buf: &mut BytesMut, body: &impl Message) {
    body.encode(buf).expect("a BytesMut grows as needed");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_and_sort_by_group_and_index() {
        let keys = [
            Key::Store,
            Key::Group(GroupId(1)),
            Key::Group(GroupId(300)),
            Key::HardState(GroupId(7)),
            Key::Batch(GroupId(1), LogIndex(9)),
            Key::Batch(GroupId(1), LogIndex(256)),
            Key::Batch(GroupId(2), LogIndex(1)),
            Key::Intent(GroupId(1)),
            Key::Note,
        ];
        let encoded: Vec<_> = keys.iter().map(|key| key.encode().as_ref().to_vec()).collect();
        assert!(encoded.is_sorted());
        for (key, bytes) in keys.iter().zip(&encoded) {
            assert_eq!(Key::decode(bytes), Some(*key));
        }
        assert_eq!(Key::decode(b""), None);
        assert_eq!(Key::decode(&[TAG_GROUP, 1]), None);
        assert_eq!(Key::decode(b"?12345678"), None);
    }

    #[test]
    fn any_flipped_bit_is_seen_and_so_is_another_key() {
        let key = Key::HardState(GroupId(3)).encode();
        let state = HardState { term: Term(5), vote: Some(NodeId(0)), commit: LogIndex(9) };
        let mut value = BytesMut::new();
        encode(&mut value, &key, |body| put_hard_state(body, &state));
        assert_eq!(decode(key.as_ref(), &value).and_then(take_hard_state), Ok(state));
        for bit in 0..value.len() * 8 {
            let mut damaged = value.clone();
            damaged[bit / 8] ^= 1u8 << (bit % 8);
            assert_eq!(decode(key.as_ref(), &damaged), Err(RecordError::Checksum));
        }
        for length in 0..value.len() {
            assert_eq!(decode(key.as_ref(), &value[..length]), Err(RecordError::Checksum));
        }
        let other = Key::HardState(GroupId(4)).encode();
        assert_eq!(decode(other.as_ref(), &value), Err(RecordError::Checksum));
    }

    #[test]
    fn a_newer_version_is_no_damage() {
        let key = Key::Store.encode();
        let rest = [VERSION + 1, 1, 2, 3];
        let mut value = checksum(key.as_ref(), &rest).to_le_bytes().to_vec();
        value.extend(rest);
        assert_eq!(decode(key.as_ref(), &value), Err(RecordError::Version(VERSION + 1)));
    }
}
