//! The rows about users and roles.

use std::ops::ControlFlow;

use prost::Message;
use quorate_types::auth::message::{Head, Role, Rows, User};
use quorate_types::auth::{Directory, Touched};
use quorate_types::machine::{Direction, StateError};
use quorate_types::{StateBatch, StateReader, defect};

use crate::layout::{AUTH as PREFIX, SPACE_SYSTEM, TAG_CURRENT};

const END: [u8; 3] = [TAG_CURRENT, SPACE_SYSTEM, b'a' + 1];
const HEAD: u8 = 0;
const ROLE: u8 = b'r';
const USER: u8 = b'u';

fn row(kind: u8, name: &str) -> Vec<u8> {
    [&PREFIX[..], &[kind], name.as_bytes()].concat()
}

/// The directory that lies in `state`.
///
/// # Errors
/// When the engine fails, or a row is damaged or of a later format.
pub(crate) fn load(state: &dyn StateReader) -> Result<Directory, StateError> {
    let mut rows = Rows::default();
    let mut damaged = None;
    state.scan(&PREFIX, Some(&END), Direction::Forward, &mut |key, value| match read(
        &mut rows, key, value,
    ) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            damaged = Some(error);
            ControlFlow::Break(())
        }
    })?;
    match damaged {
        Some(error) => Err(error),
        None => Directory::from_rows(rows)
            .map_err(|format| StateError(format!("rows about users of format {format}"))),
    }
}

fn read(rows: &mut Rows, key: &[u8], value: &[u8]) -> Result<(), StateError> {
    // What a user's or role's row holds is not for the log.
    let wrong = |why: &str| StateError(format!("damaged row {}: {why}", key.escape_ascii()));
    let decoded = |error: prost::DecodeError| wrong(&error.to_string());
    match key.strip_prefix(&PREFIX).and_then(|rest| rest.split_first()) {
        Some((&HEAD, [])) => rows.head = Some(Head::decode(value).map_err(decoded)?),
        Some((&ROLE, name)) => {
            let role = Role::decode(value).map_err(decoded)?;
            if role.name.as_bytes() != name {
                return Err(wrong("another role's"));
            }
            rows.roles.push(role);
        }
        Some((&USER, name)) => {
            let user = User::decode(value).map_err(decoded)?;
            if user.name.as_bytes() != name {
                return Err(wrong("another user's"));
            }
            rows.users.push(user);
        }
        _ => return Err(wrong("no row about users")),
    }
    Ok(())
}

/// All rows of `directory`, in the order of their keys; none of one that nothing was done to.
pub(crate) fn all(directory: &Directory) -> Vec<(Vec<u8>, Vec<u8>)> {
    if *directory == Directory::default() {
        return Vec::new();
    }
    let Rows { head, users, roles } = directory.rows();
    let head = head.map(|head| (row(HEAD, ""), head.encode_to_vec()));
    let roles = roles.iter().map(|role| (row(ROLE, &role.name), role.encode_to_vec()));
    let users = users.iter().map(|user| (row(USER, &user.name), user.encode_to_vec()));
    head.into_iter().chain(roles).chain(users).collect()
}

/// Writes the rows that a command has touched, as `directory` has them now.
pub(crate) fn write(directory: &Directory, touched: &[Touched], batch: &mut dyn StateBatch) {
    for touched in touched {
        let (key, value) = match touched {
            Touched::Head => (row(HEAD, ""), Some(directory.head().encode_to_vec())),
            Touched::Role(name) => {
                (row(ROLE, name), directory.role(name).map(Message::encode_to_vec))
            }
            Touched::User(name) => {
                (row(USER, name), directory.user(name).map(Message::encode_to_vec))
            }
        };
        match value {
            Some(value) => batch.put(&key, &value),
            None if defect!(DeletedUserKept) => {}
            None => batch.delete(&key),
        }
    }
}
