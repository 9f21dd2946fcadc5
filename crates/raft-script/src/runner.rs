//! Runs the stanzas of a script, one after another.

use crate::cluster::Cluster;
use crate::command;
use crate::facts;
use crate::parse::{Script, Stanza};

/// What a stanza did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// What it printed, `ok` if nothing.
    pub output: String,
    /// What could not be run, in words; also part of the output.
    pub errors: Vec<String>,
    /// One JSON object per node, in order, without line ends.
    pub facts: Vec<String>,
}

/// The state of a running script.
#[derive(Debug, Default)]
pub struct Runner {
    cluster: Cluster,
}

impl Runner {
    /// No nodes yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs one stanza. What goes wrong is part of its output; the script goes on.
    pub fn run(&mut self, stanza: &Stanza) -> Outcome {
        let mut errors = Vec::new();
        let takes_body = command::takes_body(&stanza.command);
        let (body, further) =
            if takes_body { (&stanza.body[..], &[][..]) } else { (&[][..], &stanza.body[..]) };
        for line in std::iter::once(&stanza.command).chain(further) {
            if let Err(error) = command::run(&mut self.cluster, line, body) {
                self.cluster.output.error(format!("error: {error}"));
                errors.push(error.to_string());
            }
        }
        let nodes = self.cluster.nodes.iter();
        let facts = nodes.map(|node| facts::of_node(stanza.line, node)).collect();
        Outcome { output: self.cluster.output.take(), errors, facts }
    }

    /// Runs a whole script and writes what it prints into its expectations. Returns the lines of
    /// the stanzas that printed something else than expected.
    pub fn run_all(&mut self, script: &mut Script) -> Vec<usize> {
        let mut different = Vec::new();
        for stanza in &mut script.stanzas {
            let outcome = self.run(stanza);
            if outcome.output != stanza.expected {
                different.push(stanza.line);
                stanza.expected = outcome.output;
            }
        }
        different
    }

    /// Two nodes that have applied as much but not the same; `None` if there are none. Every script
    /// ends with this question (State Machine Safety).
    #[must_use]
    pub fn diverged(&self) -> Option<String> {
        let nodes = &self.cluster.nodes;
        let pairs = nodes
            .iter()
            .enumerate()
            .flat_map(|(at, a)| nodes[at + 1..].iter().map(move |b| (a, b)));
        let mut diverged =
            pairs.filter(|(a, b)| a.applied() == b.applied() && a.content() != b.content());
        diverged.next().map(|(a, b)| {
            let (a_content, b_content) = (a.content(), b.content());
            format!(
                "at {} node {} has {a_content:?}, node {} has {b_content:?}",
                a.applied(),
                a.id(),
                b.id()
            )
        })
    }
}
