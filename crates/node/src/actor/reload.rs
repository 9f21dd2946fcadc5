//! Loading a group again after a panic: from what is durable, and never from what the panic has left.
//!
//! The life of a reload:
//!
//! 1. The group panics. Its callers are answered, its machine is let go of, and a new generation begins:
//!    whatever completes for the old one reaches nobody.
//! 2. The log is asked for what it holds. The question waits behind the group's own appends, so the
//!    answer has them all. The applier is asked for the group's row, behind what it still applies.
//! 3. From both the replica begins as after a restart: it grants no vote and does not campaign until a
//!    promise of silence that it may have made has run out.
//!
//! A snapshot that is being installed changes log and state one after the other, off the actor; the
//! questions wait until it is done. What was submitted and not answered is part of what is loaded; what
//! the log's full queue had refused is not, as after a crash.

use std::sync::{Arc, Weak};

use quorate_group::{Generation, Panics, Verdict};
use quorate_store::GroupRow;
use quorate_types::{GroupId, MachineKind, Moment};
use quorate_wal::RecoveredLog;

use crate::actor::drive::Drive;
use crate::engine::Parts;
use crate::life::Life;
use crate::open::OpenError;

/// What makes a group anew.
pub(crate) struct Reloader {
    pub(crate) group: GroupId,
    kind: Arc<dyn MachineKind>,
    /// The node's parts hold the router, and that the group's actor.
    parts: Weak<Parts>,
    panics: Panics,
}

/// The next life of a group, as far as it is loaded.
#[derive(Debug)]
pub(crate) struct Reload {
    generation: Generation,
    row_asked: bool,
    log_asked: bool,
    row: Option<Option<GroupRow>>,
    log: Option<Option<Box<RecoveredLog>>>,
}

impl Reloader {
    pub(crate) fn new(group: GroupId, kind: Arc<dyn MachineKind>, parts: Weak<Parts>) -> Self {
        Self { group, kind, parts, panics: Panics::default() }
    }

    /// The group has panicked at `now`. `None`: it shall not be loaded again.
    pub(crate) fn begin(&mut self, now: Moment) -> Option<Reload> {
        let group = self.group;
        match self.panics.note(now) {
            Verdict::Quarantine => {
                tracing::error!(%group, "the group has panicked again and again");
                return None;
            }
            Verdict::Reload => {
                tracing::error!(%group, "the group has panicked: it is loaded again")
            }
        }
        // None when the node ends, or the group has left it.
        let generation = self.parts.upgrade()?.with_host(|host| host.reload(group))?;
        let (row_asked, log_asked) = (false, false);
        Some(Reload { generation, row_asked, log_asked, row: None, log: None })
    }

    /// The next life, once all of it is loaded.
    pub(crate) fn life(&self, reload: &mut Reload) -> Option<Result<Life, OpenError>> {
        if reload.row.is_none() || reload.log.is_none() {
            return None;
        }
        let (row, log) = (reload.row.take()?, reload.log.take()?);
        let parts = self.parts.upgrade()?;
        let Some(log) = log else { return Some(Err(OpenError::MissingGroup(self.group))) };
        Some(parts.life(self.group, reload.generation, &self.kind, *log, row))
    }
}

impl Reload {
    /// Asks for what was not asked for, as far as that is possible now. To be called again, with each tick
    /// at least.
    pub(crate) fn ask(&mut self, drive: &Drive) {
        // The log first: what an installation that is under way does to the row must not be missed.
        self.log_asked = self.log_asked || drive.ask_log(self.generation);
        if self.log_asked && !self.row_asked {
            self.row_asked = true;
            drive.ask_row(self.generation);
        }
    }

    pub(crate) fn log_loaded(&mut self, life: Generation, log: Option<Box<RecoveredLog>>) {
        if life == self.generation {
            self.log = Some(log);
        }
    }

    pub(crate) fn row_loaded(&mut self, life: Generation, row: Option<GroupRow>) {
        if life == self.generation {
            self.row = Some(row);
        }
    }
}
