//! Is a lock held by one at a time, and do the fencing tokens rise?
//!
//! A holder holds *for sure* from the moment it learned of it until it begins to give the lock up, and not
//! beyond what its lease was promised: after that it must not act without its token being checked. Two such
//! times of one lock must not overlap, and the later one must have the higher token, so that whoever
//! remembers the highest token can refuse the holder of before.

use std::collections::BTreeMap;

use super::history::{History, Hold, Record};
use super::lease::leases;
use super::verdict::{Kind, Verdict, Violation};

/// Looks at all locks.
pub(crate) fn judge(history: &History, verdict: &mut Verdict) {
    let leases = leases(history);
    let mut locks: BTreeMap<&str, Vec<(&Hold, u64, usize)>> = BTreeMap::new();
    for (at, record) in history.records.iter().enumerate() {
        let Record::Hold(hold) = record else { continue };
        let lives_until = leases.get(&hold.lease).map_or(0, |lease| lease.until_us());
        let until_us = lives_until.min(hold.released_us.unwrap_or(u64::MAX));
        // One whose lease was over when it learned that it holds never held for sure.
        if hold.acquired_us < until_us {
            locks.entry(&hold.lock).or_default().push((hold, until_us, at));
        }
    }
    for (lock, mut holds) in locks {
        holds.sort_by_key(|(hold, _, at)| (hold.acquired_us, *at));
        let mut longest: Option<(&Hold, u64, usize)> = None;
        let mut highest: Option<(&Hold, u64, usize)> = None;
        for held in holds {
            let (hold, until_us, at) = held;
            if let Some((other, until_us, other_at)) = longest
                && hold.acquired_us < until_us
            {
                let both_us = until_us - hold.acquired_us;
                let text = format!(
                    "{lock}: {} got it {both_us} us before {} had to give it up",
                    hold.holder, other.holder
                );
                verdict.push(Violation::new(Kind::TwoHolders, text, history, [other_at, at]));
            }
            if let Some((other, _, other_at)) = highest
                && hold.token <= other.token
            {
                let text = format!("{lock}: token {} after {}", hold.token, other.token);
                verdict.push(Violation::new(Kind::TokenBackwards, text, history, [other_at, at]));
            }
            if longest.is_none_or(|(_, longest_us, _)| longest_us < until_us) {
                longest = Some(held);
            }
            if highest.is_none_or(|(other, _, _)| other.token < hold.token) {
                highest = Some(held);
            }
        }
    }
}
