//! A directory is restored into whole or not at all, and begins what it was made for.

use std::collections::BTreeMap;

use quorate_store::{GroupRow, KvKind, SnapshotHeader, SnapshotWriter};
use quorate_transport::TlsConfig;
use quorate_types::{EntryId, Incarnation, KeyRange, LogIndex, NodeId, Term};
use tempfile::TempDir;

use super::*;
use crate::config::InitialState;
use crate::open::OpenError;

/// A backup of a keyspace without a key.
fn backup(dir: &TempDir) -> PathBuf {
    let row = GroupRow {
        applied: EntryId::new(Term(4), LogIndex(9)),
        membership: Membership::of_voters([NodeId(77)]),
        kind: KvKind::NAME.to_owned(),
        ..GroupRow::default()
    };
    let header = SnapshotHeader { group: GroupId::FIRST_DATA, range: Some(KeyRange::all()), row };
    let path = dir.path().join("backup");
    let file = File::create(&path).expect("a file");
    SnapshotWriter::new(file, &header).and_then(SnapshotWriter::finish).expect("a snapshot");
    path
}

fn restore_config(dir: &TempDir) -> RestoreConfig {
    RestoreConfig {
        from: backup(dir),
        data_dir: dir.path().join("data"),
        cluster_name: "c".into(),
        cluster_token: "t".into(),
        node_name: "n1".into(),
        initial_cluster: ["n1", "n2"].map(str::to_owned).into(),
        bump_revision: BUMP_REVISION,
        skip_hash_check: false,
    }
}

fn engine_config(restored: &RestoreConfig) -> EngineConfig {
    let pem = String::new;
    let tls = TlsConfig { cert_pem: pem(), key_pem: pem(), ca_pem: pem() };
    let listen = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let initial_cluster =
        restored.initial_cluster.iter().map(|name| (name.clone(), format!("{name}:1")));
    EngineConfig {
        cluster_name: restored.cluster_name.clone(),
        cluster_token: restored.cluster_token.clone(),
        initial_cluster: initial_cluster.collect(),
        ..EngineConfig::new(restored.data_dir.clone(), &restored.node_name, listen, tls)
    }
}

fn pending_in(config: &EngineConfig) -> Result<Option<Restoration>, OpenError> {
    let data_dir = DataDir::open(&config.data_dir).expect("free");
    pending(&data_dir, config, None)
}

#[test]
fn what_was_restored_is_pending_until_the_node_has_started() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = restore_config(&dir);
    let contents = restore(&config).expect("restored");
    assert_eq!((contents.revision, contents.begins_at), (1, 1 + BUMP_REVISION));
    let started = engine_config(&config);
    let restoration = pending_in(&started).expect("for this node").expect("restored");

    let data_dir = DataDir::open(&config.data_dir).expect("free");
    let identity = Identity {
        cluster_name: "c".into(),
        cluster_token: "t".into(),
        node_name: "n1".into(),
        node: NodeId(1),
        incarnation: Incarnation(1),
        cluster_digest: [1; 32],
        founders: BTreeMap::new(),
        restored: Some(restoration.digest()),
    };
    assert!(pending(&data_dir, &started, Some(&identity)).expect("not started").is_some());
    let founders = BTreeMap::from([(NodeId(1), Incarnation(1))]);
    let identity = Identity { founders, ..identity };
    assert!(pending(&data_dir, &started, Some(&identity)).expect("started").is_none());
    assert!(!config.data_dir.join(SNAPSHOT).exists(), "nobody needs it any more");
}

#[test]
fn only_an_empty_directory_is_restored_into() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = restore_config(&dir);
    fs::create_dir(&config.data_dir).expect("a directory");
    fs::write(config.data_dir.join("precious"), "data").expect("a file");
    let refused = restore(&config);
    assert!(matches!(refused, Err(RestoreFailure::NotEmpty { .. })), "{refused:?}");
    assert!(!config.data_dir.join("LOCK").exists(), "nothing is put there");
    fs::remove_file(config.data_dir.join("precious")).expect("removed");
    restore(&config).expect("empty");
    let again = restore(&config);
    assert!(matches!(again, Err(RestoreFailure::NotEmpty { .. })), "{again:?}");
}

#[test]
fn what_was_not_finished_begins_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = restore_config(&dir);
    restore(&config).expect("restored");
    // A crash before the last step.
    fs::remove_file(config.data_dir.join(RECORD)).expect("removed");
    let refused = pending_in(&engine_config(&config));
    let is_unfinished =
        matches!(refused, Err(OpenError::Restore(StartRestoredError::Unfinished(_))));
    assert!(is_unfinished, "{refused:?}");
    restore(&config).expect("restored again");
    assert!(pending_in(&engine_config(&config)).expect("finished").is_some());
    let path = config.data_dir.join(RECORD);
    let mut record = fs::read(&path).expect("a record");
    record[10] ^= 1;
    fs::write(&path, record).expect("damaged");
    let refused = pending_in(&engine_config(&config));
    let is_unreadable =
        matches!(refused, Err(OpenError::Restore(StartRestoredError::Unreadable { .. })));
    assert!(is_unreadable, "{refused:?}");
}

#[test]
fn a_restore_is_for_one_node_of_one_cluster() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = restore_config(&dir);
    restore(&config).expect("restored");
    let right = engine_config(&config);
    let mut others = vec![right.clone(), right.clone(), right.clone(), right.clone()];
    others[0].node_name = "n2".into();
    others[1].cluster_name = "d".into();
    others[2].cluster_token = "u".into();
    others[3].initial_cluster.remove("n2");
    for other in &others {
        let refused = pending_in(other);
        let is_foreign =
            matches!(refused, Err(OpenError::Restore(StartRestoredError::Foreign { .. })));
        assert!(is_foreign, "{refused:?}");
    }
    // Whoever would join is told so by the start, which asks for this.
    let joins = EngineConfig { initial_state: InitialState::Existing, ..right };
    assert!(pending_in(&joins).expect("no matter whom it was made for").is_some());
    let not_initial = RestoreConfig { node_name: "n9".into(), ..config };
    assert!(matches!(restore(&not_initial), Err(RestoreFailure::NotInitial(_))));
}

#[test]
fn the_same_file_gives_all_nodes_the_same_and_another_revision_does_not() {
    let digest = |name: &str, bump_revision| {
        let dir = tempfile::tempdir().expect("a directory");
        let config =
            RestoreConfig { node_name: name.into(), bump_revision, ..restore_config(&dir) };
        restore(&config).expect("restored");
        pending_in(&engine_config(&config)).expect("for this node").expect("restored").digest()
    };
    assert_eq!(digest("n1", 5), digest("n2", 5));
    assert_ne!(digest("n1", 5), digest("n1", 6));
}
