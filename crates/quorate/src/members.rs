//! Members as the gateway names them, from the engine's placement map; a part of `wiring`.

use quorate_gateway::{
    BackendError, BackupError, Member, MemberChange, MemberError, MemberRefusal,
};
use quorate_node::{BackupFailure, ChangeError, EtcdMember, PlacementMap, Standing};

use crate::config::ServeConfig;
use crate::wiring::backend_error;

/// The members of `map`, but for those that leave. Whoever has no vote in some group yet is a learner.
pub(crate) fn members(map: &PlacementMap) -> Vec<Member> {
    map.nodes()
        .filter(|node| node.standing != Standing::Leaving)
        .map(|node| Member {
            id: node.id,
            name: node.name.clone(),
            peer_urls: vec![format!("quic://{}", node.peer_address)],
            client_urls: Some(&node.client_address)
                .filter(|address| !address.is_empty())
                .map(|address| client_url(address))
                .into_iter()
                .collect(),
            is_learner: !map.votes(node.id),
        })
        .collect()
}

/// How nodes tell each other where clients reach them: `host:port` without TLS, as always, and a whole URL
/// with it.
pub(crate) fn client_address(config: &ServeConfig) -> String {
    match &config.clients.tls {
        Some(_) => config.client_url(),
        None => config.advertise_client.to_string(),
    }
}

/// The URL that clients are told.
fn client_url(address: &str) -> String {
    match address.contains("://") {
        true => address.to_owned(),
        false => format!("http://{address}"),
    }
}

/// A member as etcd's files note it. Our peers speak another protocol, and whoever restores such a file says
/// anew who they are.
pub(crate) fn etcd_member(member: Member) -> EtcdMember {
    EtcdMember {
        id: member.id.value(),
        name: member.name,
        peer_urls: member
            .peer_urls
            .iter()
            .map(|url| url.replacen("quic://", "http://", 1))
            .collect(),
        client_urls: member.client_urls,
    }
}

pub(crate) fn backup_error(error: BackupFailure) -> BackupError {
    match error {
        BackupFailure::Busy => BackupError::Busy,
        BackupFailure::TooLarge => BackupError::TooLarge,
        BackupFailure::Io(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            BackupError::NoSpace
        }
        error @ (BackupFailure::Nothing(_) | BackupFailure::Io(_) | BackupFailure::State(_)) => {
            BackupError::Failed(error.to_string())
        }
    }
}

pub(crate) fn member_change(change: MemberChange) -> quorate_node::MemberChange {
    match change {
        MemberChange::Add { name, peer_address, learner } => {
            let standing = if learner { Standing::Learner } else { Standing::Voter };
            quorate_node::MemberChange::Add { name, peer_address, standing }
        }
        MemberChange::Promote(id) => quorate_node::MemberChange::Promote(id),
        MemberChange::Remove(id) => quorate_node::MemberChange::Remove(id),
        MemberChange::Move { id, peer_address } => {
            quorate_node::MemberChange::Move { id, peer_address }
        }
        MemberChange::Replace { id, peer_address } => {
            quorate_node::MemberChange::Replace { id, peer_address }
        }
    }
}

pub(crate) fn member_error(error: ChangeError) -> MemberError {
    use quorate_node::MemberRefusal as Node;
    let refusal = match error {
        ChangeError::Engine(error) => return backend_error(error).into(),
        ChangeError::LearnerNotReady => MemberRefusal::LearnerNotReady,
        ChangeError::Unhealthy => MemberRefusal::Unhealthy,
        ChangeError::BadTransferee => MemberRefusal::BadTransferee,
        ChangeError::NotLeader => MemberRefusal::NotLeader,
        ChangeError::Refused(refusal) => match refusal {
            Node::NotFound => MemberRefusal::NotFound,
            Node::NameTaken => MemberRefusal::NameTaken,
            Node::AddressTaken => MemberRefusal::AddressTaken,
            Node::NotLearner => MemberRefusal::NotLearner,
            Node::TooManyLearners => MemberRefusal::TooManyLearners,
            Node::NotEnoughStarted => MemberRefusal::NotEnoughStarted,
            // The gateway asks for none of these.
            Node::NoAddress | Node::OtherDirectory | Node::Replicas(_) => {
                tracing::error!(%refusal, "a change of members makes no sense");
                return BackendError::Unsupported("this change of members").into();
            }
        },
    };
    refusal.into()
}

#[cfg(test)]
mod tests {
    use quorate_node::EngineError;

    use super::*;

    #[test]
    fn every_refusal_reaches_the_gateway_as_what_it_is() {
        use quorate_node::MemberRefusal as Node;
        let table = [
            (ChangeError::LearnerNotReady, MemberRefusal::LearnerNotReady),
            (ChangeError::Unhealthy, MemberRefusal::Unhealthy),
            (ChangeError::BadTransferee, MemberRefusal::BadTransferee),
            (ChangeError::NotLeader, MemberRefusal::NotLeader),
            (Node::NotFound.into(), MemberRefusal::NotFound),
            (Node::NameTaken.into(), MemberRefusal::NameTaken),
            (Node::AddressTaken.into(), MemberRefusal::AddressTaken),
            (Node::NotLearner.into(), MemberRefusal::NotLearner),
            (Node::TooManyLearners.into(), MemberRefusal::TooManyLearners),
            (Node::NotEnoughStarted.into(), MemberRefusal::NotEnoughStarted),
        ];
        for (error, expected) in table {
            assert_eq!(member_error(error), MemberError::Refused(expected));
        }
        let timed_out = member_error(EngineError::TimedOut.into());
        assert_eq!(timed_out, MemberError::Backend(BackendError::TimedOut));
    }
}
