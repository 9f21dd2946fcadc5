//! I10: the history of each key is one that a single copy could have given.
//!
//! The algorithm is Wing and Gong's search with Lowe's memoisation: linearize, one after another, operations that
//! no unlinearized one precedes; go back when the model disagrees; never try a set of linearized operations with
//! a state twice. It is P-compositional: operations on several keys are split, and each key is judged alone.
//! (What holds *between* keys is for the oracle of revisions, which knows the order of all writes.)
//!
//! An operation whose outcome is not known stays open for ever. If it is a write whose value nobody ever saw it
//! is left out: whatever history it fits into, it can be taken out of.

use std::collections::{BTreeMap, BTreeSet};

use super::{Oracle, Violation};

/// The value of a key: unique for each write, `None` when there is none.
pub type Value = Option<u64>;

/// What was done to one key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Set it, whatever it was.
    Put(u64),
    /// Remove it; `seen` is what it removed, `None` also when there was nothing, unknown without an answer.
    Delete {
        /// The value that was removed.
        seen: Option<Value>,
    },
    /// Set it to `new` if it is `expected`; otherwise see what it is.
    Swap {
        /// What it has to be.
        expected: Value,
        /// What it becomes.
        new: u64,
        /// `Some(None)`: it swapped. `Some(Some(value))`: it saw this. `None`: nobody knows.
        result: Option<Option<Value>>,
    },
    /// See what it is.
    Read(Value),
}

/// An action and when it was under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// The key.
    pub key: u32,
    /// What was done.
    pub action: Action,
    /// When it was asked for.
    pub from_us: u64,
    /// When it was answered; `None` if it never was.
    pub to_us: Option<u64>,
}

/// What clients did, in the order of their answers.
#[derive(Clone, Debug, Default)]
pub struct History {
    operations: Vec<Operation>,
}

/// How a check ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// There is an order that explains everything.
    Linearizable,
    /// There is none for this key.
    NotLinearizable(u32),
    /// The search gave up.
    Undecided,
}

impl History {
    /// An operation has ended, or has been given up.
    pub fn push(&mut self, operation: Operation) {
        self.operations.push(operation);
    }

    /// Operations so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// True before the first.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Judges every key, with at most `steps_max` steps for each.
    #[must_use]
    pub fn judge(&self, steps_max: u64) -> Judgement {
        let mut by_key: BTreeMap<u32, Vec<Operation>> = BTreeMap::new();
        for operation in &self.operations {
            by_key.entry(operation.key).or_default().push(*operation);
        }
        let mut undecided = false;
        for (key, operations) in by_key {
            match Search::new(&operations).run(steps_max) {
                Some(true) => {}
                Some(false) => return Judgement::NotLinearizable(key),
                None => undecided = true,
            }
        }
        if undecided { Judgement::Undecided } else { Judgement::Linearizable }
    }

    /// As a check of a run: what cannot be decided is no violation, but has to be counted.
    pub(crate) fn check(&self, steps_max: u64) -> Result<Judgement, Violation> {
        match self.judge(steps_max) {
            Judgement::NotLinearizable(key) => {
                let of_key = self.operations.iter().filter(|operation| operation.key == key);
                let text: Vec<_> = of_key
                    .map(|op| format!("{}..{:?} {:?}", op.from_us, op.to_us, op.action))
                    .collect();
                let shown = text.len().saturating_sub(40);
                let what = format!("key {key}, last of: {}", text[shown..].join("; "));
                Err(Oracle::Linearizability.broken(what))
            }
            judged @ (Judgement::Linearizable | Judgement::Undecided) => Ok(judged),
        }
    }
}

/// What `action` makes of `state`; `None` when it could not have had its result there.
fn step(state: Value, action: Action) -> Option<Value> {
    match action {
        Action::Put(value) => Some(Some(value)),
        Action::Delete { seen } => seen.is_none_or(|seen| seen == state).then_some(None),
        Action::Swap { expected, new, result } => {
            let swaps = state == expected;
            match result {
                None => Some(if swaps { Some(new) } else { state }),
                Some(None) => swaps.then_some(Some(new)),
                Some(Some(seen)) => (!swaps && seen == state).then_some(state),
            }
        }
        Action::Read(seen) => (seen == state).then_some(state),
    }
}

/// A search for an order of the operations on one key.
struct Search {
    /// By the time of asking.
    operations: Vec<Operation>,
    /// Calls and returns in order of time, as a list that operations can be taken out of and put back into.
    events: Vec<Node>,
}

#[derive(Clone, Copy)]
struct Node {
    operation: usize,
    /// Where the operation's return is; `None` in a return itself.
    returns_at: Option<usize>,
    previous: usize,
    next: usize,
}

/// The place before the first event.
const HEAD: usize = 0;

impl Search {
    fn new(operations: &[Operation]) -> Self {
        let seen: BTreeSet<u64> = operations.iter().filter_map(|op| seen_by(op.action)).collect();
        let matters = |op: &&Operation| match op.action {
            // Nothing can follow from a read without an answer, nor from a write that nobody saw.
            Action::Read(_) => op.to_us.is_some(),
            Action::Put(value) | Action::Swap { new: value, .. } => {
                op.to_us.is_some() || seen.contains(&value)
            }
            Action::Delete { .. } => true,
        };
        let mut operations: Vec<_> = operations.iter().filter(matters).copied().collect();
        operations.sort_by_key(|op| op.from_us);
        // A return that coincides with a call comes after it: the two may have been concurrent.
        let mut order: Vec<(u64, bool, usize)> = Vec::new();
        for (at, op) in operations.iter().enumerate() {
            order.push((op.from_us, false, at));
            order.push((op.to_us.unwrap_or(u64::MAX), true, at));
        }
        order.sort_unstable();
        let mut events =
            vec![Node { operation: usize::MAX, returns_at: None, previous: HEAD, next: 1 }];
        let mut call_at = vec![0; operations.len()];
        for (at, &(_, is_return, operation)) in (1..).zip(&order) {
            if is_return {
                let call: usize = call_at[operation];
                events[call].returns_at = Some(at);
            } else {
                call_at[operation] = at;
            }
            events.push(Node { operation, returns_at: None, previous: at - 1, next: at + 1 });
        }
        Self { operations, events }
    }

    /// Whether there is an order; `None` when `steps_max` was not enough.
    fn run(mut self, steps_max: u64) -> Option<bool> {
        let end = self.events.len();
        let mut done = Bits::new(self.operations.len());
        let mut known: BTreeSet<(Bits, Value)> = BTreeSet::new();
        let mut taken: Vec<(usize, Value)> = Vec::new();
        let mut state: Value = None;
        let mut open = self.operations.iter().filter(|op| op.to_us.is_some()).count();
        let mut at = self.events[HEAD].next;
        for _ in 0..steps_max {
            // What is left may all have happened never, or in any order.
            if open == 0 {
                return Some(true);
            }
            let node = if at < end { Some(self.events[at]) } else { None };
            match node {
                Some(Node { operation, returns_at: Some(_), next, .. }) => {
                    let after = step(state, self.operations[operation].action);
                    let is_new = after.is_some_and(|after| {
                        done.set(operation, true);
                        let is_new = known.insert((done.clone(), after));
                        done.set(operation, is_new);
                        is_new
                    });
                    match after {
                        Some(after) if is_new => {
                            taken.push((at, state));
                            state = after;
                            open -= usize::from(self.operations[operation].to_us.is_some());
                            self.lift(at);
                            at = self.events[HEAD].next;
                        }
                        Some(_) | None => at = next,
                    }
                }
                // An operation has to be linearized before it returns; or nothing is left to try.
                Some(Node { returns_at: None, .. }) | None => {
                    let Some((call, before)) = taken.pop() else { return Some(false) };
                    let operation = self.events[call].operation;
                    state = before;
                    done.set(operation, false);
                    open += usize::from(self.operations[operation].to_us.is_some());
                    self.unlift(call);
                    at = self.events[call].next;
                }
            }
        }
        None
    }

    fn lift(&mut self, call: usize) {
        self.unlink(call);
        if let Some(returns_at) = self.events[call].returns_at {
            self.unlink(returns_at);
        }
    }

    fn unlift(&mut self, call: usize) {
        if let Some(returns_at) = self.events[call].returns_at {
            self.link(returns_at);
        }
        self.link(call);
    }

    fn unlink(&mut self, at: usize) {
        let Node { previous, next, .. } = self.events[at];
        self.events[previous].next = next;
        if let Some(next) = self.events.get_mut(next) {
            next.previous = previous;
        }
    }

    fn link(&mut self, at: usize) {
        let Node { previous, next, .. } = self.events[at];
        self.events[previous].next = at;
        if let Some(next) = self.events.get_mut(next) {
            next.previous = at;
        }
    }
}

/// The value that an action saw, or may have seen.
const fn seen_by(action: Action) -> Option<u64> {
    match action {
        Action::Read(seen)
        | Action::Delete { seen: Some(seen) }
        | Action::Swap { result: Some(Some(seen)), .. } => seen,
        // One of unknown outcome proves nothing, but may need the value to have been there.
        Action::Swap { result: Some(None) | None, expected, .. } => expected,
        Action::Put(_) | Action::Delete { seen: None } => None,
    }
}

/// A set of operations.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(count: usize) -> Self {
        Self(vec![0; count.div_ceil(64)])
    }

    fn set(&mut self, at: usize, value: bool) {
        let bit = 1 << (at % 64);
        if value {
            self.0[at / 64] |= bit;
        } else {
            self.0[at / 64] &= !bit;
        }
    }
}
