//! Keeps the node's view of the placement map, and the node's own row in it, up to date.

use std::sync::Arc;
use std::time::Duration;

use quorate_placement::{Answer, Node, PlacementKind, PlacementMap, Refused};
use quorate_types::GroupId;
use tokio::sync::Notify;

use crate::router::{Consistency, EngineError, Router};

/// How long a failed change of the map waits before it is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Follows the map for ever. `first` is the map that this cluster starts with; `own` is this node as it
/// wants to be known; `applied` fires when the placement group has applied something.
pub(crate) async fn run(router: Arc<Router>, first: PlacementMap, own: Node, applied: Arc<Notify>) {
    loop {
        match reconcile(&router, &first, &own).await {
            Ok(()) => applied.notified().await,
            Err(error) => {
                tracing::debug!(%error, "the placement map is not up to date yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Reads the map as this node's replica has it, and proposes what is missing: the first map, or this
/// node's own addresses and labels.
async fn reconcile(router: &Router, first: &PlacementMap, own: &Node) -> Result<(), StewardError> {
    let query = PlacementKind::whole_map();
    let read = router.read(GroupId::PLACEMENT, query, Consistency::Serializable).await?;
    let map = Answer::map(&read.answer).map_err(|error| StewardError::Map(error.to_string()))?;
    let command = match map {
        None => PlacementKind::bootstrap(first),
        Some(map) => {
            let version = map.version();
            let known = map.node(own.id).is_some_and(|node| node == own);
            router.map.store(Arc::new(map));
            if known {
                return Ok(());
            }
            PlacementKind::update_node(version, own)
        }
    };
    let proposed = router.propose(GroupId::PLACEMENT, command).await?;
    match Answer::parse(&proposed.outcome) {
        // Either way the map has moved: the apply that did it wakes this task again.
        Ok(_) | Err(Refused::Conflict { .. }) => Ok(()),
        // Asking again would only be refused again, an entry in the log each time.
        Err(error @ Refused::Rejected { .. }) => {
            tracing::error!(%error, "this node's own row cannot be written into the placement map");
            Ok(())
        }
        Err(error) => Err(StewardError::Map(error.to_string())),
    }
}

#[derive(Debug, thiserror::Error)]
enum StewardError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("{0}")]
    Map(String),
}
