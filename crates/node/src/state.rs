//! Reading a group's state: on any thread, from one consistent view, beside running applies.

use std::sync::Arc;

use bytes::Bytes;
use quorate_store::engine::{StateEngine, scoped_view};
use quorate_store::group_row::{self, GroupRow};
use quorate_transport::Replier;
use quorate_types::machine::StateError;
use quorate_types::{GroupId, MachineKind, ReadError};

use crate::actor::ReadGrant;
use crate::forward::{Answer, Reply, reply};

/// The state of one group, to look at.
#[derive(Clone)]
pub(crate) struct GroupState {
    group: GroupId,
    kind: Arc<dyn MachineKind>,
    engine: Arc<dyn StateEngine>,
}

impl GroupState {
    pub(crate) fn new(group: GroupId, kind: Arc<dyn MachineKind>, engine: Arc<dyn StateEngine>) -> Self {
        Self { group, kind, engine }
    }

    /// The group's own row as of now; `None` before the first apply.
    pub(crate) fn row(engine: &dyn StateEngine, group: GroupId) -> Result<Option<GroupRow>, StateError> {
        let stored = engine.view().get(&group_row::key(group))?;
        stored.map(|stored| GroupRow::decode(&stored)).transpose()
    }

    /// Answers `query` from the state as of now.
    pub(crate) fn read(&self, query: &Bytes) -> Result<Bytes, ReadError> {
        let view = self.engine.view();
        let row = view.get(&group_row::key(self.group))?;
        let meta = row.map(|row| GroupRow::decode(&row)).transpose()?.map(|row| row.meta);
        let scoped = scoped_view(self.kind.scope(), self.group, &*view);
        self.kind.read(query, &meta.unwrap_or_default(), &*scoped)
    }

    /// Like [`GroupState::read`], away from the runtime when the query may look at many rows.
    pub(crate) async fn read_anywhere(&self, query: Bytes) -> Result<Bytes, ReadError> {
        if self.kind.is_point_read(&query) {
            return self.read(&query);
        }
        let state = self.clone();
        let read = tokio::task::spawn_blocking(move || state.read(&query)).await;
        read.unwrap_or_else(|failed| Err(StateError(format!("read failed: {failed}")).into()))
    }

    /// Answers `query` for another node.
    pub(crate) fn answer_remote(&self, grant: ReadGrant, query: Bytes, replier: Replier) {
        if self.kind.is_point_read(&query) {
            return replier.send(reply_to(grant, self.read(&query)));
        }
        let state = self.clone();
        // Detached: the other node's deadline bounds how long anybody waits for it.
        drop(tokio::task::spawn_blocking(move || replier.send(reply_to(grant, state.read(&query)))));
    }
}

fn reply_to(grant: ReadGrant, answer: Result<Bytes, ReadError>) -> Bytes {
    Reply::encoded(match answer {
        Ok(outcome) => reply::Body::Answer(Answer {
            term: grant.term.value(),
            index: grant.index.value(),
            outcome,
        }),
        Err(error) => reply::Body::Failed(error.to_string()),
    })
}
