//! What becomes of a snapshot that a peer offers.

use std::sync::Arc;

use quorate_group::Descriptor;
use quorate_transport::SnapshotOffer;
use quorate_types::{Body, EntryId, GroupId, HardState, SnapshotMeta};
use quorate_wal::{RecoveredLog, Write};

use super::installation::Target;
use super::transfer::{Announced, Arrived, ReceiveError};
use crate::actor::Input;
use crate::engine::Parts;
use crate::router::Resident;

/// Takes an offered snapshot in, and tells its group; says in the log why not.
pub(crate) async fn take(parts: Arc<Parts>, offer: SnapshotOffer) {
    let from = offer.from();
    if let Err(error) = receive(&parts, offer).await {
        tracing::warn!(peer = %from, %error, "a snapshot was not received");
    }
}

async fn receive(parts: &Arc<Parts>, offer: SnapshotOffer) -> Result<(), ReceiveError> {
    let prepared = parts
        .snapshots
        .announced(offer.from(), offer.header())
        .and_then(|announced| Ok((target(parts, &announced)?, announced)));
    let (target, announced) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            offer.refuse(&error.to_string()).await;
            return Err(error);
        }
    };
    let (group, from) = (target.group, offer.from());
    tracing::info!(%group, peer = %from, bytes = offer.total_bytes(), "a snapshot comes");
    let snapshots = Arc::clone(&parts.snapshots);
    let (arrived, receiver) = snapshots.receive(offer, &announced, target).await?;
    match hand_over(parts, announced, arrived).await {
        Ok(()) => Ok(receiver.confirm().await?),
        Err(error) => {
            receiver.fail(&error.to_string()).await;
            Err(error)
        }
    }
}

/// Whose snapshot it would be: a group that lives here, as it is described here, or one that may.
fn target(parts: &Parts, announced: &Announced) -> Result<Target, ReceiveError> {
    let group = announced.message.group;
    let here = parts.with_host(|host| match host.descriptor(group) {
        Some(descriptor) => Ok(descriptor.clone()),
        // An overlapping range is refused until the group that has it has split or gone.
        None => host.may_admit(group, &announced.descriptor).map(|()| announced.descriptor.clone()),
    });
    let descriptor = here.map_err(|error| ReceiveError::Refused(error.to_string()))?;
    let kind = descriptor.kind.clone();
    Target::new(&parts.kinds, group, descriptor)
        .ok_or_else(|| ReceiveError::Refused(format!("no machine of kind {kind} is registered")))
}

/// Tells the group, which is made first if it is new here.
async fn hand_over(
    parts: &Arc<Parts>,
    announced: Announced,
    arrived: Arrived,
) -> Result<(), ReceiveError> {
    let Announced { message, descriptor, .. } = announced;
    if !matches!(&message.body, Body::Snapshot { meta } if *meta == arrived.meta) {
        let why = format!("the message does not say {}", arrived.meta.last);
        return Err(ReceiveError::Refused(why));
    }
    let group = message.group;
    let resident = match parts.router.resident(group) {
        Ok(resident) => resident,
        Err(_) => create(parts, group, descriptor, &arrived.meta).await?,
    };
    let input = Input::Snapshot { message, arrived: Box::new(arrived) };
    let told = parts.router.tell(&resident, input);
    told.map_err(|error| ReceiveError::Refused(error.to_string()))
}

/// Makes a replica that knows nothing yet.
async fn create(
    parts: &Arc<Parts>,
    group: GroupId,
    descriptor: Descriptor,
    meta: &SnapshotMeta,
) -> Result<Arc<Resident>, ReceiveError> {
    let refused = |why: &dyn std::fmt::Display| ReceiveError::Refused(why.to_string());
    if !meta.membership.contains(parts.identity.node) {
        return Err(refused(&"this node is no member of the group"));
    }
    let kind = parts.kind(&descriptor.kind).map_err(|error| refused(&error))?;
    let admitted = parts.with_host(|host| host.admit(group, descriptor.clone()));
    let generation = admitted.map_err(|error| refused(&error))?;
    let (label, snapshot) = (descriptor.encode(), SnapshotMeta::default());
    let create = Write::Create { group, label: label.clone(), snapshot: snapshot.clone() };
    let log = RecoveredLog {
        label,
        hard_state: HardState::default(),
        snapshot,
        memberships: Vec::new(),
        terms: Vec::new(),
        last: EntryId::ZERO,
        intent: None,
    };
    let created = match parts.completions.write(&parts.wal, create).await {
        Ok(()) => parts.spawn_group(group, generation, &kind, log).map_err(|error| refused(&error)),
        Err(error) => Err(refused(&error)),
    };
    if let Err(error) = created {
        parts.with_host(|host| host.dismiss(group));
        return Err(error);
    }
    parts.router.resident(group).map_err(|error| refused(&error))
}
