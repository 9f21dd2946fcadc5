//! `quorate-sim`: the simulator as a program of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<u64> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let mut total = quorate_sim::Counts::default();
    std::panic::set_hook(Box::new(|_| {}));
    let began = std::time::Instant::now();
    #[cfg(feature = "defects")]
    if std::env::args().nth(3).is_some() {
        let filter = std::env::args().nth(3).unwrap();
        for &d in quorate_types::defect::Defect::ALL {
            if filter != "all" && format!("{d:?}") != filter { continue; }
            quorate_types::defect::activate(Some(d));
            let mut found = None;
            for seed in args[0]..args[1] {
                if let Some(v) = quorate_sim::run_seed(seed).violation { found = Some((seed, v)); break; }
            }
            match found { Some((s, v)) => { let t: String = v.to_string().chars().take(150).collect(); println!("{d:?}: {} {}", s - args[0] + 1, t) }, None => println!("{d:?}: SURVIVES") }
        }
        println!("{:?}", began.elapsed());
        return ExitCode::SUCCESS;
    }
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
