//! [`Target`]: what is fuzzed.

use prost_reflect::{DescriptorPool, MessageDescriptor, MethodDescriptor};
use quorate_api::FILE_DESCRIPTORS;

/// Paths of the JSON gateway, and the types of what they take: one of each shape that its decoder meets, numbers,
/// bytes, enumerations, lists, choices and nested messages among them.
const JSON: [(&str, &str); 12] = [
    ("/v3/kv/range", "etcdserverpb.RangeRequest"),
    ("/v3/kv/put", "etcdserverpb.PutRequest"),
    ("/v3/kv/txn", "etcdserverpb.TxnRequest"),
    ("/v3/watch", "etcdserverpb.WatchRequest"),
    ("/v3/lease/grant", "etcdserverpb.LeaseGrantRequest"),
    ("/v3/lease/keepalive", "etcdserverpb.LeaseKeepAliveRequest"),
    ("/v3/cluster/member/add", "etcdserverpb.MemberAddRequest"),
    ("/v3/maintenance/alarm", "etcdserverpb.AlarmRequest"),
    ("/v3/auth/user/add", "etcdserverpb.AuthUserAddRequest"),
    ("/v3/auth/role/grant", "etcdserverpb.AuthRoleGrantPermissionRequest"),
    ("/v3/lock/lock", "v3lockpb.LockRequest"),
    ("/v3/election/proclaim", "v3electionpb.ProclaimRequest"),
];

/// One decoder of what clients send.
#[derive(Clone, Debug)]
pub enum Target {
    /// A method of a service, called over gRPC.
    Method(MethodDescriptor),
    /// A path of the JSON gateway.
    Json {
        /// Where it is.
        path: &'static str,
        /// What it takes.
        input: MessageDescriptor,
    },
    /// A connection, before any call: HTTP/1, HTTP/2 and what is neither.
    Connection,
    /// The token of a call, while users count.
    Token,
}

/// Targets of one kind can be fuzzed at the same time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Company {
    /// Most of them.
    Any,
    /// Those that may make nodes refuse what others send: alarms, and the switch of users.
    Switches,
    /// Those that meet nodes where users count.
    Users,
}

impl Company {
    pub(super) const EACH: [Self; 3] = [Self::Any, Self::Switches, Self::Users];
}

impl Target {
    /// Its path.
    #[must_use]
    pub fn path(&self) -> String {
        match self {
            Self::Method(method) => {
                format!("/{}/{}", method.parent_service().full_name(), method.name())
            }
            Self::Json { path, .. } => (*path).to_owned(),
            Self::Connection => "connection".to_owned(),
            Self::Token => "token".to_owned(),
        }
    }

    /// The type of its messages, if it takes messages.
    pub(super) fn input(&self) -> Option<MessageDescriptor> {
        match self {
            Self::Method(method) => Some(method.input()),
            Self::Json { input, .. } => Some(input.clone()),
            Self::Connection | Self::Token => None,
        }
    }

    pub(super) fn company(&self) -> Company {
        let path = self.path();
        match self {
            Self::Token => Company::Users,
            _ if path.ends_with("/AuthEnable") || path.to_lowercase().ends_with("/alarm") => {
                Company::Switches
            }
            _ => Company::Any,
        }
    }
}

/// The methods of the services that this build has, the paths of [`JSON`], connections and tokens; of those only the ones whose path
/// contains one of `only`, if there is any.
///
/// # Panics
/// When the descriptors that were built in cannot be read, or lack a type of [`JSON`].
#[must_use]
pub fn targets(only: &[String]) -> Vec<Target> {
    let pool = DescriptorPool::decode(FILE_DESCRIPTORS).expect("descriptors of this build");
    let methods = pool.services().flat_map(|s| s.methods().collect::<Vec<_>>());
    let json = JSON.iter().map(|(path, input)| {
        let input = pool.get_message_by_name(input).expect("a type of this build");
        Target::Json { path, input }
    });
    let wanted =
        |target: &Target| only.is_empty() || only.iter().any(|part| target.path().contains(part));
    let others = [Target::Connection, Target::Token];
    methods.map(Target::Method).chain(json).chain(others).filter(wanted).collect()
}
