//! What every RPC asks of its caller while users count. What has no row is refused; and an RPC of ours without a
//! row does not compile.

use quorate_api::METHODS;

/// What an RPC asks of its caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Requirement {
    /// Nothing.
    Public,
    /// To be a user.
    User,
    /// To have the role root.
    Root,
    /// What the command or query behind it needs, which the replicas decide; a caller need not be known here.
    Replicas,
}

macro_rules! table {
    ($($service:literal: $($requirement:ident { $($method:ident)* })*;)*) => {
        /// Every RPC by its path.
        pub(crate) const TABLE: &[(&str, Requirement)] = &[$($($((
            concat!("/", $service, "/", stringify!($method)),
            Requirement::$requirement,
        ),)*)*)*];
    };
}

table! {
    // Ranges of keys; a compaction takes history from everybody, so it is root's.
    "etcdserverpb.KV": Replicas { Range RangeStream Put DeleteRange Txn Compact };
    "etcdserverpb.Watch": Replicas { Watch };
    // A revoke needs all attached keys, time-to-live those that it lists; what names no key needs a user.
    "etcdserverpb.Lease":
        User { LeaseGrant LeaseKeepAlive LeaseLeases }
        Replicas { LeaseRevoke LeaseTimeToLive };
    // These run transactions, leases and watches for their caller.
    "v3lockpb.Lock": Replicas { Lock Unlock };
    "v3electionpb.Election": Replicas { Campaign Proclaim Leader Observe Resign };
    "etcdserverpb.Cluster":
        User { MemberList }
        Root { MemberAdd MemberRemove MemberUpdate MemberPromote };
    // An alarm is listed by users and changed by root: the service looks at the action.
    "etcdserverpb.Maintenance":
        User { Status Alarm }
        Root { Defragment Hash HashKV Snapshot MoveLeader Downgrade };
    // `Authenticate` makes users known. Users may look at themselves and their roles.
    "etcdserverpb.Auth":
        Public { Authenticate }
        Replicas {
            AuthEnable AuthDisable AuthStatus UserAdd UserGet UserList UserDelete UserChangePassword
            UserGrantRole UserRevokeRole RoleAdd RoleGet RoleList RoleDelete RoleGrantPermission
            RoleRevokePermission
        };
    "quorate.v1.Admin": User { Status } Root { AddMember ReplaceMember Backup };
    // Probes have no password, and learn whether the node serves and nothing else.
    "grpc.health.v1.Health": Public { Check List Watch };
    "grpc.reflection.v1.ServerReflection": User { ServerReflectionInfo };
    "grpc.reflection.v1alpha.ServerReflection": User { ServerReflectionInfo };
}

/// Takes history from everybody: only root may, which the replicas decide.
pub(crate) const COMPACT: &str = "/etcdserverpb.KV/Compact";

/// May be refused after its head, also where users did not count when it began.
pub(crate) const RANGE_STREAM: &str = "/etcdserverpb.KV/RangeStream";

/// Whether a call is about users; a login tells of itself.
pub(crate) fn is_of_users(path: &str) -> bool {
    path.starts_with("/etcdserverpb.Auth/") && !path.ends_with("/Authenticate")
}

/// Whether only root may make a call, whatever it says. A change of an alarm is told of by its service.
pub(crate) fn is_roots(path: &str) -> bool {
    path == COMPACT || requirement(path) == Some(Requirement::Root)
}

/// What the RPC asks; `None` for one that has no row.
pub(crate) fn requirement(path: &str) -> Option<Requirement> {
    TABLE.iter().find(|(named, _)| *named == path).map(|(_, requirement)| *requirement)
}

const fn has_row(path: &str) -> bool {
    let mut at = 0;
    while at < TABLE.len() {
        if same(TABLE[at].0.as_bytes(), path.as_bytes()) {
            return true;
        }
        at += 1;
    }
    false
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

// The build ends here when a method of a proto file has no row.
const _: () = {
    let mut at = 0;
    while at < METHODS.len() {
        if !has_row(METHODS[at]) {
            panic!("{}", METHODS[at]);
        }
        at += 1;
    }
};

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn no_rpc_has_two_rows_and_none_of_a_library_is_without() {
        for (at, (path, _)) in TABLE.iter().enumerate() {
            assert!(TABLE[..at].iter().all(|(other, _)| other != path), "{path} stands twice");
        }
        for descriptors in [
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ] {
            let set = prost_types::FileDescriptorSet::decode(descriptors).expect("a library's own");
            for file in &set.file {
                for service in &file.service {
                    for method in &service.method {
                        let path =
                            format!("/{}.{}/{}", file.package(), service.name(), method.name());
                        assert!(requirement(&path).is_some(), "{path} has no row");
                    }
                }
            }
        }
    }

    #[test]
    fn what_has_no_row_has_no_requirement_that_anybody_could_meet() {
        for path in ["", "/", "/etcdserverpb.KV/Put/", "/etcdserverpb.KV/put", "/x.Y/Z"] {
            assert_eq!(requirement(path), None, "{path}");
        }
    }
}
