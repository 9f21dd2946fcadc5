//! Is every acknowledged write kept, and does no read go backwards?
//!
//! Each writer owns one key and puts one value after the other under it; the value names the write. An
//! answer's revision is kept with the write ([`record::Record`]); a write without an answer may or may not
//! have happened, and is kept as such. Readers get random keys, linearizably. While this runs, [`ledger`]
//! holds every answer against what was already known when its request was sent:
//!
//! - a read returns no older write of its key than any answered request had shown or made;
//! - a put's revision is above every revision that was known before it was sent;
//! - no header's revision goes backwards, and no value appears that was not written.
//!
//! In the end ([`check`]) every acknowledged write is read again *at its revision*, where it must stand as
//! it was written, and the last state of each key must be its last acknowledged write or a later one
//! without an answer. This needs history: nothing may compact the keyspace meanwhile.

mod check;
mod clients;
mod ledger;
mod record;
mod summary;

use std::process::ExitCode;
use std::time::Instant;

use crate::Fault;
use crate::args::Verify;
use crate::drive::runtime;
use record::Record;
use summary::Summary;

/// Runs the workload and the check, or the check alone; exits with 1 when something was lost or went
/// backwards.
///
/// # Errors
/// When the settings do not fit, a file cannot be used, or the servers do not answer.
pub(crate) fn run(args: &Verify) -> Result<ExitCode, Fault> {
    let mut summary = Summary::default();
    let record = match &args.check {
        Some(path) => Record::load(path)?,
        None => {
            let began = Instant::now();
            let ledger = runtime()?.block_on(clients::work(args))?;
            summary.of_workload(&ledger, began.elapsed());
            let record = ledger.into_record();
            if let Some(path) = &args.record {
                record.save(path)?;
            }
            record
        }
    };
    if !args.no_check {
        let found = runtime()?.block_on(check::check(&record, args))?;
        summary.of_check(found);
    }
    summary.print(args.json)?;
    Ok(if summary.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
