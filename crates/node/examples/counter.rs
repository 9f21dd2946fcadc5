//! A replicated counter on three nodes in one process: the smallest state machine that there is.
//!
//! `cargo run --release --example counter`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use metrics::NoopRecorder;
use quorate_node::{Consistency, Engine, local};
use quorate_types::machine::StateError;
use quorate_types::{
    Committed, GroupId, MachineKind, ReadError, StateBatch, StateMachine, StateReader,
};

type Answer = Result<Bytes, ReadError>;

/// A command is a number to add, as eight bytes; the outcome is the new sum.
#[derive(Debug)]
struct CounterKind;

struct Counter {
    sum: u64,
}

fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

fn bytes(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_le_bytes())
}

impl StateMachine for Counter {
    fn apply(
        &mut self,
        committed: &[Committed],
        _: &mut dyn StateBatch,
    ) -> Result<Vec<Bytes>, StateError> {
        let add = |one: &Committed| {
            self.sum = self.sum.wrapping_add(number(&one.command));
            bytes(self.sum)
        };
        Ok(committed.iter().map(add).collect())
    }

    /// The sum is all there is to remember; larger machines keep rows in the batch.
    fn meta(&self) -> Bytes {
        bytes(self.sum)
    }
}

impl MachineKind for CounterKind {
    fn name(&self) -> &str {
        "counter"
    }

    fn open(
        &self,
        _: GroupId,
        meta: &[u8],
        _: &dyn StateReader,
    ) -> Result<Box<dyn StateMachine>, StateError> {
        Ok(Box::new(Counter { sum: number(meta) }))
    }

    fn read(&self, _: GroupId, _: &Bytes, meta: &[u8], _: &dyn StateReader) -> Answer {
        Ok(bytes(number(meta)))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let opening = local::configs(3, dir.path())?.into_iter().map(|config| async {
        Engine::open(config, vec![Arc::new(CounterKind)], &NoopRecorder).await
    });
    let nodes = futures::future::try_join_all(opening).await?;
    let (group, voters) = (GroupId(100), nodes.iter().map(Engine::node).collect::<Vec<_>>());
    for node in &nodes {
        node.create_group(group, "counter", None, voters.clone()).await?;
    }
    for add in 1..=10 {
        // Any node will do: it finds the leader.
        let proposed = nodes[add as usize % 3].propose(group, bytes(add)).await?;
        println!("+{add} at {} gives {}", proposed.id, number(&proposed.outcome));
    }
    let read = nodes[0].read(group, Bytes::new(), Consistency::Linearizable).await?;
    println!("every node agrees on {}", number(&read.answer));
    futures::future::join_all(nodes.into_iter().map(Engine::shutdown)).await;
    Ok(())
}
