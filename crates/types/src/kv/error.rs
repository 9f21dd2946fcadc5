//! Refusals.

use prost::Enumeration;

/// Why a command or query was refused; the same on every replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Enumeration)]
#[repr(i32)]
pub enum KvError {
    /// The bytes are not a command or query of this version.
    Malformed = 0,
    /// The revision lies below the last compaction, or is compacted already.
    Compacted = 1,
    /// The revision lies above the current one.
    FutureRevision = 2,
    /// `ignore_value` or `ignore_lease` on a key that does not exist.
    KeyNotFound = 3,
    /// The named lease does not exist.
    LeaseNotFound = 4,
    /// The revision drawn by the leader is not above the last one: as if it had not been proposed.
    StaleRevision = 5,
    /// An unknown sort order or target.
    InvalidSort = 6,
    /// A key is written twice by one transaction.
    DuplicateKey = 7,
    /// Nobody asks where users count; also a user without a name.
    UserEmpty = 30,
    /// The user may not do this.
    PermissionDenied = 31,
    /// The user was known before the last change of users and roles.
    AuthOldRevision = 32,
    /// Users cannot count without the user root.
    RootUserNotExist = 33,
    /// Users cannot count before the user root has the role root.
    RootRoleNotExist = 34,
    /// There is a user of that name.
    UserExists = 35,
    /// There is no such user.
    UserNotFound = 36,
    /// There is a role of that name.
    RoleExists = 37,
    /// There is no such role.
    RoleNotFound = 38,
    /// A role without a name.
    RoleEmpty = 39,
    /// The user does not have the role.
    RoleNotGranted = 40,
    /// The role does not have the permission.
    PermissionNotGranted = 41,
    /// A grant of no permission.
    PermissionNotGiven = 42,
    /// It would leave nobody who can manage users.
    InvalidAuthMgmt = 43,
    /// There is a lease of this id.
    LeaseExists = 20,
    /// A time to live above [`LEASE_TTL_MAX_S`].
    LeaseTtlTooLarge = 21,
    /// The deadline that a revoke rests on was kept in another term: as if it had not been proposed.
    StaleDeadline = 22,
    /// An alarm says that there is no space for what grows the data.
    NoSpace = 50,
    /// An alarm says that a member's data is damaged: nothing is changed until it is cleared.
    Corrupt = 51,
    /// An alarm of a kind that does not exist, or one more than are kept.
    BadAlarm = 52,
    /// A downgrade is under way already.
    DowngradeInProcess = 53,
    /// No downgrade is under way.
    NoDowngrade = 54,
}
