//! What a driver does for its replica, and a network for both, sometimes late, twice or not at all.

use quorate_raft::{Ready, Role};
use quorate_types::{Body, EntryId, LogIndex, Message, NodeId};

use super::{MESSAGES_MAX, World};

impl World {
    pub(super) fn sync(&mut self, node: NodeId) {
        let count = self.random.usize(1..3);
        let mut ticket = None;
        for _ in 0..count {
            let disk = self.disks.get_mut(&node).expect("a member");
            if let Some((done, released)) = disk.sync() {
                ticket = Some(done);
                self.send(node, released);
            }
        }
        // The writer reports only the last ticket of what it has synced together.
        if let Some(ticket) = ticket {
            self.replica(node).persisted(ticket);
        }
    }

    pub(super) fn apply(&mut self, node: NodeId) {
        let machine = self.machines.get_mut(&node).expect("a member");
        let entries = std::mem::take(&mut machine.to_apply);
        let Some(last) = entries.last() else { return };
        assert_eq!(entries[0].id.index, machine.applied.next(), "applied in order, once");
        machine.applied = last.id.index;
        self.replica(node).applied(last.id.index);
    }

    /// Gives up some of the log.
    pub(super) fn compact(&mut self, node: NodeId) {
        let base = self.disks[&node].base();
        let applied = self.machines[&node].applied;
        if self.machines[&node].installing.is_some() || applied <= base {
            return;
        }
        let through = LogIndex(self.random.u64(base.value()..=applied.value()));
        let replica = self.replica(node);
        if through > replica.durable() {
            return;
        }
        let meta = replica.snapshot_meta(through).expect("applied");
        replica.compact(through);
        self.disks.get_mut(&node).expect("a member").compact(meta);
        self.oracle.compactions += 1;
    }

    /// A snapshot arrives, or is cut off, and its sender hears of it.
    pub(super) fn end_stream(&mut self, always: bool) {
        if self.streams.is_empty() {
            return;
        }
        let at = self.random.usize(..self.streams.len());
        let message = self.streams.swap_remove(at);
        let Body::Snapshot { meta } = &message.body else { panic!("{message:?} is no snapshot") };
        let (from, to, last) = (message.from, message.to, meta.last.index);
        let is_cut = !always && (self.cut.contains(&(from, to)) || self.random.u32(..5) == 0);
        let arrives = !is_cut && self.machines[&to].replica.is_some();
        if let Some(replica) = &mut self.machines.get_mut(&from).expect("a member").replica {
            replica.snapshot_sent(to, arrives.then_some(last));
        }
        if arrives {
            // The receiver's driver may hand it in late, or twice.
            self.network.push(message.clone());
            if self.random.u32(..4) == 0 {
                self.network.push(message);
            }
        }
    }

    pub(super) fn install(&mut self, node: NodeId, may_fail: bool) {
        let machine = self.machines.get_mut(&node).expect("a member");
        if self.disks[&node].unsynced() > 0 || machine.installing.is_none() {
            return;
        }
        let Some(meta) = machine.installing.take() else { return };
        if may_fail && self.random.u32(..10) == 0 {
            return self.replica(node).install_failed();
        }
        machine.to_apply.clear();
        machine.applied = meta.last.index;
        self.disks.get_mut(&node).expect("a member").install(meta.clone());
        self.oracle.on_installed(&meta);
        self.replica(node).installed(&meta);
    }

    pub(super) fn answer_fetch(&mut self, node: NodeId, may_fail: bool) {
        let machine = self.machines.get_mut(&node).expect("a member");
        for fetch in std::mem::take(&mut machine.fetches) {
            let mut entries = self.disks[&node].read(fetch.from, fetch.to, fetch.bytes_max);
            if may_fail {
                match self.random.u32(..10) {
                    0 => entries.clear(),
                    1 => entries.reverse(),
                    2 => entries.iter_mut().for_each(|entry| entry.id.term = entry.id.term.next()),
                    _ => {}
                }
            }
            self.replica(node).fetched(fetch, entries);
        }
    }

    pub(super) fn deliver_any(&mut self) {
        if self.network.is_empty() {
            return;
        }
        // Mostly the oldest ones, except for those that are put off.
        let put_off = self.random.u32(..100) < self.weather.delay_percent;
        let reach = if self.random.u32(..8) == 0 { self.network.len() } else { 3 };
        let at = self.random.usize(..reach.min(self.network.len()));
        let is_paused = self.machines[&self.network[at].to].paused_until > self.steps;
        if put_off || is_paused {
            let message = self.network.remove(at);
            return self.network.push(message);
        }
        let message = self.network.remove(at);
        if self.random.u32(..100) < self.weather.repeat_percent {
            self.network.push(message.clone());
        }
        let is_cut = self.cut.contains(&(message.from, message.to));
        let is_lost = self.random.u32(..100) < self.weather.loss_percent;
        let to = message.to;
        if !is_cut && !is_lost && self.machines[&to].replica.is_some() {
            self.replica(to).step(message);
            if self.random.u32(..100) < self.weather.turn_percent {
                self.turn(to);
            }
        }
    }

    pub(super) fn send(&mut self, node: NodeId, messages: Vec<Message>) {
        for message in messages {
            assert_eq!(message.from, node);
            self.oracle.on_sent(&message, &self.disks[&node]);
            self.network.push(message);
        }
        let excess = self.network.len().saturating_sub(MESSAGES_MAX);
        self.network.drain(..excess);
    }

    /// Carries out one ready.
    pub(super) fn turn(&mut self, node: NodeId) {
        let now = self.now(node);
        let replica = self.replica(node);
        let has_ready = replica.has_ready(now);
        let ready = replica.take_ready(now);
        assert_eq!(has_ready, !ready.is_empty(), "has_ready was wrong about {ready:?}");
        let Ready {
            append,
            messages,
            committed,
            reads,
            refused_reads,
            fetch,
            install,
            snapshot_requests,
            membership,
            role: _,
        } = ready;
        let wrote = append.as_ref().is_some_and(|append| !append.entries.is_empty());
        if let Some(append) = append {
            if let Some(first) = append.entries.first() {
                let before = LogIndex(first.id.index.value() - 1);
                let term = self.replica(node).term_at(before).expect("before an append");
                self.oracle.on_append(&append.entries, EntryId::new(term, before));
            }
            self.disks.get_mut(&node).expect("a member").write(append);
        }
        self.check_leases();
        let replica = self.machines[&node].replica.as_ref().expect("a running node");
        if let Some(membership) = &membership {
            assert_eq!(membership, replica.membership(), "{node} gave out another membership");
        }
        if (wrote || membership.is_some()) && self.machines[&node].installing.is_none() {
            let in_log = self.disks[&node].membership();
            assert_eq!(*replica.membership(), in_log, "{node} has another membership in its log");
        }
        self.oracle.on_turn(node, replica, &self.disks);
        self.oracle.on_applied(node, &committed, &self.disks[&node]);
        self.send(node, messages);
        for request in snapshot_requests {
            let applied = self.machines[&node].applied;
            let replica = self.replica(node);
            let meta = replica.snapshot_meta(applied).expect("applied");
            assert!(meta.last.index >= request.min_index);
            let (group, term) = (replica.config().group, replica.term());
            let body = Body::Snapshot { meta };
            self.streams.push(Message { group, from: node, to: request.to, term, body });
        }
        let machine = self.machines.get_mut(&node).expect("a member");
        if let Some(meta) = install {
            assert!(machine.installing.is_none(), "one install at a time");
            assert!(meta.last.index > machine.applied, "an install over applied entries");
            machine.to_apply.clear();
            machine.installing = Some(meta);
        }
        machine.to_apply.extend(committed);
        machine.fetches.extend(fetch);
        reads.iter().for_each(|read| self.oracle.on_read_served(read.id, read.index));
        refused_reads.iter().for_each(|&id| self.oracle.on_read_refused(id));
    }

    /// Lease Exclusivity: while a leader counts on its lease, nobody leads a later term.
    pub(super) fn check_leases(&self) {
        let leaders = self.machines.iter().filter_map(|(&node, machine)| {
            let replica = machine.replica.as_ref().filter(|r| r.role() == Role::Leader)?;
            Some((node, replica.term(), replica.lease_end()?))
        });
        let leaders: Vec<_> = leaders.collect();
        let latest = leaders.iter().max_by_key(|(_, term, _)| *term);
        for (node, term, lease_end) in &leaders {
            if let Some((other, later, _)) = latest.filter(|(_, later, _)| later > term) {
                let now = self.now(*node);
                assert!(
                    !self.config.lease || now >= *lease_end,
                    "{node} has a lease in {term} until {lease_end} (now {now}), and {other} leads {later}"
                );
            }
        }
    }
}
