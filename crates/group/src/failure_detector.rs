//! [`FailureDetector`]: which nodes are gone, as far as can be told from what is heard of them.

use std::collections::{BTreeMap, BTreeSet};

use quorate_types::NodeId;

/// How much was heard of a node so far; what counts is that it changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heard {
    /// Tells the process that is heard from those that had the node's id before.
    pub session: u64,
    /// Whatever has come from it.
    pub datagrams: u64,
}

/// Watches over the other nodes, in ticks: while a process is stopped it counts none, and so does not
/// take everybody else for gone when it goes on.
///
/// It may be wrong, as all of them may: who acts on it must do no harm then.
#[derive(Debug)]
pub struct FailureDetector {
    silent_ticks_max: u32,
    nodes: BTreeMap<NodeId, Watched>,
}

#[derive(Debug)]
struct Watched {
    heard: Option<Heard>,
    silent_ticks: u32,
}

impl FailureDetector {
    /// Takes a node for gone that was not heard for so many ticks.
    #[must_use]
    pub const fn new(silent_ticks_max: u32) -> Self {
        Self { silent_ticks_max, nodes: BTreeMap::new() }
    }

    /// A tick has passed; `heard` are all other nodes, `None` for those without a connection. Returns
    /// those that were lost with it: one that is silent for too long, one that does not belong to the
    /// others any more, and one whose process is another, which knows nothing of what the last one did.
    pub fn tick(&mut self, heard: &BTreeMap<NodeId, Option<Heard>>) -> BTreeSet<NodeId> {
        let mut lost = BTreeSet::new();
        self.nodes.retain(|node, _| {
            let stays = heard.contains_key(node);
            if !stays {
                lost.insert(*node);
            }
            stays
        });
        for (&node, &now) in heard {
            let watched =
                self.nodes.entry(node).or_insert(Watched { heard: None, silent_ticks: 0 });
            match (watched.heard, now) {
                (Some(before), Some(now)) if before.session != now.session => {
                    lost.insert(node);
                    *watched = Watched { heard: Some(now), silent_ticks: 0 };
                }
                (before, Some(now)) if before != Some(now) => {
                    *watched = Watched { heard: Some(now), silent_ticks: 0 };
                }
                (_, Some(_) | None) => {
                    watched.silent_ticks = watched.silent_ticks.saturating_add(1);
                    if watched.silent_ticks == self.silent_ticks_max {
                        lost.insert(node);
                    }
                }
            }
        }
        lost
    }

    /// True while `node` is silent for too long; not of a node that was never among the others.
    #[must_use]
    pub fn is_gone(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|watched| self.is_silent(watched))
    }

    /// All that are gone.
    pub fn gone(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.iter().filter(|(_, watched)| self.is_silent(watched)).map(|(&node, _)| node)
    }

    fn is_silent(&self, watched: &Watched) -> bool {
        watched.silent_ticks >= self.silent_ticks_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(2);

    /// What is lost at each of these ticks.
    fn losses(detector: &mut FailureDetector, heard: &[Option<(u64, u64)>]) -> Vec<bool> {
        let heard = heard.iter().map(|heard| {
            let heard = heard.map(|(session, datagrams)| Heard { session, datagrams });
            BTreeMap::from([(NODE, heard)])
        });
        heard.map(|heard| detector.tick(&heard).contains(&NODE)).collect()
    }

    #[test]
    fn a_node_is_lost_once_when_it_is_silent_for_too_long_and_is_back_when_heard() {
        let mut detector = FailureDetector::new(3);
        let silent = [Some((7, 1)); 6];
        assert_eq!(losses(&mut detector, &silent), [false, false, false, true, false, false][..]);
        assert!(detector.is_gone(NODE) && detector.gone().eq([NODE]));
        assert_eq!(losses(&mut detector, &[Some((7, 2))]), [false]);
        assert!(!detector.is_gone(NODE));
        assert_eq!(losses(&mut detector, &[Some((7, 2)); 3]), [false, false, true]);
    }

    #[test]
    fn a_node_that_is_heard_again_and_again_is_there() {
        let mut detector = FailureDetector::new(2);
        let heard: Vec<_> = (0..50).map(|tick| Some((7, tick / 2))).collect();
        assert!(losses(&mut detector, &heard).iter().all(|lost| !lost));
    }

    #[test]
    fn no_connection_is_silence_too() {
        let mut detector = FailureDetector::new(2);
        let heard = [Some((7, 1)), None, None, None, Some((7, 2))];
        assert_eq!(losses(&mut detector, &heard), [false, false, true, false, false]);
        assert!(!detector.is_gone(NODE));
    }

    #[test]
    fn another_process_is_a_loss_however_quick_it_is_there() {
        let mut detector = FailureDetector::new(9);
        let heard = [Some((7, 1)), Some((8, 1)), Some((8, 2)), None, Some((9, 1))];
        assert_eq!(losses(&mut detector, &heard), [false, true, false, false, true]);
        assert!(!detector.is_gone(NODE));
    }

    #[test]
    fn a_node_that_has_left_is_lost_and_then_forgotten() {
        let mut detector = FailureDetector::new(9);
        losses(&mut detector, &[Some((7, 1))]);
        assert_eq!(detector.tick(&BTreeMap::new()), BTreeSet::from([NODE]));
        assert_eq!(detector.tick(&BTreeMap::new()), BTreeSet::new());
        assert!(!detector.is_gone(NODE));
    }
}
