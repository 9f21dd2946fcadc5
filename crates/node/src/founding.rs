//! How a cluster begins: what the initial nodes agree on, and how each hears of all others.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use quorate_group::Descriptor;
use quorate_placement::{Node, PlacementKind, PlacementMap};
use quorate_types::{EntryId, GroupId, Incarnation, Membership, NodeId, SnapshotMeta};
use quorate_wal::rocks::RocksLog;
use quorate_wal::{LogStore, RecoveredLog, Write};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::config::{EngineConfig, InitialGroup};
use crate::first_start::FirstStart;
use crate::forward::{Request, reply};
use crate::identity::{DataDir, DataDirError, Identity, cluster_digest, node_id, random_u64};
use crate::net::{Heard, Network};
use crate::open::OpenError;
use crate::restore::Restoring;
use crate::router::Router;

/// How long a gathering node waits for a peer's table.
const FOUNDERS_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a gathering node asks its peers whether they have started.
const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// The initial nodes, as the settings name them.
#[derive(PartialEq, Eq)]
pub(crate) struct Founders {
    pub(crate) names: BTreeMap<NodeId, String>,
    addresses: BTreeMap<String, String>,
    digest: [u8; 32],
    groups: Vec<InitialGroup>,
    restored: Option<[u8; 32]>,
}

impl Founders {
    /// # Errors
    /// When this node is not among them.
    /// `restored` is what they begin with, if it is a backup.
    pub(crate) fn of(config: &EngineConfig, restored: Option<[u8; 32]>) -> Result<Self, OpenError> {
        let EngineConfig { cluster_name, cluster_token, node_name, initial_cluster, .. } = config;
        if !initial_cluster.contains_key(node_name) {
            return Err(OpenError::Config(format!(
                "node {node_name} is not among the initial nodes {:?}",
                initial_cluster.keys().collect::<Vec<_>>()
            )));
        }
        let id = |name: &String| (node_id(cluster_name, cluster_token, name), name.clone());
        let names: BTreeMap<_, _> = initial_cluster.keys().map(id).collect();
        let digest = cluster_digest(
            cluster_name,
            cluster_token,
            &names,
            &config.initial_groups,
            restored.as_ref(),
        );
        let groups = initial_groups(config);
        Ok(Self { names, addresses: initial_cluster.clone(), digest, groups, restored })
    }

    fn peers_of(&self, own: NodeId) -> Vec<(NodeId, String)> {
        let others = self.names.iter().filter(|(node, _)| **node != own);
        others.map(|(node, name)| (*node, name.clone())).collect()
    }

    /// The identity of this node: the one in its directory, or a new one.
    ///
    /// # Errors
    /// When the node was started with another initial cluster, or the disk refuses.
    pub(crate) fn identity(
        &self,
        found: Option<Identity>,
        data_dir: &DataDir,
        config: &EngineConfig,
    ) -> Result<Identity, OpenError> {
        let identity = match found {
            None => Identity {
                node: node_id(&config.cluster_name, &config.cluster_token, &config.node_name),
                cluster_digest: self.digest,
                restored: self.restored,
                ..fresh_identity(config)?
            },
            Some(found) if found.cluster_digest == self.digest => return Ok(found),
            Some(found) if found.has_started() => {
                return Err(OpenError::Config(format!(
                    "the initial cluster is not the one that this node was started with: {:?}",
                    self.names.values().collect::<Vec<_>>()
                )));
            }
            // It has promised nothing yet: the settings were corrected.
            Some(found) => {
                Identity { cluster_digest: self.digest, restored: self.restored, ..found }
            }
        };
        data_dir.store(&identity)?;
        Ok(identity)
    }

    /// Waits for all other founders, and then begins the cluster: see [`FirstStart`].
    ///
    /// # Errors
    /// When the disk refuses.
    pub(crate) async fn found(
        &self,
        identity: Identity,
        data_dir: &DataDir,
        log: &mut RocksLog,
        around: (&Network, &Router),
        heard: mpsc::UnboundedReceiver<Heard>,
        restored: Option<Restoring<'_>>,
    ) -> Result<(Identity, BTreeMap<GroupId, RecoveredLog>), OpenError> {
        let (network, router) = around;
        let table = gather(self, &identity, network, router, heard).await?;
        let identity = Identity { founders: table.clone(), ..identity };
        let mut start = FirstStart::new(&self.groups, identity.clone(), data_dir, log, restored);
        FirstStart::STEPS.into_iter().try_for_each(|step| start.carry_out(step))?;
        network.start(table);
        Ok((identity, log.recover()?))
    }

    /// The map that the cluster starts with. Nobody knows the others' client addresses and labels yet:
    /// each node adds its own.
    ///
    /// # Errors
    /// When the initial nodes do not make a cluster.
    pub(crate) fn first_map(&self, identity: &Identity) -> Result<PlacementMap, OpenError> {
        let node = |(&id, name): (&NodeId, &String)| Node {
            id,
            name: name.clone(),
            client_address: String::new(),
            peer_address: self.addresses[name].clone(),
            incarnation: identity.founders.get(&id).copied().unwrap_or_default(),
            ..Node::default()
        };
        Ok(PlacementMap::first(self.names.iter().map(node))?)
    }
}

/// Waits until every founder was heard and none of them has started, or until one that has started says
/// that this node had been heard when it did.
///
/// # Errors
/// When this node was one of a cluster that has replaced or removed it since.
async fn gather(
    founders: &Founders,
    identity: &Identity,
    network: &Network,
    router: &Router,
    mut heard: mpsc::UnboundedReceiver<Heard>,
) -> Result<BTreeMap<NodeId, Incarnation>, OpenError> {
    let others = founders.peers_of(identity.node);
    if others.is_empty() {
        return Ok(BTreeMap::from([(identity.node, identity.incarnation)]));
    }
    tracing::info!(nodes = founders.names.len(), "waiting for the other initial nodes");
    let mut complete = None;
    loop {
        // A peer that starts after its hello does not say so again: ask, now and then.
        match timeout(ASK_INTERVAL, heard.recv()).await {
            Ok(Some(Heard::All(table))) => complete = Some(table),
            Ok(Some(Heard::Started)) | Err(_) => {}
            Ok(Some(Heard::Differs(why))) => return Err(OpenError::Differs(why)),
            // The network holds the sender as long as it lives.
            Ok(None) => std::future::pending().await,
        }
        if let Some(why) = network.expelled().borrow().clone() {
            return Err(OpenError::NotLetIn(format!("{why}; it can only join")));
        }
        let mut unstarted = 0;
        for (peer, name) in &others {
            let deadline = Instant::now() + FOUNDERS_TIMEOUT;
            let Ok(reply::Body::Founders(table)) =
                router.ask(*peer, Request::founders(), deadline).await
            else {
                continue;
            };
            let table = table.into_table();
            if table.is_empty() {
                unstarted += 1;
            } else if network.adopt(&table) {
                return Ok(table);
            } else {
                tracing::error!(
                    peer = name,
                    "the cluster has started with another incarnation of this node, or without it"
                );
            }
        }
        // Whoever has started knows more than this node: only if nobody has may it found.
        if unstarted == others.len()
            && let Some(table) = complete.take()
        {
            return Ok(table);
        }
    }
}

/// An identity of a directory that belongs to nobody yet; id and digest are still to come.
///
/// # Errors
/// When the system has no randomness to give.
pub(crate) fn fresh_identity(config: &EngineConfig) -> Result<Identity, DataDirError> {
    let io_error = |source| DataDirError::Io { path: config.data_dir.clone(), source };
    Ok(Identity {
        cluster_name: config.cluster_name.clone(),
        cluster_token: config.cluster_token.clone(),
        node_name: config.node_name.clone(),
        node: NodeId::ZERO,
        incarnation: Incarnation(random_u64().map_err(io_error)?),
        cluster_digest: [0; 32],
        founders: BTreeMap::new(),
        restored: None,
    })
}

/// The placement group and the groups that the settings ask for.
pub(crate) fn initial_groups(config: &EngineConfig) -> Vec<InitialGroup> {
    let kind = PlacementKind::NAME.to_owned();
    let placement = InitialGroup { id: GroupId::PLACEMENT, kind, range: None };
    std::iter::once(placement).chain(config.initial_groups.iter().cloned()).collect()
}

/// Makes the groups that the cluster starts with, in one synced batch. A crash before the identity is
/// stored leaves them behind, unused: then they are made again.
///
/// # Errors
/// When the disk refuses.
pub(crate) fn make_groups(
    log: &mut RocksLog,
    groups: &[InitialGroup],
    voters: impl Iterator<Item = NodeId>,
    first: impl Fn(&InitialGroup) -> EntryId,
) -> Result<(), OpenError> {
    let membership = Membership::of_voters(voters);
    let create = |group: &InitialGroup| {
        let snapshot = SnapshotMeta { last: first(group), membership: membership.clone() };
        let descriptor = Descriptor { kind: group.kind.clone(), range: group.range.clone() };
        Write::Create { group: group.id, label: descriptor.encode(), snapshot }
    };
    log.write(&groups.iter().map(create).collect::<Vec<_>>())?;
    Ok(())
}
