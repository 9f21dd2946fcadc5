//! All judges over one history.

use super::history::History;
use super::verdict::Verdict;
use super::{lease, lock, register, watch};

/// Looks at everything in `history`.
pub(crate) fn judge(history: &History) -> Verdict {
    let mut verdict = Verdict::default();
    register::judge(history, &mut verdict);
    watch::judge(history, &mut verdict);
    lease::judge(history, &mut verdict);
    lock::judge(history, &mut verdict);
    verdict
}
