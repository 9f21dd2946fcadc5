//! An engine keeps its word: three nodes over real QUIC, real RocksDB and real syncs, in one process.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use metrics::NoopRecorder;
use quorate_node::{
    Consistency, Engine, EngineConfig, EngineError, InitialGroup, OpenError, Role, local,
};
use quorate_types::machine::{Direction, StateError};
use quorate_types::{
    Committed, Entry, EntryId, GroupId, KeyRange, LogIndex, MachineKind, NodeId, Payload,
    ReadError, StateBatch, StateMachine, StateReader,
};
use quorate_wal::rocks::{RocksLog, RocksOptions};
use quorate_wal::{LogStore as _, Write};

const GROUP: GroupId = GroupId(100);

/// Only ends what would hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// Keeps every command as a row, and counts them; a query lists them all.
#[derive(Debug)]
struct JournalKind;

struct Journal {
    entries: u64,
}

impl StateMachine for Journal {
    fn apply(
        &mut self,
        committed: &[Committed],
        batch: &mut dyn StateBatch,
    ) -> Result<Vec<Bytes>, StateError> {
        let mut outcomes = Vec::new();
        for one in committed {
            assert!(*one.command != *b"panic", "as asked");
            self.entries += 1;
            batch.put(&self.entries.to_be_bytes(), &one.command);
            outcomes.push(Bytes::from(self.entries.to_string()));
        }
        Ok(outcomes)
    }

    fn meta(&self) -> Bytes {
        Bytes::copy_from_slice(&self.entries.to_le_bytes())
    }
}

impl MachineKind for JournalKind {
    fn name(&self) -> &str {
        "journal"
    }

    fn open(
        &self,
        _: GroupId,
        meta: &[u8],
        _: &dyn StateReader,
    ) -> Result<Box<dyn StateMachine>, StateError> {
        let entries = meta.try_into().map_or(0, u64::from_le_bytes);
        Ok(Box::new(Journal { entries }))
    }

    fn read(
        &self,
        _: GroupId,
        _: &Bytes,
        _: &[u8],
        state: &dyn StateReader,
    ) -> Result<Bytes, ReadError> {
        let mut all = Vec::new();
        state.scan(&[], None, Direction::Forward, &mut |_, command| {
            all.push(String::from_utf8_lossy(command).into_owned());
            std::ops::ControlFlow::Continue(())
        })?;
        Ok(Bytes::from(all.join(" ")))
    }
}

async fn open(configs: &[EngineConfig]) -> Vec<Engine> {
    let opening = configs.iter().map(|config| async {
        Engine::open(config.clone(), vec![Arc::new(JournalKind)], &NoopRecorder).await
    });
    try_join_all(opening).await.expect("the nodes open")
}

async fn create(nodes: &[Engine], group: GroupId) {
    let voters: Vec<NodeId> = nodes.iter().map(Engine::node).collect();
    for node in nodes {
        node.create_group(group, "journal", None, voters.clone()).await.expect("created");
    }
}

async fn propose(node: &Engine, group: GroupId, command: &'static str) -> Bytes {
    node.propose(group, Bytes::from(command)).await.expect("proposed").outcome
}

async fn journal(node: &Engine, group: GroupId) -> String {
    let read = node.read(group, Bytes::new(), Consistency::Linearizable).await.expect("read");
    String::from_utf8_lossy(&read.answer).into_owned()
}

async fn shut_down(nodes: Vec<Engine>) {
    for node in nodes {
        node.shutdown().await;
    }
}

/// A node alone, which founds its cluster by itself.
async fn alone(dir: &Path) -> Result<Engine, OpenError> {
    let config = local::configs(1, dir).expect("settings").remove(0);
    Engine::open(config, vec![Arc::new(JournalKind)], &NoopRecorder).await
}

#[tokio::test]
async fn any_node_takes_a_write_and_any_node_reads_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let nodes = open(&local::configs(3, dir.path()).expect("settings")).await;
    create(&nodes, GROUP).await;
    assert_eq!(propose(&nodes[0], GROUP, "a").await, "1");
    assert_eq!(propose(&nodes[1], GROUP, "b").await, "2");
    assert_eq!(propose(&nodes[2], GROUP, "c").await, "3");
    for node in &nodes {
        assert_eq!(journal(node, GROUP).await, "a b c");
    }
    shut_down(nodes).await;
}

#[tokio::test]
async fn what_was_answered_is_in_the_indexes_that_a_node_shows() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let node = alone(dir.path()).await.expect("opens");
    create(std::slice::from_ref(&node), GROUP).await;
    for _ in 0..100 {
        let proposed = node.propose(GROUP, Bytes::from("a")).await.expect("proposed").id.index;
        let (commit, applied) = node.indexes(GROUP).expect("it lives here");
        assert!(proposed <= applied && applied <= commit, "{proposed} {applied} {commit}");
    }
    assert!(!node.is_learner(GROUP));
    assert_eq!(node.indexes(GroupId(999)), None);
    node.shutdown().await;
}

#[tokio::test]
async fn the_preferred_node_comes_to_lead_whoever_was_elected() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let nodes = open(&local::configs(3, dir.path()).expect("settings")).await;
    create(&nodes, GROUP).await;
    propose(&nodes[0], GROUP, "a").await;
    for preferred in [nodes[0].node(), nodes[1].node()] {
        for node in &nodes {
            node.prefer_leader(GROUP, Some(preferred)).expect("it lives here");
        }
        let mut leadership = nodes[2].leadership(GROUP).expect("it lives here");
        let leads = leadership.wait_for(|now| now.leader == Some(preferred));
        let led = tokio::time::timeout(PATIENCE, leads).await.map(|led| led.is_ok());
        assert_eq!(led, Ok(true), "{preferred} never led");
    }
    assert_eq!(propose(&nodes[2], GROUP, "b").await, "2");
    shut_down(nodes).await;
}

#[tokio::test]
async fn groups_share_a_node_but_nothing_else() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let nodes = open(&local::configs(3, dir.path()).expect("settings")).await;
    let groups: Vec<_> = (200..216).map(GroupId).collect();
    for &group in &groups {
        create(&nodes, group).await;
    }
    let writes = groups.iter().flat_map(|&group| {
        ["x", "y", "z"].map(|command| nodes[0].propose(group, Bytes::from(command)))
    });
    try_join_all(writes).await.expect("proposed");
    for &group in &groups {
        let mut commands: Vec<_> =
            journal(&nodes[1], group).await.split(' ').map(String::from).collect();
        commands.sort_unstable();
        assert_eq!(commands, ["x", "y", "z"], "in group {group}");
    }
    shut_down(nodes).await;
}

#[tokio::test]
async fn groups_and_what_they_hold_are_there_after_a_restart() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let configs = local::configs(3, dir.path()).expect("settings");
    let nodes = open(&configs).await;
    create(&nodes, GROUP).await;
    propose(&nodes[0], GROUP, "before").await;
    shut_down(nodes).await;
    let nodes = open(&configs).await;
    assert_eq!(propose(&nodes[2], GROUP, "after").await, "2");
    assert_eq!(journal(&nodes[1], GROUP).await, "before after");
    shut_down(nodes).await;
}

#[tokio::test]
async fn a_node_without_the_group_gets_it_by_a_snapshot() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let configs = local::configs(3, dir.path()).expect("settings");
    let nodes = open(&configs).await;
    let voters: Vec<NodeId> = nodes.iter().map(Engine::node).collect();
    for node in &nodes[..2] {
        node.create_group(GROUP, "journal", None, voters.clone()).await.expect("created");
    }
    propose(&nodes[0], GROUP, "a").await;
    propose(&nodes[1], GROUP, "b").await;
    let own = async {
        loop {
            let read = nodes[2].read(GROUP, Bytes::new(), Consistency::Serializable).await;
            match read {
                Ok(read) if read.answer == "a b" => break,
                Ok(_) | Err(EngineError::UnknownGroup(_)) => {}
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, own).await.expect("the group comes");
    propose(&nodes[2], GROUP, "c").await;
    shut_down(nodes).await;

    let nodes = open(&configs).await;
    for node in &nodes {
        assert_eq!(journal(node, GROUP).await, "a b c");
    }
    shut_down(nodes).await;
}

#[tokio::test]
async fn leadership_can_be_followed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let node = alone(dir.path()).await.expect("opens");
    create(std::slice::from_ref(&node), GROUP).await;
    let mut leadership = node.leadership(GROUP).expect("lives here");
    let led = leadership.wait_for(|now| now.serving).await.expect("elected");
    assert_eq!((led.role, led.leader), (Role::Leader, Some(node.node())));
    drop(led);
    node.shutdown().await;
}

#[tokio::test]
async fn two_groups_never_own_the_same_keys() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let config = local::configs(1, dir.path()).expect("settings").remove(0);
    let kinds: Vec<Arc<dyn MachineKind>> = vec![Arc::new(quorate_node::KvKind::default())];
    let node = Engine::open(config, kinds, &NoopRecorder).await.expect("opens");
    let voters = [node.node()];
    let all = Some(KeyRange::all());
    node.create_group(GROUP, "kv", all.clone(), voters).await.expect("the first owns all keys");
    let refused = node.create_group(GroupId(101), "kv", all, voters).await;
    assert!(matches!(refused, Err(EngineError::Host(_))), "{refused:?}");
    node.shutdown().await;
}

#[tokio::test]
async fn requests_for_what_does_not_exist_are_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let node = alone(dir.path()).await.expect("opens");
    let unknown = node.propose(GROUP, Bytes::new()).await;
    assert_eq!(unknown.map(|proposed| proposed.id), Err(EngineError::UnknownGroup(GROUP)));
    let kind = node.create_group(GROUP, "nonsense", None, [node.node()]).await;
    assert_eq!(kind, Err(EngineError::UnknownKind("nonsense".into())));
    create(std::slice::from_ref(&node), GROUP).await;
    let twice = node.create_group(GROUP, "journal", None, [node.node()]).await;
    assert!(matches!(twice, Err(EngineError::Host(_))), "{twice:?}");
    node.shutdown().await;
}

#[tokio::test]
async fn a_directory_in_use_or_of_another_node_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let config = local::configs(1, dir.path()).expect("settings").remove(0);
    let open =
        |config: EngineConfig| Engine::open(config, vec![Arc::new(JournalKind)], &NoopRecorder);
    let node = open(config.clone()).await.expect("opens");
    let in_use = open(config.clone()).await;
    assert!(matches!(in_use, Err(OpenError::DataDir(_))), "{in_use:?}");
    create(std::slice::from_ref(&node), GROUP).await;
    propose(&node, GROUP, "kept").await;
    node.shutdown().await;
    let other = EngineConfig { cluster_token: "another".into(), ..config.clone() };
    let foreign = open(other).await;
    assert!(matches!(foreign, Err(OpenError::DataDir(_))), "{foreign:?}");
    let node = open(config).await.expect("nothing was changed");
    assert_eq!(journal(&node, GROUP).await, "kept");
    node.shutdown().await;
}

#[tokio::test]
async fn a_started_node_is_not_given_another_initial_cluster() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let mut config = local::configs(1, dir.path()).expect("settings").remove(0);
    let open =
        |config: EngineConfig| Engine::open(config, vec![Arc::new(JournalKind)], &NoopRecorder);
    open(config.clone()).await.expect("opens").shutdown().await;
    config.initial_cluster.insert("n2".into(), "127.0.0.1:1".into());
    let refused = open(config).await;
    assert!(matches!(refused, Err(OpenError::Config(_))), "{refused:?}");
}

#[tokio::test]
async fn what_no_frame_could_carry_is_refused_before_it_is_proposed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let node = alone(dir.path()).await.expect("opens");
    create(std::slice::from_ref(&node), GROUP).await;
    let refused = node.propose(GROUP, Bytes::from(vec![b'x'; 16 << 20])).await;
    assert!(matches!(refused, Err(EngineError::TooLarge { .. })), "{refused:?}");
    assert_eq!(propose(&node, GROUP, "small").await, "1");
    node.shutdown().await;
}

#[tokio::test]
async fn a_started_directory_whose_log_is_gone_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let config = local::configs(1, dir.path()).expect("settings").remove(0);
    let open =
        |config: EngineConfig| Engine::open(config, vec![Arc::new(JournalKind)], &NoopRecorder);
    open(config.clone()).await.expect("opens").shutdown().await;
    std::fs::remove_dir_all(config.data_dir.join("log")).expect("removed");
    let refused = open(config).await;
    assert!(matches!(refused, Err(OpenError::MissingGroup(_))), "{refused:?}");
}

#[tokio::test]
async fn a_machine_that_panics_again_and_again_takes_down_its_group_alone() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let config = local::configs(1, dir.path()).expect("settings").remove(0);
    let node =
        Engine::open(config, vec![Arc::new(JournalKind)], &NoopRecorder).await.expect("opens");
    let healthy = GroupId(101);
    create(std::slice::from_ref(&node), GROUP).await;
    create(std::slice::from_ref(&node), healthy).await;
    propose(&node, healthy, "before").await;
    let mut leadership = node.leadership(GROUP).expect("lives here");
    let lost = node.propose(GROUP, Bytes::from("panic")).await;
    assert_eq!(lost.map(|proposed| proposed.id), Err(EngineError::TimedOut), "told at once");
    let gone = leadership.wait_for(|_| false).await;
    assert!(gone.is_err(), "it leaves after the third time");
    let gone = node.propose(GROUP, Bytes::from("late")).await;
    assert_eq!(gone.map(|proposed| proposed.id), Err(EngineError::UnknownGroup(GROUP)));
    assert_eq!(propose(&node, healthy, "after").await, "2");
    node.shutdown().await;
}

/// Flips a bit in the sorted file of a stopped node's log, inside a command.
fn damage_log(config: &EngineConfig, command: &[u8]) {
    let directory = config.data_dir.join("log");
    let log = RocksLog::open(&directory, &RocksOptions::default()).expect("the log is whole");
    log.flush().expect("flushed");
    drop(log);
    for file in std::fs::read_dir(&directory).expect("a directory") {
        let path = file.expect("a file").path();
        let mut bytes = std::fs::read(&path).expect("read");
        let is_table = path.extension().is_some_and(|extension| extension == "sst");
        let found = bytes.windows(command.len()).position(|window| window == command);
        if let Some(at) = found.filter(|_| is_table) {
            bytes[at + command.len() / 2] ^= 1;
            std::fs::write(path, bytes).expect("written");
            return;
        }
    }
    panic!("no sorted file holds the command");
}

#[tokio::test]
async fn a_group_whose_log_is_damaged_takes_part_no_more_and_the_others_do() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let configs = local::configs(3, dir.path()).expect("settings");
    // Whose records lie next to the damaged block may be fenced too: its border is in the block.
    let (beside, healthy) = (GroupId(101), GroupId(102));
    let mut nodes = open(&configs).await;
    for group in [GROUP, beside, healthy] {
        create(&nodes, group).await;
    }
    // The first fills the block that begins with other groups' records.
    let (filler, damaged) = (Bytes::from(vec![b'f'; 40_000]), Bytes::from(vec![b'd'; 40_000]));
    for command in [filler.clone(), damaged.clone()] {
        nodes[0].propose(GROUP, command).await.expect("proposed");
    }
    nodes[0].propose(beside, filler).await.expect("proposed");
    propose(&nodes[0], healthy, "before").await;
    shut_down(std::mem::take(&mut nodes)).await;
    damage_log(&configs[0], &damaged);

    for life in ["first", "second"] {
        nodes = open(&configs).await;
        let status = nodes[0].status().await;
        let fenced = &status.fenced;
        assert!(fenced.contains_key(&GROUP), "{life} life: {fenced:?}");
        assert!(!fenced.contains_key(&healthy), "{life} life: {fenced:?}");
        assert!(nodes[0].leadership(GROUP).is_err(), "{life} life");
        // The two others are a majority of it, and all three of the other one.
        nodes[1].propose(GROUP, Bytes::from(life)).await.expect("two of three");
        propose(&nodes[0], healthy, life).await;
        if life == "first" {
            shut_down(std::mem::take(&mut nodes)).await;
        }
    }
    let third = nodes.pop().expect("three nodes");
    third.shutdown().await;
    propose(&nodes[0], healthy, "two left").await;
    assert_eq!(journal(&nodes[0], healthy).await, "before first second two left");
    // What the fenced one would say could only be trusted by mistake.
    let alone = nodes[1].propose(GROUP, Bytes::from("alone")).await;
    assert!(alone.is_err(), "{alone:?}");
    assert!(nodes[0].leadership(GROUP).is_err(), "it did not begin anew");
    shut_down(nodes).await;
}

/// Takes the end of a group's log away, as if it had never been written.
fn forget_the_end(config: &EngineConfig, group: GroupId) -> LogIndex {
    let directory = config.data_dir.join("log");
    let mut log = RocksLog::open(&directory, &RocksOptions::default()).expect("the log is whole");
    let last = log.log(group).expect("it is there").last;
    let id = EntryId::new(last.term, LogIndex(2));
    let entry = Entry { id, payload: Payload::Empty };
    let write = Write::Append { group, hard_state: None, entries: vec![entry] };
    log.write(&[write]).expect("written");
    last.index
}

#[tokio::test]
async fn a_group_whose_state_is_ahead_of_its_log_takes_part_no_more() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let configs = local::configs(3, dir.path()).expect("settings");
    let healthy = GroupId(102);
    let mut nodes = open(&configs).await;
    for group in [GROUP, healthy] {
        create(&nodes, group).await;
    }
    for command in ["a", "b", "c"] {
        propose(&nodes[0], GROUP, command).await;
    }
    shut_down(std::mem::take(&mut nodes)).await;
    assert!(forget_the_end(&configs[0], GROUP) > LogIndex(4));

    for life in ["first", "second"] {
        nodes = open(&configs).await;
        let fenced = nodes[0].fenced();
        assert!(fenced[&GROUP].contains("beyond the log's end"), "{life} life: {fenced:?}");
        assert_eq!(fenced.len(), 1, "{life} life: {fenced:?}");
        assert!(nodes[0].leadership(GROUP).is_err(), "{life} life");
        propose(&nodes[1], GROUP, life).await;
        propose(&nodes[0], healthy, life).await;
        if life == "first" {
            shut_down(std::mem::take(&mut nodes)).await;
            // Now the two fit together again, and still nobody knows what was promised.
            std::fs::remove_dir_all(configs[0].data_dir.join("state")).expect("removed");
        }
    }
    shut_down(nodes).await;
}

#[tokio::test]
async fn a_node_with_a_fenced_group_serves_its_keys_through_the_other_replicas() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let group = GroupId::FIRST_DATA;
    let mut configs = local::configs(3, dir.path()).expect("settings");
    for config in &mut configs {
        let kind = "journal".to_owned();
        config.initial_groups.push(InitialGroup { id: group, kind, range: None });
    }
    let mut nodes = open(&configs).await;
    for command in ["a", "b", "c"] {
        propose(&nodes[0], group, command).await;
    }
    shut_down(std::mem::take(&mut nodes)).await;
    forget_the_end(&configs[0], group);

    let mut nodes = open(&configs).await;
    assert!(nodes[0].fenced().contains_key(&group));
    propose(&nodes[0], group, "d").await;
    assert_eq!(journal(&nodes[0], group).await, "a b c d");
    let read = nodes[0].read(group, Bytes::new(), Consistency::Serializable).await.expect("read");
    assert_eq!(read.answer, "a b c d");
    // Wherever the leader goes, and also right after it has gone.
    let leads =
        |node: &Engine| node.leadership(group).is_ok_and(|now| now.borrow().role == Role::Leader);
    let leader = nodes.iter().position(leads).expect("one of the others leads");
    let other = nodes[3 - leader].node();
    nodes[leader].move_leader(group, other).await.expect("handed over");
    propose(&nodes[0], group, "e").await;
    assert_eq!(journal(&nodes[0], group).await, "a b c d e");
    // Alone, it has nobody to ask.
    let fenced = nodes.remove(0);
    shut_down(nodes).await;
    let refused = fenced.propose(group, Bytes::from("f")).await.map(|proposed| proposed.id);
    assert!(matches!(refused, Err(EngineError::NoLeader | EngineError::TimedOut)), "{refused:?}");
    fenced.shutdown().await;
}

#[tokio::test]
async fn a_node_with_nothing_whole_left_does_not_start_again_whatever_it_finds() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let config = local::configs(1, dir.path()).expect("settings").remove(0);
    let open =
        |config: EngineConfig| Engine::open(config, vec![Arc::new(JournalKind)], &NoopRecorder);
    let node = open(config.clone()).await.expect("opens");
    create(std::slice::from_ref(&node), GROUP).await;
    propose(&node, GROUP, "kept").await;
    node.shutdown().await;
    let manifest = std::fs::read_dir(config.data_dir.join("log")).expect("a directory");
    let manifest = manifest.map(|file| file.expect("a file").path());
    let manifest = manifest
        .filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("MAN"))
        })
        .max()
        .expect("a manifest");
    let whole = std::fs::read(&manifest).expect("read");
    let mut damaged = whole.clone();
    damaged[20] ^= 1;
    std::fs::write(&manifest, damaged).expect("written");
    let refused = open(config.clone()).await;
    assert!(matches!(refused, Err(OpenError::Fenced(_))), "{refused:?}");
    std::fs::write(&manifest, whole).expect("written");
    let refused = open(config).await;
    assert!(matches!(refused, Err(OpenError::Fenced(_))), "{refused:?}");
}
