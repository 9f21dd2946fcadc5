//! The Maintenance service: where this node stands, what its data comes to, alarms, backups.

use std::sync::Arc;

use quorate_api::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse,
    DowngradeRequest, DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse,
    MoveLeaderRequest, MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest,
    StatusResponse, alarm_request::AlarmAction, downgrade_request::DowngradeAction,
    maintenance_server,
};
use quorate_types::auth::Caller;
use quorate_types::kv::{self, KvError, command, outcome, query};
use quorate_types::kv_maintenance::{
    Alarm, AlarmKind, ChangeAlarm, ChangeDowngrade, Conditions, ConditionsOutcome, HashAll, HashKv,
    HashOutcome,
};
use quorate_types::{NodeId, Term};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::auth::audit;
use crate::auth::caller::{Identity, identity, peer};
use crate::backend::{Answer, Backend, BackupForm, Consistency};
use crate::blobs::{Blob, Blobs};
use crate::desk::{Desk, ETCD_CLUSTER_VERSION, ETCD_VERSION};
use crate::error::ApiError;

/// The only version that etcd lets a cluster of [`ETCD_CLUSTER_VERSION`] go down to.
const DOWNGRADE_TARGET: (u64, u64) = (3, 4);

/// etcd's Maintenance service over a backend.
pub(crate) struct MaintenanceService<B> {
    desk: Arc<Desk<B>>,
    /// A hash reads everything: one at a time.
    hashing: Semaphore,
}

impl<B: Backend> MaintenanceService<B> {
    pub(crate) fn new(desk: Arc<Desk<B>>) -> Self {
        Self { desk, hashing: Semaphore::new(1) }
    }

    /// The revision of the local replica; 0 when there is none, since a status must be had when little
    /// else works.
    async fn local_revision(&self) -> i64 {
        self.desk.revision(Consistency::Serializable).await.map_or(0, |(revision, _)| revision)
    }

    /// A hash of the local replica, whatever others know: hashes are there to compare replicas.
    async fn hash_of(&self, body: query::Body) -> Result<(HashOutcome, i64, Term), Status> {
        let _turn = self.hashing.acquire().await.map_err(|_| ApiError::Stopped)?;
        let query = kv::Query { body: Some(body), caller: Some(Caller::system()) };
        let answer = self.desk.backend.read(query, Consistency::Serializable).await?;
        let (revision, term) = (answer.outcome.revision, answer.raft_term);
        match answer.outcome.body {
            Some(outcome::Body::Hash(hash)) => Ok((hash, revision, term)),
            other => Err(unexpected(other)),
        }
    }

    async fn change(
        &self,
        body: command::Body,
        by: Option<&Identity>,
    ) -> Result<(ConditionsOutcome, i64, Term), Status> {
        let command = kv::Command { body: Some(body), ..kv::Command::default() };
        conditions(self.desk.propose(command, by).await?)
    }

    async fn conditions(
        &self,
        consistency: Consistency,
    ) -> Result<(ConditionsOutcome, i64, Term), Status> {
        let body = Some(query::Body::Conditions(Conditions {}));
        // Who may ask for them was looked at before the call came here.
        let query = kv::Query { body, caller: Some(Caller::system()) };
        conditions(self.desk.backend.read(query, consistency).await?)
    }

    /// Checks a downgrade to `version` as etcd does, as of now.
    async fn check_downgrade(&self, version: &str) -> Result<(i64, Term), Status> {
        let target = major_and_minor(version).ok_or(ApiError::BadDowngradeVersion)?;
        let (now, revision, term) = self.conditions(Consistency::Linearizable).await?;
        if target != DOWNGRADE_TARGET {
            return Err(ApiError::BadDowngradeTarget.into());
        }
        if !now.downgrade_target.is_empty() {
            return Err(ApiError::DowngradeInProcess.into());
        }
        Ok((revision, term))
    }
}

#[tonic::async_trait]
impl<B: Backend> maintenance_server::Maintenance for MaintenanceService<B> {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let revision = self.local_revision().await;
        let status = self.desk.backend.node_status();
        let mut errors = status.errors;
        if status.leader.is_none() {
            errors.push(ApiError::NoLeader.text().to_owned());
        }
        // A status must be had when little else works: then it names no alarms.
        if let Ok((now, ..)) = self.conditions(Consistency::Serializable).await {
            errors.extend(now.alarms.into_iter().map(in_words));
        }
        Ok(Response::new(StatusResponse {
            header: Some(self.desk.header(revision, status.raft_term)),
            version: ETCD_VERSION.to_owned(),
            db_size: clamped(status.db_size_bytes),
            leader: status.leader.map_or(0, |leader| leader.value()),
            raft_index: status.raft_index.value(),
            raft_term: status.raft_term.value(),
            raft_applied_index: status.raft_applied.value(),
            errors,
            db_size_in_use: clamped(status.db_in_use_bytes),
            is_learner: status.is_learner,
        }))
    }

    /// `etcdctl endpoint health` asks for the list. Only changes are told of, as those of root's are.
    async fn alarm(
        &self,
        request: Request<AlarmRequest>,
    ) -> Result<Response<AlarmResponse>, Status> {
        let (by, peer) = (identity(&request), peer(&request));
        let AlarmRequest { action, member_id, alarm: kind } = request.into_inner();
        let alarm = Alarm { member: member_id, kind };
        let (found, revision, term) = match AlarmAction::try_from(action) {
            Ok(AlarmAction::Get) => {
                let (mut now, revision, term) = self.conditions(Consistency::Linearizable).await?;
                let all = AlarmKind::None as i32;
                now.alarms.retain(|alarm| kind == all || alarm.kind == kind);
                (now, revision, term)
            }
            Ok(AlarmAction::Activate) => {
                let change = ChangeAlarm { alarm, raise: true };
                self.change(command::Body::ChangeAlarm(change), by.as_ref()).await?
            }
            Ok(AlarmAction::Deactivate) => {
                let change = ChangeAlarm { alarm, raise: false };
                self.change(command::Body::ChangeAlarm(change), by.as_ref()).await?
            }
            Err(_) => return Err(ApiError::BadAlarm.into()),
        };
        if action != AlarmAction::Get as i32 {
            audit::allowed("/etcdserverpb.Maintenance/Alarm", by.as_ref(), &peer);
        }
        let alarms = found.alarms.into_iter();
        Ok(Response::new(AlarmResponse {
            header: Some(self.desk.header(revision, term)),
            alarms: alarms
                .map(|alarm| AlarmMember { member_id: alarm.member, alarm: alarm.kind })
                .collect(),
        }))
    }

    /// The state engine gives space back by itself, when it has written enough marks of what was removed; this is for
    /// whoever does not want to wait for that. Clients are served meanwhile.
    async fn defragment(
        &self,
        _: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        self.desk.backend.defragment().await?;
        // etcd gives no more than an empty head here.
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    async fn hash(&self, _: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        let (found, revision, term) = self.hash_of(query::Body::HashAll(HashAll {})).await?;
        let header = Some(self.desk.header(revision, term));
        Ok(Response::new(HashResponse { header, hash: found.hash }))
    }

    async fn hash_kv(
        &self,
        request: Request<HashKvRequest>,
    ) -> Result<Response<HashKvResponse>, Status> {
        let asked = HashKv { revision: request.into_inner().revision };
        let (found, revision, term) = self.hash_of(query::Body::HashKv(asked)).await?;
        Ok(Response::new(HashKvResponse {
            header: Some(self.desk.header(revision, term)),
            hash: found.hash,
            compact_revision: found.compact_revision,
            hash_revision: found.hash_revision,
        }))
    }

    type SnapshotStream = Blobs<SnapshotResponse>;

    async fn snapshot(
        &self,
        _: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let backup = self.desk.backend.backup(BackupForm::Etcd).await?;
        let message = |Blob { bytes, remaining_bytes }| SnapshotResponse {
            header: None,
            remaining_bytes,
            blob: bytes,
        };
        Ok(Response::new(Blobs::new(backup, message)))
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        self.desk.backend.move_leader(NodeId(request.into_inner().target_id)).await?;
        // etcd gives no header here.
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }

    /// A downgrade is checked and noted as etcd does it. Nothing follows from the note.
    async fn downgrade(
        &self,
        request: Request<DowngradeRequest>,
    ) -> Result<Response<DowngradeResponse>, Status> {
        let by = identity(&request);
        let DowngradeRequest { action, version } = request.into_inner();
        let (revision, term) = match DowngradeAction::try_from(action) {
            Ok(DowngradeAction::Validate) => self.check_downgrade(&version).await?,
            Ok(DowngradeAction::Enable) => {
                self.check_downgrade(&version).await?;
                let (major, minor) = DOWNGRADE_TARGET;
                let change = ChangeDowngrade { target: format!("{major}.{minor}.0") };
                let (_, revision, term) =
                    self.change(command::Body::ChangeDowngrade(change), by.as_ref()).await?;
                (revision, term)
            }
            Ok(DowngradeAction::Cancel) => {
                let change = ChangeDowngrade::default();
                let (_, revision, term) =
                    self.change(command::Body::ChangeDowngrade(change), by.as_ref()).await?;
                (revision, term)
            }
            Err(_) => return Err(ApiError::UnknownMethod.into()),
        };
        Ok(Response::new(DowngradeResponse {
            header: Some(self.desk.header(revision, term)),
            version: ETCD_CLUSTER_VERSION.to_owned(),
        }))
    }
}

fn conditions(answer: Answer) -> Result<(ConditionsOutcome, i64, Term), Status> {
    let (revision, term) = (answer.outcome.revision, answer.raft_term);
    match answer.outcome.body {
        Some(outcome::Body::Conditions(found)) => Ok((found, revision, term)),
        other => Err(unexpected(other)),
    }
}

/// What an answer says that is not what was asked for: why there is none.
fn unexpected(body: Option<outcome::Body>) -> Status {
    match body {
        Some(outcome::Body::Error(error)) => {
            ApiError::from(KvError::try_from(error).unwrap_or(KvError::Malformed)).into()
        }
        _ => ApiError::UnexpectedOutcome.into(),
    }
}

/// An alarm as etcd's status shows it.
fn in_words(alarm: Alarm) -> String {
    let kind = match AlarmKind::try_from(alarm.kind) {
        Ok(AlarmKind::NoSpace) => "NOSPACE",
        Ok(AlarmKind::Corrupt) => "CORRUPT",
        Ok(AlarmKind::None) | Err(_) => "NONE",
    };
    match alarm.member {
        0 => format!("alarm:{kind} "),
        member => format!("memberID:{member} alarm:{kind} "),
    }
}

/// Major and minor of a version, with or without its patch number.
fn major_and_minor(version: &str) -> Option<(u64, u64)> {
    let (numbers, _) = version.split_once(['-', '+']).unwrap_or((version, ""));
    let numbers: Option<Vec<u64>> = numbers.split('.').map(number).collect();
    match *numbers? {
        [major, minor] | [major, minor, _] => Some((major, minor)),
        _ => None,
    }
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Bytes as etcd's signed number.
fn clamped(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_etcd_reads_them() {
        for (text, expected) in [
            ("3.4.0", Some((3, 4))),
            ("3.4", Some((3, 4))),
            ("3.4.9-rc.1", Some((3, 4))),
            ("3", None),
            ("", None),
            ("3.x", None),
            ("3.+4", None),
            ("3.4.0.1", None),
        ] {
            assert_eq!(major_and_minor(text), expected, "{text}");
        }
    }
}
