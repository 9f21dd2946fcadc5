//! One Raft replica as a value.
//!
//! The protocol is that of the Raft thesis (Ongaro, "Consensus: Bridging Theory and Practice";
//! sections are cited where they matter). A [`Replica`] takes inputs, changes itself, and gives out
//! one [`Ready`] per turn. It has no clock, thread, disk, socket, `async` or global randomness, so
//! the same inputs give the same outputs, in a server as in a simulation.
//!
//! # Roles and terms
//!
//! Time is cut into terms, each with at most one leader. A replica that hears no leader becomes a
//! candidate: first in a pre-vote that raises no term (section 9.6), then in an election. Followers
//! that hear their leader refuse both, and a leader that hears no quorum for an election timeout
//! steps down (section 6.2), so a replica that was cut off neither disturbs a leader nor pretends
//! to be one. (Both are settings, [`Config::pre_vote`] and [`Config::check_quorum`], so that Raft as
//! in the paper can be had too; leases need the latter.) A leader begins its term with a no-op, since
//! only entries of its own term may be committed by counting (section 3.6.2). What each role keeps is
//! in `role/`, quorum arithmetic in `quorum.rs`.
//!
//! # Replication
//!
//! For each peer the leader keeps a progress: first it *probes* with one append at a time until it
//! has found where the logs meet, then it *replicates*, sending optimistically within a window of
//! messages and bytes. When an append does not fit, the follower names its last entry that could,
//! the leader finds its own last entry that could match that, and so a round trip skips whole
//! terms. Lost messages show in the answers to heartbeats. Recent entries are in memory; older ones
//! come back by [`LogFetch`], and where terms begin is always in memory, so that no step waits for
//! a disk.
//!
//! # Members
//!
//! [`Replica::change_membership`] changes any number of nodes at once, through a joint membership if
//! more than one voter comes or goes (chapter 4). A membership is an entry, and in force as soon as it
//! is in the log. `docs/protocol/members.md` has the rules.
//!
//! # Snapshots
//!
//! The log is cut at its beginning by [`Replica::compact`]. A peer that needs what is gone is sent the
//! state instead, beside the messages: [`Ready::snapshot_requests`] asks for it at the leader, and
//! [`Ready::install`] at the receiver, once it is there and only if it is newer than what the receiver
//! has.
//!
//! # Sleep
//!
//! With [`Config::quiesce_ticks`], an idle group falls asleep: no beats, no ticks, no timers, until
//! anything happens. Its host watches over the nodes meanwhile, and wakes it by [`Replica::wake`].
//!
//! # Durability
//!
//! Nothing here writes. [`Ready::append`] is one synced write, and carries the promises that rest
//! on it: granted votes, acknowledgements, requests for votes. They cannot be sent too early
//! without taking them out of [`Append::release`]. The leader's appends to its peers leave at the
//! same time as its own write, whose completion is just one more acknowledgement. Several appends
//! may be under way; entries may be overwritten meanwhile, and then the completion of the older
//! write proves nothing about them.
//!
//! ```text
//!          propose              take_ready             persisted
//! leader   ---+--------------------+------------------------+-----> commit: a quorum is durable
//!             log in memory        |\__ append: write, sync_/ \__ no message: counts for itself
//!                                  \___ messages: Append to each peer
//! follower                step +---- append + release{AppendAccepted} --- sync --> it leaves
//! ```
//!
//! # Reads
//!
//! [`Replica::read`] needs no log entry (section 6.4). A leader proves its leadership by one round of
//! heartbeats for all reads that wait, or knows it without a message while a quorum's promises of
//! silence run: its *lease*. A follower asks its leader. The read is served once the returned index
//! is applied. The core has no clock: [`Replica::take_ready`] is told what time it is.
//!
//! # Driving it
//!
//! A turn: give it whatever has arrived, take one [`Ready`], start everything in it, and report
//! back what completes. Nothing in a `Ready` waits for anything else in it, except:
//!
//! 1. [`Append`]s become durable in the order of their tickets, each as a whole.
//! 2. [`Append::release`] leaves after its sync.
//! 3. [`Ready::committed`] is applied in order.
//! 4. A read is served after its index is applied.
//! 5. The moment that [`Replica::take_ready`] is given is read after all inputs of the turn.
//!
//! Here is a whole group in one process, with disks that are always fast and a network that never
//! loses anything:
//!
//! ```
//! use std::collections::BTreeMap;
//! use bytes::Bytes;
//! use quorate_raft::{Config, LogState, Replica, ReadId, Ready, Role};
//! use quorate_types::{EntryId, GroupId, LogIndex, Membership, NodeId, Payload, SnapshotMeta};
//! use quorate_types::{Moment, Term};
//!
//! let voters = [NodeId(1), NodeId(2), NodeId(3)];
//! let snapshot = SnapshotMeta {
//!     last: EntryId::new(Term(1), LogIndex(1)),
//!     membership: Membership::of_voters(voters),
//! };
//! let mut replicas: BTreeMap<_, _> = voters
//!     .into_iter()
//!     .map(|node| {
//!         let config = Config::new(GroupId(2), node);
//!         (node, Replica::new(config, LogState::of_snapshot(snapshot.clone())))
//!     })
//!     .collect();
//! let mut applied: BTreeMap<NodeId, Vec<Bytes>> = BTreeMap::new();
//! let mut served = Vec::new();
//!
//! let mut settle = |now: Moment, replicas: &mut BTreeMap<NodeId, Replica>| {
//!     while let Some((&node, replica)) = replicas.iter_mut().find(|(_, r)| r.has_ready(now)) {
//!         let Ready { append, mut messages, committed, reads, .. } = replica.take_ready(now);
//!         if let Some(append) = append {
//!             // Write `append.hard_state` and `append.entries` as one batch, and sync. Then:
//!             replica.persisted(append.ticket);
//!             messages.extend(append.release);
//!         }
//!         if let Some(last) = committed.last() {
//!             for entry in &committed {
//!                 if let Payload::Command(command) = &entry.payload {
//!                     applied.entry(node).or_default().push(command.clone());
//!                 }
//!             }
//!             replica.applied(last.id.index);
//!         }
//!         served.extend(reads);
//!         for message in messages {
//!             replicas.get_mut(&message.to).expect("a member").step(message);
//!         }
//!     }
//! };
//!
//! // Time passes until somebody campaigns and wins.
//! let mut now = Moment::ZERO;
//! while !replicas.values().any(|replica| replica.role() == Role::Leader) {
//!     now = now.plus_us(100_000);
//!     replicas.values_mut().for_each(Replica::tick);
//!     settle(now, &mut replicas);
//! }
//! let leader = replicas.values_mut().find(|replica| replica.role() == Role::Leader).unwrap();
//! leader.propose(vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")]).unwrap();
//! leader.read(ReadId(7)).unwrap();
//! settle(now, &mut replicas);
//! assert_eq!(served[0].id, ReadId(7));
//! for node in voters {
//!     assert_eq!(applied[&node], ["a", "b"]);
//! }
//! ```

mod config;
mod error;
mod lease;
mod log;
mod membership;
mod persist;
mod progress;
mod quiesce;
mod quorum;
mod read_index;
mod read_request;
mod ready;
mod replica;
mod role;
mod state;
mod step;
mod term_map;
mod view;

pub use config::{Config, LogState};
pub use error::{MembershipError, NotLeader, ProposeError, TransferError};
pub use log::APPLYING_BYTES_MAX;
pub use membership::{MEMBERS_MAX, MembershipChange, NodeChange, Via};
pub use progress::{PeerProgress, ProgressState};
pub use ready::{
    Append, Cause, LogFetch, ReadId, ReadReady, Ready, Role, RoleChange, SnapshotRequest, Ticket,
};
pub use replica::Replica;
pub use state::Counters;
