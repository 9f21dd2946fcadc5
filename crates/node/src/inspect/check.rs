//! Everything that a data directory can be asked about itself.

use std::path::Path;

use quorate_group::Descriptor;
use quorate_store::{
    GroupRow, KvKind, RocksConfig, RocksState, ScopedView, StateEngine, check_keyspace,
};
use quorate_types::machine::RowScope;
use quorate_types::{EntryId, GroupId, LogIndex};
use quorate_wal::rocks::RocksLogView;
use quorate_wal::{LogError, RecoveredLog};

use super::{InspectError, Unused};
use crate::fence::Fence;
use crate::identity::DataDir;
use crate::snapshot::words::Intent;

/// What was found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Report {
    /// What there is, one line each.
    pub found: Vec<String>,
    /// What is not as it was written, or does not fit together, one line each.
    pub damage: Vec<String>,
}

/// Reads all of a data directory: the checksums of log and state; that no log has a gap; that each group's
/// state is where its log allows; and that the rows of the keyspace fit together. `diary` is a directory
/// for what RocksDB has to say.
///
/// # Errors
/// When the directory is in use, none of a node's, or cannot be read. What is damaged is no error.
pub fn check(data_dir: &Path, diary: &Path) -> Result<Report, InspectError> {
    let unused = Unused::new(data_dir)?;
    let mut report = Report::default();
    report.identity(&unused);
    let logs = report.log(&unused, diary)?;
    report.state(&unused, diary, logs.as_ref());
    Ok(report)
}

type Logs = std::collections::BTreeMap<GroupId, RecoveredLog>;

impl Report {
    fn note(&mut self, line: impl Into<String>) {
        self.found.push(line.into());
    }

    fn fault(&mut self, line: impl Into<String>) {
        self.damage.push(line.into());
    }

    fn identity(&mut self, unused: &Unused) {
        match DataDir::read_identity(&unused.path) {
            Ok(Some(identity)) => self.note(format!(
                "node {} ({}) of cluster {}",
                identity.node_name, identity.node, identity.cluster_name
            )),
            Ok(None) => self.fault("there is no identity"),
            Err(error) => self.fault(error.to_string()),
        }
        match Fence::read(&unused.path) {
            Ok(fence) => {
                self.damage.extend(fence.all().map(|reason| format!("fenced: {reason}")));
                let groups = fence.groups().iter();
                self.damage.extend(
                    groups.map(|(group, reason)| format!("group {group} is fenced: {reason}")),
                );
            }
            Err(error) => self.fault(error.to_string()),
        }
    }

    /// `None` if the log cannot be read as a whole.
    fn log(&mut self, unused: &Unused, diary: &Path) -> Result<Option<Logs>, InspectError> {
        if !unused.log().exists() {
            self.fault("there is no log");
            return Ok(None);
        }
        let view = match RocksLogView::open(&unused.log(), diary) {
            Ok(view) => view,
            Err(error @ (LogError::DamagedEngine(_) | LogError::Damaged { .. })) => {
                self.fault(error.to_string());
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let (files, bytes) = view.live_files();
        self.note(format!(
            "log: {} groups, {} batches synced ever, {bytes} bytes in {files} live files",
            view.logs().len() + view.damaged().len(),
            view.synced_batches()
        ));
        for tail in view.tails().iter().filter(|tail| tail.is_torn) {
            self.note(format!(
                "log: {} ends in a write that was not finished, nor acknowledged; the next start cuts it \
                 off at byte {} of {}",
                tail.file.display(),
                tail.whole_bytes,
                tail.file_bytes
            ));
        }
        self.damage.extend(view.damaged().values().map(ToString::to_string));
        let logs = view.logs();
        for (group, log) in &logs {
            let kind = Descriptor::decode(&log.label).map(|descriptor| descriptor.kind);
            let kind = kind.unwrap_or_else(|error| {
                self.fault(format!("group {group}: {error}"));
                String::new()
            });
            let (base, last, commit) = (log.snapshot.last, log.last, log.hard_state.commit);
            self.note(format!(
                "log of group {group} ({kind}): behind {base}, up to {last}, term {}, commit {commit} or \
                 more",
                log.hard_state.term
            ));
            if commit > last.index {
                self.fault(format!(
                    "group {group}: its log ends at {last}, but {commit} was known to be committed"
                ));
            }
            if is_installing(log) {
                self.note(format!("group {group}: a snapshot was being installed"));
            } else if log.intent.is_some() {
                self.fault(format!(
                    "group {group}: its state is known to be wrong, and is rebuilt from a snapshot when \
                     the node runs"
                ));
            }
        }
        Ok(Some(logs))
    }

    fn state(&mut self, unused: &Unused, diary: &Path, logs: Option<&Logs>) {
        if !unused.state().exists() {
            return self.fault("there is no state");
        }
        let state = match RocksState::open_read_only(&RocksConfig::new(unused.state()), diary) {
            Ok(state) => state,
            Err(error) => return self.fault(error.to_string()),
        };
        if let Err(error) = state.verify() {
            self.fault(error.to_string());
        }
        let view = state.view();
        let rows = match GroupRow::load_all(&*view) {
            Ok(rows) => rows,
            Err(error) => return self.fault(error.to_string()),
        };
        for (group, row) in &rows {
            let (applied, kind) = (row.applied, &row.kind);
            self.note(format!("state of group {group} ({kind}): applied {applied}"));
            match logs.and_then(|logs| logs.get(group)) {
                Some(log) => self.applied(*group, applied, log),
                None if logs.is_some() => {
                    self.fault(format!("group {group} has a state and no whole log"));
                }
                None => {}
            }
            if *kind == KvKind::NAME {
                let scoped = ScopedView::new(&*view, RowScope::Keyspace, *group);
                match check_keyspace(&row.meta, &scoped) {
                    Ok(found) => self.keyspace(*group, found),
                    Err(error) => self.fault(format!("group {group}: {error}")),
                }
            }
        }
        for (group, log) in logs.into_iter().flatten() {
            let has_begun = log.snapshot.last.index > crate::engine::FIRST.index;
            if has_begun && !is_installing(log) && rows.iter().all(|(other, _)| other != group) {
                let base = log.snapshot.last;
                self.fault(format!("group {group} has no state, but its log begins behind {base}"));
            }
        }
    }

    fn applied(&mut self, group: GroupId, applied: EntryId, log: &RecoveredLog) {
        let (base, last) = (log.snapshot.last, log.last);
        let is_inside = base.index <= applied.index && applied.index <= last.index;
        if !is_installing(log) && !is_inside {
            self.fault(format!(
                "group {group}: its state is at {applied}, but its log reaches from {base} to {last}"
            ));
        } else if is_inside && term_at(log, applied.index) != applied {
            let there = term_at(log, applied.index);
            self.fault(format!("group {group}: its state is at {applied}, its log has {there}"));
        }
    }

    fn keyspace(&mut self, group: GroupId, found: quorate_store::KeyspaceCheck) {
        let quorate_store::KeyspaceCheck { revision, keys, versions, events, .. } = found;
        self.note(format!(
            "keyspace of group {group}: revision {revision}, {keys} keys, {versions} versions, {events} \
             events"
        ));
        let more = found.damage_count - found.damage.len() as u64;
        let all = found.damage.into_iter().map(|what| format!("group {group}: {what}"));
        self.damage.extend(all);
        if more > 0 {
            self.fault(format!("group {group}: {more} more of that kind"));
        }
    }
}

/// Whether log and state do not fit together because a snapshot is put in their place.
fn is_installing(log: &RecoveredLog) -> bool {
    let intent = log.intent.clone().map(Intent::read);
    intent.is_some_and(|intent| !matches!(intent, Ok(Intent::Rebuild(_))))
}

/// The entry at an index that the log reaches to.
fn term_at(log: &RecoveredLog, index: LogIndex) -> EntryId {
    let runs = &log.terms;
    let run = runs.partition_point(|run| run.index <= index).checked_sub(1);
    let term = run.map_or(log.snapshot.last.term, |run| runs[run].term);
    EntryId::new(term, index)
}
