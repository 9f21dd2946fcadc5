//! Whether every watcher was told of every put to its key, once and in order.

use serde::Serialize;

use super::plan::Plan;

/// What became of a put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// It was never sent, or the server said that it was not done.
    Unsent,
    /// It was acknowledged: its watchers must be told.
    Acknowledged,
    /// It may have been done.
    Unknown,
}

/// What one watcher was told.
#[derive(Clone, Default, Debug)]
pub(super) struct Told {
    /// Numbers of puts, in the order in which they came.
    puts: Vec<u32>,
    /// The revision of the last event.
    revision: i64,
    /// Events whose revision was not above the one before.
    disordered: u64,
    /// Events that are of no put of this run, or of another key.
    foreign: u64,
}

impl Told {
    /// An event of put number `put`.
    pub(super) fn add(&mut self, put: u32, revision: i64) {
        self.disordered += u64::from(revision <= self.revision);
        self.revision = revision;
        self.puts.push(put);
    }

    /// An event that nobody here has caused.
    pub(super) fn add_foreign(&mut self) {
        self.foreign += 1;
    }
}

/// Events of all watchers, counted.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub(super) struct Verdict {
    /// Of acknowledged puts.
    pub(super) expected: u64,
    /// Of those that were expected.
    pub(super) delivered: u64,
    pub(super) missing: u64,
    /// Told more than once.
    pub(super) repeated: u64,
    /// Not in the order of revisions.
    pub(super) disordered: u64,
    /// Of puts that did not happen, or of other keys.
    pub(super) unexpected: u64,
}

impl Verdict {
    /// Whether all was as it must be.
    pub(super) const fn is_clean(&self) -> bool {
        self.missing + self.repeated + self.disordered + self.unexpected == 0
    }
}

/// Judges what the watchers of `streams` were told, by what became of each put.
pub(super) fn judge(plan: &Plan, fates: &[Fate], streams: &[Vec<Told>]) -> Verdict {
    let mut verdict = Verdict::default();
    for (stream, watchers) in streams.iter().enumerate() {
        for (watcher, told) in watchers.iter().enumerate() {
            judge_one(plan, fates, plan.watched(stream, watcher), told, &mut verdict);
        }
    }
    verdict
}

fn judge_one(plan: &Plan, fates: &[Fate], key: u64, told: &Told, verdict: &mut Verdict) {
    verdict.disordered += told.disordered;
    verdict.unexpected += told.foreign;
    let mut puts = told.puts.clone();
    puts.sort_unstable();
    let all = puts.len();
    puts.dedup();
    verdict.repeated += (all - puts.len()) as u64;
    let fate = |put: &u32| match plan.key_of((*put).into()) == key {
        true => fates.get(*put as usize).copied().unwrap_or(Fate::Unsent),
        false => Fate::Unsent,
    };
    let count = |wanted| puts.iter().filter(|put| fate(put) == wanted).count() as u64;
    let own = (key..fates.len() as u64).step_by(plan.keys as usize);
    let expected = own.filter(|put| fates[*put as usize] == Fate::Acknowledged).count() as u64;
    let delivered = count(Fate::Acknowledged);
    verdict.expected += expected;
    verdict.delivered += delivered;
    verdict.missing += expected - delivered;
    verdict.unexpected += count(Fate::Unsent);
}

#[cfg(test)]
mod tests {
    use super::super::plan::tests::plan;
    use super::*;

    /// Two streams with a watcher of each of two keys, and four acknowledged puts that all were told of.
    fn all_well() -> (Plan, Vec<Fate>, Vec<Vec<Told>>) {
        let plan = plan("--streams 2 --watchers 2 --watchers-per-key 2").expect("fits");
        let told = |puts: [u32; 2]| {
            let mut told = Told::default();
            puts.into_iter().for_each(|put| told.add(put, 10 + i64::from(put)));
            told
        };
        let stream = vec![told([0, 2]), told([1, 3])];
        (plan, vec![Fate::Acknowledged; 4], vec![stream.clone(), stream])
    }

    #[test]
    fn all_events_once_and_in_order_are_clean() {
        let (plan, mut fates, told) = all_well();
        let clean = Verdict { expected: 8, delivered: 8, ..Verdict::default() };
        assert_eq!(judge(&plan, &fates, &told), clean);
        assert!(clean.is_clean());
        // Whether a put happened that nobody answered is open.
        fates[3] = Fate::Unknown;
        let open = Verdict { expected: 6, delivered: 6, ..Verdict::default() };
        assert_eq!(judge(&plan, &fates, &told), open);
    }

    #[test]
    fn each_mistake_is_counted_as_what_it_is() {
        let (plan, fates, told) = all_well();
        let judged = |change: &dyn Fn(&mut Told), fates: &[Fate]| {
            let mut told = told.clone();
            change(&mut told[1][0]);
            let verdict = judge(&plan, fates, &told);
            assert!(!verdict.is_clean());
            let Verdict { missing, repeated, disordered, unexpected, .. } = verdict;
            [missing, repeated, disordered, unexpected]
        };
        assert_eq!(judged(&|told| told.puts.truncate(1), &fates), [1, 0, 0, 0]);
        assert_eq!(judged(&|told| told.add(2, 99), &fates), [0, 1, 0, 0]);
        assert_eq!(judged(&|told| told.add(2, 5), &fates), [0, 1, 1, 0]);
        assert_eq!(judged(&|told| told.add(1, 99), &fates), [0, 0, 0, 1], "another key's");
        assert_eq!(judged(&|told| told.add(4, 99), &fates), [0, 0, 0, 1], "never put");
        assert_eq!(judged(&Told::add_foreign, &fates), [0, 0, 0, 1]);
        let refused = [Fate::Unsent, Fate::Acknowledged, Fate::Acknowledged, Fate::Acknowledged];
        assert_eq!(judged(&|_| {}, &refused), [0, 0, 0, 2], "it was refused");
    }
}
