//! Why connections are closed: application codes, and how the other side reads them.

use quinn::{ConnectionError, VarInt};

use crate::handler::Refusal;

/// The longest reason that is taken from a peer, in characters.
const REASON_CHARS_MAX: usize = 200;

/// A code and the reason for people that goes with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Close {
    pub(crate) code: u32,
    pub(crate) reason: String,
}

/// The node shuts down.
pub(crate) const SHUTDOWN: u32 = 0;
/// Certificate and names do not fit.
pub(crate) const IDENTITY: u32 = 1;
/// Another cluster.
pub(crate) const CLUSTER: u32 = 2;
/// The node is not the one that was meant.
pub(crate) const TARGET: u32 = 3;
/// The node's policy, or the peer was removed.
pub(crate) const POLICY: u32 = 4;
/// The peer has left the cluster for good.
pub(crate) const REMOVED: u32 = 9;
/// The peer's directory is a copy: older than it was, or in use elsewhere.
pub(crate) const COPY: u32 = 10;
/// Bytes that are no Hello, no frame or no stream of ours.
pub(crate) const MALFORMED: u32 = 5;
/// A frame above the bound.
pub(crate) const TOO_LARGE: u32 = 6;
/// A newer connection of the same node has taken over.
pub(crate) const SUPERSEDED: u32 = 7;
/// The handshake took too long.
pub(crate) const TIMEOUT: u32 = 8;

impl Close {
    pub(crate) fn identity(reason: String) -> Self {
        Self { code: IDENTITY, reason }
    }

    pub(crate) fn cluster(reason: String) -> Self {
        Self { code: CLUSTER, reason }
    }

    pub(crate) fn target(reason: String) -> Self {
        Self { code: TARGET, reason }
    }

    pub(crate) fn policy(reason: String) -> Self {
        Self { code: POLICY, reason }
    }

    pub(crate) fn refusal(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Policy(reason) => Self { code: POLICY, reason },
            Refusal::Removed(reason) => Self { code: REMOVED, reason },
            Refusal::Copy(reason) => Self { code: COPY, reason },
        }
    }

    pub(crate) fn malformed(reason: impl Into<String>) -> Self {
        Self { code: MALFORMED, reason: reason.into() }
    }

    /// Closes `connection`; the peer reads code and reason. One that has ended is left alone: closing
    /// it again would make it forget why it ended.
    pub(crate) fn apply(&self, connection: &quinn::Connection) {
        if connection.close_reason().is_some() {
            return;
        }
        connection.close(VarInt::from_u32(self.code), self.reason.as_bytes());
    }
}

/// How a connection ended, or why there was none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// One side does not talk to the other: trying again is of little use.
    Refused(String),
    /// The other side says that this node was removed from the cluster.
    Removed(String),
    /// The other side says that this node must not run with its data.
    Copy(String),
    /// Anything else.
    Lost(String),
}

impl Ending {
    pub(crate) fn reason(self) -> String {
        match self {
            Self::Refused(reason)
            | Self::Removed(reason)
            | Self::Copy(reason)
            | Self::Lost(reason) => reason,
        }
    }
}

/// Reads a connection's end. Failures of TLS are refusals: certificates do not become good by
/// themselves.
pub(crate) fn ending(error: &ConnectionError) -> Ending {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let reason = printable(&close.reason);
            let code = u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX);
            match code {
                IDENTITY | CLUSTER | TARGET | POLICY => {
                    Ending::Refused(format!("refused by the peer: {reason}"))
                }
                REMOVED => Ending::Removed(format!("refused by the peer: {reason}")),
                COPY => Ending::Copy(format!("refused by the peer: {reason}")),
                _ => Ending::Lost(format!("closed by the peer with code {code}: {reason}")),
            }
        }
        ConnectionError::ConnectionClosed(close) if is_tls(close.error_code) => {
            let reason = printable(&close.reason);
            Ending::Refused(format!("refused by the peer's TLS: {} {reason}", close.error_code))
        }
        ConnectionError::TransportError(error) if is_tls(error.code) => {
            Ending::Refused(format!("refused by TLS: {error}"))
        }
        ConnectionError::VersionMismatch
        | ConnectionError::TransportError(_)
        | ConnectionError::ConnectionClosed(_)
        | ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => Ending::Lost(error.to_string()),
    }
}

/// QUIC carries TLS alerts as codes 0x100 to 0x1ff (RFC 9001 section 4.8).
fn is_tls(code: quinn::TransportErrorCode) -> bool {
    (0x100..0x200).contains(&u64::from(code))
}

/// A peer's words, fit for logs: one line, bounded, no control characters.
fn printable(reason: &[u8]) -> String {
    let reason = String::from_utf8_lossy(reason);
    reason.chars().take(REASON_CHARS_MAX).flat_map(char::escape_debug).collect()
}
