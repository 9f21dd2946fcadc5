//! History that is forgotten by itself: which node does it, and what becomes of a try that fails.

use std::sync::Arc;
use std::time::Duration;

use quorate_gateway::compaction::{Retention, run};
use quorate_gateway::{Backend, Consistency};
use quorate_types::auth::Caller;
use quorate_types::kv::{Command, Compact, Put, command};
use quorate_types::kv_maintenance::{Alarm, AlarmKind, ChangeAlarm};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::fake::FakeBackend;

/// Short, and long enough that some looks fit in.
const PERIOD: Duration = Duration::from_millis(100);

/// How long anything may take, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Looks in a period.
const LOOKS: usize = 10;

/// A backend whose history is forgotten by itself.
struct Node {
    backend: Arc<FakeBackend>,
    compacting: JoinHandle<()>,
}

impl Node {
    fn start(backend: FakeBackend, retention: Retention) -> Self {
        let backend = Arc::new(backend);
        let compacting = tokio::spawn(run(Arc::clone(&backend), retention));
        Self { backend, compacting }
    }

    async fn propose(&self, body: command::Body) {
        propose(&self.backend, body).await;
    }

    /// Waits until it has looked so often.
    async fn looked(&self, count: usize) {
        let looks = async {
            let mut seen = 0;
            while seen < count {
                let reads = self.backend.next_reads().await;
                assert!(reads.iter().all(|read| *read == Consistency::Serializable));
                seen += reads.len();
            }
        };
        timeout(PATIENCE, looks).await.expect("it looks");
    }

    /// The revisions that were to be compacted at since the last call.
    fn tries(&self) -> Vec<i64> {
        let compact = |command: Command| match command.body {
            Some(command::Body::Compact(Compact { revision })) => Some(revision),
            _ => None,
        };
        self.backend.take_proposals().into_iter().filter_map(compact).collect()
    }

    /// The next revision that it tries to compact at.
    async fn next_try(&self) -> i64 {
        let mut proposed = self.backend.proposed();
        loop {
            if let Some(revision) = self.tries().first() {
                return *revision;
            }
            let changed = timeout(PATIENCE, proposed.changed()).await.expect("it tries");
            changed.expect("the backend is here");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.compacting.abort();
    }
}

async fn propose(backend: &FakeBackend, body: command::Body) {
    let caller = Some(Caller::system());
    let command = Command { body: Some(body), caller, ..Command::default() };
    backend.propose(command).await.expect("a proposal");
}

fn put() -> command::Body {
    command::Body::Put(Put { key: "k".into(), ..Put::default() })
}

#[tokio::test]
async fn a_node_that_begins_to_lead_knows_what_was_a_period_ago() {
    let backend = FakeBackend::new();
    for _ in 0..5 {
        propose(&backend, put()).await;
    }
    backend.cut_off(true);
    let node = Node::start(backend, Retention::Period(PERIOD));
    // At least a period passes between the first look and the last, all of them at revision 6.
    node.looked(LOOKS + 1).await;
    assert!(node.tries().is_empty(), "whoever does not lead compacts nothing");
    // Nothing looks between the two: nobody waits.
    node.propose(put()).await;
    node.backend.cut_off(false);
    assert_eq!(node.next_try().await, 6);
}

#[tokio::test]
async fn a_periodic_compaction_that_fails_is_tried_again_at_the_next_look() {
    let backend = FakeBackend::new();
    propose(&backend, put()).await;
    // Changes are refused, and reads are not.
    let alarm = Alarm { member: 5, kind: AlarmKind::Corrupt as i32 };
    let raised = |raise| command::Body::ChangeAlarm(ChangeAlarm { alarm, raise });
    propose(&backend, raised(true)).await;
    let node = Node::start(backend, Retention::Period(PERIOD));
    assert_eq!(node.next_try().await, 2);
    for _ in 0..3 {
        node.backend.take_reads();
        assert_eq!(node.next_try().await, 2);
        assert_eq!(node.backend.take_reads().len(), 1, "one look later");
    }
    node.propose(raised(false)).await;
    node.backend.take_reads();
    assert_eq!(node.next_try().await, 2);
    // Once it is done, there is nothing to compact until something is written.
    node.looked(LOOKS * 3).await;
    assert!(node.tries().is_empty());
    node.propose(put()).await;
    assert_eq!(node.next_try().await, 3);
}
