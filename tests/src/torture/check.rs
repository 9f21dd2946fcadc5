//! The contract of etcd, under faults: each round is one run of `quorate-load --check` while one kind of fault
//! happens again and again.

use std::time::Duration;

use super::Tally;
use crate::check::{Check, SEEN, count};
use crate::cluster::Cluster;
use crate::verify::await_writes;

/// Faults in one round: the clients have something to go on from, and leases to keep over it.
const FAULTS: u64 = 3;

/// The longest that a node is stopped or cut off: a few elections.
const AWAY_MS_MAX: u64 = 4_000;

/// What happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// `kill -9` of who leads the data.
    KillLeader,
    /// `kill -9` of everybody, one right after the other.
    KillAll,
    /// A node stops for a while, and goes on as if nothing had been: mostly who leads.
    Pause,
    /// A node neither hears nor reaches the others for a while; clients reach it.
    Cut,
    /// The same, by the kernel: the node's link is down.
    LinkDown,
    /// A node hears the others for a while, and none of them hears it.
    Unheard,
    /// A node is heard by the others for a while, and hears none of them.
    Deaf,
    /// Who leads and one other do not hear each other for a while; the third hears both.
    Pair,
}

impl Fault {
    /// Those of a cluster whose links can be cut by relays.
    pub const EACH: [Self; 4] = [Self::KillLeader, Self::KillAll, Self::Pause, Self::Cut];

    /// Those of a cluster on networks of its own.
    pub const OF_NETWORKS: [Self; 4] = [Self::LinkDown, Self::Unheard, Self::Deaf, Self::Pair];

    fn name(self) -> &'static str {
        match self {
            Self::KillLeader => "check: leader killed",
            Self::KillAll => "check: all killed",
            Self::Pause => "check: paused",
            Self::Cut => "check: cut off",
            Self::LinkDown => "partition: link down",
            Self::Unheard => "partition: unheard",
            Self::Deaf => "partition: deaf",
            Self::Pair => "partition: two of three",
        }
    }

    /// Happens once. All nodes serve again afterwards.
    fn happen(self, cluster: &mut Cluster, random: &mut fastrand::Rng) {
        let leader = cluster.leader();
        let other = (leader + random.usize(1..3)) % 3;
        let one = if random.u32(..4) == 0 { other } else { leader };
        let away = Duration::from_millis(random.u64(AWAY_MS_MAX / 4..AWAY_MS_MAX));
        match self {
            Self::KillLeader => {
                cluster.kill(leader);
                await_writes(cluster);
                cluster.start(leader);
                cluster.wait_ready(leader);
            }
            Self::KillAll => {
                (0..3).for_each(|number| cluster.kill(number));
                cluster.start_all();
            }
            Self::Pause => cluster.pause(one, away),
            Self::Cut => {
                let dropped = cluster.relays().dropped();
                cluster.relays().cut(one);
                // The time is the fault, not a wait for something.
                std::thread::sleep(away);
                cluster.relays().mend();
                assert!(cluster.relays().dropped() > dropped, "nothing was sent meanwhile");
            }
            Self::LinkDown | Self::Unheard | Self::Deaf | Self::Pair => {
                let network = cluster.network();
                let others = (0..3).filter(|number| *number != one);
                match self {
                    Self::Unheard => others.for_each(|other| network.lose(one, other)),
                    Self::Deaf => others.for_each(|other| network.lose(other, one)),
                    Self::Pair => {
                        network.lose(leader, other);
                        network.lose(other, leader);
                    }
                    _ => network.cut(one),
                }
                std::thread::sleep(away);
                network.mend();
            }
        }
        (0..3).for_each(|number| cluster.await_read(number));
        await_writes(cluster);
    }
}

/// A fresh cluster whose links can be cut.
pub fn begin() -> Cluster {
    Cluster::relayed()
}

/// One check, with `fault` happening a few times.
///
/// # Panics
/// When a promise was broken, or the nodes do not come to serve.
pub fn round(cluster: &mut Cluster, fault: Fault, random: &mut fastrand::Rng) -> Tally {
    let seed = random.u32(..).to_string();
    let check = Check::start(cluster, &["--round", "8s", "--rate", "500", "--seed", &seed]);
    await_writes(cluster);
    (0..FAULTS).for_each(|_| fault.happen(cluster, random));
    let report = check.kept();
    let mut tally = Tally::default();
    tally.checked.insert("faults".to_owned(), FAULTS);
    for what in SEEN {
        tally.checked.insert(what.to_owned(), count(&report, what));
    }
    tally.round(fault.name());
    tally
}
