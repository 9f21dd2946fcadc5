//! Which path stands for which method.

use std::collections::HashMap;

use http::uri::PathAndQuery;
use prost_reflect::{DescriptorPool, MethodDescriptor};
use quorate_api::FILE_DESCRIPTORS;

/// Where calls are.
const PREFIX: &str = "/v3/";

/// Where calls were before version 3.4 of etcd, whose successor still answers there.
const PREFIX_BETA: &str = "/v3beta/";

/// A service, and the paths of its methods behind [`PREFIX`].
pub(super) struct Service {
    pub(super) name: &'static str,
    pub(super) paths: &'static [(&'static str, &'static str)],
}

/// Every path that etcd 3.5 documents. A service that this build does not have yet is left out.
const SERVICES: &[Service] = &[
    Service {
        name: "etcdserverpb.KV",
        paths: &[
            ("kv/range", "Range"),
            ("kv/put", "Put"),
            ("kv/deleterange", "DeleteRange"),
            ("kv/txn", "Txn"),
            ("kv/compaction", "Compact"),
        ],
    },
    Service { name: "etcdserverpb.Watch", paths: &[("watch", "Watch")] },
    Service {
        name: "etcdserverpb.Lease",
        paths: &[
            ("lease/grant", "LeaseGrant"),
            ("lease/revoke", "LeaseRevoke"),
            ("kv/lease/revoke", "LeaseRevoke"),
            ("lease/keepalive", "LeaseKeepAlive"),
            ("lease/timetolive", "LeaseTimeToLive"),
            ("kv/lease/timetolive", "LeaseTimeToLive"),
            ("lease/leases", "LeaseLeases"),
            ("kv/lease/leases", "LeaseLeases"),
        ],
    },
    Service {
        name: "etcdserverpb.Cluster",
        paths: &[
            ("cluster/member/add", "MemberAdd"),
            ("cluster/member/remove", "MemberRemove"),
            ("cluster/member/update", "MemberUpdate"),
            ("cluster/member/list", "MemberList"),
            ("cluster/member/promote", "MemberPromote"),
        ],
    },
    Service {
        name: "etcdserverpb.Maintenance",
        paths: &[
            ("maintenance/alarm", "Alarm"),
            ("maintenance/status", "Status"),
            ("maintenance/defragment", "Defragment"),
            ("maintenance/hash", "Hash"),
            ("maintenance/snapshot", "Snapshot"),
            ("maintenance/transfer-leadership", "MoveLeader"),
            ("maintenance/downgrade", "Downgrade"),
        ],
    },
    Service {
        name: "etcdserverpb.Auth",
        paths: &[
            ("auth/enable", "AuthEnable"),
            ("auth/disable", "AuthDisable"),
            ("auth/status", "AuthStatus"),
            ("auth/authenticate", "Authenticate"),
            ("auth/user/add", "UserAdd"),
            ("auth/user/get", "UserGet"),
            ("auth/user/list", "UserList"),
            ("auth/user/delete", "UserDelete"),
            ("auth/user/changepw", "UserChangePassword"),
            ("auth/user/grant", "UserGrantRole"),
            ("auth/user/revoke", "UserRevokeRole"),
            ("auth/role/add", "RoleAdd"),
            ("auth/role/get", "RoleGet"),
            ("auth/role/list", "RoleList"),
            ("auth/role/delete", "RoleDelete"),
            ("auth/role/grant", "RoleGrantPermission"),
            ("auth/role/revoke", "RoleRevokePermission"),
        ],
    },
    Service { name: "v3lockpb.Lock", paths: &[("lock/lock", "Lock"), ("lock/unlock", "Unlock")] },
    Service {
        name: "v3electionpb.Election",
        paths: &[
            ("election/campaign", "Campaign"),
            ("election/proclaim", "Proclaim"),
            ("election/leader", "Leader"),
            ("election/observe", "Observe"),
            ("election/resign", "Resign"),
        ],
    },
];

/// Methods whose stream of requests stays open when the body has ended, as etcd's does: what they answer
/// goes on until the client hangs up.
const HELD: [&str; 1] = ["etcdserverpb.Watch.Watch"];

/// Whether a path belongs to the JSON gateway at all.
pub(crate) fn is_call(path: &str) -> bool {
    path.starts_with(PREFIX) || path.starts_with(PREFIX_BETA)
}

/// A method and how it is called.
pub(super) struct Route {
    pub(super) method: MethodDescriptor,
    /// Its path in gRPC.
    pub(super) path: PathAndQuery,
    /// Whether its stream of requests outlives the body.
    pub(super) is_held: bool,
}

/// The paths of the services that this build has.
pub(crate) struct Routes(HashMap<&'static str, Route>);

impl Routes {
    /// The routes into the services of this build.
    ///
    /// # Panics
    /// When one of those services lacks a method of the table: a slip of this build.
    pub(crate) fn of_this_build() -> Self {
        let pool = DescriptorPool::decode(FILE_DESCRIPTORS).expect("this build made them");
        Self::new(&pool, SERVICES, &HELD)
    }

    /// The routes of `services`, as far as `pool` describes them.
    pub(super) fn new(pool: &DescriptorPool, services: &[Service], held: &[&str]) -> Self {
        let mut routes = HashMap::new();
        for service in services {
            let Some(descriptor) = pool.get_service_by_name(service.name) else { continue };
            for (path, name) in service.paths {
                let method = descriptor.methods().find(|method| method.name() == *name);
                let method = method.expect("the table names methods of the service");
                let full = format!("/{}/{name}", service.name);
                let is_held = held.contains(&method.full_name());
                let route =
                    Route { method, path: full.parse().expect("names make a path"), is_held };
                assert!(routes.insert(*path, route).is_none(), "{path} stands for two methods");
            }
        }
        Self(routes)
    }

    /// The method that a path stands for.
    pub(super) fn find(&self, path: &str) -> Option<&Route> {
        let path = path.strip_prefix(PREFIX).or_else(|| path.strip_prefix(PREFIX_BETA))?;
        self.0.get(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_served_method_of_etcds_has_a_path() {
        let pool = DescriptorPool::decode(FILE_DESCRIPTORS).unwrap();
        let routes = Routes::of_this_build();
        let reached: Vec<_> = routes.0.values().map(|route| route.method.full_name()).collect();
        for service in pool.services().filter(|service| service.package_name() != "quorate.v1") {
            assert!(
                SERVICES.iter().any(|row| row.name == service.full_name()),
                "{} has no paths",
                service.full_name()
            );
            for method in service.methods() {
                // etcd gives HashKV the path of Hash, so that nobody reaches it, and 3.7's RangeStream none.
                let without = ["etcdserverpb.Maintenance.HashKV", "etcdserverpb.KV.RangeStream"];
                let name = method.full_name();
                let expected = !without.contains(&name);
                assert_eq!(reached.contains(&name), expected, "{name}");
            }
        }
    }

    #[test]
    fn a_path_is_known_exactly() {
        let routes = Routes::of_this_build();
        let path = |path| routes.find(path).map(|route| route.path.as_str());
        assert_eq!(path("/v3/kv/range"), Some("/etcdserverpb.KV/Range"));
        assert_eq!(path("/v3beta/kv/range"), Some("/etcdserverpb.KV/Range"));
        assert_eq!(path("/v3/kv/range/"), None);
        assert_eq!(path("/v3/kv/nope"), None);
        assert!(is_call("/v3/nope") && !is_call("/v3alpha/kv/range") && !is_call("/version"));
    }
}
