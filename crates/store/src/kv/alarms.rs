//! Alarms, and the note of a downgrade, as rows of the system's space.
//!
//! ```text
//! C | system space | "ma" | kind u32 | member u64  -> form
//! C | system space | "md"                          -> form, target version
//! ```
//!
//! What a command must know on its way, that there are alarms at all, is counted in the machine's meta.

use std::ops::ControlFlow;

use quorate_types::kv::KvError;
use quorate_types::kv_maintenance::{
    Alarm, AlarmKind, ChangeAlarm, ChangeDowngrade, ConditionsOutcome,
};
use quorate_types::machine::{Direction, StateError};
use quorate_types::{StateBatch, StateReader};

use super::meta::{AlarmCounts, Meta};
use super::read::Refusal;
use super::record::damaged;
use crate::layout::{ALARMS, DOWNGRADE, SPACE_SYSTEM, TAG_CURRENT};

/// The form of these rows.
const FORM: u8 = 1;

/// The most alarms of one kind: far more than there are members, and few enough for one answer.
const ALARMS_MAX: u32 = 256;

/// The longest version that a downgrade may name.
const TARGET_BYTES_MAX: usize = 64;

/// Raises or clears an alarm.
///
/// # Errors
/// [`KvError::BadAlarm`] for a kind that does not exist, and for one more than are kept.
pub(crate) fn change_alarm(
    change: ChangeAlarm,
    meta: &mut Meta,
    batch: &mut dyn StateBatch,
) -> Result<ConditionsOutcome, Refusal> {
    let count = match AlarmKind::try_from(change.alarm.kind) {
        Ok(AlarmKind::NoSpace) => &mut meta.alarms.no_space,
        Ok(AlarmKind::Corrupt) => &mut meta.alarms.corrupt,
        // etcd takes a request about no alarm for nothing to do.
        Ok(AlarmKind::None) => return Ok(ConditionsOutcome::default()),
        Err(_) => return Err(KvError::BadAlarm.into()),
    };
    let row = alarm_row(change.alarm);
    let is_raised = batch.get(&row)?.is_some();
    match (change.raise, is_raised) {
        (true, false) if *count >= ALARMS_MAX => return Err(KvError::BadAlarm.into()),
        (true, false) => {
            batch.put(&row, &[FORM]);
            *count += 1;
        }
        (false, true) => {
            batch.delete(&row);
            *count = count.checked_sub(1).expect("an alarm that has a row was counted");
        }
        (true, true) => {}
        (false, false) => return Ok(ConditionsOutcome::default()),
    }
    Ok(ConditionsOutcome { alarms: vec![change.alarm], ..ConditionsOutcome::default() })
}

/// Notes a downgrade, or its end.
///
/// # Errors
/// [`KvError::DowngradeInProcess`] and [`KvError::NoDowngrade`], when there is one or none already;
/// [`KvError::Malformed`] for a version that is none.
pub(crate) fn change_downgrade(
    change: &ChangeDowngrade,
    batch: &mut dyn StateBatch,
) -> Result<ConditionsOutcome, Refusal> {
    if change.target.len() > TARGET_BYTES_MAX {
        return Err(KvError::Malformed.into());
    }
    let is_noted = batch.get(&DOWNGRADE)?.is_some();
    match (change.target.is_empty(), is_noted) {
        (true, true) => batch.delete(&DOWNGRADE),
        (true, false) => return Err(KvError::NoDowngrade.into()),
        (false, true) => return Err(KvError::DowngradeInProcess.into()),
        (false, false) => {
            batch.put(&DOWNGRADE, &[&[FORM], change.target.as_bytes()].concat());
        }
    }
    Ok(ConditionsOutcome {
        downgrade_target: change.target.clone(),
        ..ConditionsOutcome::default()
    })
}

/// What there is now, alarms by kind and member.
pub(crate) fn conditions(rows: &dyn StateReader) -> Result<ConditionsOutcome, StateError> {
    let (mut alarms, mut result) = (Vec::new(), Ok(()));
    let end = [TAG_CURRENT, SPACE_SYSTEM, b'm', b'a' + 1];
    rows.scan(&ALARMS, Some(&end), Direction::Forward, &mut |row, value| {
        match parse_alarm(row) {
            Some(alarm) if value == [FORM] => alarms.push(alarm),
            _ => {
                result = Err(damaged(row, &"not an alarm"));
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    result?;
    let downgrade_target = match rows.get(&DOWNGRADE)? {
        None => String::new(),
        Some(value) => match value.split_first() {
            Some((&FORM, target)) => String::from_utf8(target.to_vec())
                .map_err(|_| damaged(&DOWNGRADE, &"not a version"))?,
            _ => return Err(damaged(&DOWNGRADE, &"form")),
        },
    };
    Ok(ConditionsOutcome { alarms, downgrade_target })
}

impl AlarmCounts {
    /// Whether what changes the data, and what grows it, is refused.
    ///
    /// # Errors
    /// The reason.
    pub(crate) fn check(self, changes: bool, grows: bool) -> Result<(), KvError> {
        if changes && self.corrupt > 0 {
            Err(KvError::Corrupt)
        } else if grows && self.no_space > 0 {
            Err(KvError::NoSpace)
        } else {
            Ok(())
        }
    }
}

fn alarm_row(alarm: Alarm) -> Vec<u8> {
    [&ALARMS[..], &alarm.kind.to_be_bytes(), &alarm.member.to_be_bytes()].concat()
}

fn parse_alarm(row: &[u8]) -> Option<Alarm> {
    let (kind, member) = row.strip_prefix(&ALARMS)?.split_first_chunk()?;
    let member = u64::from_be_bytes(member.try_into().ok()?);
    Some(Alarm { member, kind: i32::from_be_bytes(*kind) })
}
