//! Scenarios: a plan written by hand, with what must happen.
//!
//! A scenario is a TOML file: a [`Plan`] and a list of expectations, each an event that the trace must hold within
//! a time. All times count from the start.

use std::collections::BTreeMap;
use std::fmt;

use quorate_raft::Role;
use quorate_types::{GroupId, LogIndex, NodeId, Term};
use serde::{Deserialize, Serialize};

use crate::fault::{node_name, node_of};
use crate::plan::Plan;
use crate::run::{Outcome, run};
use crate::trace::{TraceEvent, What};

/// A plan and what must come of it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// The seed, where the plan leaves anything open.
    #[serde(default)]
    pub seed: u64,
    /// The plan.
    pub plan: Plan,
    /// What must happen; the times say in which order.
    #[serde(default, rename = "expect")]
    pub expected: Vec<Expectation>,
    /// What must not happen.
    #[serde(default, rename = "never")]
    pub forbidden: Vec<Expectation>,
}

/// Something that must happen, or must not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Expectation {
    /// Not before this time.
    #[serde(default)]
    pub from_us: u64,
    /// Not after this time; without it, at any time.
    #[serde(default)]
    pub to_us: Option<u64>,
    /// Where, by letter; without it, anywhere.
    #[serde(default)]
    pub node: Option<String>,
    /// What.
    #[serde(flatten)]
    pub event: ExpectedEvent,
}

/// The events that can be expected, all of the data group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(
    tag = "event",
    deny_unknown_fields,
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case"
)]
pub enum ExpectedEvent {
    /// A message of this kind arrives.
    Receives {
        /// The kind, as `Append` or `AppendAccepted`.
        message: String,
        /// From whom, by letter.
        from: String,
    },
    /// An entry is known to be committed, for the first time anywhere.
    Commits {
        /// Its index.
        index: u64,
    },
    /// An entry is applied.
    Applies {
        /// Its index.
        index: u64,
    },
    /// A replica leads and can serve.
    Serves {
        /// In this term, if it matters.
        #[serde(default)]
        term: Option<u64>,
    },
    /// A replica follows this leader.
    Follows {
        /// By letter.
        leader: String,
    },
    /// A replica that led does so no more.
    StepsDown,
    /// A replica asks for votes.
    Campaigns,
    /// The client of the so-manieth planned request, from 0, gets this answer.
    Answers {
        /// Which request.
        request: u32,
        /// `ok`, `failed` or `unknown`.
        result: String,
    },
}

/// Why a scenario has failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The file is not a scenario.
    #[error("{0}")]
    Malformed(String),
    /// A promise was broken.
    #[error("{0}")]
    Broken(String),
    /// Something did not happen.
    #[error("expected, but not seen: {0}")]
    Missing(String),
    /// Something happened that must not.
    #[error("must not happen: {0}")]
    Forbidden(String),
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// When the text is not one, with line and key.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        toml::from_str(text).map_err(|error| ScenarioError::Malformed(error.to_string()))
    }

    /// Runs it with its own seed, or another.
    #[must_use]
    pub fn run(&self, seed: Option<u64>) -> Outcome {
        run(&self.plan, seed.unwrap_or(self.seed), true)
    }

    /// Judges what came of it.
    ///
    /// # Errors
    /// When a promise was broken, or something was not as expected.
    pub fn judge(&self, outcome: &Outcome) -> Result<(), ScenarioError> {
        if let Some(violation) = &outcome.violation {
            return Err(ScenarioError::Broken(violation.to_string()));
        }
        let mut seen = vec![false; self.expected.len()];
        let mut roles = BTreeMap::new();
        for event in &outcome.trace {
            let stepped_down = steps_down(event, &mut roles);
            let matches = |expected: &Expectation| expected.matches(event, stepped_down);
            for (expected, seen) in self.expected.iter().zip(&mut seen) {
                *seen |= matches(expected);
            }
            if let Some(forbidden) = self.forbidden.iter().find(|forbidden| matches(forbidden)) {
                return Err(ScenarioError::Forbidden(format!("{forbidden}: {event}")));
            }
        }
        match seen.iter().position(|seen| !seen) {
            Some(missing) => Err(ScenarioError::Missing(self.expected[missing].to_string())),
            None => Ok(()),
        }
    }
}

/// True when `event` says that a node that led does so no more; `roles` remembers what each was.
fn steps_down(event: &TraceEvent, roles: &mut BTreeMap<NodeId, Role>) -> bool {
    match (&event.what, event.node) {
        (What::Role { group: GroupId::FIRST_DATA, role, .. }, Some(node)) => {
            roles.insert(node, *role) == Some(Role::Leader) && *role != Role::Leader
        }
        _ => false,
    }
}

impl Expectation {
    fn matches(&self, event: &TraceEvent, stepped_down: bool) -> bool {
        let in_time =
            event.at_us >= self.from_us && self.to_us.is_none_or(|to_us| event.at_us <= to_us);
        let here = match &self.node {
            None => true,
            Some(name) => event.node.is_some() && event.node == node_of(name),
        };
        in_time && here && self.event.matches(event, stepped_down)
    }
}

impl ExpectedEvent {
    fn matches(&self, event: &TraceEvent, stepped_down: bool) -> bool {
        match (self, &event.what) {
            (Self::Receives { message, from }, What::Received { from: sender, brief, .. }) => {
                brief.kind == message && node_name(*sender) == *from
            }
            (Self::Commits { index }, What::Committed { index: to, .. })
            | (Self::Applies { index }, What::Applied { index: to, .. }) => *to >= LogIndex(*index),
            (Self::Serves { term }, What::Role { serving: true, term: of, .. }) => {
                term.is_none_or(|term| Term(term) == *of)
            }
            (Self::Follows { leader }, What::Role { role: Role::Follower, leader: of, .. }) => {
                of.map(node_name).as_ref() == Some(leader)
            }
            (Self::StepsDown, _) => stepped_down,
            (Self::Campaigns, What::Role { role: Role::Candidate, .. }) => true,
            (Self::Answers { request, result }, What::Answered { client, result: of, .. }) => {
                *client == crate::requests::NOBODY + request && of == result
            }
            _ => false,
        }
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = self.node.as_deref().unwrap_or("anybody");
        write!(f, "{node} {:?} from {} us", self.event, self.from_us)?;
        match self.to_us {
            Some(to_us) => write!(f, " to {to_us} us"),
            None => Ok(()),
        }
    }
}
