//! The seam between a frame and the network: delay, loss and cuts between nodes, for tests and for
//! `quorate dev` (the kernel of a laptop or a test machine often cannot shape traffic).
//!
//! The sender asks the link about every frame that is ready to go. Frames of one lane keep their
//! order whatever the delays. A raft frame that the link does not deliver is gone, and Raft sends
//! again; a request frame is held and asked about again, as QUIC would retransmit it, so a cut holds
//! requests until their deadlines. Connections themselves, and their handshakes, are not shaped.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use quorate_types::NodeId;

/// What becomes of one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fate {
    /// How long the frame is underway in addition to what the network needs.
    pub delay: Duration,
    /// False when it does not arrive.
    pub deliver: bool,
}

impl Fate {
    /// Delivered at once.
    pub const STRAIGHT: Self = Self { delay: Duration::ZERO, deliver: true };
}

/// Decides the fate of frames.
pub trait Link: Send + Sync + 'static {
    /// The fate of one frame from `from` to `to`. Called on the sending path: must not block.
    fn fate(&self, from: NodeId, to: NodeId) -> Fate;
}

/// Delivers everything at once: the link of production.
#[derive(Clone, Copy, Default, Debug)]
pub struct Straight;

impl Link for Straight {
    fn fate(&self, _from: NodeId, _to: NodeId) -> Fate {
        Fate::STRAIGHT
    }
}

/// Every frame is so much longer underway: nodes that are all equally far from each other.
#[derive(Clone, Copy, Debug)]
pub struct Distant {
    /// Added to every frame.
    pub delay: Duration,
}

impl Link for Distant {
    fn fate(&self, _from: NodeId, _to: NodeId) -> Fate {
        Fate { delay: self.delay, deliver: true }
    }
}

/// How frames travel one way between two nodes.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Shape {
    /// Added to every frame.
    pub delay: Duration,
    /// Share of frames that do not arrive, 0.0 to 1.0.
    pub loss: f64,
    /// True when nothing arrives.
    pub cut: bool,
}

/// A link that can be shaped per ordered pair of nodes while it is in use. Losses are drawn from a
/// seed; which frames they hit also depends on how messages were packed into frames.
#[derive(Debug)]
pub struct Shaped {
    state: Mutex<ShapedState>,
}

#[derive(Debug)]
struct ShapedState {
    shapes: BTreeMap<(NodeId, NodeId), Shape>,
    rng: fastrand::Rng,
}

impl Shaped {
    /// A link that is straight until it is shaped.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        Self { state: Mutex::new(ShapedState { shapes: BTreeMap::new(), rng }) }
    }

    /// Sets how frames travel from `from` to `to`; frames underway are not recalled.
    pub fn set(&self, from: NodeId, to: NodeId, shape: Shape) {
        self.state().shapes.insert((from, to), shape);
    }

    /// Sets both directions between two nodes.
    pub fn set_both(&self, one: NodeId, other: NodeId, shape: Shape) {
        self.set(one, other, shape);
        self.set(other, one, shape);
    }

    /// Makes everything straight again.
    pub fn heal(&self) {
        self.state().shapes.clear();
    }

    fn state(&self) -> MutexGuard<'_, ShapedState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Link for Shaped {
    fn fate(&self, from: NodeId, to: NodeId) -> Fate {
        let mut state = self.state();
        let Some(shape) = state.shapes.get(&(from, to)).copied() else { return Fate::STRAIGHT };
        let lost = shape.cut || (shape.loss > 0.0 && state.rng.f64() < shape.loss);
        Fate { delay: shape.delay, deliver: !lost }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    #[test]
    fn a_shape_holds_for_its_direction_until_healed() {
        let link = Shaped::new(1);
        link.set(A, B, Shape { cut: true, ..Shape::default() });
        assert!(!link.fate(A, B).deliver);
        assert_eq!(link.fate(B, A), Fate::STRAIGHT);
        link.heal();
        assert_eq!(link.fate(A, B), Fate::STRAIGHT);
    }

    #[test]
    fn losses_follow_the_seed() {
        let losses = |seed| {
            let link = Shaped::new(seed);
            link.set_both(A, B, Shape { loss: 0.3, ..Shape::default() });
            (0..1_000).map(|_| link.fate(A, B).deliver).collect::<Vec<_>>()
        };
        assert_eq!(losses(7), losses(7));
        assert_ne!(losses(7), losses(8));
        let lost = losses(7).iter().filter(|delivered| !**delivered).count();
        assert!((200..400).contains(&lost), "{lost} of 1,000");
    }
}
