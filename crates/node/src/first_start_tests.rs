//! First starts of restored nodes with a crash between every two steps, and with another one in the start that
//! does it again: on copies of real files. Whatever start comes through in the end, the node is what was restored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use quorate_placement::PlacementKind;
use quorate_store::{
    Export, GroupRow, GroupRows, KvKind, MemState, Overlay, ScopedView, StateEngine,
};
use quorate_types::kv::{Command, Put, Query, Range, command, outcome, query};
use quorate_types::machine::RowScope;
use quorate_types::{
    Committed, EntryId, GroupId, KeyRange, LogIndex, MachineKind, Membership, NodeId, Term,
};
use tempfile::TempDir;

use super::*;
use crate::config::EngineConfig;
use crate::engine::Kinds;
use crate::founding::{Founders, initial_groups};
use crate::image::image;
use crate::open::open_stores;
use crate::restore::{BUMP_REVISION, RestoreConfig, pending};
use crate::{Consistency, Engine, local};

const GROUP: GroupId = GroupId::FIRST_DATA;
const KEYS: u32 = 100;

/// A backup of a keyspace of some keys.
fn backup(path: &Path) {
    let put = |number: u32| {
        let (key, value) = (format!("k/{number}").into(), vec![7; 2_000].into());
        let body = Some(command::Body::Put(Put { key, value, ..Put::default() }));
        let id = EntryId::new(Term(3), LogIndex(u64::from(number) + 5));
        let command = Command { body, ..Command::default() }.encode_to_vec().into();
        Committed { id, command }
    };
    let committed: Vec<_> = (0..KEYS).map(put).collect();
    let engine = MemState::new();
    let (view, mut overlay) = (engine.view(), Overlay::new(engine.view()));
    let scoped = ScopedView::new(&*view, RowScope::Keyspace, GROUP);
    let mut machine = KvKind::default().open(GROUP, &[], &scoped).unwrap();
    machine.apply(&committed, &mut overlay.scoped(RowScope::Keyspace, GROUP)).unwrap();
    let row = GroupRow {
        applied: committed.last().unwrap().id,
        membership: Membership::of_voters([NodeId(5)]),
        kind: KvKind::NAME.to_owned(),
        meta: machine.meta(),
    };
    overlay.put_group_row(GROUP, &row);
    engine.write(overlay.into_rows()).unwrap();
    let rows = GroupRows::Keys(KeyRange::all());
    let export = Export::new(engine.view(), GROUP, rows, Some(KeyRange::all())).unwrap();
    let (mut export, mut bytes) = (export.unwrap(), Vec::new());
    while let Some(piece) = export.next_piece().unwrap() {
        bytes.extend_from_slice(&piece);
    }
    std::fs::write(path, bytes).unwrap();
}

fn kinds() -> Vec<Arc<dyn MachineKind>> {
    vec![Arc::new(KvKind::default())]
}

/// One restored node that has not started.
struct Restored {
    config: EngineConfig,
    _dir: TempDir,
}

impl Restored {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("backup");
        backup(&from);
        let mut config = local::configs(1, dir.path()).unwrap().remove(0);
        let (id, kind, range) = (GROUP, KvKind::NAME.to_owned(), Some(KeyRange::all()));
        config.initial_groups = vec![InitialGroup { id, kind, range }];
        config.heartbeat_interval = Duration::from_millis(10);
        config.election_timeout = Duration::from_millis(100);
        let restored = restore::restore(&RestoreConfig {
            from,
            data_dir: config.data_dir.clone(),
            cluster_name: config.cluster_name.clone(),
            cluster_token: config.cluster_token.clone(),
            node_name: config.node_name.clone(),
            initial_cluster: config.initial_cluster.keys().cloned().collect(),
            bump_revision: BUMP_REVISION,
            skip_hash_check: false,
        });
        assert_eq!(restored.unwrap().keys, u64::from(KEYS));
        Self { config, _dir: dir }
    }

    /// The same node with its files elsewhere.
    fn at(&self, data_dir: PathBuf) -> EngineConfig {
        EngineConfig { data_dir, ..self.config.clone() }
    }
}

/// Starts a node as [`open`](crate::open) does, up to a crash after so many steps; what that leaves.
///
/// `None` when it has started before, and there is nothing to do.
fn crash_after(steps: usize, config: &EngineConfig) -> Option<TempDir> {
    let data_dir = Arc::new(DataDir::open(&config.data_dir).unwrap());
    let names = (&*config.cluster_name, &*config.cluster_token, &*config.node_name);
    let found = data_dir.identity(names).unwrap();
    let restoration = pending(&data_dir, config, found.as_ref()).unwrap()?;
    let founders = Founders::of(config, Some(restoration.digest())).unwrap();
    let identity = founders.identity(found, &data_dir, config).unwrap();
    let (mut log, state, fence) = open_stores(&data_dir, &config.node_name).unwrap();
    assert!(fence.groups().is_empty(), "nothing is damaged: {:?}", fence.groups());
    let groups = initial_groups(config);
    let placement: Arc<dyn MachineKind> = Arc::new(PlacementKind);
    let kinds = kinds().into_iter().chain([placement]);
    let kinds: Kinds = kinds.map(|kind| (kind.name().to_owned(), kind)).collect();
    let restoring = restoration.stage(&groups, &*state, &kinds).unwrap();
    let founders = BTreeMap::from([(identity.node, identity.incarnation)]);
    let identity = Identity { founders, ..identity };
    let mut start = FirstStart::new(&groups, identity, &data_dir, &mut log, Some(restoring));
    for step in FirstStart::STEPS.into_iter().take(steps) {
        start.carry_out(step).unwrap();
    }
    Some(image(&config.data_dir))
}

/// Starts the node whole, and expects what was restored and nothing else.
async fn expect_restored(config: &EngineConfig, when: &str) {
    let engine = Engine::open(config.clone(), kinds(), &metrics::NoopRecorder).await;
    let engine = engine.unwrap_or_else(|error| panic!("{when}: {error}"));
    let all = Range {
        key: Bytes::from_static(b"\0"),
        range_end: Bytes::from_static(b"\0"),
        ..Range::default()
    };
    let query = Query { body: Some(query::Body::Range(all)), caller: None };
    let query: Bytes = query.encode_to_vec().into();
    let answer = loop {
        match engine.read(GROUP, query.clone(), Consistency::Linearizable).await {
            Ok(read) => break quorate_types::kv::Outcome::decode(read.answer).unwrap(),
            // It elects itself.
            Err(crate::EngineError::NoLeader) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => panic!("{when}: {error}"),
        }
    };
    assert_eq!(answer.revision, i64::from(KEYS) + 1 + BUMP_REVISION, "{when}");
    let Some(outcome::Body::Range(found)) = answer.body else { panic!("{when}: {answer:?}") };
    assert_eq!(found.count, i64::from(KEYS), "{when}");
    assert!(found.kvs.iter().all(|pair| pair.value == vec![7; 2_000]), "{when}");
    engine.shutdown().await;
    let left = |name| config.data_dir.join(name).exists();
    assert!(!left("restore") && !left("restore.snapshot"), "{when}: what it began with is left");
}

#[tokio::test]
async fn whatever_step_a_crash_follows_the_node_begins_with_what_was_restored() {
    for steps in 0..=FirstStart::STEPS.len() {
        let restored = Restored::new();
        let left = crash_after(steps, &restored.config).expect("it has not started");
        let config = restored.at(left.path().to_owned());
        let when = format!("after {:?}", &FirstStart::STEPS[..steps]);
        expect_restored(&config, &when).await;
        expect_restored(&config, &format!("{when}, and a restart")).await;
    }
}

#[tokio::test]
async fn a_crash_of_the_start_that_does_it_again_is_no_different() {
    let identity = FirstStart::STEPS.iter().position(|step| *step == Step::Identity).unwrap();
    for first in 0..FirstStart::STEPS.len() {
        for again in 0..FirstStart::STEPS.len() {
            let restored = Restored::new();
            let left = crash_after(first, &restored.config).expect("it has not started");
            let config = restored.at(left.path().to_owned());
            let Some(left_again) = crash_after(again, &config) else {
                assert!(first > identity, "it had not started after {first} steps");
                break;
            };
            assert!(first <= identity, "it had started after {first} steps");
            let config = restored.at(left_again.path().to_owned());
            expect_restored(&config, &format!("after {first} and {again} steps")).await;
        }
    }
}
