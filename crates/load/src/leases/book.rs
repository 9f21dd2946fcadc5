//! When the leases of one stream are to be kept alive, and what came of it: a value, to which the time is handed
//! in.
//!
//! Each lease has a schedule of its own, three times in its time to live, which goes on whatever the server does:
//! what it is late by counts as latency. A lease has one keep-alive under way at a time.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// Keep-alives in a time to live, as etcd's own clients send them.
const PER_TTL: u32 = 3;

/// The leases of one stream.
#[derive(Default, Debug)]
pub(super) struct Book {
    leases: HashMap<i64, Lease>,
    /// When each lease that is not being kept alive just now is due.
    due: BTreeSet<(Instant, i64)>,
}

#[derive(Debug)]
struct Lease {
    interval: Duration,
    /// The server has promised that it lives so long, from when that was asked for.
    until: Instant,
    asked: Option<Asked>,
}

/// A keep-alive under way.
#[derive(Clone, Copy, Debug)]
struct Asked {
    due: Instant,
    sent: Instant,
}

/// A lease that was granted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    /// Which of all leases of the run it is, from 0.
    pub(super) number: u64,
    pub(super) id: i64,
    /// Its time to live, in seconds; at least 1.
    pub(super) ttl_s: u64,
    /// When it was asked for.
    pub(super) sent: Instant,
}

/// What an answer to a keep-alive comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// The lease lives on; it was due then.
    Kept { due: Instant },
    /// There is no such lease any more; `early`: although it was promised to live.
    Lost { early: bool },
    /// Nobody has asked for that.
    Unasked,
}

impl Book {
    /// A lease was granted. Its schedule begins somewhere in the second interval, so that those that are granted
    /// together do not come together for ever. Not at once: etcd 3.5.1 says of a lease that it does not exist while
    /// its leader has not applied the grant that another member has answered already.
    pub(super) fn granted(&mut self, granted: Granted) {
        let Granted { number, id, ttl_s, sent } = granted;
        let ttl = Duration::from_secs(ttl_s);
        let interval = ttl / PER_TTL;
        // Multiples of the golden ratio are spread evenly however many there are.
        let phase = (number as f64 * 0.618_033_988_749_895).fract();
        self.leases.insert(id, Lease { interval, until: sent + ttl, asked: None });
        self.due.insert((sent + interval.mul_f64(1.0 + phase), id));
    }

    /// When the next keep-alive is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// A lease whose keep-alive is due; it counts as sent.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<i64> {
        let (due, id) = self.due.first().copied().filter(|(due, _)| *due <= now)?;
        self.due.pop_first();
        let lease = self.leases.get_mut(&id).expect("what is due is a lease");
        lease.asked = Some(Asked { due, sent: now });
        Some(id)
    }

    /// A keep-alive was answered: so many seconds, none if there is no such lease.
    pub(super) fn answered(&mut self, id: i64, ttl_s: i64, now: Instant) -> Answer {
        let Some(lease) = self.leases.get_mut(&id) else { return Answer::Unasked };
        let Some(Asked { due, sent }) = lease.asked.take() else { return Answer::Unasked };
        match u64::try_from(ttl_s) {
            Ok(ttl_s) if ttl_s > 0 => {
                lease.until = sent + Duration::from_secs(ttl_s);
                self.due.insert((due + lease.interval, id));
                Answer::Kept { due }
            }
            Ok(_) | Err(_) => {
                let early = now < lease.until;
                self.leases.remove(&id);
                Answer::Lost { early }
            }
        }
    }

    /// The stream has broken: what was asked on it is due again, or still.
    pub(super) fn broken(&mut self) {
        for (id, lease) in &mut self.leases {
            if let Some(asked) = lease.asked.take() {
                self.due.insert((asked.due, *id));
            }
        }
    }

    /// Keep-alives that were sent and not answered.
    pub(super) fn unanswered(&self) -> usize {
        self.leases.len() - self.due.len()
    }

    /// The leases that are not known to be lost.
    pub(super) fn ids(&self) -> impl Iterator<Item = i64> + '_ {
        self.leases.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: f64) -> Duration {
        Duration::from_secs_f64(count)
    }

    /// A book with one lease of 3 s, granted at `begin`, due every second.
    fn book(begin: Instant) -> Book {
        let mut book = Book::default();
        book.granted(Granted { number: 0, id: 7, ttl_s: 3, sent: begin });
        book
    }

    #[test]
    fn a_lease_is_due_three_times_in_its_life_whatever_the_answers_take() {
        let begin = Instant::now();
        let mut book = book(begin);
        for turn in 0..10 {
            let due = begin + seconds(1.0) * (turn + 1);
            assert_eq!(book.next_due(), Some(due));
            assert_eq!(book.take_due(due - seconds(0.1)), None);
            assert_eq!(book.take_due(due + seconds(0.1)), Some(7));
            assert_eq!((book.take_due(due + seconds(9.0)), book.unanswered()), (None, 1));
            let answer = book.answered(7, 3, due + seconds(0.7));
            assert_eq!((answer, book.unanswered()), (Answer::Kept { due }, 0));
        }
        assert_eq!(book.answered(7, 3, begin), Answer::Unasked);
        assert_eq!(book.answered(8, 3, begin), Answer::Unasked);
    }

    #[test]
    fn a_lost_lease_is_early_if_it_was_promised_to_live() {
        let begin = Instant::now();
        for (answered, early) in [(2.9, true), (3.1, false)] {
            let mut book = book(begin);
            assert_eq!(book.take_due(begin + seconds(1.5)), Some(7));
            let answer = book.answered(7, 0, begin + seconds(answered));
            assert_eq!(answer, Answer::Lost { early });
            assert_eq!((book.next_due(), book.ids().count()), (None, 0));
        }
        // A keep-alive prolongs the promise from when it was sent.
        for (answered, early) in [(4.4, true), (4.6, false)] {
            let mut book = book(begin);
            assert_eq!(book.take_due(begin + seconds(1.5)), Some(7));
            book.answered(7, 3, begin + seconds(1.9));
            assert_eq!(book.take_due(begin + seconds(2.0)), Some(7));
            let answer = book.answered(7, 0, begin + seconds(answered));
            assert_eq!(answer, Answer::Lost { early });
        }
    }

    #[test]
    fn what_a_broken_stream_was_asked_is_still_due() {
        let begin = Instant::now();
        let mut book = book(begin);
        let due = begin + seconds(1.0);
        assert_eq!(book.take_due(begin + seconds(1.2)), Some(7));
        book.broken();
        assert_eq!((book.unanswered(), book.next_due()), (0, Some(due)));
        assert_eq!(book.take_due(begin + seconds(1.4)), Some(7));
        let answer = book.answered(7, 3, begin + seconds(1.5));
        assert_eq!(answer, Answer::Kept { due });
    }

    #[test]
    fn leases_that_are_granted_together_are_spread() {
        let begin = Instant::now();
        let mut book = Book::default();
        for number in 0..1_000 {
            book.granted(Granted { number, id: number as i64, ttl_s: 30, sent: begin });
        }
        for tenth in 0..10 {
            let end = begin + seconds(f64::from(tenth + 11));
            let due = std::iter::from_fn(|| book.take_due(end)).count();
            assert!((95..=105).contains(&due), "{due} of 1,000 in one tenth");
        }
    }
}
