//! The binary form of entries and messages, for the log and for the wire.
//!
//! Hot and small, so a fixed layout instead of protobuf. Integers are little endian, or LEB128 varints
//! where they are usually small. Every *message* is preceded by its length, so that a reader skips the
//! kinds that it does not know; every *frame* and every *record* starts with a version.
//!
//! ```text
//! frame   = version u8, { length u32, message }
//! message = kind u8, group v, from v, to v, term v, fields of the kind
//! entries = count v, first index v, { term v, kind u8, length v, payload }
//! members = { count v, node v } of voters, outgoing, learners, promote; auto_leave u8
//! ```
//!
//! Decoders take bytes from anyone: they never panic and never reserve more than they were sent.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use std::collections::BTreeSet;

use crate::digest::Digest;
use crate::entry::{Entry, EntryId, Membership, Payload, SnapshotMeta};
use crate::id::{GroupId, LogIndex, NodeId, Term};
use crate::message::{Body, Message, ReadContext};

/// The version of frames and entry records that this build writes, and the only one it reads.
pub const VERSION: u8 = 1;

/// Why bytes could not be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside a field.
    #[error("truncated")]
    Truncated,
    /// A version from the future.
    #[error("unsupported version {0}")]
    Version(u8),
    /// A kind of message that this build does not know.
    #[error("unknown message kind {0}")]
    UnknownMessage(u8),
    /// A kind of entry that this build does not know: it must not be skipped.
    #[error("unknown entry kind {0}")]
    UnknownEntry(u8),
    /// A field holds a value that no writer makes.
    #[error("malformed {0}")]
    Malformed(&'static str),
}

/// Appends `entries`, which must be consecutive.
///
/// # Panics
/// If they are not consecutive: such a run must never reach a disk or a peer.
pub fn put_entries(buf: &mut BytesMut, entries: &[Entry]) {
    put_varint(buf, entries.len() as u64);
    let Some(first) = entries.first() else { return };
    put_varint(buf, first.id.index.value());
    let mut expected = first.id.index;
    for entry in entries {
        assert_eq!(entry.id.index, expected, "entries must be consecutive from {}", first.id);
        expected = expected.next();
        put_varint(buf, entry.id.term.value());
        match &entry.payload {
            Payload::Empty => {
                buf.put_u8(ENTRY_EMPTY);
                put_varint(buf, 0);
            }
            Payload::Command(command) => {
                buf.put_u8(ENTRY_COMMAND);
                put_varint(buf, command.len() as u64);
                buf.put_slice(command);
            }
            Payload::Membership(membership) => {
                buf.put_u8(ENTRY_MEMBERSHIP);
                let mut payload = BytesMut::new();
                put_membership(&mut payload, membership);
                put_bytes(buf, &payload);
            }
        }
    }
}

/// Reads entries written by [`put_entries`]. Payloads share the buffer; nothing is copied.
///
/// # Errors
/// When the bytes are not such a run.
pub fn take_entries(buf: &mut Bytes) -> Result<Vec<Entry>, DecodeError> {
    let count = take_varint(buf)?;
    if count == 0 {
        return Ok(Vec::new());
    }
    // An entry takes three bytes at least, so a larger count cannot be honest.
    if count > buf.remaining() as u64 / 3 {
        return Err(DecodeError::Truncated);
    }
    let mut index = LogIndex(take_varint(buf)?);
    if index.value().checked_add(count).is_none() {
        return Err(DecodeError::Malformed("index"));
    }
    let mut entries = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let term = Term(take_varint(buf)?);
        let kind = take_u8(buf)?;
        let payload = take_bytes(buf)?;
        let payload = match kind {
            ENTRY_EMPTY if payload.is_empty() => Payload::Empty,
            ENTRY_EMPTY => return Err(DecodeError::Malformed("no-op entry")),
            ENTRY_COMMAND => Payload::Command(payload),
            ENTRY_MEMBERSHIP => Payload::Membership(Box::new(take_membership(payload)?)),
            _ => return Err(DecodeError::UnknownEntry(kind)),
        };
        entries.push(Entry { id: EntryId::new(term, index), payload });
        index = index.next();
    }
    Ok(entries)
}

/// Appends a membership, as in entries; for snapshots too.
pub fn put_membership(buf: &mut BytesMut, membership: &Membership) {
    let Membership { voters, outgoing, learners, promote, auto_leave } = membership;
    for nodes in [voters, outgoing, learners, promote] {
        put_varint(buf, nodes.len() as u64);
        nodes.iter().for_each(|node| put_varint(buf, node.value()));
    }
    buf.put_u8(u8::from(*auto_leave));
}

/// Reads a membership written by [`put_membership`], alone in its bytes. Bytes left over are fields of
/// a newer version.
///
/// # Errors
/// When the bytes are not a membership.
pub fn take_membership(mut buf: Bytes) -> Result<Membership, DecodeError> {
    let buf = &mut buf;
    Ok(Membership {
        voters: take_nodes(buf)?,
        outgoing: take_nodes(buf)?,
        learners: take_nodes(buf)?,
        promote: take_nodes(buf)?,
        auto_leave: take_bool(buf)?,
    })
}

fn take_nodes(buf: &mut Bytes) -> Result<BTreeSet<NodeId>, DecodeError> {
    let count = take_varint(buf)?;
    // A node takes a byte at least.
    if count > buf.remaining() as u64 {
        return Err(DecodeError::Truncated);
    }
    (0..count).map(|_| take_varint(buf).map(NodeId)).collect()
}

/// Begins a frame in `buf`: the version, before any [`put_message`].
pub fn put_frame_header(buf: &mut BytesMut) {
    buf.put_u8(VERSION);
}

/// Appends one message with its length to a frame.
pub fn put_message(buf: &mut BytesMut, message: &Message) {
    let start = buf.len();
    buf.put_u32_le(0);
    buf.put_u8(kind(&message.body));
    put_varint(buf, message.group.value());
    put_varint(buf, message.from.value());
    put_varint(buf, message.to.value());
    put_varint(buf, message.term.value());
    match &message.body {
        Body::PreVote { last } => put_id(buf, *last),
        Body::Vote { last, transfer } => {
            put_id(buf, *last);
            buf.put_u8(u8::from(*transfer));
        }
        Body::TimeoutNow | Body::Wake => {}
        Body::Sleep { last, round } => {
            put_id(buf, *last);
            put_varint(buf, *round);
        }
        Body::Asleep { round } => put_varint(buf, *round),
        Body::Snapshot { meta } => {
            put_id(buf, meta.last);
            put_membership(buf, &meta.membership);
        }
        Body::PreVoteReply { granted } | Body::VoteReply { granted } => {
            buf.put_u8(u8::from(*granted))
        }
        Body::Append { prev, entries, commit } => {
            put_id(buf, *prev);
            put_varint(buf, commit.value());
            put_entries(buf, entries);
        }
        Body::AppendAccepted { last } => put_varint(buf, last.value()),
        Body::AppendRejected { refused, hint } => {
            put_varint(buf, refused.value());
            put_id(buf, *hint);
        }
        Body::Commit { commit } => put_varint(buf, commit.value()),
        Body::Heartbeat { commit, round } => {
            put_varint(buf, commit.value());
            put_varint(buf, *round);
        }
        Body::HeartbeatReply { round, promise_us } => {
            put_varint(buf, *round);
            put_varint(buf, *promise_us);
        }
        Body::ReadIndex { context } => put_context(buf, *context),
        Body::ReadIndexReply { context, index } => {
            put_context(buf, *context);
            put_varint(buf, index.value());
        }
        Body::Digest { at, digest, wants_snapshot } => {
            put_id(buf, *at);
            buf.put_u64_le(digest.0);
            buf.put_u8(u8::from(*wants_snapshot));
        }
    }
    let length = u32::try_from(buf.len() - start - 4).expect("a message is far below 4 GiB");
    buf[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// Reads a whole frame. Messages of an unknown kind are left out and counted in the second value: a
/// newer peer may send what this build has not learned.
///
/// # Errors
/// When the bytes are not a frame of this version.
pub fn take_frame(mut buf: Bytes) -> Result<(Vec<Message>, usize), DecodeError> {
    let version = take_u8(&mut buf)?;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let (mut messages, mut unknown) = (Vec::new(), 0);
    while buf.has_remaining() {
        if buf.remaining() < 4 {
            return Err(DecodeError::Truncated);
        }
        let length = buf.get_u32_le() as usize;
        if length > buf.remaining() {
            return Err(DecodeError::Truncated);
        }
        match take_message(buf.split_to(length)) {
            Ok(message) => messages.push(message),
            Err(DecodeError::UnknownMessage(_)) => unknown += 1,
            Err(error) => return Err(error),
        }
    }
    Ok((messages, unknown))
}

/// Appends a varint.
pub fn put_varint(buf: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        buf.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    buf.put_u8(value as u8);
}

/// Reads a varint.
///
/// # Errors
/// When the bytes end, or the number needs more than 64 bits.
pub fn take_varint(buf: &mut Bytes) -> Result<u64, DecodeError> {
    let mut value = 0u64;
    for shift in (0..u64::BITS).step_by(7) {
        let byte = take_u8(buf)?;
        let bits = u64::from(byte & 0x7f);
        if bits.leading_zeros() < shift {
            return Err(DecodeError::Malformed("varint"));
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(DecodeError::Malformed("varint"))
}

/// Appends bytes with their length.
pub fn put_bytes(buf: &mut BytesMut, bytes: &[u8]) {
    put_varint(buf, bytes.len() as u64);
    buf.put_slice(bytes);
}

/// Reads bytes with their length, sharing the buffer.
///
/// # Errors
/// When the bytes end before the length does.
pub fn take_bytes(buf: &mut Bytes) -> Result<Bytes, DecodeError> {
    let length = take_varint(buf)?;
    if length > buf.remaining() as u64 {
        return Err(DecodeError::Truncated);
    }
    Ok(buf.split_to(length as usize))
}

const ENTRY_EMPTY: u8 = 0;
const ENTRY_COMMAND: u8 = 1;
const ENTRY_MEMBERSHIP: u8 = 2;

const PRE_VOTE: u8 = 1;
const PRE_VOTE_REPLY: u8 = 2;
const VOTE: u8 = 3;
const VOTE_REPLY: u8 = 4;
const APPEND: u8 = 5;
const APPEND_ACCEPTED: u8 = 6;
const APPEND_REJECTED: u8 = 7;
const HEARTBEAT: u8 = 8;
const HEARTBEAT_REPLY: u8 = 9;
const READ_INDEX: u8 = 10;
const READ_INDEX_REPLY: u8 = 11;
const TIMEOUT_NOW: u8 = 12;
const SNAPSHOT: u8 = 13;
const SLEEP: u8 = 14;
const ASLEEP: u8 = 15;
const DIGEST: u8 = 16;
const WAKE: u8 = 17;
const COMMIT: u8 = 18;

const fn kind(body: &Body) -> u8 {
    match body {
        Body::PreVote { .. } => PRE_VOTE,
        Body::PreVoteReply { .. } => PRE_VOTE_REPLY,
        Body::Vote { .. } => VOTE,
        Body::VoteReply { .. } => VOTE_REPLY,
        Body::Append { .. } => APPEND,
        Body::AppendAccepted { .. } => APPEND_ACCEPTED,
        Body::AppendRejected { .. } => APPEND_REJECTED,
        Body::Commit { .. } => COMMIT,
        Body::Heartbeat { .. } => HEARTBEAT,
        Body::HeartbeatReply { .. } => HEARTBEAT_REPLY,
        Body::ReadIndex { .. } => READ_INDEX,
        Body::ReadIndexReply { .. } => READ_INDEX_REPLY,
        Body::TimeoutNow => TIMEOUT_NOW,
        Body::Snapshot { .. } => SNAPSHOT,
        Body::Sleep { .. } => SLEEP,
        Body::Asleep { .. } => ASLEEP,
        Body::Digest { .. } => DIGEST,
        Body::Wake => WAKE,
    }
}

fn take_message(mut buf: Bytes) -> Result<Message, DecodeError> {
    let buf = &mut buf;
    let kind = take_u8(buf)?;
    if !(PRE_VOTE..=COMMIT).contains(&kind) {
        return Err(DecodeError::UnknownMessage(kind));
    }
    let group = GroupId(take_varint(buf)?);
    let from = NodeId(take_varint(buf)?);
    let to = NodeId(take_varint(buf)?);
    let term = Term(take_varint(buf)?);
    let body = match kind {
        PRE_VOTE => Body::PreVote { last: take_id(buf)? },
        PRE_VOTE_REPLY => Body::PreVoteReply { granted: take_bool(buf)? },
        VOTE => {
            let last = take_id(buf)?;
            Body::Vote { last, transfer: take_later(buf, take_bool)?.unwrap_or(false) }
        }
        VOTE_REPLY => Body::VoteReply { granted: take_bool(buf)? },
        APPEND => {
            let prev = take_id(buf)?;
            let commit = LogIndex(take_varint(buf)?);
            let entries = take_entries(buf)?;
            if entries.first().is_some_and(|first| prev.index.plus(1) != first.id.index) {
                return Err(DecodeError::Malformed("append that does not follow its prev"));
            }
            let terms = std::iter::once(prev.term).chain(entries.iter().map(|entry| entry.id.term));
            if !terms.chain(std::iter::once(term)).is_sorted() {
                return Err(DecodeError::Malformed("append whose terms decrease"));
            }
            Body::Append { prev, entries, commit }
        }
        APPEND_ACCEPTED => Body::AppendAccepted { last: LogIndex(take_varint(buf)?) },
        APPEND_REJECTED => {
            Body::AppendRejected { refused: LogIndex(take_varint(buf)?), hint: take_id(buf)? }
        }
        COMMIT => Body::Commit { commit: LogIndex(take_varint(buf)?) },
        HEARTBEAT => {
            Body::Heartbeat { commit: LogIndex(take_varint(buf)?), round: take_varint(buf)? }
        }
        HEARTBEAT_REPLY => Body::HeartbeatReply {
            round: take_varint(buf)?,
            // Nodes that know of no promises make none.
            promise_us: take_later(buf, take_varint)?.unwrap_or(0),
        },
        READ_INDEX => Body::ReadIndex { context: take_context(buf)? },
        TIMEOUT_NOW => Body::TimeoutNow,
        WAKE => Body::Wake,
        SLEEP => Body::Sleep { last: take_id(buf)?, round: take_varint(buf)? },
        ASLEEP => Body::Asleep { round: take_varint(buf)? },
        SNAPSHOT => {
            let last = take_id(buf)?;
            let membership = take_membership(buf.split_off(0))?;
            Body::Snapshot { meta: SnapshotMeta { last, membership } }
        }
        DIGEST => {
            let at = take_id(buf)?;
            if buf.remaining() < 8 {
                return Err(DecodeError::Truncated);
            }
            let digest = Digest(buf.get_u64_le());
            Body::Digest { at, digest, wants_snapshot: take_bool(buf)? }
        }
        _ => {
            let context = take_context(buf)?;
            Body::ReadIndexReply { context, index: LogIndex(take_varint(buf)?) }
        }
    };
    // Bytes left over are fields of a newer version.
    Ok(Message { group, from, to, term, body })
}

fn put_id(buf: &mut BytesMut, id: EntryId) {
    put_varint(buf, id.term.value());
    put_varint(buf, id.index.value());
}

fn take_id(buf: &mut Bytes) -> Result<EntryId, DecodeError> {
    Ok(EntryId::new(Term(take_varint(buf)?), LogIndex(take_varint(buf)?)))
}

fn put_context(buf: &mut BytesMut, context: ReadContext) {
    put_varint(buf, context.life);
    put_varint(buf, context.number);
}

fn take_context(buf: &mut Bytes) -> Result<ReadContext, DecodeError> {
    Ok(ReadContext { life: take_varint(buf)?, number: take_varint(buf)? })
}

/// A field that a kind of message got later: `None` when its writer did not know it.
fn take_later<T>(
    buf: &mut Bytes,
    take: impl FnOnce(&mut Bytes) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    if buf.has_remaining() { take(buf).map(Some) } else { Ok(None) }
}

fn take_u8(buf: &mut Bytes) -> Result<u8, DecodeError> {
    if buf.has_remaining() { Ok(buf.get_u8()) } else { Err(DecodeError::Truncated) }
}

fn take_bool(buf: &mut Bytes) -> Result<bool, DecodeError> {
    match take_u8(buf)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Malformed("flag")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry_id() -> impl Strategy<Value = EntryId> {
        (0..u64::MAX / 2, 0..u64::MAX / 2)
            .prop_map(|(term, index)| EntryId::new(Term(term), LogIndex(index)))
    }

    fn nodes() -> impl Strategy<Value = BTreeSet<NodeId>> {
        proptest::collection::btree_set(any::<u64>().prop_map(NodeId), 0..4)
    }

    fn payload() -> impl Strategy<Value = Payload> {
        prop_oneof![
            Just(Payload::Empty),
            proptest::collection::vec(any::<u8>(), 0..40)
                .prop_map(|bytes| Payload::Command(bytes.into())),
            (nodes(), nodes(), nodes(), nodes(), any::<bool>()).prop_map(
                |(voters, outgoing, learners, promote, auto_leave)| {
                    let all = Membership { voters, outgoing, learners, promote, auto_leave };
                    Payload::Membership(Box::new(all))
                }
            ),
        ]
    }

    fn append() -> impl Strategy<Value = (Term, Body)> {
        let steps = proptest::collection::vec((0u64..3, payload()), 0..6);
        (entry_id(), steps, 0u64..3, any::<u64>()).prop_map(|(prev, steps, ahead, commit)| {
            let mut last = prev;
            let entries = steps.into_iter().map(|(step, payload)| {
                last = EntryId::new(Term(last.term.value() + step), last.index.next());
                Entry { id: last, payload }
            });
            let entries: Vec<_> = entries.collect();
            let term = Term(last.term.value() + ahead);
            (term, Body::Append { prev, entries, commit: LogIndex(commit) })
        })
    }

    fn message() -> impl Strategy<Value = Message> {
        let other = prop_oneof![
            entry_id().prop_map(|last| Body::PreVote { last }),
            any::<bool>().prop_map(|granted| Body::PreVoteReply { granted }),
            (entry_id(), any::<bool>()).prop_map(|(last, transfer)| Body::Vote { last, transfer }),
            Just(Body::TimeoutNow),
            Just(Body::Wake),
            (entry_id(), any::<u64>()).prop_map(|(last, round)| Body::Sleep { last, round }),
            any::<u64>().prop_map(|round| Body::Asleep { round }),
            (entry_id(), any::<u64>(), any::<bool>()).prop_map(|(at, digest, wants_snapshot)| {
                Body::Digest { at, digest: Digest(digest), wants_snapshot }
            }),
            (entry_id(), nodes(), nodes(), any::<bool>()).prop_map(
                |(last, voters, learners, auto_leave)| {
                    let membership =
                        Membership { voters, learners, auto_leave, ..Membership::default() };
                    Body::Snapshot { meta: SnapshotMeta { last, membership } }
                }
            ),
            any::<bool>().prop_map(|granted| Body::VoteReply { granted }),
            any::<u64>().prop_map(|last| Body::AppendAccepted { last: LogIndex(last) }),
            (any::<u64>(), entry_id())
                .prop_map(|(at, hint)| Body::AppendRejected { refused: LogIndex(at), hint }),
            any::<u64>().prop_map(|commit| Body::Commit { commit: LogIndex(commit) }),
            (any::<u64>(), any::<u64>())
                .prop_map(|(commit, round)| Body::Heartbeat { commit: LogIndex(commit), round }),
            (any::<u64>(), any::<u64>())
                .prop_map(|(round, promise_us)| Body::HeartbeatReply { round, promise_us }),
            (any::<u64>(), any::<u64>()).prop_map(|(life, number)| Body::ReadIndex {
                context: ReadContext { life, number }
            }),
            (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(life, number, index)| {
                let context = ReadContext { life, number };
                Body::ReadIndexReply { context, index: LogIndex(index) }
            }),
        ];
        let body = prop_oneof![append(), (any::<u64>().prop_map(Term), other)];
        (any::<u64>(), any::<u64>(), any::<u64>(), body).prop_map(
            |(group, from, to, (term, body))| Message {
                group: GroupId(group),
                from: NodeId(from),
                to: NodeId(to),
                term,
                body,
            },
        )
    }

    proptest! {
        #[test]
        fn a_frame_reads_back_as_it_was_written(messages in proptest::collection::vec(message(), 0..5)) {
            let mut buf = BytesMut::new();
            put_frame_header(&mut buf);
            messages.iter().for_each(|message| put_message(&mut buf, message));
            prop_assert_eq!(take_frame(buf.freeze()), Ok((messages, 0)));
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = take_frame(Bytes::from(bytes.clone()));
            let _ = take_entries(&mut Bytes::from(bytes));
        }

        #[test]
        fn a_damaged_frame_never_panics(
            messages in proptest::collection::vec(message(), 1..4),
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
            cut in any::<prop::sample::Index>(),
        ) {
            let mut buf = BytesMut::new();
            put_frame_header(&mut buf);
            messages.iter().for_each(|message| put_message(&mut buf, message));
            let at = at.index(buf.len());
            buf[at] ^= 1u8 << bit;
            let cut = cut.index(buf.len());
            let _ = take_frame(buf.clone().freeze());
            let _ = take_frame(buf.freeze().slice(..cut));
        }

        #[test]
        fn a_varint_reads_back_as_it_was_written(value in any::<u64>()) {
            let mut buf = BytesMut::new();
            put_varint(&mut buf, value);
            prop_assert_eq!(take_varint(&mut buf.freeze()), Ok(value));
        }
    }

    #[test]
    fn an_unknown_kind_of_message_is_skipped_and_counted() {
        let known = Message {
            group: GroupId(1),
            from: NodeId(1),
            to: NodeId(2),
            term: Term(3),
            body: Body::HeartbeatReply { round: 4, promise_us: 9 },
        };
        let mut buf = BytesMut::new();
        put_frame_header(&mut buf);
        buf.put_u32_le(3);
        buf.put_slice(&[200, 1, 2]);
        put_message(&mut buf, &known);
        assert_eq!(take_frame(buf.freeze()), Ok((vec![known], 1)));
    }

    #[test]
    fn a_heartbeat_reply_of_an_older_node_promises_nothing() {
        let mut buf = BytesMut::new();
        put_frame_header(&mut buf);
        buf.put_u32_le(6);
        buf.put_slice(&[HEARTBEAT_REPLY, 1, 2, 3, 4, 5]);
        let (messages, unknown) = take_frame(buf.freeze()).expect("a frame");
        assert_eq!((messages[0].term, unknown), (Term(4), 0));
        assert_eq!(messages[0].body, Body::HeartbeatReply { round: 5, promise_us: 0 });
    }

    #[test]
    fn an_unknown_kind_of_entry_is_an_error() {
        let mut buf = BytesMut::new();
        for value in [1, 5, 1] {
            put_varint(&mut buf, value);
        }
        buf.put_slice(&[9, 0]);
        assert_eq!(take_entries(&mut buf.freeze()), Err(DecodeError::UnknownEntry(9)));
    }
}
