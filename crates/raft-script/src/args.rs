//! Typed access to the arguments of a command.

use std::str::FromStr;

use quorate_types::NodeId;

use crate::error::ScriptError;
use crate::parse::{Arg, Line};

/// The arguments of one command line. Each accessor takes what it returns; [`Args::end`] then
/// complains about what no accessor wanted, so that a misspelt option is not silently ignored.
pub(crate) struct Args<'a> {
    line: &'a Line,
    rest: Vec<&'a Arg>,
}

impl<'a> Args<'a> {
    pub(crate) fn new(line: &'a Line) -> Self {
        Self { line, rest: line.args.iter().collect() }
    }

    /// The next positional word.
    pub(crate) fn word(&mut self) -> Option<&'a str> {
        let at = self.rest.iter().position(|arg| arg.values.is_none())?;
        Some(&self.rest.remove(at).key)
    }

    /// The next positional word as a node.
    pub(crate) fn node(&mut self) -> Result<NodeId, ScriptError> {
        let word = self.word().ok_or_else(|| self.usage("names no node"))?;
        self.parse(word).map(NodeId)
    }

    /// All positional words as nodes.
    pub(crate) fn nodes(&mut self) -> Result<Vec<NodeId>, ScriptError> {
        let mut nodes = Vec::new();
        while let Some(word) = self.word() {
            nodes.push(NodeId(self.parse(word)?));
        }
        Ok(nodes)
    }

    /// True when the word stands there.
    pub(crate) fn flag(&mut self, key: &str) -> bool {
        let at = self.rest.iter().position(|arg| arg.key == key && arg.values.is_none());
        at.map(|at| self.rest.remove(at)).is_some()
    }

    /// The values of `key=(..)`; empty when it does not stand there.
    pub(crate) fn values(&mut self, key: &str) -> &'a [String] {
        let at = self.rest.iter().position(|arg| arg.key == key && arg.values.is_some());
        at.and_then(|at| self.rest.remove(at).values.as_deref()).unwrap_or_default()
    }

    /// The one value of `key=`.
    pub(crate) fn value<T: FromStr>(&mut self, key: &str) -> Result<Option<T>, ScriptError> {
        match self.values(key) {
            [] => Ok(None),
            [value] => self.parse(value).map(Some),
            _ => Err(self.usage("takes one value only")),
        }
    }

    /// The values of `key=(..)` as nodes.
    pub(crate) fn node_values(&mut self, key: &str) -> Result<Vec<NodeId>, ScriptError> {
        self.values(key).iter().map(|value| self.parse(value).map(NodeId)).collect()
    }

    /// Nothing else may stand there.
    pub(crate) fn end(&self) -> Result<(), ScriptError> {
        match self.rest.first() {
            None => Ok(()),
            Some(arg) => Err(self.usage(&format!("does not take {}", arg.key))),
        }
    }

    pub(crate) fn usage(&self, problem: &str) -> ScriptError {
        ScriptError::Usage(format!("{} {problem}", self.line.name))
    }

    fn parse<T: FromStr>(&self, word: &str) -> Result<T, ScriptError> {
        word.parse().map_err(|_| self.usage(&format!("cannot take {word:?}")))
    }
}
