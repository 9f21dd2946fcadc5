//! The gate of the oracles: each known defect is switched on by itself, and seeds are run until one finds it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use quorate_types::defect::{Defect, activate};

use crate::check::Violation;
use crate::museum::{Exhibit, Kept, MUSEUM};
use crate::run::run_seed;

/// What became of one defect.
#[derive(Clone, Debug)]
pub struct Mutant {
    /// The defect.
    pub defect: Defect,
    /// How many seeds it took, and what was found; `None` if it survived them all.
    pub kill: Option<(u64, Violation)>,
}

/// Tries every one of `defects` on up to `seeds_max` seeds from `first` on, on `threads` threads; a defect is done
/// with its first kill, and is told to `on_done`.
#[must_use]
pub fn mutants(
    defects: &[Defect],
    first: u64,
    seeds_max: u64,
    threads: usize,
    on_done: &(dyn Fn(&Mutant) + Sync),
) -> Vec<Mutant> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    let work = || {
        while let Some(&defect) = defects.get(next.fetch_add(1, Ordering::Relaxed)) {
            let kill = (0..seeds_max).find_map(|offset| {
                let seed = first + offset;
                activate(Some(defect));
                let found = run_seed(seed).violation;
                activate(None);
                // What fails without the defect too says nothing about it.
                let is_sound = found.is_none() || run_seed(seed).violation.is_none();
                found.filter(|_| is_sound).map(|violation| (offset + 1, violation))
            });
            let mutant = Mutant { defect, kill };
            on_done(&mutant);
            let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            found.push(mutant);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(work);
        }
    });
    let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    found.sort_by_key(|mutant| mutant.defect);
    found
}

/// The table of a gate, as Markdown.
#[must_use]
pub fn table(mutants: &[Mutant], seeds_max: u64) -> String {
    let killed = mutants.iter().filter(|mutant| mutant.kill.is_some()).count();
    let mut text = format!(
        "# Known defects, and who finds them\n\n\
         Written by `make mutants`: do not edit. Each defect is switched on by itself; seeds are counted until the first \
         that fails.\n\n\
         {killed} of {} defects were found within {seeds_max} seeds each.\n\n\
         | defect | source | what is wrong | seeds | found by |\n|---|---|---|---|---|\n",
        mutants.len()
    );
    for Mutant { defect, kill } in mutants {
        let (seeds, oracle) = match kill {
            Some((seeds, violation)) => (seeds.to_string(), violation.oracle.to_string()),
            None => ("-".to_owned(), "**nobody**".to_owned()),
        };
        let (source, what) = (defect.source(), defect.what());
        text += &format!("| `{defect:?}` | {source} | {what} | {seeds} | {oracle} |\n");
    }
    text + &museum(mutants)
}

/// The bugs of other stores, and what became of the defects that put them back.
fn museum(mutants: &[Mutant]) -> String {
    let mut text = "\n## Bugs of other stores\n\n\
         Which defect puts each back; in parentheses the seeds until it was found.\n\n\
         | | reports | what happened | here |\n|---|---|---|---|\n"
        .to_owned();
    for Exhibit { number, reports, what, kept } in MUSEUM {
        let here = match kept {
            Kept::NoCode(why) => format!("no code yet: {why}"),
            Kept::By(defects) => {
                let of = |defect: &Defect| {
                    let mutant = mutants.iter().find(|mutant| mutant.defect == *defect);
                    match mutant.map(|mutant| &mutant.kill) {
                        Some(Some((seeds, _))) => format!("`{defect:?}` ({seeds})"),
                        Some(None) => format!("`{defect:?}` (**not found**)"),
                        None => format!("`{defect:?}` (not tried)"),
                    }
                };
                defects.iter().map(of).collect::<Vec<_>>().join(", ")
            }
        };
        text += &format!("| {number} | {reports} | {what} | {here} |\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_defect_that_another_store_had_is_in_the_museum_once() {
        for &defect in Defect::ALL {
            let shows = |exhibit: &&Exhibit| match exhibit.kept {
                Kept::By(defects) => defects.contains(&defect),
                Kept::NoCode(_) => false,
            };
            let exhibits: Vec<_> = MUSEUM.iter().filter(shows).collect();
            assert_eq!(exhibits.len(), usize::from(defect.source() != "own"), "{defect:?}");
            let names = |exhibit: &&Exhibit| exhibit.reports.contains(defect.source());
            assert!(exhibits.iter().all(names), "{defect:?} of {}", defect.source());
        }
    }
}
