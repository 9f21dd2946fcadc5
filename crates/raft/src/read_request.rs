//! Linearizable reads at a follower: it asks its leader for the index, and serves them itself.
//!
//! Every request has a new number. An answer was made after its request arrived, so it is good for
//! every read that was there when the request was made, and for those of all earlier requests; a
//! retry needs no bookkeeping, and an old answer that was only late is still of use. What it is never
//! good for is a read that came after its request: that is how a delayed answer would make a stale
//! read.

use std::collections::VecDeque;

use quorate_types::LogIndex;

use crate::ready::{ReadId, ReadReady};

/// Requests of one follower that are not answered. Beyond that, reads wait for an answer or for the
/// next retry: a leader that answers nothing is not to be flooded.
const REQUESTS_MAX: usize = 16;

/// The reads that wait at a follower. Bounded by the callers, of whom each read has one.
#[derive(Debug, Default)]
pub(crate) struct ReadRequests {
    /// For the next request.
    queued: Vec<ReadId>,
    /// By the number of the first request that was made for them, oldest first.
    asked: VecDeque<(u64, Vec<ReadId>)>,
    /// Ticks since the last request or answer.
    quiet_ticks: u32,
    retry_due: bool,
}

impl ReadRequests {
    pub(crate) fn push(&mut self, id: ReadId) {
        self.queued.push(id);
    }

    /// A tick passed; after `retry_ticks` without an answer, the question is asked anew.
    pub(crate) fn tick(&mut self, retry_ticks: u32) {
        self.quiet_ticks = self.quiet_ticks.saturating_add(1);
        self.retry_due |= !self.asked.is_empty() && self.quiet_ticks >= retry_ticks;
    }

    /// True when a request should leave.
    pub(crate) fn wants_request(&self) -> bool {
        self.retry_due || !self.queued.is_empty() && self.asked.len() < REQUESTS_MAX
    }

    /// A request with this `number`, higher than all before, leaves for everything that waits.
    pub(crate) fn on_request(&mut self, number: u64) {
        let queued = std::mem::take(&mut self.queued);
        self.retry_due = false;
        self.quiet_ticks = 0;
        if queued.is_empty() {
            return;
        }
        let is_full = self.asked.len() >= REQUESTS_MAX;
        match self.asked.back_mut().filter(|_| is_full) {
            // They may wait a little longer than they need to, but are not forgotten.
            Some((since, reads)) => {
                *since = number;
                reads.extend(queued);
            }
            None => self.asked.push_back((number, queued)),
        }
    }

    /// The answer to the request with this `number`.
    pub(crate) fn on_answer(&mut self, number: u64, index: LogIndex, served: &mut Vec<ReadReady>) {
        self.quiet_ticks = 0;
        while let Some((_, reads)) = self.asked.pop_front_if(|(since, _)| *since <= number) {
            served.extend(reads.into_iter().map(|id| ReadReady { id, index }));
        }
        self.retry_due &= !self.asked.is_empty();
    }

    /// There is nobody to ask any more: every waiting read, oldest first.
    pub(crate) fn refuse_all(&mut self, refused: &mut Vec<ReadId>) {
        refused.extend(self.asked.drain(..).flat_map(|(_, reads)| reads));
        refused.append(&mut self.queued);
        self.retry_due = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(requests: &mut ReadRequests, number: u64) -> Vec<u64> {
        let mut served = Vec::new();
        requests.on_answer(number, LogIndex(5), &mut served);
        served.into_iter().map(|read| read.id.0).collect()
    }

    #[test]
    fn an_answer_serves_what_was_there_when_it_was_asked_for_and_nothing_later() {
        let mut requests = ReadRequests::default();
        for number in 1..=3 {
            requests.push(ReadId(number));
            requests.on_request(number);
        }
        assert_eq!(served(&mut requests, 2), [1, 2]);
        assert_eq!(served(&mut requests, 1), [0; 0]);
        assert_eq!(served(&mut requests, 3), [3]);
    }

    #[test]
    fn a_lost_request_is_repeated_under_a_new_number_and_the_old_answer_still_counts() {
        let mut requests = ReadRequests::default();
        requests.push(ReadId(1));
        requests.on_request(1);
        requests.tick(2);
        assert!(!requests.wants_request());
        requests.tick(2);
        assert!(requests.wants_request());
        requests.on_request(2);
        assert!(!requests.wants_request());
        assert_eq!(served(&mut requests, 1), [1]);
        requests.tick(1);
        assert!(!requests.wants_request(), "nobody waits");
    }

    #[test]
    fn a_leader_that_answers_nothing_is_not_flooded() {
        let mut requests = ReadRequests::default();
        let mut number = 0;
        for id in 0..100 {
            requests.push(ReadId(id));
            if requests.wants_request() {
                number += 1;
                requests.on_request(number);
            }
        }
        assert_eq!(number, REQUESTS_MAX as u64);
        requests.tick(1);
        requests.on_request(number + 1);
        assert!(requests.asked.len() <= REQUESTS_MAX);
        assert_eq!(served(&mut requests, number).len(), REQUESTS_MAX - 1);
        assert_eq!(served(&mut requests, number + 1).len(), 100 - REQUESTS_MAX + 1);
    }
}
