//! A campaign keeps count of the seeds that have passed, whatever ends it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::{fs, str};

use clap::Parser;
use quorate_sim::cli::{Args, Failed, run_command};

/// Takes what is written until so many chunks have passed, and fails then, as a pipe does whose reader has gone.
struct Interrupted {
    chunks: usize,
}

impl Write for Interrupted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if str::from_utf8(bytes).is_ok_and(|text| text.contains("passed")) {
            match self.chunks.checked_sub(1) {
                Some(left) => self.chunks = left,
                None => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn state(name: &str) -> PathBuf {
    let state = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    drop(fs::remove_file(&state));
    state
}

fn run(state: &Path, more: &[&str], out: &mut dyn Write) -> Result<(), Failed> {
    let state = state.to_str().expect("a path in UTF-8");
    let args = ["quorate-sim", "campaign", "--state", state, "--chunk", "2"];
    run_command(&Args::parse_from(args.iter().chain(more)), out)
}

fn counted(state: &Path) -> String {
    fs::read_to_string(state).expect("a count").trim().to_owned()
}

#[test]
fn an_interrupted_campaign_goes_on_where_it_stopped() {
    let state = state("interrupted");
    // The third chunk is counted before anybody is told of it; the other four seeds are never run.
    let ended = run(&state, &["--seeds", "10"], &mut Interrupted { chunks: 2 });
    assert!(matches!(ended, Err(Failed::Io(_))), "{ended:?}");
    assert_eq!(counted(&state), "6");
    let mut out = Vec::new();
    run(&state, &["--seeds", "3"], &mut out).expect("seeds that pass");
    let out = String::from_utf8(out).expect("text");
    let told: Vec<_> = out.lines().filter(|line| line.starts_with("passed")).collect();
    let spans: Vec<_> =
        told.iter().map(|line| line[16..].split(',').next().unwrap_or("")).collect();
    assert_eq!(spans, ["6 to 8", "6 to 9"], "{out}");
    assert_eq!(counted(&state), "9");
}

#[test]
fn seeds_that_were_left_out_are_not_counted() {
    let state = state("left_out");
    run(&state, &["--seeds", "2"], &mut io::sink()).expect("seeds that pass");
    run(&state, &["--from", "5", "--seeds", "2"], &mut io::sink()).expect("seeds that pass");
    assert_eq!(counted(&state), "2");
    run(&state, &["--from", "1", "--seeds", "3"], &mut io::sink()).expect("seeds that pass");
    assert_eq!(counted(&state), "4");
}
