//! The gateway's counters. Those of calls carry the names that etcd's do, so that dashboards fit both.
//!
//! Every handle is made once, for each method that is served and for each code: what a client sends can
//! neither make a new series nor cost a lookup by labels.

use std::time::Instant;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder, Unit};
use tonic::Code;

/// A method that is counted.
#[derive(Debug)]
struct Method {
    path: &'static str,
    service: &'static str,
    name: &'static str,
    kind: &'static str,
}

macro_rules! methods {
    ($($service:literal { $($name:ident),* $(,)? })*) => {
        &[$($(Method {
            path: concat!("/", $service, "/", stringify!($name)),
            service: $service,
            name: stringify!($name),
            kind: "unary",
        },)*)*]
    };
}

/// The unary methods that are served, the busiest first. Streams end long after their head is sent, so
/// the services that have any count those themselves.
const METHODS: &[Method] = methods! {
    "etcdserverpb.KV" { Put, Range, Txn, DeleteRange, Compact }
    "etcdserverpb.Lease" { LeaseGrant, LeaseRevoke, LeaseTimeToLive, LeaseLeases }
    "etcdserverpb.Cluster" { MemberList, MemberAdd, MemberRemove, MemberUpdate, MemberPromote }
    "etcdserverpb.Maintenance" { Status, Alarm, Defragment, Hash, HashKV, MoveLeader, Downgrade }
    "etcdserverpb.Auth" {
        Authenticate, AuthEnable, AuthDisable, AuthStatus, UserAdd, UserGet, UserList, UserDelete,
        UserChangePassword, UserGrantRole, UserRevokeRole, RoleAdd, RoleGet, RoleList, RoleDelete,
        RoleGrantPermission, RoleRevokePermission,
    }
    "quorate.v1.Admin" { Status }
    "grpc.health.v1.Health" { Check }
};

/// The names of the codes, by number, as they stand in etcd's metrics.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Handles of one gateway.
pub(crate) struct GatewayMetrics {
    methods: Vec<MethodMetrics>,
    /// Connections that are open.
    pub(crate) connections: Gauge,
    /// Connections that were ever accepted.
    pub(crate) connections_total: Counter,
    /// Connections that ended before they had said which protocol they speak.
    pub(crate) connections_mute_total: Counter,
    /// Connections that were ended because their clients pinged too often.
    pub(crate) connections_pinging_total: Counter,
    /// JSON requests that were refused for what they say, or for their size.
    pub(crate) json_refused_total: Counter,
    /// TLS on the client port.
    pub(crate) tls: TlsMetrics,
    /// Passwords that are hashed or wait for it.
    pub(crate) logins_waiting: Gauge,
    /// Calls that were refused because of who made them.
    pub(crate) denied_total: Counter,
}

/// Handles of TLS on the client port.
#[derive(Clone)]
pub(crate) struct TlsMetrics {
    /// Handshakes under way.
    pub(crate) handshakes: Gauge,
    /// Handshakes that ended in a connection.
    pub(crate) handshakes_total: Counter,
    /// Handshakes that ended otherwise: a wrong certificate, no TLS at all, out of time.
    pub(crate) handshakes_failed_total: Counter,
    /// Handshakes that were ended to make room for others.
    pub(crate) handshakes_cut_total: Counter,
    /// Changes of the files that were taken up.
    pub(crate) reloads_total: Counter,
    /// Changes of the files that could not be.
    pub(crate) reloads_failed_total: Counter,
    /// When the server's certificate ends, in seconds since 1970.
    pub(crate) certificate_expires_s: Gauge,
}

/// Handles of the watches; etcd's names.
pub(crate) struct WatchMetrics {
    pub(crate) streams: Gauge,
    pub(crate) watchers: Gauge,
    pub(crate) slow_watchers: Gauge,
    pub(crate) pending_events: Gauge,
    pub(crate) events_total: Counter,
}

impl WatchMetrics {
    pub(crate) fn new(recorder: &dyn Recorder) -> Self {
        let register = Register { recorder };
        let gauge = |name: &'static str, text: &'static str| {
            recorder.describe_gauge(name.into(), Some(Unit::Count), text.into());
            register.gauge(name)
        };
        let events = "etcd_debugging_mvcc_events_total";
        recorder.describe_counter(
            events.into(),
            Some(Unit::Count),
            "Events sent to clients that watch.".into(),
        );
        Self {
            streams: gauge(
                "etcd_debugging_mvcc_watch_stream_total",
                "Watch streams that are open.",
            ),
            watchers: gauge("etcd_debugging_mvcc_watcher_total", "Watchers."),
            slow_watchers: gauge(
                "etcd_debugging_mvcc_slow_watcher_total",
                "Watchers that are behind and read what they lack from the disk.",
            ),
            pending_events: gauge(
                "etcd_debugging_mvcc_pending_events_total",
                "Events that wait to be sent.",
            ),
            events_total: register.counter(events, vec![]),
        }
    }
}

/// Handles of the places in queues that are taken back.
#[derive(Clone)]
pub(crate) struct UndoMetrics {
    /// Places that are being taken back, or wait for it.
    pub(crate) count: Gauge,
    /// Places that nobody took back in time, or that could not be.
    pub(crate) failed_total: Counter,
    /// Places for which there was no room.
    pub(crate) refused_total: Counter,
}

impl UndoMetrics {
    pub(crate) fn new(recorder: &dyn Recorder) -> Self {
        let register = Register { recorder };
        let counter = |name: &'static str, text: &'static str| {
            recorder.describe_counter(name.into(), Some(Unit::Count), text.into());
            register.counter(name, vec![])
        };
        let count = "quorate_gateway_undos_count";
        recorder.describe_gauge(
            count.into(),
            Some(Unit::Count),
            "Places of ended calls in queues of locks and elections that are being taken back."
                .into(),
        );
        Self {
            count: register.gauge(count),
            failed_total: counter(
                "quorate_gateway_undos_failed_total",
                "Places of ended calls that stay until their leases end, since taking them back failed.",
            ),
            refused_total: counter(
                "quorate_gateway_undos_refused_total",
                "Places of ended calls that stay until their leases end, since too many were being taken back.",
            ),
        }
    }
}

/// Handles of one method.
pub(crate) struct MethodMetrics {
    started: Counter,
    handled: [Counter; CODES.len()],
    seconds: Histogram,
}

impl GatewayMetrics {
    pub(crate) fn new(recorder: &dyn Recorder) -> Self {
        let register = Register { recorder };
        register.describe();
        Self {
            methods: METHODS.iter().map(|method| register.method(method)).collect(),
            connections: register.gauge("quorate_gateway_connections_count"),
            connections_total: register.counter("quorate_gateway_connections_total", vec![]),
            connections_mute_total: register
                .counter("quorate_gateway_connections_mute_total", vec![]),
            connections_pinging_total: register
                .counter("quorate_gateway_connections_pinging_total", vec![]),
            json_refused_total: register.counter("quorate_gateway_json_refused_total", vec![]),
            tls: TlsMetrics {
                handshakes: register.gauge("quorate_gateway_tls_handshakes_count"),
                handshakes_total: register.counter("quorate_gateway_tls_handshakes_total", vec![]),
                handshakes_failed_total: register
                    .counter("quorate_gateway_tls_handshakes_failed_total", vec![]),
                handshakes_cut_total: register
                    .counter("quorate_gateway_tls_handshakes_cut_total", vec![]),
                reloads_total: register.counter("quorate_gateway_tls_reloads_total", vec![]),
                reloads_failed_total: register
                    .counter("quorate_gateway_tls_reloads_failed_total", vec![]),
                certificate_expires_s: register
                    .gauge("quorate_gateway_tls_certificate_expires_timestamp_seconds"),
            },
            logins_waiting: register.gauge("quorate_gateway_logins_waiting_count"),
            denied_total: register.counter("quorate_gateway_denied_total", vec![]),
        }
    }

    /// Begins to count a call; `None` when the path names no counted method.
    pub(crate) fn begin(&self, path: &str) -> Option<Call<'_>> {
        let at = METHODS.iter().position(|method| method.path == path)?;
        let method = &self.methods[at];
        method.started.increment(1);
        Some(Call { method, begun: Instant::now(), code: Code::Cancelled })
    }
}

/// A call that runs. If it is dropped before it is finished, its client has cancelled it.
pub(crate) struct Call<'m> {
    method: &'m MethodMetrics,
    begun: Instant,
    code: Code,
}

impl Call<'_> {
    /// The call has its answer.
    pub(crate) fn finish(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.method.handled[self.code as usize].increment(1);
        self.method.seconds.record(self.begun.elapsed());
    }
}

/// Makes handles.
struct Register<'r> {
    recorder: &'r dyn Recorder,
}

impl Register<'_> {
    const METADATA: Metadata<'static> =
        Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

    fn describe(&self) {
        let counter = |name: &'static str, text: &'static str| {
            self.recorder.describe_counter(name.into(), Some(Unit::Count), text.into());
        };
        counter("grpc_server_started_total", "Calls that began.");
        counter("grpc_server_handled_total", "Calls that ended, by code.");
        counter("quorate_gateway_connections_total", "Client connections accepted.");
        counter(
            "quorate_gateway_connections_mute_total",
            "Client connections that ended before they spoke a known protocol.",
        );
        counter(
            "quorate_gateway_connections_pinging_total",
            "Client connections ended because their clients pinged too often.",
        );
        counter(
            "quorate_gateway_json_refused_total",
            "JSON requests refused for what they say or for their size.",
        );
        counter("quorate_gateway_tls_handshakes_total", "TLS handshakes of clients completed.");
        counter("quorate_gateway_tls_handshakes_failed_total", "TLS handshakes of clients failed.");
        counter(
            "quorate_gateway_tls_handshakes_cut_total",
            "TLS handshakes of clients ended to make room for others.",
        );
        counter("quorate_gateway_tls_reloads_total", "Changed certificates taken up.");
        counter(
            "quorate_gateway_tls_reloads_failed_total",
            "Changed certificates that cannot be used.",
        );
        let gauge = |name: &'static str, unit: Unit, text: &'static str| {
            self.recorder.describe_gauge(name.into(), Some(unit), text.into());
        };
        gauge(
            "quorate_gateway_tls_handshakes_count",
            Unit::Count,
            "TLS handshakes of clients under way.",
        );
        gauge(
            "quorate_gateway_tls_certificate_expires_timestamp_seconds",
            Unit::Seconds,
            "When the client port's certificate ends, in seconds since 1970; 0 without TLS.",
        );
        counter("quorate_gateway_denied_total", "Calls refused because of who made them.");
        gauge(
            "quorate_gateway_logins_waiting_count",
            Unit::Count,
            "Passwords that are hashed or wait for it.",
        );
        self.recorder.describe_histogram(
            "grpc_server_handling_seconds".into(),
            Some(Unit::Seconds),
            "Time from the head of a call to the head of its answer.".into(),
        );
        self.recorder.describe_gauge(
            "quorate_gateway_connections_count".into(),
            Some(Unit::Count),
            "Client connections that are open.".into(),
        );
    }

    fn method(&self, method: &Method) -> MethodMetrics {
        let labels = || {
            vec![
                Label::from_static_parts("grpc_type", method.kind),
                Label::from_static_parts("grpc_service", method.service),
                Label::from_static_parts("grpc_method", method.name),
            ]
        };
        let handled = CODES.map(|code| {
            let mut labels = labels();
            labels.push(Label::from_static_parts("grpc_code", code));
            self.counter("grpc_server_handled_total", labels)
        });
        let seconds = Key::from_parts("grpc_server_handling_seconds", labels());
        MethodMetrics {
            started: self.counter("grpc_server_started_total", labels()),
            handled,
            seconds: self.recorder.register_histogram(&seconds, &Self::METADATA),
        }
    }

    fn counter(&self, name: &'static str, labels: Vec<Label>) -> Counter {
        self.recorder.register_counter(&Key::from_parts(name, labels), &Self::METADATA)
    }

    fn gauge(&self, name: &'static str) -> Gauge {
        self.recorder.register_gauge(&Key::from_name(name), &Self::METADATA)
    }
}
