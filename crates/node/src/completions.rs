//! What the log reports, handed on to whom it concerns.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use quorate_group::Generation;
use quorate_raft::Ticket;
use quorate_types::{Entry, GroupId};
use quorate_wal::{Completions, Fetch, LogError, Persisted};
use tokio::sync::oneshot;

use crate::actor::Input;
use crate::router::Router;

/// The exit code of a node whose log or state failed: it acknowledged nothing after the failure.
pub const EXIT_STORAGE_FAILED: i32 = 70;

/// Completions of the log, on the log's own threads: nothing here waits.
pub(crate) struct LogCompletions {
    router: Arc<Router>,
    /// Who waits for a group's log to be made.
    creating: Mutex<BTreeMap<(GroupId, u64), oneshot::Sender<()>>>,
}

impl LogCompletions {
    pub(crate) fn new(router: Arc<Router>) -> Self {
        Self { router, creating: Mutex::new(BTreeMap::new()) }
    }

    /// Fires when the first write of this life of the group is durable.
    pub(crate) fn on_created(
        &self,
        group: GroupId,
        generation: Generation,
    ) -> oneshot::Receiver<()> {
        let (sender, created) = oneshot::channel();
        let mut creating = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        creating.insert((group, generation.0), sender);
        created
    }

    fn tell(&self, group: GroupId, input: Input) {
        // A group that has left needs no completions.
        if let Some(resident) = self.router.residents.load().get(&group) {
            drop(self.router.tell(resident, input));
        }
    }
}

impl Completions for LogCompletions {
    fn persisted(&self, done: &[Persisted]) {
        for &Persisted { group, generation, ticket } in done {
            if ticket == 0 {
                let mut creating = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(sender) = creating.remove(&(group, generation)) {
                    let _ = sender.send(());
                }
                continue;
            }
            let (generation, ticket) = (Generation(generation), Ticket(ticket));
            self.tell(group, Input::Persisted { generation, ticket });
        }
    }

    fn fetched(&self, fetch: Fetch, entries: Result<Vec<Entry>, LogError>) {
        let Fetch { group, generation, from, to, .. } = fetch;
        let entries = entries.unwrap_or_else(|error| {
            tracing::error!(%group, %from, %to, %error, "old entries cannot be read");
            Vec::new()
        });
        let generation = Generation(generation);
        self.tell(group, Input::Fetched { generation, fetch, entries });
    }

    fn poisoned(&self, error: &LogError) {
        tracing::error!(
            %error,
            "the log failed: nothing is acknowledged any more, and the node stops"
        );
        std::process::exit(EXIT_STORAGE_FAILED);
    }
}
