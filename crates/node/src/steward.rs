//! [`Steward`]: keeps the node's view of the placement map, and the node's own row in it, up to date; and
//! lets what follows from the map follow: who is let in, who is dialed, what the next start knows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use quorate_placement::{Answer, Node, PlacementKind, PlacementMap, Refused};
use quorate_transport::Transport;
use quorate_types::{GroupId, NodeId};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::admission::peers_in;
use crate::engine::Parts;
use crate::identity::DataDir;
use crate::net::Network;
use crate::router::{Consistency, EngineError, Router};

/// How long a failed change of the map waits before it is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// How often the map is read though nothing was applied.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Follows the map.
pub(crate) struct Steward {
    router: Arc<Router>,
    network: Arc<Network>,
    transport: Transport,
    data_dir: Arc<DataDir>,
    /// The map that this cluster starts with; only founders have one.
    first: Option<PlacementMap>,
    /// This node as it wants to be known.
    own: Node,
    /// It has been known so once: whoever moves its peer address later knows better than its settings.
    announced: bool,
    dialed: BTreeMap<NodeId, (String, String)>,
    /// The version that is on disk.
    stored: u64,
}

impl Steward {
    pub(crate) fn new(parts: &Parts, first: Option<PlacementMap>, own: Node) -> Self {
        Self {
            router: Arc::clone(&parts.router),
            network: Arc::clone(&parts.network),
            transport: parts.transport.clone(),
            data_dir: Arc::clone(&parts.data_dir),
            dialed: peers_in(&parts.router.map.load(), parts.identity.node),
            first,
            own,
            announced: false,
            stored: 0,
        }
    }

    /// Follows the map for ever. `applied` fires when the placement group has applied something.
    pub(crate) async fn run(mut self, applied: Arc<Notify>) {
        loop {
            match self.reconcile().await {
                // An installed snapshot tells nobody.
                Ok(()) => drop(timeout(LOOK_AGAIN, applied.notified()).await),
                Err(error) => {
                    tracing::debug!(%error, "the placement map is not up to date yet");
                    // What is applied meanwhile is seen then.
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Reads the map as this node's replica has it, and proposes what is missing: the first map, or this
    /// node's own addresses and labels.
    async fn reconcile(&mut self) -> Result<(), StewardError> {
        let query = PlacementKind::whole_map();
        let read = self.router.read(GroupId::PLACEMENT, query, Consistency::Serializable).await?;
        let map =
            Answer::map(&read.answer).map_err(|error| StewardError::Map(error.to_string()))?;
        let command = match (map, &self.first) {
            (None, None) => return Ok(()),
            (None, Some(first)) => PlacementKind::bootstrap(first),
            (Some(map), _) => {
                let version = map.version();
                let wanted = map.node(self.own.id).map(|known| self.wanted(known));
                let known = wanted.as_ref() == map.node(self.own.id);
                self.follow(map).await;
                let Some(wanted) = wanted else { return Ok(()) };
                if known {
                    self.announced = true;
                    return Ok(());
                }
                PlacementKind::update_node(version, &wanted)
            }
        };
        let proposed = self.router.propose(GroupId::PLACEMENT, command).await?;
        match Answer::parse(&proposed.outcome) {
            // Either way the map has moved: the apply that did it wakes this task again.
            Ok(_) | Err(Refused::Conflict { .. }) => Ok(()),
            // Asking again would only be refused again, an entry in the log each time.
            Err(error @ (Refused::Rejected { .. } | Refused::Member(_))) => {
                tracing::error!(
                    %error,
                    "this node's own row cannot be written into the placement map"
                );
                Ok(())
            }
            Err(error) => Err(StewardError::Map(error.to_string())),
        }
    }

    /// This node's row as it should be, given what is known.
    fn wanted(&self, known: &Node) -> Node {
        let Node { client_address, peer_address, labels, .. } = self.own.clone();
        let peer_address = match self.announced {
            true => known.peer_address.clone(),
            false => peer_address,
        };
        Node { client_address, peer_address, labels, ..known.clone() }
    }

    /// Lets everything follow from the map, which may be an old one after a restart.
    async fn follow(&mut self, map: PlacementMap) {
        if map.version() < self.router.map.load().version() || map.version() == self.stored {
            return;
        }
        // Let in before dialed, and on disk before either is needed.
        let (data_dir, copy) = (Arc::clone(&self.data_dir), map.clone());
        let stored = tokio::task::spawn_blocking(move || data_dir.store_map(&copy)).await;
        match stored {
            Ok(Ok(())) => self.stored = map.version(),
            Ok(Err(error)) => tracing::error!(%error, "the placement map cannot be kept"),
            // The runtime ends.
            Err(_) => return,
        }
        self.network.learn(&map);
        let peers = peers_in(&map, self.own.id);
        for node in self.dialed.keys().filter(|node| !peers.contains_key(node)) {
            self.transport.remove_peer(*node);
        }
        for (node, (name, address)) in &peers {
            if let Some(recorder) = self.router.metrics.label_peer(*node, name) {
                self.transport.label_peer(name, recorder);
            }
            if let Err(error) = self.transport.add_peer(*node, name, address.clone()) {
                tracing::error!(peer = name, %error, "a member cannot be dialed");
            }
        }
        self.dialed = peers;
        let version = map.version();
        self.router.map.store(Arc::new(map));
        self.router.map_version.send_replace(version);
    }
}

#[derive(Debug, thiserror::Error)]
enum StewardError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("{0}")]
    Map(String),
}
