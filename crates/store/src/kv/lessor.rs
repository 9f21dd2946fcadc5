//! When leases end: a value, to which the time is handed in.
//!
//! Every replica knows which leases there are ([`Lessor::granted`], [`Lessor::revoked`]); only the leader
//! keeps their deadlines, from the moment on when it has applied the first entry of its term
//! ([`Lessor::promote`]): then every deadline begins anew, with the full time to live. Nothing of that is
//! replicated.
//!
//! A deadline never comes early, because each of these only makes it later:
//!
//! - It begins at the first [`Lessor::tick`] after the grant was applied, or after the promotion.
//! - A keep-alive is handed in after the read that stands for it was granted in the same term.
//! - Time is counted between calls, and a gap of more than [`STALL_US`] counts as that much: the node was
//!   stopped or stalled, and keep-alives may wait in its sockets. For as long again nothing ends.
//! - At most [`EXPIRIES_PER_SECOND_MAX`] leases end in a second; the others live on meanwhile.
//!
//! When a deadline is over, a revoke is to be proposed. From then on the lease can be neither renewed nor
//! forgotten until that is applied or known to be dropped.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use quorate_types::{Led, Moment, Term, defect};

/// Leases of one group that end in a second, at most; etcd's default.
pub(crate) const EXPIRIES_PER_SECOND_MAX: u64 = 1_000;

/// Calls that lie further apart than this, in microseconds, show that the node was not running. Ticks come
/// twenty times a second by default.
pub(crate) const STALL_US: u64 = 1_000_000;

/// Deadlines that begin at one tick, so that no tick takes long after a promotion.
const BEGUN_PER_TICK_MAX: usize = 10_000;

const EXPIRY_COST_US: u64 = 1_000_000 / EXPIRIES_PER_SECOND_MAX;

/// The leases of one group, on one replica.
#[derive(Default, Debug)]
pub(crate) struct Lessor {
    leases: BTreeMap<i64, Lease>,
    /// The term whose deadlines were kept here last.
    term: Option<Term>,
    /// They are kept now.
    leads: bool,
    /// The leases with a running deadline, by it. Each lease with [`Deadline::At`] is here once.
    deadlines: BTreeSet<(u64, i64)>,
    /// Leases whose deadline is to begin; some may be gone or begun by now.
    to_begin: VecDeque<i64>,
    last: Option<Moment>,
    /// Microseconds counted so far; deadlines are of this clock.
    elapsed_us: u64,
    /// Nothing ends before.
    quiet_until_us: u64,
    /// Unused time to expire leases in.
    allowance_us: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Lease {
    ttl_s: i64,
    deadline: Deadline,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Deadline {
    /// Has not begun, or is kept elsewhere.
    None,
    At(u64),
    /// Was then; a revoke is proposed.
    Over(u64),
}

/// What came of a keep-alive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Renewal {
    /// The lease lives for so many seconds, at least.
    Renewed(i64),
    /// There is no such lease.
    Missing,
    /// It cannot be said now: not the leader, or a revoke is under way.
    NotNow,
}

/// How long a lease has still to live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Remaining {
    /// In microseconds, and the full time in seconds.
    Time { left_us: u64, ttl_s: i64 },
    /// There is no such lease.
    Missing,
    /// Not the leader.
    NotNow,
}

impl Lessor {
    /// Of the leases that there are, with their times to live in seconds.
    pub(crate) fn new(leases: impl IntoIterator<Item = (i64, i64)>) -> Self {
        let lease = |(id, ttl_s)| (id, Lease { ttl_s, deadline: Deadline::None });
        Self { leases: leases.into_iter().map(lease).collect(), ..Self::default() }
    }

    /// How many leases there are.
    pub(crate) fn count(&self) -> usize {
        self.leases.len()
    }

    /// A lease was granted.
    pub(crate) fn granted(&mut self, id: i64, ttl_s: i64) {
        self.leases.insert(id, Lease { ttl_s, deadline: Deadline::None });
        if self.leads {
            self.to_begin.push_back(id);
        }
    }

    /// A lease was revoked.
    pub(crate) fn revoked(&mut self, id: i64) {
        if let Some(Lease { deadline: Deadline::At(at), .. }) = self.leases.remove(&id) {
            self.deadlines.remove(&(at, id));
        }
    }

    /// The revoke that [`Self::tick`] gave out in `term` has changed nothing, and will not. The deadline is
    /// still over, but the lease can be kept alive again.
    pub(crate) fn dropped(&mut self, id: i64, term: Term) {
        if self.term != Some(term) {
            return;
        }
        if let Some(lease) = self.leases.get_mut(&id)
            && let Deadline::Over(at) = lease.deadline
        {
            if self.leads {
                lease.deadline = Deadline::At(at);
                self.deadlines.insert((at, id));
            } else {
                lease.deadline = Deadline::None;
            }
        }
    }

    /// This replica leads in `term` and has applied the first entry of it: all deadlines begin.
    pub(crate) fn promote(&mut self, term: Term) {
        if self.term() == Some(term) {
            return;
        }
        self.demote();
        // What was proposed in the same term may still be applied; of another one it is dropped or gone.
        if self.term != Some(term) {
            let over = |lease: &&mut Lease| {
                !defect!(DeadlinesResumed) || matches!(lease.deadline, Deadline::Over(_))
            };
            let began = self.leases.values_mut().filter(over);
            began.for_each(|lease| lease.deadline = Deadline::None);
        }
        (self.term, self.leads) = (Some(term), true);
        self.to_begin = self.leases.keys().copied().collect();
    }

    /// This replica leads no more.
    pub(crate) fn demote(&mut self) {
        if !std::mem::take(&mut self.leads) {
            return;
        }
        self.to_begin.clear();
        if defect!(DeadlinesResumed) {
            return;
        }
        for (_, id) in std::mem::take(&mut self.deadlines) {
            let lease = self.leases.get_mut(&id).expect("every deadline is of a lease");
            lease.deadline = Deadline::None;
        }
    }

    /// The term whose deadlines are kept here now.
    pub(crate) fn term(&self) -> Option<Term> {
        self.term.filter(|_| self.leads)
    }

    /// Lets a lease live on for its full time.
    pub(crate) fn renew(&mut self, id: i64, led: Led) -> Renewal {
        if self.term() != Some(led.term) {
            return Renewal::NotNow;
        }
        self.pass(led.now);
        let elapsed_us = self.elapsed_us;
        let Some(lease) = self.leases.get_mut(&id) else { return Renewal::Missing };
        match lease.deadline {
            Deadline::Over(_) if defect!(RenewedWhileRevoked) => {}
            Deadline::Over(_) => return Renewal::NotNow,
            Deadline::At(at) => {
                self.deadlines.remove(&(at, id));
            }
            Deadline::None => {}
        }
        let at = elapsed_us + us(lease.ttl_s);
        lease.deadline = Deadline::At(at);
        self.deadlines.insert((at, id));
        Renewal::Renewed(lease.ttl_s)
    }

    /// How long a lease has still to live.
    pub(crate) fn remaining(&mut self, id: i64, led: Led) -> Remaining {
        if self.term() != Some(led.term) {
            return Remaining::NotNow;
        }
        self.pass(led.now);
        let Some(&Lease { ttl_s, deadline }) = self.leases.get(&id) else {
            return Remaining::Missing;
        };
        let left_us = match deadline {
            Deadline::None => us(ttl_s),
            Deadline::At(at) => at.saturating_sub(self.elapsed_us),
            Deadline::Over(_) => 0,
        };
        Remaining::Time { left_us, ttl_s }
    }

    /// The leases whose time is over as of `now`, as far as they may end now; each is given out once.
    pub(crate) fn tick(&mut self, now: Moment) -> Vec<i64> {
        if !self.leads {
            return Vec::new();
        }
        self.pass(now);
        for _ in 0..BEGUN_PER_TICK_MAX {
            let Some(id) = self.to_begin.pop_front() else { break };
            if let Some(lease) = self.leases.get_mut(&id)
                && lease.deadline == Deadline::None
            {
                let at = self.elapsed_us + us(lease.ttl_s);
                lease.deadline = Deadline::At(at);
                self.deadlines.insert((at, id));
            }
        }
        let mut over = Vec::new();
        while self.elapsed_us >= self.quiet_until_us
            && self.allowance_us >= EXPIRY_COST_US
            && let Some(&(at, id)) = self.deadlines.first()
            && at <= self.elapsed_us
        {
            self.deadlines.pop_first();
            self.allowance_us -= EXPIRY_COST_US;
            let lease = self.leases.get_mut(&id).expect("every deadline is of a lease");
            lease.deadline = Deadline::Over(at);
            over.push(id);
        }
        over
    }

    fn pass(&mut self, now: Moment) {
        let last = self.last.unwrap_or(now);
        let gap_us = now.since_us(last);
        self.last = Some(last.max(now));
        let counted_us = gap_us.min(STALL_US);
        self.elapsed_us += counted_us;
        self.allowance_us = (self.allowance_us + counted_us).min(1_000_000);
        if gap_us > STALL_US {
            self.quiet_until_us = self.elapsed_us + STALL_US;
        }
    }
}

/// Seconds that a lease may have, in microseconds.
fn us(ttl_s: i64) -> u64 {
    u64::try_from(ttl_s).unwrap_or(0) * 1_000_000
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const TERM: Term = Term(3);

    fn led(now_us: u64) -> Led {
        Led { term: TERM, now: Moment(now_us) }
    }

    /// Ticks every 50 ms up to a moment; gives what ended, and when.
    fn run(lessor: &mut Lessor, from_us: u64, to_us: u64) -> Vec<(u64, i64)> {
        let mut over = Vec::new();
        for now in (from_us..=to_us).step_by(50_000) {
            over.extend(lessor.tick(Moment(now)).into_iter().map(|id| (now, id)));
        }
        over
    }

    #[test]
    fn a_lease_ends_once_its_time_is_over_and_is_given_out_once() {
        let mut lessor = Lessor::default();
        lessor.promote(TERM);
        lessor.granted(7, 5);
        assert_eq!(run(&mut lessor, 0, 20_000_000), [(5_000_000, 7)]);
    }

    #[test]
    fn a_keep_alive_gives_the_full_time_from_then_on() {
        let mut lessor = Lessor::new([(7, 5)]);
        lessor.promote(TERM);
        assert_eq!(run(&mut lessor, 0, 4_900_000), []);
        assert_eq!(lessor.renew(7, led(4_900_000)), Renewal::Renewed(5));
        assert_eq!(run(&mut lessor, 4_950_000, 30_000_000), [(9_900_000, 7)]);
    }

    #[test]
    fn only_the_leader_of_the_term_answers() {
        let mut lessor = Lessor::new([(7, 5)]);
        assert_eq!(lessor.renew(7, led(1)), Renewal::NotNow);
        lessor.promote(Term(4));
        assert_eq!(lessor.renew(7, led(1)), Renewal::NotNow, "a grant of a past term");
        assert_eq!(lessor.remaining(7, led(1)), Remaining::NotNow);
        lessor.demote();
        assert_eq!(lessor.tick(Moment(100_000_000)), []);
    }

    #[test]
    fn every_term_begins_with_the_full_time() {
        let mut lessor = Lessor::new([(7, 5)]);
        lessor.promote(TERM);
        assert_eq!(run(&mut lessor, 0, 4_950_000), []);
        lessor.promote(Term(4));
        assert_eq!(run(&mut lessor, 5_000_000, 30_000_000), [(10_000_000, 7)]);
    }

    #[test]
    fn a_node_that_was_stopped_hears_its_keep_alives_before_anything_ends() {
        let mut lessor = Lessor::new([(7, 5)]);
        lessor.promote(TERM);
        assert_eq!(run(&mut lessor, 0, 4_000_000), []);
        // Stopped for a minute; of that one second counts, which is all that was left.
        assert_eq!(lessor.tick(Moment(64_000_000)), []);
        assert_eq!(lessor.renew(7, led(64_000_001)), Renewal::Renewed(5));
        assert_eq!(run(&mut lessor, 64_050_000, 68_950_000), []);
        assert_eq!(run(&mut lessor, 69_000_000, 69_100_000).len(), 1);
    }

    #[test]
    fn a_revoke_under_way_holds_keep_alives_up_until_it_is_dropped() {
        let mut lessor = Lessor::new([(7, 5)]);
        lessor.promote(TERM);
        assert_eq!(run(&mut lessor, 0, 5_000_000).len(), 1);
        assert_eq!(lessor.renew(7, led(5_000_000)), Renewal::NotNow);
        lessor.dropped(7, Term(2));
        assert_eq!(
            lessor.renew(7, led(5_000_000)),
            Renewal::NotNow,
            "not the one that is under way"
        );
        lessor.dropped(7, TERM);
        assert_eq!(lessor.renew(7, led(5_000_000)), Renewal::Renewed(5));
        lessor.revoked(7);
        assert_eq!(lessor.renew(7, led(5_000_000)), Renewal::Missing);
    }

    #[test]
    fn who_leads_again_in_the_same_term_still_waits_for_its_revokes() {
        let mut lessor = Lessor::new([(7, 5)]);
        lessor.promote(TERM);
        assert_eq!(run(&mut lessor, 0, 5_000_000).len(), 1);
        lessor.demote();
        lessor.promote(TERM);
        assert_eq!(lessor.renew(7, led(5_000_000)), Renewal::NotNow);
        lessor.dropped(7, TERM);
        assert_eq!(lessor.renew(7, led(5_000_000)), Renewal::Renewed(5));
    }

    #[test]
    fn a_dropped_revoke_is_given_out_again() {
        let mut lessor = Lessor::new([(7, 5)]);
        lessor.promote(TERM);
        assert_eq!(run(&mut lessor, 0, 5_000_000).len(), 1);
        lessor.dropped(7, TERM);
        assert_eq!(lessor.tick(Moment(5_050_000)), [7]);
    }

    #[test]
    fn many_leases_end_at_a_bounded_rate() {
        let mut lessor = Lessor::new((1..=5_000).map(|id| (id, 2)));
        lessor.promote(TERM);
        let over = run(&mut lessor, 0, 10_000_000);
        assert_eq!(over.len(), 5_000);
        for window in over.windows(2_001) {
            let took_us = window[2_000].0 - window[0].0;
            assert!(took_us >= 950_000, "2,001 leases ended within {took_us} us");
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Grant(i64, i64),
        Revoke(i64),
        Drop(i64),
        Renew(i64),
        Tick,
        Promote(bool),
    }

    fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
        let id = 1i64..5;
        let step = prop_oneof![
            3 => (id.clone(), 1i64..4).prop_map(|(id, ttl_s)| Step::Grant(id, ttl_s)),
            1 => id.clone().prop_map(Step::Revoke),
            1 => id.clone().prop_map(Step::Drop),
            4 => id.prop_map(Step::Renew),
            20 => Just(Step::Tick),
            1 => any::<bool>().prop_map(Step::Promote),
        ];
        let pause = prop_oneof![10 => 0u64..100_000, 3 => 0u64..1_000_000, 1 => 0u64..20_000_000];
        vec((pause, step), 0..200)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Against a twin that only knows, for each lease, before when it must not end.
        #[test]
        fn no_lease_ends_early(steps in steps()) {
            let mut lessor = Lessor::default();
            let mut not_before: BTreeMap<i64, (i64, u64)> = BTreeMap::new();
            let mut under_way = BTreeSet::new();
            let (mut now, mut term) = (0, 0);
            for (pause, step) in steps {
                now += pause;
                let led = Led { term: Term(term), now: Moment(now) };
                match step {
                    // Apply refuses the grant of a lease that is there.
                    Step::Grant(id, _) if not_before.contains_key(&id) => {}
                    Step::Grant(id, ttl_s) => {
                        lessor.granted(id, ttl_s);
                        not_before.insert(id, (ttl_s, now + us(ttl_s)));
                    }
                    Step::Revoke(id) => {
                        lessor.revoked(id);
                        not_before.remove(&id);
                        under_way.remove(&id);
                    }
                    Step::Drop(id) => {
                        lessor.dropped(id, Term(term));
                        under_way.remove(&id);
                    }
                    Step::Renew(id) => match lessor.renew(id, led) {
                        Renewal::Renewed(ttl_s) => {
                            prop_assert!(!under_way.contains(&id));
                            let lease = not_before.get_mut(&id).unwrap();
                            prop_assert_eq!(lease.0, ttl_s);
                            lease.1 = now + us(ttl_s);
                        }
                        Renewal::Missing => prop_assert!(!not_before.contains_key(&id)),
                        Renewal::NotNow => {
                            prop_assert!(lessor.term().is_none() || under_way.contains(&id));
                        }
                    },
                    Step::Tick => for id in lessor.tick(Moment(now)) {
                        prop_assert!(under_way.insert(id), "given out twice");
                        prop_assert!(not_before[&id].1 <= now, "lease {} ended early", id);
                    },
                    Step::Promote(leads) => {
                        under_way.clear();
                        term += 1;
                        if leads {
                            lessor.promote(Term(term));
                            not_before.values_mut().for_each(|(ttl_s, at)| *at = now + us(*ttl_s));
                        } else {
                            lessor.demote();
                        }
                    }
                }
                let running = lessor.leases.iter().filter_map(|(id, lease)| match lease.deadline {
                    Deadline::At(at) => Some((at, *id)),
                    Deadline::None | Deadline::Over(_) => None,
                });
                prop_assert_eq!(running.collect::<BTreeSet<_>>(), lessor.deadlines.clone());
            }
        }
    }
}
