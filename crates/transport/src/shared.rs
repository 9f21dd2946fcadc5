//! What the tasks of one transport share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use quorate_types::NodeId;
use quorate_types::codec::take_frame;
use rustls::pki_types::CertificateDer;
use tokio::sync::Semaphore;
use tokio::task::coop::consume_budget;

use crate::config::TransportConfig;
use crate::frame::{FrameError, FrameReader};
use crate::handler::{Handler, Pulse};
use crate::link::Link;
use crate::metrics::{LaneKind, Metrics};
use crate::peer::Peer;
use crate::snapshot::{Pace, Sending};

pub(crate) struct Shared {
    pub(crate) config: TransportConfig,
    pub(crate) handler: Arc<dyn Handler>,
    pub(crate) link: Arc<dyn Link>,
    pub(crate) metrics: Arc<Metrics>,
    /// How we dial; replaced when certificates are reloaded.
    pub(crate) client_config: Mutex<quinn::ClientConfig>,
    pub(crate) snapshots_sending: Sending,
    pub(crate) snapshots_receiving: Arc<Semaphore>,
    snapshot_pace: Mutex<Pace>,
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    /// The connection over which each node sends to us.
    incoming: Mutex<BTreeMap<NodeId, quinn::Connection>>,
}

impl Shared {
    pub(crate) fn new(
        config: TransportConfig,
        handler: Arc<dyn Handler>,
        link: Arc<dyn Link>,
        metrics: Arc<Metrics>,
        client_config: quinn::ClientConfig,
    ) -> Self {
        let limits = &config.limits;
        let places = || Arc::new(Semaphore::new(limits.snapshots_max));
        Self {
            snapshots_sending: Sending { places: places() },
            snapshots_receiving: places(),
            snapshot_pace: Mutex::new(Pace::new(limits.snapshot_bytes_per_second)),
            config,
            handler,
            link,
            metrics,
            client_config: Mutex::new(client_config),
            peers: RwLock::default(),
            incoming: Mutex::default(),
        }
    }

    pub(crate) fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }

    pub(crate) fn pulses(&self) -> BTreeMap<NodeId, Option<Pulse>> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.iter().map(|(&node, peer)| (node, peer.pulse())).collect()
    }

    pub(crate) fn insert_peer(&self, peer: Arc<Peer>) -> Option<Arc<Peer>> {
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        peers.insert(peer.node, peer)
    }

    pub(crate) fn remove_peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.peers.write().unwrap_or_else(PoisonError::into_inner).remove(&node)
    }

    pub(crate) fn take_peers(&self) -> BTreeMap<NodeId, Arc<Peer>> {
        std::mem::take(&mut *self.peers.write().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn incoming(&self) -> MutexGuard<'_, BTreeMap<NodeId, quinn::Connection>> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn snapshot_pace(&self) -> MutexGuard<'_, Pace> {
        self.snapshot_pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn client_config(&self) -> MutexGuard<'_, quinn::ClientConfig> {
        self.client_config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands every frame of a control or append lane to the node, until the stream fails.
    pub(crate) async fn deliver(
        &self,
        from: NodeId,
        kind: LaneKind,
        mut frames: FrameReader,
    ) -> FrameError {
        let received = &self.metrics.lane(kind).received;
        loop {
            let frame = match frames.next(self.config.limits.frame_bytes_max).await {
                Ok(frame) => frame,
                Err(error) => return error,
            };
            let bytes = frame.len();
            let (mut messages, unknown) = match take_frame(frame) {
                Ok(taken) => taken,
                Err(error) => return error.into(),
            };
            received.count(bytes, messages.len());
            // QUIC's streams do not yield by themselves while they have data.
            consume_budget().await;
            if unknown > 0 {
                self.metrics.dropped.unknown.increment(unknown as u64);
            }
            // A member may speak for itself only, and who is none yet not at all.
            let count = messages.len();
            messages.retain(|message| {
                message.from == from && from != NodeId::ZERO && message.to == self.config.node
            });
            if messages.len() < count {
                self.metrics.dropped.misaddressed.increment((count - messages.len()) as u64);
            }
            if !messages.is_empty() {
                self.handler.on_messages(from, messages);
            }
        }
    }
}

/// The certificate that the other side proved to hold.
pub(crate) fn certificate_of(connection: &quinn::Connection) -> Option<CertificateDer<'static>> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.into_iter().next()
}
