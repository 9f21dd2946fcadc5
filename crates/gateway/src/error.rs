//! Every refusal of the gateway in one table: gRPC code and text.
//!
//! The texts are API: clients match on them, so they are etcd's own to the letter where etcd has the
//! error. Texts that etcd does not have begin with `quorate:`.

use quorate_types::kv::KvError;
use tonic::{Code, Status};

use crate::backend::{BackendError, BackupError, MemberError, MemberRefusal};

macro_rules! table {
    ($($(#[$doc:meta])* $name:ident => $code:ident, $text:literal;)*) => {
        /// Why the gateway refuses a request.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum ApiError {
            $($(#[$doc])* $name,)*
        }

        impl ApiError {
            /// Every row of the table.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The gRPC code.
            #[must_use]
            pub const fn code(self) -> Code {
                match self { $(Self::$name => Code::$code,)* }
            }

            /// The text that clients match on.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

impl ApiError {
    /// Whether it passes by itself: nobody leads for a moment.
    pub(crate) const fn passes(self) -> bool {
        matches!(self, Self::NoLeader | Self::LeaderChanged | Self::Timeout)
    }
}

table! {
    /// A request without a key.
    EmptyKey => InvalidArgument, "etcdserver: key is not provided";
    /// An operation on a key that must exist and does not; also an empty operation of a transaction.
    KeyNotFound => InvalidArgument, "etcdserver: key not found";
    /// `ignore_value` together with a value.
    ValueProvided => InvalidArgument, "etcdserver: value is provided";
    /// `ignore_lease` together with a lease.
    LeaseProvided => InvalidArgument, "etcdserver: lease is provided";
    /// A transaction beyond one of its limits.
    TooManyOps => InvalidArgument, "etcdserver: too many operations in txn request";
    /// A transaction that writes one key twice.
    DuplicateKey => InvalidArgument, "etcdserver: duplicate key given in txn request";
    /// An unknown sort order or target.
    InvalidSort => InvalidArgument, "etcdserver: invalid sort option";
    /// A range in parts that are to be sorted; etcd 3.7's words.
    StreamedSort => Unimplemented, "RangeStream does not support custom sort orders";
    /// A range in parts of which some pairs are to be left out; etcd 3.7's words.
    StreamedFilters => Unimplemented, "RangeStream does not support revision filters";
    /// A compare with an unknown target or result. etcd takes them for a success; we do not guess.
    InvalidCompare => InvalidArgument, "quorate: invalid compare target or result";
    /// A command beyond the size limit.
    RequestTooLarge => InvalidArgument, "etcdserver: request is too large";
    /// A read or compaction at a revision that is compacted.
    Compacted => OutOfRange, "etcdserver: mvcc: required revision has been compacted";
    /// A read or compaction at a revision that does not exist yet.
    FutureRevision => OutOfRange, "etcdserver: mvcc: required revision is a future revision";
    /// A lease that does not exist.
    LeaseNotFound => NotFound, "etcdserver: requested lease not found";
    /// A lease that exists already.
    LeaseExists => FailedPrecondition, "etcdserver: lease already exists";
    /// A lease that would live longer than any may.
    LeaseTtlTooLarge => OutOfRange, "etcdserver: too large lease TTL";
    /// The disk is too full for writes that grow the data.
    NoSpace => ResourceExhausted, "etcdserver: mvcc: database space exceeded";
    /// Too much waits already.
    TooManyRequests => ResourceExhausted, "etcdserver: too many requests";
    /// A member that is not there.
    MemberNotFound => NotFound, "etcdserver: member not found";
    /// A name that another member has.
    MemberExists => FailedPrecondition, "etcdserver: member ID already exist";
    /// A peer URL that another member has.
    PeerUrlExists => FailedPrecondition, "etcdserver: Peer URLs already exists";
    /// No peer URL, or one that is none.
    BadPeerUrls => InvalidArgument, "etcdserver: given member URLs are invalid";
    /// A member's name that no certificate can carry.
    BadMemberName => InvalidArgument, "quorate: a member's name has 1 to 64 bytes";
    /// Several peer URLs, of which nodes would not know which to dial.
    OnePeerUrl => InvalidArgument, "quorate: a member has exactly one peer URL";
    /// A promotion of what votes already.
    NotLearner => FailedPrecondition, "etcdserver: can only promote a learner member";
    /// A promotion of a learner that lags.
    LearnerNotReady => FailedPrecondition,
        "etcdserver: can only promote a learner member which is in sync with leader";
    /// A learner more than may be.
    TooManyLearners => FailedPrecondition, "etcdserver: too many learner members in cluster";
    /// A change after which those that have started would be no majority.
    NotEnoughStarted => FailedPrecondition,
        "etcdserver: re-configuration failed due to not enough started members";
    /// A removal after which those that can be reached would be no majority; also why streams end at a node that is
    /// cut off.
    Unhealthy => Unavailable, "etcdserver: unhealthy cluster";
    /// A leadership that is to go where it cannot.
    BadTransferee => FailedPrecondition, "etcdserver: bad leader transferee";
    /// A request that only a leader takes.
    NotLeader => FailedPrecondition, "etcdserver: not leader";
    /// No leader is known.
    NoLeader => Unavailable, "etcdserver: no leader";
    /// Leadership moved while the request waited.
    LeaderChanged => Unavailable, "etcdserver: leader changed";
    /// No answer in time; a command may have been applied.
    Timeout => Unavailable, "etcdserver: request timed out";
    /// The node is going down.
    Stopped => Unavailable, "etcdserver: server stopped";
    /// The data is damaged.
    Corrupt => DataLoss, "etcdserver: corrupt cluster";
    /// No user where users count; also a user without a name.
    UserEmpty => InvalidArgument, "etcdserver: user name is empty";
    /// A user who may not.
    PermissionDenied => PermissionDenied, "etcdserver: permission denied";
    /// A user as known before the last change of users and roles.
    AuthOldRevision => InvalidArgument, "etcdserver: revision of auth store is old";
    /// A token that is none, or no more.
    InvalidAuthToken => Unauthenticated, "etcdserver: invalid auth token";
    /// A wrong password, or nobody's.
    AuthFailed => InvalidArgument,
        "etcdserver: authentication failed, invalid user ID or password";
    /// A password for a user who has none. etcd 3.5.1 says it as `Unknown`.
    NoPasswordUser => InvalidArgument,
        "etcdserver: authentication failed, password was given for no password user";
    /// A password where users do not count.
    AuthNotEnabled => FailedPrecondition, "etcdserver: authentication is not enabled";
    /// Users cannot count without the user root.
    RootUserNotExist => FailedPrecondition, "etcdserver: root user does not exist";
    /// Users cannot count before the user root has the role root.
    RootRoleNotExist => FailedPrecondition, "etcdserver: root user does not have root role";
    /// A name that another user has.
    UserExists => FailedPrecondition, "etcdserver: user name already exists";
    /// A user that is not there.
    UserNotFound => FailedPrecondition, "etcdserver: user name not found";
    /// A name that another role has.
    RoleExists => FailedPrecondition, "etcdserver: role name already exists";
    /// A role that is not there.
    RoleNotFound => FailedPrecondition, "etcdserver: role name not found";
    /// A role without a name.
    RoleEmpty => InvalidArgument, "etcdserver: role name is empty";
    /// A role that the user does not have.
    RoleNotGranted => FailedPrecondition, "etcdserver: role is not granted to the user";
    /// A permission that the role does not have.
    PermissionNotGranted => FailedPrecondition,
        "etcdserver: permission is not granted to the role";
    /// A grant of no permission.
    PermissionNotGiven => InvalidArgument, "etcdserver: permission not given";
    /// A change that would leave nobody who can manage users.
    InvalidAuthMgmt => InvalidArgument, "etcdserver: invalid auth management";
    /// A password of no length, which etcd takes; a user without one is asked for by an option.
    EmptyPassword => InvalidArgument, "quorate: a password is not empty";
    /// A node that only verifies signed tokens, or has no random bytes.
    NoToken => Unavailable, "quorate: no token can be made at this node";
    /// A password could not be worked on.
    HashingFailed => Internal, "quorate: the password could not be hashed";
    /// An alarm of a kind that does not exist, or one more than are kept.
    BadAlarm => InvalidArgument, "quorate: no such kind of alarm, or too many alarms";
    /// A downgrade to what is no version.
    BadDowngradeVersion => InvalidArgument, "etcdserver: wrong downgrade target version format";
    /// A downgrade to a version that is not the one before.
    BadDowngradeTarget => InvalidArgument, "etcdserver: invalid downgrade target version";
    /// A downgrade while there is one.
    DowngradeInProcess => FailedPrecondition,
        "etcdserver: cluster has a downgrade job in progress";
    /// The end of a downgrade, while there is none.
    NoDowngrade => FailedPrecondition, "etcdserver: no inflight downgrade job";
    /// A step of a downgrade that does not exist.
    UnknownMethod => InvalidArgument, "etcdserver: unknown method";
    /// A snapshot larger than the file that etcd's users can handle.
    SnapshotTooLarge => ResourceExhausted,
        "quorate: more than 8 GiB for a snapshot: use `quorate backup`";
    /// A snapshot while there is another one.
    SnapshotBusy => ResourceExhausted, "quorate: a snapshot is being taken already";
    /// A snapshot that this node cannot take.
    SnapshotFailed => Unavailable, "quorate: the snapshot failed; the node's log says why";
    /// A lock whose lease ended before it was held.
    SessionExpired => Unknown, "mutex: session is expired";
    /// A leadership that is over, or never was.
    ElectionNotLeader => Unknown, "election: not leader";
    /// An election that nobody has won.
    ElectionNoLeader => Unknown, "election: no leader";
    /// A request about a leadership that does not say which.
    LeaderKeyMissing => Unknown, "\"leader\" field must be provided";
    /// The state machine could not read what this gateway wrote.
    MalformedCommand => Internal, "quorate: command or query not understood";
    /// The backend answered something else than it was asked.
    UnexpectedOutcome => Internal, "quorate: unexpected kind of outcome";
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        Self::new(error.code(), error.text())
    }
}

impl From<KvError> for ApiError {
    fn from(error: KvError) -> Self {
        match error {
            KvError::Malformed => Self::MalformedCommand,
            KvError::Compacted => Self::Compacted,
            KvError::FutureRevision => Self::FutureRevision,
            KvError::KeyNotFound => Self::KeyNotFound,
            KvError::LeaseNotFound => Self::LeaseNotFound,
            // As if it had not been proposed, which is what happens to proposals of a past leader.
            KvError::StaleRevision | KvError::StaleDeadline => Self::LeaderChanged,
            KvError::InvalidSort => Self::InvalidSort,
            KvError::DuplicateKey => Self::DuplicateKey,
            KvError::UserEmpty => Self::UserEmpty,
            KvError::PermissionDenied => Self::PermissionDenied,
            KvError::AuthOldRevision => Self::AuthOldRevision,
            KvError::RootUserNotExist => Self::RootUserNotExist,
            KvError::RootRoleNotExist => Self::RootRoleNotExist,
            KvError::UserExists => Self::UserExists,
            KvError::UserNotFound => Self::UserNotFound,
            KvError::RoleExists => Self::RoleExists,
            KvError::RoleNotFound => Self::RoleNotFound,
            KvError::RoleEmpty => Self::RoleEmpty,
            KvError::RoleNotGranted => Self::RoleNotGranted,
            KvError::PermissionNotGranted => Self::PermissionNotGranted,
            KvError::PermissionNotGiven => Self::PermissionNotGiven,
            KvError::InvalidAuthMgmt => Self::InvalidAuthMgmt,
            KvError::LeaseExists => Self::LeaseExists,
            KvError::LeaseTtlTooLarge => Self::LeaseTtlTooLarge,
            KvError::NoSpace => Self::NoSpace,
            KvError::Corrupt => Self::Corrupt,
            KvError::BadAlarm => Self::BadAlarm,
            KvError::DowngradeInProcess => Self::DowngradeInProcess,
            KvError::NoDowngrade => Self::NoDowngrade,
        }
    }
}

impl From<BackendError> for Status {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Unsupported(what) => unimplemented(what),
            error => ApiError::from(error).into(),
        }
    }
}

impl From<BackendError> for ApiError {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::NoLeader => Self::NoLeader,
            BackendError::LeaderChanged => Self::LeaderChanged,
            BackendError::TimedOut => Self::Timeout,
            BackendError::Overloaded => Self::TooManyRequests,
            BackendError::TooLarge => Self::RequestTooLarge,
            BackendError::NoSpace => Self::NoSpace,
            BackendError::Stopping => Self::Stopped,
            BackendError::Corrupt => Self::Corrupt,
            // A part that nobody can run yet: only its own text says which.
            BackendError::Unsupported(_) => Self::UnexpectedOutcome,
        }
    }
}

impl From<BackupError> for Status {
    fn from(error: BackupError) -> Self {
        let error = match error {
            BackupError::Busy => ApiError::SnapshotBusy,
            BackupError::TooLarge => ApiError::SnapshotTooLarge,
            BackupError::NoSpace => ApiError::NoSpace,
            BackupError::Failed(error) => {
                tracing::error!(error, "a backup failed");
                ApiError::SnapshotFailed
            }
        };
        error.into()
    }
}

impl From<MemberRefusal> for ApiError {
    fn from(refusal: MemberRefusal) -> Self {
        match refusal {
            MemberRefusal::NotFound => Self::MemberNotFound,
            MemberRefusal::NameTaken => Self::MemberExists,
            MemberRefusal::AddressTaken => Self::PeerUrlExists,
            MemberRefusal::NotLearner => Self::NotLearner,
            MemberRefusal::LearnerNotReady => Self::LearnerNotReady,
            MemberRefusal::TooManyLearners => Self::TooManyLearners,
            MemberRefusal::NotEnoughStarted => Self::NotEnoughStarted,
            MemberRefusal::Unhealthy => Self::Unhealthy,
            MemberRefusal::BadTransferee => Self::BadTransferee,
            MemberRefusal::NotLeader => Self::NotLeader,
        }
    }
}

impl From<MemberError> for Status {
    fn from(error: MemberError) -> Self {
        match error {
            MemberError::Refused(refusal) => ApiError::from(refusal).into(),
            MemberError::Backend(error) => error.into(),
        }
    }
}

/// The answer to a method, or a part of one, that this build does not serve.
pub(crate) fn unimplemented(what: &str) -> Status {
    Status::unimplemented(format!("quorate: {what} is not implemented"))
}

/// The answer to a message above the transport's limit, in the words and with the code of etcd's gRPC
/// library.
pub(crate) fn message_too_large(found_bytes: u64, limit_bytes: u64) -> Status {
    Status::resource_exhausted(format!(
        "grpc: received message larger than max ({found_bytes} vs. {limit_bytes})"
    ))
}

/// A status in etcd's words. The only `OutOfRange` that is not of our table is the message decoder's for a
/// message above its limit, where etcd's library says `ResourceExhausted`.
pub(crate) fn in_etcd_words(status: Status) -> Status {
    if status.code() != Code::OutOfRange || status.message().starts_with("etcdserver: ") {
        return status;
    }
    let mut sizes = status.message().split(' ').filter_map(|word| word.parse().ok());
    let (found, limit) = (sizes.next().unwrap_or(0), sizes.next().unwrap_or(0));
    message_too_large(found, limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_unique_and_say_whose_they_are() {
        for (at, error) in ApiError::ALL.iter().enumerate() {
            let text = error.text();
            // etcd's lock and election services speak for themselves, and so does its RangeStream.
            let theirs = [
                "etcdserver: ",
                "quorate: ",
                "mutex: ",
                "election: ",
                "\"leader\" field ",
                "RangeStream ",
            ];
            assert!(theirs.iter().any(|whose| text.starts_with(whose)), "{text}");
            assert!(ApiError::ALL[..at].iter().all(|other| other.text() != text), "{text}");
            let status = Status::from(*error);
            assert_eq!((status.code(), status.message()), (error.code(), text));
        }
    }

    #[test]
    fn only_a_timeout_leaves_the_outcome_of_a_command_open() {
        let rows: [(BackendError, Code, &str); 9] = [
            (BackendError::NoLeader, Code::Unavailable, "etcdserver: no leader"),
            (BackendError::LeaderChanged, Code::Unavailable, "etcdserver: leader changed"),
            (BackendError::TimedOut, Code::Unavailable, "etcdserver: request timed out"),
            (BackendError::Overloaded, Code::ResourceExhausted, "etcdserver: too many requests"),
            (BackendError::TooLarge, Code::InvalidArgument, "etcdserver: request is too large"),
            (
                BackendError::NoSpace,
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
            ),
            (BackendError::Stopping, Code::Unavailable, "etcdserver: server stopped"),
            (BackendError::Corrupt, Code::DataLoss, "etcdserver: corrupt cluster"),
            (
                BackendError::Unsupported("a transaction across shards"),
                Code::Unimplemented,
                "quorate: a transaction across shards is not implemented",
            ),
        ];
        for (error, code, text) in rows {
            let timed_out = error == BackendError::TimedOut;
            let status = Status::from(error);
            assert_eq!((status.code(), status.message()), (code, text));
            assert_eq!(text.contains("timed out"), timed_out);
        }
    }

    #[test]
    fn refusals_of_the_state_machine_have_etcd_texts() {
        let rows = [
            (KvError::Compacted, ApiError::Compacted),
            (KvError::FutureRevision, ApiError::FutureRevision),
            (KvError::KeyNotFound, ApiError::KeyNotFound),
            (KvError::LeaseNotFound, ApiError::LeaseNotFound),
            (KvError::LeaseExists, ApiError::LeaseExists),
            (KvError::LeaseTtlTooLarge, ApiError::LeaseTtlTooLarge),
            (KvError::StaleDeadline, ApiError::LeaderChanged),
            (KvError::InvalidSort, ApiError::InvalidSort),
            (KvError::DuplicateKey, ApiError::DuplicateKey),
            (KvError::NoSpace, ApiError::NoSpace),
            (KvError::Corrupt, ApiError::Corrupt),
            (KvError::StaleRevision, ApiError::LeaderChanged),
            (KvError::Malformed, ApiError::MalformedCommand),
        ];
        for (refusal, error) in rows {
            assert_eq!(ApiError::from(refusal), error);
        }
    }
}
