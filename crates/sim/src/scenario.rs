//! Scenarios: a plan written by hand, with what must happen.
//!
//! A scenario is a TOML file: a [`Plan`] and a list of expectations, each an event that the trace must hold within
//! a time. All times count from the start.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use quorate_raft::Role;
use quorate_types::{GroupId, LogIndex, NodeId, Term};
use serde::{Deserialize, Serialize};

use crate::fault::{node_name, node_of};
use crate::plan::Plan;
use crate::requests::NOBODY;
use crate::run::{Outcome, run};
use crate::trace::{TraceEvent, What};
use crate::world::membership;

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
    /// Where; without it, anywhere.
    #[serde(default)]
    pub node: Option<Who>,
    /// What.
    #[serde(flatten)]
    pub event: ExpectedEvent,
}

/// A node by its letter, or one of several.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Who {
    /// This one.
    One(String),
    /// Any of these.
    Any(Vec<String>),
}

impl Who {
    fn includes(&self, node: Option<NodeId>) -> bool {
        let is = |name: &String| node.is_some() && node == node_of(name);
        match self {
            Self::One(name) => is(name),
            Self::Any(names) => names.iter().any(is),
        }
    }
}

/// What a planned read sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "toml::Value", into = "toml::Value")]
pub enum Seen {
    /// What the so-manieth planned request wrote.
    Write(u32),
    /// No value: nobody has written.
    Nothing,
}

impl TryFrom<toml::Value> for Seen {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        match &value {
            toml::Value::String(text) if text == "nothing" => Ok(Self::Nothing),
            toml::Value::Integer(request) => {
                u32::try_from(*request).map(Self::Write).map_err(|error| error.to_string())
            }
            _ => Err(format!("{value} is neither a planned request nor `nothing`")),
        }
    }
}

impl From<Seen> for toml::Value {
    fn from(seen: Seen) -> Self {
        match seen {
            Seen::Write(request) => Self::Integer(request.into()),
            Seen::Nothing => Self::String("nothing".to_owned()),
        }
    }
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
    /// A replica follows a leader.
    Follows {
        /// This one, or one of these.
        leader: Who,
        /// In this term, if it matters.
        #[serde(default)]
        term: Option<u64>,
    },
    /// A process starts.
    Starts,
    /// A process ends.
    Stops,
    /// A replica puts a snapshot in the place of its log and rows.
    Installs,
    /// A node that was no voter is one, in the membership in force at `node`.
    Promotes {
        /// Who, by letter.
        who: String,
    },
    /// A node that was a voter is none any more, in the membership in force at `node`.
    Demotes {
        /// Who, by letter.
        who: String,
    },
    /// After the faults, everybody has come together.
    Converges,
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
        /// What a read has to see.
        #[serde(default)]
        sees: Option<Seen>,
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
        let mut before = Before::of(&self.plan, outcome);
        for event in &outcome.trace {
            let matches = |expected: &Expectation| expected.matches(event, &before);
            for (expected, seen) in self.expected.iter().zip(&mut seen) {
                *seen |= matches(expected);
            }
            if let Some(forbidden) = self.forbidden.iter().find(|forbidden| matches(forbidden)) {
                return Err(ScenarioError::Forbidden(format!("{forbidden}: {event}")));
            }
            before.remember(event);
        }
        match seen.iter().position(|seen| !seen) {
            Some(missing) => Err(ScenarioError::Missing(self.expected[missing].to_string())),
            None => Ok(()),
        }
    }
}

/// What an event has to be held against.
#[derive(Default)]
struct Before {
    roles: BTreeMap<NodeId, Role>,
    /// Who votes at first, and by the node where that has changed.
    founders: BTreeSet<NodeId>,
    voters: BTreeMap<NodeId, BTreeSet<NodeId>>,
    /// What planned requests write, whether it is done or not.
    written: BTreeMap<u32, u64>,
}

impl Before {
    fn of(plan: &Plan, outcome: &Outcome) -> Self {
        let mut written = BTreeMap::new();
        for event in &outcome.trace {
            if let What::Answered { client, value: Some(value), .. } = event.what
                && let Some(request) = client.checked_sub(NOBODY)
            {
                // The requests of the end of a run come after those of the plan.
                written.entry(request).or_insert(value);
            }
        }
        let founders = membership(plan).0.voters;
        Self { founders, written, ..Self::default() }
    }

    fn remember(&mut self, event: &TraceEvent) {
        let Some(node) = event.node else { return };
        match &event.what {
            What::Role { group: GroupId::FIRST_DATA, role, .. } => {
                self.roles.insert(node, *role);
            }
            What::Members { group: GroupId::FIRST_DATA, voters, .. } => {
                self.voters.insert(node, voters.iter().copied().collect());
            }
            _ => {}
        }
    }

    fn votes(&self, at: Option<NodeId>, node: NodeId) -> bool {
        let changed = at.and_then(|at| self.voters.get(&at));
        changed.unwrap_or(&self.founders).contains(&node)
    }
}

impl Expectation {
    fn matches(&self, event: &TraceEvent, before: &Before) -> bool {
        let in_time =
            event.at_us >= self.from_us && self.to_us.is_none_or(|to_us| event.at_us <= to_us);
        let here = self.node.as_ref().is_none_or(|who| who.includes(event.node));
        in_time && here && self.event.matches(event, before)
    }
}

impl ExpectedEvent {
    fn matches(&self, event: &TraceEvent, before: &Before) -> bool {
        match (self, &event.what) {
            (Self::Receives { message, from }, What::Received { from: sender, brief, .. }) => {
                brief.kind == message && node_name(*sender) == *from
            }
            (Self::Commits { index }, What::Committed { index: to, .. })
            | (Self::Applies { index }, What::Applied { index: to, .. }) => *to >= LogIndex(*index),
            (Self::Serves { term }, What::Role { serving: true, term: of, .. }) => {
                term.is_none_or(|term| Term(term) == *of)
            }
            (
                Self::Follows { leader, term },
                What::Role { role: Role::Follower, leader: of, term: in_term, .. },
            ) => leader.includes(*of) && term.is_none_or(|term| Term(term) == *in_term),
            (Self::StepsDown, What::Role { group: GroupId::FIRST_DATA, role, .. }) => {
                let was = event.node.and_then(|node| before.roles.get(&node));
                was == Some(&Role::Leader) && *role != Role::Leader
            }
            (Self::Campaigns, What::Role { role: Role::Candidate, .. })
            | (Self::Starts, What::Started)
            | (Self::Stops, What::Stopped(_))
            | (Self::Converges, What::Converged)
            | (Self::Installs, What::Installed { group: GroupId::FIRST_DATA, .. }) => true,
            (Self::Promotes { who }, What::Members { group: GroupId::FIRST_DATA, voters, .. }) => {
                node_of(who)
                    .is_some_and(|who| voters.contains(&who) && !before.votes(event.node, who))
            }
            (Self::Demotes { who }, What::Members { group: GroupId::FIRST_DATA, voters, .. }) => {
                node_of(who)
                    .is_some_and(|who| !voters.contains(&who) && before.votes(event.node, who))
            }
            (
                Self::Answers { request, result, sees },
                What::Answered { client, result: of, value, .. },
            ) => {
                let saw = |seen: &Seen| match seen {
                    Seen::Nothing => value.is_none(),
                    Seen::Write(write) => {
                        value.is_some() && *value == before.written.get(write).copied()
                    }
                };
                *client == NOBODY + request && of == result && sees.as_ref().is_none_or(saw)
            }
            _ => false,
        }
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = match &self.node {
            None => "anybody".to_owned(),
            Some(Who::One(name)) => name.clone(),
            Some(Who::Any(names)) => names.join(" or "),
        };
        write!(f, "{node} {:?} from {} us", self.event, self.from_us)?;
        match self.to_us {
            Some(to_us) => write!(f, " to {to_us} us"),
            None => Ok(()),
        }
    }
}
