//! `raft-script FILE`: runs a script and prints the facts of each node after each stanza.

use std::error::Error;
use std::io::{BufWriter, Write as _};
use std::process::ExitCode;

use quorate_raft_script::{Runner, Script};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (Some(path), None) = (args.next(), args.next()) else {
        complain("usage: raft-script FILE");
        return ExitCode::from(2);
    };
    match run(path.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{}: {error}", path.display()));
            ExitCode::FAILURE
        }
    }
}

fn run(path: &std::path::Path) -> Result<(), Box<dyn Error>> {
    let script = Script::parse(&std::fs::read_to_string(path)?)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut runner = Runner::new();
    let mut failed = 0_usize;
    for stanza in &script.stanzas {
        let outcome = runner.run(stanza);
        for error in outcome.errors {
            complain(&format!("{}:{}: {error}", path.display(), stanza.line));
            failed += 1;
        }
        for fact in outcome.facts {
            writeln!(out, "{fact}")?;
        }
    }
    out.flush()?;
    match runner.diverged() {
        Some(how) => Err(how.into()),
        None if failed > 0 => Err(format!("{failed} commands failed").into()),
        None => Ok(()),
    }
}

fn complain(problem: &str) {
    // Nowhere is left to report to when this fails.
    let _ = writeln!(std::io::stderr(), "{problem}");
}
