//! A replicated table of locks on three nodes in one process, with a fencing token for each holder:
//! `cargo run --release --example locks`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use metrics::NoopRecorder;
use quorate_node::{Engine, local};
use quorate_types::machine::StateError;
use quorate_types::{
    Committed, GroupId, MachineKind, ReadError, StateBatch, StateMachine, StateReader,
};

type Answer = Result<Bytes, ReadError>;

/// Commands are `acquire <lock> <holder>` and `release <lock> <holder>`; a row holds each lock's holder
/// and token.
#[derive(Debug)]
struct LocksKind;

struct Locks;

fn run(one: &Committed, batch: &mut dyn StateBatch) -> Result<String, StateError> {
    let command = String::from_utf8_lossy(&one.command).into_owned();
    let words: Vec<_> = command.split(' ').collect();
    let [verb, lock, holder] = words[..] else { return Ok(format!("what is {command:?}?")) };
    let row = batch.get(lock.as_bytes())?.map(|row| String::from_utf8_lossy(&row).into_owned());
    let held_by = row.as_deref().and_then(|row| row.split(' ').next());
    Ok(match (verb, held_by) {
        ("acquire", None) => {
            // The entry's index only grows: whoever sees a smaller token is late.
            let token = one.id.index;
            batch.put(lock.as_bytes(), format!("{holder} {token}").as_bytes());
            format!("{holder} holds {lock} with token {token}")
        }
        ("acquire", Some(other)) => format!("{lock} is held by {other}"),
        ("release", Some(other)) if other == holder => {
            batch.delete(lock.as_bytes());
            format!("{lock} is free")
        }
        _ => format!("{holder} does not hold {lock}"),
    })
}

impl StateMachine for Locks {
    fn apply(
        &mut self,
        committed: &[Committed],
        batch: &mut dyn StateBatch,
    ) -> Result<Vec<Bytes>, StateError> {
        committed.iter().map(|one| run(one, batch).map(Bytes::from)).collect()
    }

    fn meta(&self) -> Bytes {
        Bytes::new()
    }
}

impl MachineKind for LocksKind {
    fn name(&self) -> &str {
        "locks"
    }

    fn open(
        &self,
        _: GroupId,
        _: &[u8],
        _: &dyn StateReader,
    ) -> Result<Box<dyn StateMachine>, StateError> {
        Ok(Box::new(Locks))
    }

    fn read(&self, _: GroupId, lock: &Bytes, _: &[u8], state: &dyn StateReader) -> Answer {
        Ok(state.get(lock)?.unwrap_or_default())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let opening = local::configs(3, dir.path())?.into_iter().map(|config| async {
        Engine::open(config, vec![Arc::new(LocksKind)], &NoopRecorder).await
    });
    let nodes = futures::future::try_join_all(opening).await?;
    let (group, voters) = (GroupId(100), nodes.iter().map(Engine::node).collect::<Vec<_>>());
    for node in &nodes {
        node.create_group(group, "locks", None, voters.clone()).await?;
    }
    let (ann, bob) = ("acquire door ann", "acquire door bob");
    for command in [ann, bob, "release door ann", bob] {
        let proposed = nodes[1].propose(group, Bytes::from(command)).await?;
        println!("{command}: {}", String::from_utf8_lossy(&proposed.outcome));
    }
    futures::future::join_all(nodes.into_iter().map(Engine::shutdown)).await;
    Ok(())
}
