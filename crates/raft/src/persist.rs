//! What is on its way to the disk, and the promises that wait for it.
//!
//! A promise (a granted vote, an acknowledgement of entries, a request for votes, which claims a
//! log and a vote for oneself) must not leave this node before what it rests on is durable. Where
//! it waits depends on where that is:
//!
//! ```text
//!  in memory only            handed out, ticket n        durable
//!  -> release of the next    -> kept here until          -> may leave at once
//!     append                    persisted(n)
//! ```

use std::collections::VecDeque;

use quorate_types::{Body, HardState, LogIndex, Message, NodeId, Term};

use crate::ready::Ticket;

/// Term and vote: the part of the hard state that promises rest on.
pub(crate) type Ballot = (Term, Option<NodeId>);

/// Appends under way and waiting promises.
#[derive(Debug)]
pub(crate) struct Persist {
    last_ticket: Ticket,
    /// The hard state as of the last append.
    handed: HardState,
    durable_ballot: Ballot,
    /// Oldest first.
    outstanding: VecDeque<Outstanding>,
    outstanding_bytes: usize,
    /// Leaves with the next append.
    release: Vec<Message>,
}

#[derive(Debug)]
struct Outstanding {
    ticket: Ticket,
    /// When this is durable, the log is durable up to here. Lowered when entries are overwritten:
    /// the completion of an overwritten write says nothing about what replaced it.
    last: LogIndex,
    ballot: Ballot,
    bytes: usize,
    promises: Vec<Message>,
}

/// What a completion made durable.
pub(crate) struct Completed {
    pub(crate) last: LogIndex,
    pub(crate) promises: Vec<Message>,
}

impl Persist {
    /// `recovered` is what the disk holds.
    pub(crate) const fn new(recovered: HardState) -> Self {
        Self {
            last_ticket: Ticket(0),
            handed: recovered,
            durable_ballot: (recovered.term, recovered.vote),
            outstanding: VecDeque::new(),
            outstanding_bytes: 0,
            release: Vec::new(),
        }
    }

    /// True when `ballot` was not handed out yet or a promise waits for the next append.
    pub(crate) fn wants_append(&self, ballot: Ballot) -> bool {
        ballot != (self.handed.term, self.handed.vote) || !self.release.is_empty()
    }

    /// Hands out an append: `last` is the end of the log with it, `bytes` the size of its entries.
    /// Returns its ticket, the hard state if it differs from the last one, and the promises.
    pub(crate) fn begin(
        &mut self,
        hard_state: HardState,
        last: LogIndex,
        bytes: usize,
    ) -> (Ticket, Option<HardState>, Vec<Message>) {
        self.last_ticket.0 += 1;
        let changed = (hard_state != self.handed).then_some(hard_state);
        self.handed = hard_state;
        self.outstanding_bytes += bytes;
        self.outstanding.push_back(Outstanding {
            ticket: self.last_ticket,
            last,
            ballot: (hard_state.term, hard_state.vote),
            bytes,
            promises: Vec::new(),
        });
        (self.last_ticket, changed, std::mem::take(&mut self.release))
    }

    /// Everything up to `ticket` is durable; `None` when that was known.
    ///
    /// # Panics
    /// When no such append was handed out: the driver mixed up replicas.
    pub(crate) fn complete(&mut self, ticket: Ticket) -> Option<Completed> {
        assert!(
            ticket <= self.last_ticket,
            "told that {ticket:?} is durable, but the last append was {:?}",
            self.last_ticket
        );
        let mut completed = None::<Completed>;
        while let Some(append) = self.outstanding.pop_front_if(|append| append.ticket <= ticket) {
            self.durable_ballot = append.ballot;
            self.outstanding_bytes -= append.bytes;
            match &mut completed {
                None => {
                    let (last, promises) = (append.last, append.promises);
                    completed = Some(Completed { last, promises });
                }
                Some(completed) => {
                    completed.last = completed.last.max(append.last);
                    completed.promises.extend(append.promises);
                }
            }
        }
        completed
    }

    /// The entries from `index` on are overwritten: what is under way for them proves nothing.
    pub(crate) fn on_truncated(&mut self, kept: LogIndex) {
        for append in &mut self.outstanding {
            append.last = append.last.min(kept);
        }
    }

    /// The term rose: promises of earlier terms are of use only to leaders and candidates that are
    /// no more. Those that are already part of an append cannot be called back, nor need they be:
    /// their receivers see the old term.
    pub(crate) fn forget_promises(&mut self) {
        self.release.clear();
        for append in &mut self.outstanding {
            append.promises.clear();
        }
    }

    /// Queues `message`, which rests on `ballot` and on the log up to `covers`. Gives it back when
    /// all of that is durable. `pending` is the first entry not handed out, `durable` the last
    /// durable one.
    pub(crate) fn hold(
        &mut self,
        message: Message,
        ballot: Ballot,
        covers: LogIndex,
        pending: LogIndex,
        durable: LogIndex,
    ) -> Option<Message> {
        let waiting = if covers >= pending || ballot != (self.handed.term, self.handed.vote) {
            &mut self.release
        } else if covers <= durable && ballot == self.durable_ballot {
            return Some(message);
        } else {
            let append = self.outstanding.iter_mut().find(|append| {
                (covers <= durable || append.last >= covers) && append.ballot == ballot
            });
            let Some(append) = append else {
                panic!(
                    "{} to {} rests on the log up to {covers} in term {}, which is neither durable \
                     ({durable}), nor under way, nor pending ({pending})",
                    message.body.name(),
                    message.to,
                    message.term
                );
            };
            &mut append.promises
        };
        // One acknowledgement says what several would.
        if let (Some(waiting), Body::AppendAccepted { last }) = (waiting.last_mut(), &message.body)
            && waiting.to == message.to
            && let Body::AppendAccepted { last: earlier } = &mut waiting.body
        {
            *earlier = (*earlier).max(*last);
        } else {
            waiting.push(message);
        }
        None
    }

    pub(crate) const fn durable_ballot(&self) -> Ballot {
        self.durable_ballot
    }

    pub(crate) const fn outstanding_bytes(&self) -> usize {
        self.outstanding_bytes
    }
}
