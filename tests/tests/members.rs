//! Members come and go while clients write and read: nothing that was acknowledged is lost, no read goes
//! backwards, and everything serves again.

use quorate_api::etcdserverpb::MemberListRequest;
use quorate_api::etcdserverpb::{Member, MemberAddRequest, MoveLeaderRequest};
use quorate_tests::client::{self, Client};
use quorate_tests::cluster::Cluster;
use quorate_tests::verify::{Verify, await_writes, say};
use quorate_tests::wait;
use serde_json::Value;
use std::time::Duration;

/// How long a node may take to catch up.
const BOUND: Duration = Duration::from_secs(60);

/// Commands of ours: the peer has others.
fn quorate(test: &str) -> Option<Cluster> {
    Cluster::quorate(test).filter(Cluster::is_quorate)
}

fn members(cluster: &Cluster, asked: usize) -> Vec<Member> {
    let endpoint = cluster.nodes[asked].client.clone();
    wait::until("the list of members", BOUND, || {
        client::runtime().block_on(async {
            let request = MemberListRequest { linearizable: true };
            let list = Client::new(&endpoint).cluster.member_list(request).await;
            list.map(|list| list.into_inner().members).map_err(|status| status.to_string())
        })
    })
}

fn member(cluster: &Cluster, asked: usize, name: &str) -> Option<Member> {
    members(cluster, asked).into_iter().find(|member| member.name == name)
}

/// Waits until `name` votes.
fn await_vote(cluster: &Cluster, asked: usize, name: &str) -> Member {
    wait::until(&format!("{name} votes"), BOUND, || {
        let member = member(cluster, asked, name).filter(|member| !member.is_learner);
        member.ok_or_else(|| format!("{:?}", members(cluster, asked)))
    })
}

/// Runs a command that must succeed.
fn done(cluster: &Cluster, asked: usize, args: &[&str]) -> String {
    let (code, said) = cluster.member(asked, args);
    assert_eq!(code, Some(0), "{args:?}: {said}");
    said
}

/// Runs a command that must be refused.
fn refused(cluster: &Cluster, asked: usize, args: &[&str], why: &str) {
    let (code, said) = cluster.member(asked, args);
    assert_eq!(code, Some(1), "{args:?}: {said}");
    assert!(said.contains(why), "{args:?}: {said}");
}

fn end_well(verify: Verify) {
    let (report, code) = verify.end();
    assert_eq!(code, Some(0), "{report:#}");
    let marks = report["workload"]["marks"].as_array().expect("what was announced").clone();
    assert!(marks.iter().all(|mark| mark["resumed"] == Value::Bool(true)), "{report:#}");
    for mark in &marks {
        let pause_ms = mark["pause_ms"].as_f64().unwrap_or(f64::NAN);
        let what = mark["name"].as_str().unwrap_or_default();
        say(&format!("{what}: {pause_ms:.0} ms without an acknowledged write"));
    }
}

#[test]
fn nodes_are_added_and_the_leader_removed_under_load() {
    // So few entries are kept that what joins needs a snapshot.
    let few = ["--snapshot-count", "100"];
    let cluster = Cluster::quorate_with("nodes are added and the leader removed under load", &few);
    let Some(mut cluster) = cluster.filter(Cluster::is_quorate) else { return };
    let mut verify = Verify::start(&cluster, &[]);
    for _ in 0..5 {
        await_writes(&cluster);
    }

    let fourth = cluster.further_node("n4");
    let peer = cluster.nodes[fourth].peer.clone();
    verify.announce("add n4");
    let said = done(&cluster, 0, &["add", "n4", "--peer", &peer]);
    assert!(said.contains("--join n"), "{said}");
    refused(&cluster, 1, &["add", "n4", "--peer", "127.0.0.1:1"], "member ID already exist");
    refused(&cluster, 1, &["add", "n5", "--peer", &peer], "Peer URLs already exists");
    cluster.start(fourth);
    cluster.wait_ready(fourth);
    let added = await_vote(&cluster, 1, "n4");
    await_writes(&cluster);

    let leader = cluster.leader();
    let name = cluster.nodes[leader].name.clone();
    let survivor = (leader + 1) % 3;
    verify.announce("remove the leader");
    done(&cluster, survivor, &["remove", &name]);
    assert!(member(&cluster, survivor, &name).is_none());
    let (code, log) = cluster.wait_end(leader);
    assert_eq!(code, Some(4), "{log}");
    assert!(log.contains("has been removed from the cluster"), "{log}");
    await_writes(&cluster);
    refused(&cluster, survivor, &["remove", &name], "no member");

    // It is told so at every start, and its id is nobody else's.
    cluster.start(leader);
    let (code, log) = cluster.wait_end(leader);
    assert_eq!(code, Some(4), "{log}");
    assert!(members(&cluster, survivor).iter().all(|member| member.name != name));

    // What joined returns by itself after a crash, without asking anybody.
    verify.announce("kill n4");
    cluster.kill(fourth);
    await_writes(&cluster);
    cluster.start(fourth);
    cluster.wait_ready(fourth);
    assert_eq!(member(&cluster, fourth, "n4").map(|member| member.id), Some(added.id));
    end_well(verify);
}

#[test]
fn a_wiped_node_is_refused_until_it_is_replaced() {
    let Some(mut cluster) = quorate("a wiped node is refused until it is replaced") else { return };
    let mut verify = Verify::start(&cluster, &[]);
    await_writes(&cluster);
    let wiped = (cluster.leader() + 1) % 3;
    let asked = (wiped + 1) % 3;
    let name = cluster.nodes[wiped].name.clone();
    let before = member(&cluster, asked, &name).expect("a founder");
    verify.announce("wipe");
    cluster.kill(wiped);
    cluster.wipe(wiped);
    await_writes(&cluster);
    cluster.start(wiped);
    let (code, log) = cluster.wait_end(wiped);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("quorate member replace"), "{log}");

    verify.announce("replace");
    done(&cluster, asked, &["replace", &name]);
    cluster.start(wiped);
    cluster.wait_ready(wiped);
    let after = await_vote(&cluster, asked, &name);
    assert_ne!(after.id, before.id);
    assert_eq!(members(&cluster, asked).len(), 3);
    await_writes(&cluster);
    // The new one counts: with it, the cluster does without any other.
    verify.announce("kill another");
    cluster.kill(asked);
    await_writes(&cluster);
    cluster.start(asked);
    cluster.wait_ready(asked);
    end_well(verify);
}

#[test]
fn a_learner_added_by_etcds_api_joins_by_its_address_and_is_promoted() {
    let Some(mut cluster) = quorate("a learner joins by its address and is promoted") else {
        return;
    };
    let fourth = cluster.further_node("n4");
    let peer = format!("http://{}", cluster.nodes[fourth].peer);
    let endpoint = cluster.nodes[0].client.clone();
    let added = client::runtime().block_on(async {
        let request = MemberAddRequest { peer_ur_ls: vec![peer], is_learner: true };
        Client::new(&endpoint).cluster.member_add(request).await
    });
    let added = added.expect("added").into_inner().member.expect("the new member");
    assert!(added.is_learner && added.name.is_empty());
    let id = format!("{:x}", added.id);
    refused(&cluster, 0, &["promote", &id], "in sync with leader");
    refused(&cluster, 0, &["promote", "n1"], "can only promote a learner member");
    cluster.start(fourth);
    cluster.wait_ready(fourth);
    wait::until("n4 has caught up", BOUND, || match cluster.member(1, &["promote", "n4"]) {
        (Some(0), _) => Ok(()),
        (_, said) => Err(said),
    });
    assert_eq!(await_vote(&cluster, 2, "n4").id, added.id);
    // A voter can lead.
    let leader = cluster.leader();
    let endpoint = cluster.nodes[leader].client.clone();
    let moved = client::runtime().block_on(async {
        let request = MoveLeaderRequest { target_id: added.id };
        Client::new(&endpoint).maintenance.move_leader(request).await
    });
    moved.expect("moved");
    assert_eq!(cluster.leader(), fourth);
}

#[test]
fn a_node_that_nobody_added_is_not_let_in() {
    let Some(mut cluster) = quorate("a node that nobody added is not let in") else { return };
    let stranger = cluster.further_node("n4");
    cluster.start(stranger);
    let (code, log) = cluster.wait_end(stranger);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("quorate member add"), "{log}");
    assert_eq!(members(&cluster, 0).len(), 3);
}

#[test]
fn a_leader_that_is_stopped_hands_over_first() {
    let Some(mut cluster) = quorate("a leader that is stopped hands over first") else { return };
    let leader = cluster.leader();
    let mut process = cluster.nodes[leader].process.take().expect("it runs");
    let status = process.terminate(BOUND);
    assert_eq!(status.code(), Some(0), "{}", process.log());
    let log = process.log();
    assert!(!log.contains("could not be handed over"), "{log}");
    assert_ne!(cluster.leader(), leader);
    // Whoever leads now was told to: nobody waited for a leader that is gone.
    let next = cluster.leader();
    let log = cluster.nodes[next].process.as_ref().expect("it runs").log();
    assert!(log.contains("Transfer"), "{log}");
}
