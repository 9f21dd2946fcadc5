//! Random worlds: hundreds of seeds, thousands of steps each, every invariant checked after every
//! turn, and then the faults end and the group must serve again. A failing seed is printed; set
//! `SEED` to run that one alone, or `SEEDS` to run more of them.

mod world;

use world::World;

const SEEDS: u64 = 600;
const STEPS: usize = 20_000;

fn run(seed: u64) -> World {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    world.heal_and_recover();
    world
}

#[test]
fn invariants_hold_and_the_group_recovers_in_random_worlds() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let seeds = match (number("SEED"), number("SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, seeds) => 0..seeds.unwrap_or(SEEDS),
    };
    let (mut elections, mut committed, mut reads, mut lease_reads) = (0, 0, 0, 0);
    let (mut changes, mut compactions, mut installs) = (0, 0, 0);
    for seed in seeds.clone() {
        let world = std::panic::catch_unwind(|| run(seed));
        let world = world.unwrap_or_else(|_| panic!("failing seed: SEED={seed}"));
        elections += world.oracle.elections;
        committed += world.oracle.highest_committed().value();
        changes += world.oracle.changes;
        compactions += world.oracle.compactions;
        installs += world.oracle.installs;
        reads += world.oracle.reads_served;
        lease_reads += world.oracle.lease_reads;
    }
    // A world in which nothing happens proves nothing.
    if seeds.end - seeds.start >= SEEDS {
        assert!(elections > 2_000, "only {elections} elections");
        assert!(committed > 20_000, "only {committed} entries committed");
        assert!(reads > 2_000, "only {reads} reads served");
        assert!(changes > 1_000, "only {changes} changes of the membership");
        assert!(compactions > 1_000, "only {compactions} compactions");
        assert!(installs > 500, "only {installs} snapshots installed");
        assert!(lease_reads > 2_000, "only {lease_reads} reads confirmed by a lease");
    }
}
