//! Joining a cluster that runs, from both sides.
//!
//! 1. An operator adds a node: group 1 allots it an id.
//! 2. The node starts with an empty directory and the addresses of some members. It makes an incarnation
//!    durable and asks them, under the name in its certificate: they let it ask and nothing else.
//! 3. The asked member has group 1 bind name, address and incarnation together, and answers with the id,
//!    the founders' table and the map. From then on the node is let in everywhere.
//! 4. The node starts with every group as the cluster began it, and catches up as a learner.
//!
//! A node that crashes on the way asks again with the same incarnation, and gets the same answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use metrics::NoopRecorder;
use prost::Message as _;
use quorate_placement::{MemberRefusal, PlacementKind, PlacementMap};
use quorate_transport::{
    Handler, Hello, Limits, PeerEvent, Refusal, Replier, RequestError, Transport, TransportConfig,
};
use quorate_types::{Incarnation, Message, NodeId};

use crate::config::EngineConfig;
use crate::forward::{FoundersTable, JoinRequest, Joined, Reply, Request, reply};
use crate::identity::{Identity, cluster_digest, random_u64};
use crate::members::{ChangeError, change_map};
use crate::open::OpenError;
use crate::router::Router;

/// How long one member may take to answer: it needs a leader of group 1.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a node waits before it asks again.
const RETRY: Duration = Duration::from_millis(300);

/// Asks the members that the settings name until one lets this node in. Returns the identity, complete,
/// and the map, neither of which is on disk.
///
/// # Errors
/// When the cluster does not want the node, or no name fits.
pub(crate) async fn ask(
    config: &EngineConfig,
    identity: Identity,
) -> Result<(Identity, PlacementMap), OpenError> {
    let members: Vec<_> =
        config.initial_cluster.iter().filter(|(name, _)| **name != config.node_name).collect();
    if members.is_empty() {
        return Err(OpenError::Config("a node that joins must know other nodes to ask".into()));
    }
    let stranger = Stranger {
        hello: Hello {
            cluster_name: identity.cluster_name.clone(),
            cluster_digest: [0; 32],
            node: NodeId::ZERO,
            node_name: identity.node_name.clone(),
            incarnation: identity.incarnation,
            session: random_u64()?,
            started: false,
            synced_batches: 0,
            target: NodeId::ZERO,
        },
    };
    let transport = TransportConfig {
        // Nobody dials a node without an id: any port will do.
        listen: SocketAddr::new(config.listen_peer.ip(), 0),
        node: NodeId::ZERO,
        name: identity.node_name.clone(),
        cluster_name: identity.cluster_name.clone(),
        tls: config.tls.clone(),
        lanes: 1,
        limits: Limits::default(),
    };
    let link = Arc::clone(&config.link);
    let transport = Transport::open(transport, Arc::new(stranger), link, &NoopRecorder).await?;
    let mut keys = Vec::new();
    for (key, (name, address)) in (1..).zip(members) {
        // A key of our own: their ids are not known yet.
        transport.add_peer(NodeId(key), name, address.clone())?;
        keys.push((NodeId(key), name));
    }
    let joined = let_in(&transport, &keys, config, &identity).await;
    transport.close().await;
    complete(config, identity, joined?)
}

/// Asks one member after the other, until there is an answer.
async fn let_in(
    transport: &Transport,
    members: &[(NodeId, &String)],
    config: &EngineConfig,
    identity: &Identity,
) -> Result<Joined, OpenError> {
    let request = Request::join(JoinRequest {
        peer_address: config.advertise_peer.clone(),
        incarnation: identity.incarnation.value(),
    });
    tracing::info!(members = members.len(), "asking to be let in");
    loop {
        for (key, name) in members {
            let answer = match transport.request(*key, request.clone(), ANSWER_TIMEOUT).await {
                Ok(answer) => answer,
                Err(RequestError::NotSent(_)) => continue,
                Err(RequestError::Unknown(error)) => {
                    tracing::warn!(member = name, ?error, "no answer");
                    continue;
                }
            };
            match Reply::decode(answer).ok().and_then(|reply| reply.body) {
                Some(reply::Body::Joined(joined)) => return Ok(joined),
                Some(reply::Body::Refused(reason)) => return Err(OpenError::NotLetIn(reason)),
                Some(reply::Body::Failed(reason)) => {
                    tracing::warn!(member = name, reason, "it cannot let this node in now");
                }
                _ => tracing::warn!(member = name, "an answer that this version does not know"),
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// What was answered, checked against what this node knows.
fn complete(
    config: &EngineConfig,
    identity: Identity,
    joined: Joined,
) -> Result<(Identity, PlacementMap), OpenError> {
    let wrong = |what: &str| OpenError::NotLetIn(format!("its answer makes no sense: {what}"));
    let map = PlacementMap::decode(joined.map).map_err(|error| wrong(&error.to_string()))?;
    let node = NodeId(joined.node);
    let known = map.node(node).ok_or_else(|| wrong("this node is not in the map"))?;
    if known.name != identity.node_name || known.incarnation != identity.incarnation {
        return Err(wrong("it is about another node"));
    }
    let founders = joined.founders.unwrap_or_default().into_table();
    let name = |id: &NodeId| {
        let present = map.node(*id).map(|node| node.name.as_str());
        let name = present.or_else(|| map.gone(*id))?;
        Some((*id, name.to_owned()))
    };
    let names: Option<BTreeMap<_, _>> = founders.keys().map(name).collect();
    let names = names.ok_or_else(|| wrong("the founders are not in the map"))?;
    let restored = match joined.restored.is_empty() {
        true => None,
        false => Some(
            joined.restored[..].try_into().map_err(|_| wrong("its digest of a backup is none"))?,
        ),
    };
    let digest = cluster_digest(
        &config.cluster_name,
        &config.cluster_token,
        &names,
        &config.initial_groups,
        restored.as_ref(),
    );
    if digest[..] != joined.cluster_digest[..] {
        return Err(OpenError::Config(
            "the cluster has another token, or began with other groups than this node knows".into(),
        ));
    }
    Ok((Identity { node, cluster_digest: digest, founders, restored, ..identity }, map))
}

/// Lets a node in that asks under `name`, which its certificate carries. Returns the reply.
pub(crate) async fn answer(
    router: &Router,
    identity: &Identity,
    name: &str,
    request: JoinRequest,
) -> Bytes {
    let JoinRequest { peer_address, incarnation } = request;
    let incarnation = Incarnation(incarnation);
    let bind = |map: &PlacementMap| {
        PlacementKind::join_node(map.version(), name, &peer_address, incarnation)
    };
    Reply::encoded(match change_map(router, bind).await {
        Ok((changed, map)) => {
            tracing::info!(node = name, id = %changed.node, "a node has joined");
            reply::Body::Joined(Joined {
                node: changed.node.value(),
                cluster_digest: Bytes::copy_from_slice(&identity.cluster_digest),
                founders: Some(FoundersTable::of(&identity.founders)),
                map: map.encode(),
                restored: identity
                    .restored
                    .map_or_else(Bytes::new, |digest| digest.to_vec().into()),
            })
        }
        Err(ChangeError::Refused(MemberRefusal::NotFound)) => reply::Body::Refused(format!(
            "no member {name} with peer address {peer_address} was added (`quorate member add`)"
        )),
        Err(ChangeError::Refused(MemberRefusal::OtherDirectory)) => reply::Body::Refused(format!(
            "{name} is a member with another data directory: it must be replaced (`quorate member \
             replace`), or start with that directory"
        )),
        Err(error) => reply::Body::Failed(error.to_string()),
    })
}

/// A node without an id, which asks.
struct Stranger {
    hello: Hello,
}

impl Handler for Stranger {
    fn hello(&self, _: NodeId) -> Hello {
        self.hello.clone()
    }

    fn admit(&self, _: &Hello) -> Result<(), Refusal> {
        // Its certificate is good: that is all that can be known.
        Ok(())
    }

    fn on_peer(&self, _: NodeId, event: PeerEvent) {
        if let PeerEvent::Refused { reason }
        | PeerEvent::Removed { reason }
        | PeerEvent::Copy { reason } = event
        {
            tracing::warn!(reason, "a member does not listen");
        }
    }

    fn on_messages(&self, _: NodeId, _: Vec<Message>) {}

    fn on_request(&self, _: NodeId, _: &str, _: Bytes, _: u32, _: Replier) {}
}
