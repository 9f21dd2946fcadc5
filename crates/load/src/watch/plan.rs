//! Who watches what, which key each put goes to, and when.

use std::time::Duration;

use crate::Fault;
use crate::args::Watch;

/// Streams with watchers of one key each, and puts that go round all keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) streams: usize,
    /// On each stream.
    pub(super) watchers: usize,
    pub(super) keys: u64,
    /// Puts per second.
    rate: f64,
    /// Puts in all.
    pub(super) puts: u64,
    /// The first put whose latency counts.
    pub(super) measured_from: u64,
}

impl Plan {
    /// What the command line asks for.
    ///
    /// # Errors
    /// When its settings do not fit together.
    pub(super) fn new(args: &Watch) -> Result<Self, Fault> {
        let Watch { streams, watchers, watchers_per_key, rate, .. } = *args;
        if [streams, watchers, watchers_per_key, args.clients].contains(&0) {
            return Err(
                "--streams, --watchers, --watchers-per-key and --clients must be at least 1"
                    .to_owned(),
            );
        }
        if !rate.is_finite() || rate <= 0.0 {
            return Err("--rate must be above 0".to_owned());
        }
        let all = streams.checked_mul(watchers).filter(|all| *all <= WATCHERS_MAX);
        let all = all.ok_or_else(|| format!("more than {WATCHERS_MAX} watchers"))?;
        let count = |time: Duration| (time.as_secs_f64() * rate) as u64;
        let measured_from = count(args.warmup);
        let puts = measured_from.saturating_add(count(args.duration));
        if puts > PUTS_MAX {
            return Err(format!("more than {PUTS_MAX} puts"));
        }
        let keys = all.div_ceil(watchers_per_key) as u64;
        Ok(Self { streams, watchers, keys, rate, puts, measured_from })
    }

    /// The key of a watcher of a stream. Neighbours on a stream watch different keys.
    pub(super) fn watched(&self, stream: usize, watcher: usize) -> u64 {
        (stream * self.watchers + watcher) as u64 % self.keys
    }

    /// How many watchers each key has.
    pub(super) fn watchers_by_key(&self) -> Vec<u32> {
        let mut by_key = vec![0; self.keys as usize];
        for stream in 0..self.streams {
            (0..self.watchers)
                .for_each(|watcher| by_key[self.watched(stream, watcher) as usize] += 1);
        }
        by_key
    }

    /// The key of put number `put`.
    pub(super) fn key_of(&self, put: u64) -> u64 {
        put % self.keys
    }

    /// When put number `put` is due, after the first one.
    pub(super) fn due(&self, put: u64) -> Duration {
        Duration::from_secs_f64(put as f64 / self.rate)
    }
}

/// Watchers in all: what one process can hold many times over.
const WATCHERS_MAX: usize = 10_000_000;

/// Puts in all: they are counted in 32 bits.
const PUTS_MAX: u64 = u32::MAX as u64;

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    pub(in crate::watch) fn plan(line: &str) -> Result<Plan, Fault> {
        let words = ["quorate-load", "watch"].into_iter().chain(line.split_whitespace());
        match Args::try_parse_from(words).expect("a command line").command {
            Command::Watch(watch) => Plan::new(&watch),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_key_has_so_many_watchers_and_no_stream_two_of_one_key() {
        let plan = plan("").expect("the defaults fit");
        assert_eq!((plan.streams, plan.watchers, plan.keys), (100, 10, 100));
        assert_eq!((plan.puts, plan.measured_from), (11_000, 1_000));
        for stream in 0..plan.streams {
            let mut keys: Vec<_> = (0..plan.watchers).map(|w| plan.watched(stream, w)).collect();
            keys.sort_unstable();
            keys.dedup();
            assert_eq!(keys.len(), plan.watchers);
        }
        assert_eq!(plan.watchers_by_key(), [10; 100]);
    }

    #[test]
    fn puts_go_round_all_keys_in_time() {
        let plan = plan("--streams 3 --watchers 5 --watchers-per-key 4 --rate 50").expect("fits");
        assert_eq!(plan.keys, 4);
        assert_eq!((0..6).map(|put| plan.key_of(put)).collect::<Vec<_>>(), [0, 1, 2, 3, 0, 1]);
        assert_eq!(plan.due(25), Duration::from_millis(500));
    }

    #[test]
    fn settings_that_do_not_fit_are_refused() {
        for line in ["--streams 0", "--watchers 0", "--watchers-per-key 0", "--clients 0"] {
            assert!(plan(line).is_err(), "{line}");
        }
        for line in ["--rate 0", "--rate -1", "--rate NaN", "--rate 1e9 --duration 1h"] {
            assert!(plan(&line.replace("--rate -", "--rate=-")).is_err(), "{line}");
        }
        assert!(plan("--streams 10000 --watchers 10000").is_err());
    }
}
