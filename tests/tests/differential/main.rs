//! The same requests to etcd and to Quorate, one at a time, and the answers compared field by field.
//!
//! A seed makes a sequence of steps; each begins with an empty store. The answers must be equal but for identities,
//! terms and what depends on time, revisions included; where they may differ, [`known`] says so by a name. A
//! difference prints the seed, the steps before it, the step and both answers.
//!
//! `DIFFERENTIAL_SEEDS=1000` runs so many sequences of each family, `DIFFERENTIAL_SEED=7` repeats one, and
//! `DIFFERENTIAL_STEPS` makes them longer or shorter. In the end each family reports its known differences, and which
//! of them were never met; where so many sequences should have met one, the family fails.

mod auth;
mod auth_known;
mod auth_steps;
mod compare;
mod generate;
mod harness;
mod keys;
mod known;
mod lease;
mod maintenance;
mod members;
mod members_side;
mod queue;
mod queue_calls;
mod upkeep;
mod watch;
mod watch_stream;

use known::Family;

#[test]
fn etcd_and_quorate_give_the_same_answers() {
    harness::run("differential: keys", Family::Keys, keys::sequence);
}

#[test]
fn etcd_and_quorate_answer_the_same_about_leases() {
    harness::run("differential: leases", Family::Leases, lease::sequence);
}

#[test]
fn etcd_and_quorate_tell_watchers_the_same() {
    harness::run("differential: watches", Family::Watches, watch::sequence);
}

#[test]
fn etcd_and_quorate_hash_compact_and_alarm_the_same() {
    harness::run("differential: upkeep", Family::Upkeep, upkeep::sequence);
}

#[test]
fn etcd_and_quorate_answer_the_same_about_users() {
    harness::run("differential: users", Family::Users, auth::sequence);
}

#[test]
fn etcd_and_quorate_let_in_the_same_holders_and_leaders() {
    harness::run("differential: locks and elections", Family::Queues, queue::sequence);
}

#[test]
fn etcd_and_quorate_change_members_and_leaders_the_same() {
    harness::run("differential: members", Family::Members, members::sequence);
}

#[test]
fn etcd_and_quorate_say_the_same_of_their_state() {
    harness::run("differential: maintenance", Family::Maintenance, maintenance::sequence);
}
