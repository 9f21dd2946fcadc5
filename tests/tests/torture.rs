//! A few rounds of each kind of torture; `make torture` has many.

use quorate_tests::cluster::Cluster;
use quorate_tests::fuzz;
use quorate_tests::network::with_network;
use quorate_tests::torture::power::disk;
use quorate_tests::torture::{check, damage, kill, power};
use quorate_tests::verify::say;

use std::fs::{self, File};
use std::io::Write;

#[test]
fn hostile_messages_at_every_method_leave_the_nodes_as_good_as_before() {
    fuzz::run(&fuzz::Settings::brief(400, 1)).expect("nothing happens to them");
}

#[test]
fn nodes_that_are_killed_lose_nothing_and_serve_again() {
    let Some(mut session) = kill::begin() else { return };
    let mut random = fastrand::Rng::with_seed(1);
    for victims in kill::Victims::EACH {
        kill::round(&mut session, victims, &mut random);
    }
    say(&session.end().to_string());
}

#[test]
fn nodes_that_lose_their_power_lose_nothing_that_was_acknowledged() {
    let Some(mut session) = power::begin("power loss") else { return };
    session.round(&[0]);
    session.round(&[1]);
    session.round(&[0, 1, 2]);
    say(&session.end().to_string());
}

#[test]
fn a_cut_takes_what_was_not_synced_and_nothing_else() {
    let Some((disk, _directory)) = disk("what a power cut takes") else { return };
    let at = |name: &str| disk.path().join(name);
    let mut kept = File::create(at("kept")).expect("made");
    kept.write_all(&[1; 4096]).expect("written");
    kept.sync_all().expect("synced");
    File::open(disk.path()).and_then(|directory| directory.sync_all()).expect("synced");
    kept.write_all(&[2; 4096]).expect("written, not synced");
    fs::write(at("lost"), [3; 4096]).expect("written, not synced");
    disk.cut();
    assert!(fs::write(at("late"), [4; 4096]).is_err(), "nothing is written any more");
    drop(kept);
    disk.restore();
    assert_eq!(fs::read(at("kept")).expect("it was synced"), [1; 4096]);
    assert!(!at("lost").exists() && !at("late").exists());
}

#[test]
fn flipped_bits_and_torn_logs_are_detected_or_harmless() {
    let Some(mut session) = damage::begin("damage to files") else { return };
    let mut random = fastrand::Rng::with_seed(1);
    for damage in damage::Damage::EACH {
        damage::round(&mut session, damage, &mut random);
    }
    say(&session.end().to_string());
}

#[test]
fn the_contract_is_kept_while_nodes_are_killed_paused_and_cut_off() {
    let mut cluster = check::begin();
    let mut random = fastrand::Rng::with_seed(1);
    for fault in check::Fault::EACH {
        say(&check::round(&mut cluster, fault, &mut random).to_string());
    }
}

#[test]
fn the_contract_is_kept_while_the_kernel_cuts_links_both_ways_one_way_and_between_two() {
    with_network("partitions", 3, |network| {
        let mut cluster = Cluster::networked(network);
        let mut random = fastrand::Rng::with_seed(1);
        for fault in check::Fault::OF_NETWORKS {
            say(&check::round(&mut cluster, fault, &mut random).to_string());
        }
    });
}
