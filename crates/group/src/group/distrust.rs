//! What a group does when its replicas turn out to have written different rows.
//!
//! A replica that finds itself in the minority takes part in everything that rests on the log, which is
//! right: it votes, appends and acknowledges, so that the group keeps its quorum. What rests on its state
//! it leaves: nobody reads it or is answered out of it, it stands for no election, and if it leads, it hands
//! that over to one of those who agree. It asks its leader for a snapshot, and puts it in the place of the
//! rows alone. Then it applies what follows in its log again, and is what the others are.
//!
//! It outlives a panic of the group, which wrong rows may well cause, and the process: the host writes down
//! what is known ([`Group::wrong_state`]), and the next life begins with it ([`Group::inherit`]).

use std::collections::BTreeSet;

use quorate_raft::{ProgressState, Role, SnapshotRequest};
use quorate_types::{Body, EntryId, Message, NodeId, SnapshotMeta};

use super::Group;
use super::wrong_state::WrongState;
use crate::digest::{Checkpoint, Digests, Finding};
use crate::effect::{Effect, Refusal};

/// What a replica knows of its state and of those of its peers.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    digests: Digests,
    distrust: Option<Distrust>,
    /// Peers that asked for a snapshot and did not get it yet.
    sending: BTreeSet<NodeId>,
}

/// This replica's state is wrong.
#[derive(Debug)]
struct Distrust {
    known: WrongState,
    /// When the leader is asked next.
    ask_tick: u64,
    rebuild: Rebuild,
    /// When it began to hand its leadership over.
    handing_over_since: Option<u64>,
}

#[derive(PartialEq, Eq, Debug)]
enum Rebuild {
    /// A snapshot is wanted.
    Wanted,
    /// One is here, and waits for the outstanding apply.
    Due(SnapshotMeta),
    /// It is being put in place.
    UnderWay(SnapshotMeta),
}

impl Comparison {
    pub(super) const fn is_distrusted(&self) -> bool {
        self.distrust.is_some()
    }

    fn rebuild(&self) -> Option<&Rebuild> {
        self.distrust.as_ref().map(|distrust| &distrust.rebuild)
    }

    pub(super) fn is_rebuilding(&self) -> bool {
        matches!(self.rebuild(), Some(Rebuild::UnderWay(_)))
    }
}

impl<P, R> Group<P, R> {
    /// The state has come to `own`; to be told after [`Group::applied`] covers it, in the order of the log.
    pub fn checkpoint(&mut self, own: Checkpoint) {
        // While it is known to be wrong, nobody learns anything from it.
        if self.comparison.is_distrusted() {
            return;
        }
        let body = Body::Digest { at: own.at, digest: own.digest, wants_snapshot: false };
        let members = self.replica.membership();
        let peers = members.nodes().into_iter().filter(|&peer| peer != self.own());
        let messages = peers.map(|peer| self.message(peer, body.clone())).collect();
        let finding = self.comparison.digests.reached(own, members);
        self.effects.push(Effect::Send(messages));
        self.look_for_majority(own.at);
        self.act_on(finding, own);
    }

    /// The last entry after which the voters' states differed so that no majority can say which is right: this
    /// replica has a vote, and everything goes on; whether it should is for whoever owns the data. Nothing is
    /// undecided as long as voters that have told nothing yet could decide it.
    #[must_use]
    pub const fn undecided(&self) -> Option<EntryId> {
        self.comparison.digests.undecided()
    }

    /// The rows of the snapshot that [`Effect::Rebuild`] named are in the place of the state, durably.
    ///
    /// # Panics
    /// When that was not asked for.
    pub fn rebuilt(&mut self, meta: &SnapshotMeta) {
        assert!(
            self.comparison.rebuild() == Some(&Rebuild::UnderWay(meta.clone())),
            "group {} was rebuilt with {meta:?}: {:?}",
            self.id(),
            self.comparison.rebuild()
        );
        self.replica.state_replaced(meta.last);
        self.applied = meta.last.index;
        self.to_apply.clear();
        self.end_distrust();
    }

    /// The snapshot could not be put in place; the state is as it was, and another one is asked for.
    pub fn rebuild_failed(&mut self) {
        if let Some(distrust) = &mut self.comparison.distrust {
            distrust.rebuild = Rebuild::Wanted;
            distrust.ask_tick = self.tick + u64::from(self.replica.config().election_ticks_max);
        }
    }

    /// True while this replica's state is known to be wrong: nobody may read it, and its log must not be
    /// given up, since what follows the snapshot that is to come will be applied from it.
    #[must_use]
    pub const fn is_distrusted(&self) -> bool {
        self.comparison.is_distrusted()
    }

    /// What the next life of this replica must know of its state, if the rows stay as they are.
    #[must_use]
    pub fn wrong_state(&self) -> Option<WrongState> {
        self.comparison.distrust.as_ref().map(|distrust| distrust.known.clone())
    }

    /// The last life of this replica ended with a wrong state, which is still there.
    pub fn inherit(&mut self, known: WrongState) {
        self.distrust(known);
    }

    /// True while the content of a snapshot that has arrived is needed.
    #[must_use]
    pub fn wants_content(&self) -> bool {
        self.replica.installing().is_some()
            || self.comparison.rebuild().is_some_and(|rebuild| *rebuild != Rebuild::Wanted)
    }

    /// Takes a message that is not the replica's; gives back any other.
    pub(super) fn compare(&mut self, message: Message) -> Option<Message> {
        match message.body {
            Body::Digest { at, digest, wants_snapshot } => {
                let is_ours = message.group == self.id() && message.to == self.own();
                if is_ours && wants_snapshot {
                    self.send_snapshot(message.from, at);
                } else if is_ours && !self.comparison.is_distrusted() {
                    let (theirs, members) = (Checkpoint { at, digest }, self.replica.membership());
                    let finding = self.comparison.digests.heard(message.from, theirs, members);
                    let own = finding.divergences.first().map(|divergence| divergence.own);
                    self.look_for_majority(at);
                    if let Some(own) = own {
                        self.act_on(finding, own);
                    }
                }
                None
            }
            Body::Snapshot { ref meta } => {
                let can_follow = self.log_follows(meta.last);
                match &mut self.comparison.distrust {
                    Some(distrust) if distrust.rebuild == Rebuild::Wanted && can_follow => {
                        distrust.rebuild = Rebuild::Due(meta.clone());
                        None
                    }
                    Some(distrust) if distrust.rebuild != Rebuild::Wanted => None,
                    // It is for the replica: perhaps it takes the place of the log as well.
                    Some(_) | None => Some(message),
                }
            }
            _ => Some(message),
        }
    }

    /// What a distrusted replica does about it, each tick.
    pub(super) fn tick_distrust(&mut self) {
        let Some(distrust) = &mut self.comparison.distrust else { return };
        if self.replica.role() == Role::Leader {
            let since = *distrust.handing_over_since.get_or_insert(self.tick);
            self.hand_over(since);
            return;
        }
        distrust.handing_over_since = None;
        let patience = u64::from(self.replica.config().election_ticks_max);
        let (due, asked) = match self.replica.leader() {
            Some(leader) => (distrust.ask_tick, vec![leader]),
            // After a restart the group may be asleep, and this replica does not stand for election: one of
            // those who agreed leads, or none does.
            None => (distrust.ask_tick + patience, distrust.known.agreed.clone()),
        };
        if distrust.rebuild == Rebuild::Wanted && self.tick >= due {
            distrust.ask_tick = self.tick + patience;
            let Checkpoint { at, digest } = distrust.known.at;
            let body = Body::Digest { at, digest, wants_snapshot: true };
            let asked = asked.into_iter().map(|node| self.message(node, body.clone())).collect();
            self.effects.push(Effect::Send(asked));
        }
    }

    /// Hands the leadership to the most advanced of those who agree; steps down when nobody has taken over
    /// after an election timeout, so that the others elect whoever they can.
    fn hand_over(&mut self, since: u64) {
        if self.tick - since >= u64::from(self.replica.config().election_ticks_min) {
            self.replica.step_down();
            return;
        }
        let agreed = self.comparison.distrust.iter().flat_map(|distrust| &distrust.known.agreed);
        let voters = &self.replica.membership().voters;
        let follows = |node: &NodeId| {
            let progress = self.replica.progress(*node)?;
            let is_fed = progress.state == ProgressState::Replicate && voters.contains(node);
            is_fed.then_some((progress.match_index, *node))
        };
        let heir = agreed.filter_map(follows).max();
        if let Some((_, heir)) = heir.filter(|_| self.replica.transferring_to().is_none()) {
            let begun = self.replica.transfer_leadership(heir);
            assert_eq!(begun, Ok(()), "group {}: a leader and a voter", self.id());
        }
    }

    /// Begins to put a snapshot in place, if one waits. No apply is outstanding.
    pub(super) fn begin_rebuild(&mut self) {
        if let Some(Distrust { rebuild, .. }) = &mut self.comparison.distrust
            && let Rebuild::Due(meta) = rebuild
        {
            let meta = meta.clone();
            *rebuild = Rebuild::UnderWay(meta.clone());
            self.effects.push(Effect::Rebuild(meta));
        }
    }

    /// State and log were replaced, as whole as could be.
    pub(super) fn end_distrust(&mut self) {
        self.comparison.digests.forget_own();
        if self.comparison.distrust.take().is_some() {
            self.renew_fitness();
            self.effects.push(Effect::Distrusted(false));
        }
    }

    /// A snapshot that a peer asked for is sent, or not.
    pub(super) fn on_snapshot_sent(&mut self, to: NodeId) {
        self.comparison.sending.remove(&to);
    }

    fn send_snapshot(&mut self, to: NodeId, at: EntryId) {
        let serves = self.replica.role() == Role::Leader && !self.comparison.is_distrusted();
        if serves && self.replica.membership().contains(to) && self.comparison.sending.insert(to) {
            let min_index = at.index.min(self.applied);
            self.effects.push(Effect::SendSnapshot(SnapshotRequest { to, min_index }));
        }
    }

    fn look_for_majority(&mut self, at: EntryId) {
        let (own, members) = (self.replica.config().node, self.replica.membership());
        self.comparison.digests.look_for_majority(own, at, members);
    }

    fn act_on(&mut self, finding: Finding, own: Checkpoint) {
        let Finding { divergences, majority } = finding;
        self.effects.extend(divergences.into_iter().map(Effect::Diverged));
        if let Some(agreed) = majority {
            self.distrust(WrongState { at: own, agreed });
        }
    }

    fn distrust(&mut self, known: WrongState) {
        let (ask_tick, rebuild) = (self.tick, Rebuild::Wanted);
        self.comparison.distrust =
            Some(Distrust { known, ask_tick, rebuild, handing_over_since: None });
        self.renew_fitness();
        self.effects.push(Effect::Distrusted(true));
        self.answer_all();
    }

    /// Whoever waits for something that rests on the state gets no answer out of it.
    fn answer_all(&mut self) {
        let refusal = self.not_leader();
        for slot in self.proposals.expire(u64::MAX) {
            self.effects.push(Effect::Answer { slot, result: Err(Refusal::Unknown) });
        }
        for slot in self.reads.take_all() {
            self.effects.push(Effect::Deny { slot, refusal });
        }
    }

    /// True when the log here goes on from `last`, durably.
    fn log_follows(&self, last: EntryId) -> bool {
        let replica = &self.replica;
        replica.installing().is_none()
            && replica.term_at(last.index) == Some(last.term)
            && last.index >= replica.base().index
            && last.index <= replica.commit().min(replica.durable())
    }

    fn message(&self, to: NodeId, body: Body) -> Message {
        let (group, from, term) = (self.id(), self.own(), self.replica.term());
        Message { group, from, to, term, body }
    }

    pub(super) fn own(&self) -> NodeId {
        self.replica.config().node
    }
}
