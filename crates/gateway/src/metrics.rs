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
