//! The one place where tests wait for processes: they poll, with a bound.

use std::thread;
use std::time::{Duration, Instant};

/// Between two looks.
const STEP: Duration = Duration::from_millis(20);

/// Looks until `probe` has an answer, but no longer than `time`: for what may come or not.
pub fn once<T>(time: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    loop {
        let answer = probe();
        if answer.is_some() || began.elapsed() >= time {
            return answer;
        }
        thread::sleep(STEP);
    }
}

/// Looks until `probe` has an answer and returns it.
///
/// # Panics
/// With `what` and the last reason, when there is no answer within `bound`. Bounds are for broken programs:
/// they are far above what a slow machine needs.
pub fn until<T>(what: &str, bound: Duration, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let began = Instant::now();
    loop {
        match probe() {
            Ok(answer) => return answer,
            Err(reason) if began.elapsed() >= bound => {
                panic!("{what}: not within {bound:?}: {reason}")
            }
            Err(_) => thread::sleep(STEP),
        }
    }
}
