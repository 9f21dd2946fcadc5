//! A leader that is stopped and goes on (a suspended machine, a starved process) may find its lease gone and
//! another leader at work: it serves no stale read.
//!
//! `PAUSES` says how many times the leader is stopped, for 0.1 to 10 s each; `SEED` draws how long.

use std::env;
use std::time::Duration;

use quorate_tests::cluster::Cluster;
use quorate_tests::verify::{Verify, await_writes, say};

/// Pauses in an ordinary run: shorter than a lease, about as long, longer, and longer than an election.
const PAUSES_MS: [u64; 4] = [100, 900, 1_500, 4_000];

#[test]
fn a_leader_that_was_stopped_serves_no_stale_read() {
    let Some(mut cluster) = Cluster::quorate("a stopped leader serves no stale read") else {
        return;
    };
    // Callers wait longer than any pause: what a stopped leader is asked meanwhile, it must answer right
    // when it goes on.
    let mut verify = Verify::start(&cluster, &["--timeout", "15s", "--readers", "24"]);
    let pauses = pauses();
    for pause in &pauses {
        await_writes(&cluster);
        let leader = cluster.leader();
        verify.announce(&format!("pause {} for {pause:?}", cluster.nodes[leader].name));
        cluster.pause(leader, *pause);
        cluster.wait_ready(leader);
    }
    await_writes(&cluster);
    let (report, code) = verify.end();
    assert_eq!(code, Some(0), "{report:#}");
    let workload = &report["workload"];
    let reads = workload["reads"].as_i64().expect("a count");
    assert!(reads > 0, "{report:#}");
    say(&format!(
        "{} pauses of the leader: {reads} reads, {} writes acknowledged, none stale, none lost",
        pauses.len(),
        workload["acknowledged"]
    ));
}

/// How long the leader is stopped each time.
fn pauses() -> Vec<Duration> {
    let number = |name: &str| env::var(name).ok().map(|value| value.parse().expect("a number"));
    let Some(count) = number("PAUSES") else {
        return PAUSES_MS.map(Duration::from_millis).to_vec();
    };
    let mut random = fastrand::Rng::with_seed(number("SEED").unwrap_or(1));
    // As many between 0.1 and 1 s as between 1 and 10 s.
    let draw = |_| Duration::from_secs_f64(10f64.powf(random.f64() * 2.0 - 1.0));
    (0..count).map(draw).collect()
}
