//! The faults end, and the group must serve again.

use quorate_raft::{MembershipChange, Role};
use quorate_types::NodeId;

use super::World;

/// In ticks: a healed group must serve within this.
const RECOVERY_TICKS_MAX: usize = 400;

impl World {
    /// All faults end; within bounded time everything proposed is applied everywhere.
    pub(crate) fn heal_and_recover(&mut self) {
        self.cut.clear();
        let nodes: Vec<_> = self.machines.keys().copied().collect();
        for &node in &nodes {
            if self.machines[&node].replica.is_none() {
                self.start(node);
            }
        }
        let before = self.commands;
        for _ in 0..RECOVERY_TICKS_MAX {
            self.true_us += self.config.tick_us;
            for &node in &nodes {
                self.replica(node).tick();
                if self.replica(node).role() == Role::Leader {
                    let _ = self.replica(node).change_membership(&MembershipChange::leave());
                    if self.commands < before + 3 {
                        self.propose(node);
                    }
                }
            }
            self.settle(&nodes);
            // The host knows which nodes were gone.
            nodes.iter().for_each(|&node| self.replica(node).wake());
            if self.commands >= before + 3 && self.has_recovered() {
                for replica in self.machines.values().filter_map(|machine| machine.replica.as_ref())
                {
                    self.oracle.on_end(replica);
                }
                return;
            }
        }
        let replicas = self.machines.iter().filter_map(|(node, machine)| {
            let replica = machine.replica.as_ref()?;
            Some(format!(
                "{node}: {:?} {} leader {:?} last {} commit {} applied {} {:?}",
                replica.role(),
                replica.term(),
                replica.leader(),
                replica.last(),
                replica.commit(),
                replica.applied_index(),
                replica.membership()
            ))
        });
        let replicas: Vec<_> = replicas.collect();
        panic!("no recovery within {RECOVERY_TICKS_MAX} ticks: {replicas:#?}");
    }

    pub(super) fn settle(&mut self, nodes: &[NodeId]) {
        for _ in 0..100_000 {
            let mut idle = self.network.is_empty();
            while !self.streams.is_empty() {
                self.end_stream(true);
                idle = false;
            }
            for message in std::mem::take(&mut self.network) {
                self.replica(message.to).step(message);
            }
            for &node in nodes {
                self.turn(node);
                while self.disks[&node].unsynced() > 0 {
                    self.sync(node);
                    idle = false;
                }
                self.install(node, false);
                self.answer_fetch(node, false);
                self.apply(node);
                let now = self.now(node);
                idle &=
                    !self.replica(node).has_ready(now) && self.machines[&node].fetches.is_empty();
            }
            if idle && self.network.is_empty() {
                return;
            }
        }
        panic!("the group never comes to rest");
    }

    pub(super) fn has_recovered(&mut self) -> bool {
        let running = self.machines.values().filter_map(|machine| machine.replica.as_ref());
        let leading = running.filter(|replica| replica.role() == Role::Leader);
        let latest = leading.max_by_key(|replica| replica.term());
        let Some(membership) = latest.map(|replica| replica.membership().clone()) else {
            return false;
        };
        if membership.is_joint() || !membership.promote.is_empty() {
            return false;
        }
        let mut leaders = 0;
        let last = self.oracle.highest_committed();
        for node in membership.nodes() {
            let replica = self.replica(node);
            if replica.last().index != last || replica.applied_index() != last {
                return false;
            }
            assert_eq!(replica.uncommitted_bytes(), 0, "the quota must come back");
            leaders += usize::from(replica.role() == Role::Leader);
        }
        leaders == 1
    }
}
