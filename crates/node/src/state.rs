//! Reading a group's state: on any thread, from one consistent view, beside running applies.

use std::sync::Arc;

use bytes::Bytes;
use quorate_group::{Leadership, Refusal};
use quorate_raft::Role;
use quorate_store::{ScopedView, StateEngine};
use quorate_transport::Replier;
use quorate_types::machine::StateError;
use quorate_types::{GroupId, Led, MachineKind, ReadError, Term};

use crate::actor::ReadGrant;
use crate::clock;
use crate::forward::{Answer, FORWARDED_BYTES_MAX, Reply, reply};

/// The state of one group, to look at.
#[derive(Clone)]
pub(crate) struct GroupState {
    pub(crate) group: GroupId,
    kind: Arc<dyn MachineKind>,
    engine: Arc<dyn StateEngine>,
}

impl GroupState {
    pub(crate) fn new(
        group: GroupId,
        kind: Arc<dyn MachineKind>,
        engine: Arc<dyn StateEngine>,
    ) -> Self {
        Self { group, kind, engine }
    }

    /// Whether `command` may add data.
    pub(crate) fn grows(&self, command: &Bytes) -> bool {
        self.kind.grows(command)
    }

    /// Answers `query` from the state as of now.
    pub(crate) fn read(&self, query: &Bytes) -> Result<Bytes, ReadError> {
        let view = self.engine.shared_view();
        let row = view.group_row(self.group)?;
        let rows = ScopedView::new(view.rows(), self.kind.scope(), self.group);
        self.kind.read(self.group, query, &row.meta, &rows)
    }

    /// The same if that looks at few rows; `None` if it may look at many.
    fn read_few(&self, query: &Bytes) -> Option<Result<Bytes, ReadError>> {
        let view = self.engine.shared_view();
        let row = match view.group_row(self.group) {
            Ok(row) => row,
            Err(error) => return Some(Err(error.into())),
        };
        let rows = ScopedView::new(view.rows(), self.kind.scope(), self.group);
        self.kind.read_few(self.group, query, &row.meta, &rows)
    }

    /// Like [`GroupState::read`], away from the runtime when the query may look at many rows.
    pub(crate) async fn read_anywhere(&self, query: Bytes) -> Result<Bytes, ReadError> {
        if let Some(answer) = self.read_few(&query) {
            return answer;
        }
        let state = self.clone();
        let read = tokio::task::spawn_blocking(move || state.read(&query)).await;
        read.unwrap_or_else(|failed| Err(StateError(format!("read failed: {failed}")).into()))
    }

    /// Answers `query` as the leader of `term`, in which it was granted just now.
    pub(crate) fn read_led(&self, query: &Bytes, term: Term) -> Result<Bytes, ReadError> {
        let view = self.engine.shared_view();
        let row = view.group_row(self.group)?;
        let rows = ScopedView::new(view.rows(), self.kind.scope(), self.group);
        let led = Led { term, now: clock::now() };
        self.kind.read_led(self.group, query, led, &row.meta, &rows)
    }

    /// Tells the kind who keeps time.
    pub(crate) fn on_leadership(&self, leadership: Leadership) {
        let leads = leadership.role == Role::Leader && leadership.serving;
        self.kind.on_leadership(self.group, leads.then_some(leadership.term));
    }

    /// The group has no life to lead in.
    pub(crate) fn resign(&self) {
        self.kind.on_leadership(self.group, None);
    }

    /// Answers `query` for another node.
    pub(crate) fn answer_remote(
        &self,
        grant: ReadGrant,
        query: Bytes,
        led: bool,
        replier: Replier,
    ) {
        if led {
            return replier.send(reply_to(grant, self.read_led(&query, grant.term)));
        }
        if let Some(answer) = self.read_few(&query) {
            return replier.send(reply_to(grant, answer));
        }
        let state = self.clone();
        // Detached: the other node's deadline bounds how long anybody waits for it.
        drop(tokio::task::spawn_blocking(move || {
            replier.send(reply_to(grant, state.read(&query)))
        }));
    }
}

fn reply_to(grant: ReadGrant, answer: Result<Bytes, ReadError>) -> Bytes {
    Reply::encoded(match answer {
        Ok(outcome) if outcome.len() > FORWARDED_BYTES_MAX => {
            reply::Body::TooLarge(outcome.len() as u64)
        }
        Ok(outcome) => reply::Body::Answer(Answer {
            term: grant.term.value(),
            index: grant.index.value(),
            outcome,
        }),
        // The asker looks again, and asks again.
        Err(ReadError::NotNow) => {
            Reply::of_refusal(Refusal::NotLeader { leader: None, term: grant.term })
        }
        Err(error) => reply::Body::Failed(error.to_string()),
    })
}
