//! Which streams have to end, and when.

use std::time::Duration;

use tokio::sync::watch;

use crate::error::ApiError;

/// Looks for a leader in one election timeout.
const LOOKS_PER_ELECTION: u32 = 2;

/// Looks in a row without a leader until streams that require one end: an election is over by then. Three election
/// timeouts, as with etcd.
const LEADERLESS_LOOKS: u32 = 3 * LOOKS_PER_ELECTION;

/// The same for all streams, at a node that is cut off: long enough that a few failed elections in a row move
/// nobody, and short enough that a client which could be told events elsewhere does not wait here for them.
const CUT_OFF_LOOKS: u32 = 10 * LOOKS_PER_ELECTION;

/// How often to look, where an election takes so long.
pub(super) fn look_interval(election_timeout: Duration) -> Duration {
    election_timeout / LOOKS_PER_ELECTION
}

/// Which streams have to end.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Ending {
    /// All of them: the gateway is going down.
    pub(crate) closed: bool,
    /// Those that require a leader: none is known.
    pub(crate) leaderless: bool,
    /// All of them: nothing of the cluster is heard here, and others may know more.
    pub(crate) cut_off: bool,
}

impl Ending {
    /// Why a stream has to end, if it has to.
    ///
    /// The libraries of etcd's clients give a watch up that ends for want of a leader, and resume one that ends
    /// otherwise, at another endpoint if they have one. So only those hear of the leader who have asked to.
    pub(super) const fn reason(self, requires_leader: bool) -> Option<ApiError> {
        match self {
            Self { closed: true, .. } => Some(ApiError::Stopped),
            Self { leaderless: true, .. } if requires_leader => Some(ApiError::NoLeader),
            Self { cut_off: true, .. } => Some(ApiError::Unhealthy),
            Self { .. } => None,
        }
    }
}

/// Waits until a stream must end, and says why.
pub(super) async fn must_end(
    ending: &mut watch::Receiver<Ending>,
    requires_leader: bool,
) -> ApiError {
    let ended = ending.wait_for(|now| now.reason(requires_leader).is_some()).await;
    ended.ok().and_then(|now| now.reason(requires_leader)).unwrap_or(ApiError::Stopped)
}

/// How long nothing was seen of a leader, in looks.
#[derive(Default, Debug)]
pub(super) struct Outlook {
    leaderless: u32,
    cut_off: u32,
}

impl Outlook {
    /// One more look; what it changes.
    pub(super) fn look(&mut self, has_leader: bool, is_cut_off: bool, ending: &mut Ending) {
        let count = |looks: u32, without: bool| if without { looks.saturating_add(1) } else { 0 };
        self.leaderless = count(self.leaderless, !has_leader);
        self.cut_off = count(self.cut_off, is_cut_off);
        ending.leaderless = self.leaderless >= LEADERLESS_LOOKS;
        ending.cut_off = self.cut_off >= CUT_OFF_LOOKS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_end_after_so_many_looks_in_a_row_and_not_before() {
        let (mut outlook, mut ending) = (Outlook::default(), Ending::default());
        let mut reasons = |looks: u32, without: bool| {
            for _ in 0..looks {
                outlook.look(!without, without, &mut ending);
            }
            (ending.reason(true), ending.reason(false))
        };
        assert_eq!(reasons(5, true), (None, None));
        assert_eq!(reasons(1, false), (None, None), "an election was won");
        assert_eq!(reasons(6, true), (Some(ApiError::NoLeader), None));
        assert_eq!(reasons(13, true), (Some(ApiError::NoLeader), None));
        assert_eq!(reasons(1, true), (Some(ApiError::NoLeader), Some(ApiError::Unhealthy)));
        assert_eq!(reasons(1, false), (None, None));
    }

    #[test]
    fn a_node_that_serves_through_others_is_not_cut_off() {
        let (mut outlook, mut ending) = (Outlook::default(), Ending::default());
        (0..100).for_each(|_| outlook.look(false, false, &mut ending));
        assert_eq!(ending.reason(false), None);
    }

    #[tokio::test]
    async fn whoever_waits_is_told_the_first_reason() {
        let sender = watch::Sender::new(Ending { leaderless: true, ..Ending::default() });
        let (mut patient, mut strict) = (sender.subscribe(), sender.subscribe());
        assert_eq!(must_end(&mut strict, true).await, ApiError::NoLeader);
        sender.send_modify(|ending| ending.cut_off = true);
        assert_eq!(must_end(&mut patient, false).await, ApiError::Unhealthy);
        drop(sender);
        let mut late = watch::Sender::new(Ending::default()).subscribe();
        assert_eq!(must_end(&mut late, false).await, ApiError::Stopped, "the hub is gone");
    }
}
