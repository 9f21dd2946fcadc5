//! `quorate-sim`: the simulator as a program of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<u64> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let mut total = quorate_sim::Counts::default();
    std::panic::set_hook(Box::new(|_| {}));
    let began = std::time::Instant::now();
    let mut failed = 0;
    for seed in args[0]..args[1] {
        let outcome = quorate_sim::run_seed(seed);
        total.add(&outcome.counts);
        if let Some(v) = outcome.violation {
            failed += 1;
            let s: String = v.to_string().chars().take(400).collect();
            println!("seed {seed}: {s}");
        }
    }
    println!("{total:?} failed {failed} in {:?}", began.elapsed());
    ExitCode::SUCCESS
}
