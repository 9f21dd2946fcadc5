//! Nodes over real QUIC and RocksDB in one process.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use prost::Message;
use quorate::exporter::Exporter;
use quorate_node::{Consistency, Engine, InitialGroup, KvKind, Shape, Shaped, local};
use quorate_types::auth::{AuthCell, Caller};
use quorate_types::kv::{self, command, query};
use quorate_types::{GroupId, KeyRange};

use super::machine::{Trouble, Troubled};

pub(crate) const GROUP: GroupId = GroupId::FIRST_DATA;

/// Only ends what would hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) fn put(key: &str) -> Bytes {
    let put = kv::Put { key: key.to_owned().into(), value: "v".into(), ..kv::Put::default() };
    command(command::Body::Put(put))
}

pub(crate) fn command(body: command::Body) -> Bytes {
    kv::Command { body: Some(body), ..kv::Command::default() }.encode_to_vec().into()
}

pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Arc<Engine>>,
    pub(crate) trouble: Vec<Arc<Trouble>>,
    pub(crate) exporters: Vec<Exporter>,
    pub(crate) auth: Vec<Arc<AuthCell>>,
    /// Between the nodes; straight at first.
    pub(crate) link: Arc<Shaped>,
}

impl Cluster {
    pub(crate) async fn open(count: usize, dir: &Path) -> Self {
        let mut configs = local::configs(count, dir).expect("settings");
        let link = Arc::new(Shaped::new(1));
        for config in &mut configs {
            config.link = link.clone();
            let (id, kind, range) = (GROUP, KvKind::NAME.to_owned(), Some(KeyRange::all()));
            config.initial_groups = vec![InitialGroup { id, kind, range }];
        }
        let kinds: Vec<_> = (0..count).map(|_| Arc::new(Troubled::default())).collect();
        let trouble = kinds.iter().map(|kind| Arc::clone(&kind.trouble)).collect();
        let auth = kinds.iter().map(|kind| kind.keyspace.auth()).collect();
        let exporter = |number: usize| Exporter::new(&format!("n{number}")).expect("metrics");
        let exporters: Vec<_> = (0..count).map(exporter).collect();
        let recorders: Vec<_> = exporters.iter().map(Exporter::recorder).collect();
        let opening = configs.into_iter().zip(kinds).zip(&recorders);
        let opening =
            opening.map(|((config, kind), to)| Engine::open(config, vec![kind as _], &**to));
        let nodes = try_join_all(opening).await.expect("the nodes open");
        Self { nodes: nodes.into_iter().map(Arc::new).collect(), trouble, exporters, auth, link }
    }

    /// Proposed at a node, and applied.
    pub(crate) async fn propose_at(&self, node: usize, command: Bytes) -> kv::Outcome {
        let proposed = self.nodes[node].propose(GROUP, command).await.expect("it is applied");
        kv::Outcome::decode(proposed.outcome).expect("an outcome")
    }

    /// Waits until a node's replica has applied everything that was acknowledged.
    pub(crate) async fn catch_up(&self, node: usize) {
        let body = Some(query::Body::Status(kv::Status {}));
        let query = kv::Query { body, caller: Some(Caller::system()) }.encode_to_vec().into();
        let read = self.nodes[node].read(GROUP, query, Consistency::Linearizable).await;
        read.expect("it has a replica");
    }

    /// The node that leads, once one does.
    pub(crate) async fn leader(&self) -> usize {
        loop {
            let leads = |node: &Arc<Engine>| {
                let now = node.leadership(GROUP).map(|now| now.borrow().leader);
                now.is_ok_and(|leader| leader == Some(node.node()))
            };
            match self.nodes.iter().position(leads) {
                Some(leader) => return leader,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// How frames travel between two nodes, both ways.
    pub(crate) fn shape(&self, one: usize, other: usize, shape: Shape) {
        self.link.set_both(self.nodes[one].node(), self.nodes[other].node(), shape);
    }

    /// What a node has counted so far under a name without labels of its own.
    pub(crate) fn counted(&self, node: usize, name: &str) -> u64 {
        let page = self.exporters[node].page()();
        let line = page.lines().find(|line| line.split(['{', ' ']).next() == Some(name));
        let value = line.and_then(|line| line.rsplit(' ').next());
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {page}"))
    }

    /// Nobody else may have a part of it any more.
    pub(crate) async fn shut_down(self) {
        for node in self.nodes {
            Arc::into_inner(node).expect("nobody else has it").shutdown().await;
        }
    }
}
