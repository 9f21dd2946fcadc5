//! Does a server keep etcd's contract?
//!
//! While clients of all kinds load the servers ([`work`]), whatever they are answered is recorded
//! ([`history`]). A round has keys of its own, so that nothing is there when it begins; when it ends, what was
//! recorded is judged ([`judge`](judge())):
//!
//! - [`register`]: each key is a linearizable register, and revisions follow real time;
//! - [`watch`]: events come once, in order, whole revisions, without a gap over reconnects, true to their pairs;
//! - [`lease`]: leases last as long as they were promised, and their keys vanish together;
//! - [`lock`]: one holder at a time, with rising fencing tokens.
//!
//! The judges are functions of a history alone. What they find names the promise ([`verdict::Kind`]) and the
//! shortest part of the history that shows it: of calls on a key what is left when no further one can be
//! spared ([`shrink`](shrink::shrink)), of the others the few records that contradict each other.

mod history;
mod judge;
mod lease;
mod lock;
mod register;
mod shrink;
mod summary;
mod verdict;
mod watch;
mod work;

#[cfg(test)]
mod model;
#[cfg(test)]
mod planted;

use std::fs::File;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Fault;
use crate::args::Check;
use crate::drive::runtime;
use history::History;
use judge::judge;
use summary::Summary;

/// Loads, records and judges, or judges a file alone; exits with 1 when a promise was broken.
///
/// # Errors
/// When the settings do not fit, a file cannot be used, or the servers do not answer.
pub(crate) fn run(args: &Check) -> Result<ExitCode, Fault> {
    let mut summary = Summary::default();
    if let Some(path) = &args.judge {
        for (_, history) in History::load(path)? {
            summary.add(&history, judge(&history));
        }
    } else {
        rounds(args, &mut summary)?;
    }
    summary.print(args.json)?;
    Ok(if summary.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// When the run is to end.
struct End {
    until: Instant,
    input_ended: Arc<AtomicBool>,
}

impl End {
    fn new(args: &Check) -> Self {
        let input_ended = Arc::new(AtomicBool::new(false));
        if args.until_input_ends {
            let input_ended = Arc::clone(&input_ended);
            std::thread::spawn(move || {
                // An input that cannot be read any more has ended too.
                let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
                input_ended.store(true, Ordering::Release);
            });
        }
        Self { until: Instant::now() + Duration::from_secs(args.seconds), input_ended }
    }

    fn has_come(&self) -> bool {
        Instant::now() >= self.until || self.input_ended.load(Ordering::Acquire)
    }
}

/// One round after the other, until the time is up.
fn rounds(args: &Check, summary: &mut Summary) -> Result<(), Fault> {
    let mut file = match &args.history {
        Some(path) => {
            let shown = path.display();
            Some(File::create(path).map_err(|error| format!("{shown}: {error}"))?)
        }
        None => None,
    };
    let runtime = runtime()?;
    let end = End::new(args);
    let mut number = 0;
    while number == 0 || !end.has_come() {
        number += 1;
        let round = runtime.block_on(work::round(args, number, &end))?;
        if let Some(file) = &mut file {
            round.history.save(file, number)?;
        }
        summary.add(&round.history, judge(&round.history));
        summary.served(&round);
        if let Some(fault) = round.fault {
            // What was broken before the servers went away is worth more than that they did.
            summary.print(args.json)?;
            return Err(fault);
        }
    }
    Ok(())
}
