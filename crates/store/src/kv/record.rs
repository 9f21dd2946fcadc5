//! The values of the keyspace's rows. The first byte says the form, so that forms can be added.
//!
//! ```text
//! C = 1, create v, mod v, sub v, version v, lease v
//! K = 1, create v, version v, lease v, value          a put
//!   | 2                                               a tombstone
//! E = 1 put | 2 delete, replaced revision v, replaced sub v, stored key; both 0 if none was replaced
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quorate_types::codec::{DecodeError, put_varint};
use quorate_types::machine::StateError;

use crate::layout::{SPACE_USER, Stamp};

const CURRENT: u8 = 1;
const PUT: u8 = 1;
const DELETE: u8 = 2;

/// What is known of a key without its value. Invariants: `create <= modified.revision`, and
/// `version >= 1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    /// Revision of the put that made the key.
    pub(crate) create: i64,
    /// The last put.
    pub(crate) modified: Stamp,
    /// Puts since the key was made.
    pub(crate) version: i64,
    /// The attached lease; 0 for none.
    pub(crate) lease: i64,
}

/// What one write did to a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    Put,
    Delete,
}

/// A write as its `E` row tells of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Event {
    pub(crate) change: Change,
    /// The put that it replaced: there is one unless it made the key.
    pub(crate) replaced: Option<Stamp>,
    /// The user's key.
    pub(crate) key: Bytes,
}

impl Record {
    /// The value of the key's `C` row.
    pub(crate) fn encode_current(&self) -> BytesMut {
        let mut buf = BytesMut::with_capacity(48);
        buf.put_u8(CURRENT);
        put_varint(&mut buf, self.create as u64);
        put_varint(&mut buf, self.modified.revision as u64);
        put_varint(&mut buf, self.modified.sub.into());
        put_varint(&mut buf, self.version as u64);
        put_varint(&mut buf, self.lease as u64);
        buf
    }

    /// Reads a `C` row.
    pub(crate) fn decode_current(row: &[u8], bytes: &[u8]) -> Result<Self, StateError> {
        let decode = || {
            let mut buf = Varints(bytes);
            if buf.byte()? != CURRENT {
                return Err(DecodeError::Malformed("form"));
            }
            let create = buf.number()?;
            let revision = buf.number()?;
            let modified = Stamp { revision, sub: buf.sub()? };
            Ok(Self { create, modified, version: buf.number()?, lease: buf.number()? })
        };
        decode().map_err(|error| damaged(row, &error))
    }

    /// The value of the `K` row of this put.
    pub(crate) fn encode_history(&self, value: &[u8]) -> BytesMut {
        let mut buf = BytesMut::with_capacity(32 + value.len());
        buf.put_u8(PUT);
        put_varint(&mut buf, self.create as u64);
        put_varint(&mut buf, self.version as u64);
        put_varint(&mut buf, self.lease as u64);
        buf.put_slice(value);
        buf
    }

    /// Reads a `K` row whose key names `modified`; `None` for a tombstone. The second value is how many
    /// bytes lie before the key's value.
    pub(crate) fn decode_history(
        row: &[u8],
        modified: Stamp,
        bytes: &[u8],
    ) -> Result<Option<(Self, usize)>, StateError> {
        let decode = || {
            let mut buf = Varints(bytes);
            match buf.byte()? {
                PUT => {
                    let (create, version) = (buf.number()?, buf.number()?);
                    let record = Self { create, modified, version, lease: buf.number()? };
                    Ok(Some((record, bytes.len() - buf.0.len())))
                }
                DELETE => Ok(None),
                _ => Err(DecodeError::Malformed("form")),
            }
        };
        decode().map_err(|error| damaged(row, &error))
    }
}

/// The value of the `K` row of a delete.
pub(crate) const TOMBSTONE: [u8; 1] = [DELETE];

/// The value of an `E` row.
pub(crate) fn encode_event(change: Change, replaced: Option<Stamp>, key: &[u8]) -> BytesMut {
    let mut buf = BytesMut::with_capacity(16 + key.len());
    buf.put_u8(match change {
        Change::Put => PUT,
        Change::Delete => DELETE,
    });
    let replaced = replaced.unwrap_or_default();
    put_varint(&mut buf, replaced.revision as u64);
    put_varint(&mut buf, replaced.sub.into());
    buf.put_u8(SPACE_USER);
    buf.put_slice(key);
    buf
}

/// Reads an `E` row.
pub(crate) fn decode_event(row: &[u8], bytes: &[u8]) -> Result<Event, StateError> {
    let decode = || {
        let mut buf = Varints(bytes);
        let change = match buf.byte()? {
            PUT => Change::Put,
            DELETE => Change::Delete,
            _ => return Err(DecodeError::Malformed("form")),
        };
        let replaced = Stamp { revision: buf.number()?, sub: buf.sub()? };
        let replaced = (replaced != Stamp::default()).then_some(replaced);
        match buf.byte()? {
            SPACE_USER => Ok(Event { change, replaced, key: Bytes::copy_from_slice(buf.0) }),
            _ => Err(DecodeError::Malformed("space")),
        }
    };
    decode().map_err(|error| damaged(row, &error))
}

/// A row that no version of ours wrote: the engine's data is damaged.
pub(crate) fn damaged(row: &[u8], why: &dyn std::fmt::Display) -> StateError {
    StateError(format!("damaged row {}: {why}", row.escape_ascii()))
}

/// Reads varints from borrowed bytes.
struct Varints<'b>(&'b [u8]);

impl Varints<'_> {
    fn byte(&mut self) -> Result<u8, DecodeError> {
        if self.0.has_remaining() { Ok(self.0.get_u8()) } else { Err(DecodeError::Truncated) }
    }

    fn sub(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.number()?).map_err(|_| DecodeError::Malformed("sub"))
    }

    fn number(&mut self) -> Result<i64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits.leading_zeros() < shift {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value as i64);
            }
        }
        Err(DecodeError::Malformed("varint"))
    }
}
