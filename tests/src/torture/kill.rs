//! `kill -9`.

use super::Session;
use crate::cluster::Cluster;
use crate::verify::await_writes;

/// Who is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Victims {
    /// Who leads the data.
    Leader,
    /// One of the others.
    Follower,
    /// Everybody, one right after the other.
    All,
}

impl Victims {
    /// All of them.
    pub const EACH: [Self; 3] = [Self::Leader, Self::Follower, Self::All];

    fn name(self) -> &'static str {
        match self {
            Self::Leader => "kill: leader",
            Self::Follower => "kill: follower",
            Self::All => "kill: all",
        }
    }
}

/// A fresh cluster under load.
pub fn begin() -> Option<Session> {
    let cluster = Cluster::quorate("kills under load")?;
    Some(Session::begin(cluster, &["--every-endpoint"]))
}

/// Kills, sees that those who are left go on, and that all serve again.
///
/// # Panics
/// When they do not.
pub fn round(session: &mut Session, victims: Victims, random: &mut fastrand::Rng) {
    let leader = session.cluster.leader();
    let killed = match victims {
        Victims::Leader => vec![leader],
        Victims::Follower => vec![(leader + random.usize(1..3)) % 3],
        Victims::All => {
            let mut all = vec![0, 1, 2];
            random.shuffle(&mut all);
            all
        }
    };
    session.announce(victims.name());
    killed.iter().for_each(|&number| session.cluster.kill(number));
    if victims != Victims::All {
        await_writes(&session.cluster);
    }
    session.restart(&killed);
    await_writes(&session.cluster);
    session.tally.round(victims.name());
}
