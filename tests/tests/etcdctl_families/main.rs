//! etcdctl looks the same on both sides, for every command of 3.5 but `check perf` and `migrate`, by families of
//! calls. The commands of `KV` are in the session of the test `etcdctl` too.
//!
//! `QUORATE_STAND_IN=etcd` compares the peer with itself: that tests the test.

mod side;
mod steps;
mod words;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use quorate_tests::cluster::Cluster;
use quorate_tests::programs;

use side::Side;
use steps::{FAMILIES, Family};

/// Commands that are in no family: one measures the machine, the other works on files of version 2, and has
/// left etcdctl's own list meanwhile.
const LEFT_OUT: [&str; 2] = ["check perf", "migrate"];

#[test]
fn every_family_looks_the_same_and_every_command_succeeds_in_one() {
    let test = "the families of etcdctl's commands";
    let Some(etcd) = programs::etcd(test) else { return };
    let commands = commands(&etcd.program("etcdctl"));
    let mut succeeded = BTreeSet::new();
    for Family { name, steps } in &FAMILIES {
        let Some(cluster) = Cluster::quorate(test) else { return };
        let mut ours = Side::new(cluster, etcd.program("etcdctl"));
        let mut peer = Side::new(Cluster::etcd(etcd.clone()), etcd.program("etcdctl"));
        for step in *steps {
            let expected = peer.run(step);
            let found = ours.run(step);
            assert_eq!(found, expected, "{name}: etcdctl {step} (left: Quorate)");
            if expected.succeeded {
                succeeded.extend(command(&commands, step));
            }
        }
    }
    let missing: Vec<_> = commands.iter().filter(|name| !succeeded.contains(*name)).collect();
    assert_eq!(missing, [LEFT_OUT[0]], "these commands of etcdctl succeed in no family");
}

#[test]
fn every_command_is_in_a_family() {
    let Some(etcd) = programs::etcd("the list of etcdctl's commands") else { return };
    let commands = commands(&etcd.program("etcdctl"));
    assert!(commands.len() > 40, "{commands:?}");
    let steps = FAMILIES.iter().flat_map(|family| family.steps);
    let used: BTreeSet<&String> = steps.filter_map(|step| command(&commands, step)).collect();
    let missing: Vec<_> = commands.iter().filter(|name| !used.contains(name)).collect();
    assert_eq!(missing, [LEFT_OUT[0]]);
    assert!(!commands.contains(LEFT_OUT[1]), "it is back");
}

/// All commands that etcdctl's help lists, and those below them.
fn commands(etcdctl: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut above = vec![String::new()];
    while let Some(group) = above.pop() {
        let mut help = Command::new(etcdctl);
        let words = group.split(' ').filter(|word| !word.is_empty());
        let output = help.env("ETCDCTL_API", "3").arg("help").args(words).output();
        let text = String::from_utf8(output.expect("etcdctl starts").stdout).expect("text");
        let listed = text.lines().skip_while(|line| *line != "COMMANDS:").skip(1);
        let listed = listed.take_while(|line| !line.is_empty());
        let names: Vec<&str> =
            listed.filter_map(|line| line.trim_start().split('\t').next()).collect();
        if names.is_empty() && !group.is_empty() {
            found.insert(group);
            continue;
        }
        above.extend(names.iter().map(|name| format!("{group} {name}").trim_start().to_owned()));
    }
    found
}

/// The command of a step.
fn command<'c>(commands: &'c BTreeSet<String>, step: &str) -> Option<&'c String> {
    let step = step.split_once("> ").map_or(step, |(_, step)| step);
    let is_it = |name: &&String| {
        step.strip_prefix(name.as_str())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    };
    commands.iter().find(is_it)
}
