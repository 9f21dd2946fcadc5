//! Calls, counted by method and by code under the names that etcd has for them, so that dashboards fit both.
//!
//! Every handle is made once, for each method that is served and for each code: what a client sends can
//! neither make a new series nor cost a lookup by labels. A call whose answer is a stream ends with it, by the code in
//! its trailers.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::Response;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use metrics::{Counter, Histogram, Key, Label, Level, Metadata, Recorder, Unit};
use tonic::body::Body;
use tonic::{Code, Status};

/// A method that is counted.
#[derive(Debug)]
struct Method {
    path: &'static str,
    service: &'static str,
    name: &'static str,
    kind: &'static str,
}

/// One message and one answer.
const UNARY: &str = "unary";
/// One message and a stream of answers.
const ANSWERS: &str = "server_stream";
/// Streams both ways.
const BOTH: &str = "bidi_stream";

macro_rules! methods {
    ($($kind:ident $service:literal { $($name:ident),* $(,)? })*) => {
        &[$($(Method {
            path: concat!("/", $service, "/", stringify!($name)),
            service: $service,
            name: stringify!($name),
            kind: $kind,
        },)*)*]
    };
}

/// The methods that are served, the busiest first.
const METHODS: &[Method] = methods! {
    UNARY "etcdserverpb.KV" { Put, Range, Txn, DeleteRange, Compact }
    UNARY "etcdserverpb.Lease" { LeaseGrant, LeaseRevoke, LeaseTimeToLive, LeaseLeases }
    UNARY "v3lockpb.Lock" { Lock, Unlock }
    UNARY "v3electionpb.Election" { Campaign, Proclaim, Leader, Resign }
    BOTH "etcdserverpb.Watch" { Watch }
    BOTH "etcdserverpb.Lease" { LeaseKeepAlive }
    ANSWERS "etcdserverpb.KV" { RangeStream }
    ANSWERS "v3electionpb.Election" { Observe }
    UNARY "etcdserverpb.Cluster" { MemberList, MemberAdd, MemberRemove, MemberUpdate, MemberPromote }
    UNARY "etcdserverpb.Maintenance" { Status, Alarm, Defragment, Hash, HashKV, MoveLeader, Downgrade }
    ANSWERS "etcdserverpb.Maintenance" { Snapshot }
    UNARY "etcdserverpb.Auth" {
        Authenticate, AuthEnable, AuthDisable, AuthStatus, UserAdd, UserGet, UserList, UserDelete,
        UserChangePassword, UserGrantRole, UserRevokeRole, RoleAdd, RoleGet, RoleList, RoleDelete,
        RoleGrantPermission, RoleRevokePermission,
    }
    UNARY "quorate.v1.Admin" { Status, AddMember, ReplaceMember }
    ANSWERS "quorate.v1.Admin" { Backup }
    UNARY "grpc.health.v1.Health" { Check }
    ANSWERS "grpc.health.v1.Health" { Watch }
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

const METADATA: Metadata<'static> =
    Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

/// The handles of all methods.
pub(crate) struct Calls(Vec<Handles>);

/// Handles of one method.
struct Handles {
    started: Counter,
    handled: [Counter; CODES.len()],
    seconds: Histogram,
}

impl Calls {
    pub(crate) fn new(recorder: &dyn Recorder) -> Self {
        let counter = |name: &'static str, text: &'static str| {
            recorder.describe_counter(name.into(), Some(Unit::Count), text.into());
        };
        counter("grpc_server_started_total", "Calls that began.");
        counter("grpc_server_handled_total", "Calls that ended, by code.");
        recorder.describe_histogram(
            "grpc_server_handling_seconds".into(),
            Some(Unit::Seconds),
            "Time from the head of a call to the head of its answer, or to the end of a stream."
                .into(),
        );
        Self(METHODS.iter().map(|method| Handles::new(recorder, method)).collect())
    }

    /// Begins to count a call; `None` when the path names no counted method.
    pub(crate) fn begin(self: &Arc<Self>, path: &str) -> Option<Call> {
        let at = METHODS.iter().position(|method| method.path == path)?;
        self.0[at].started.increment(1);
        Some(Call { calls: Arc::clone(self), at, begun: Instant::now(), code: Code::Cancelled })
    }
}

impl Handles {
    fn new(recorder: &dyn Recorder, method: &Method) -> Self {
        let labels = || {
            vec![
                Label::from_static_parts("grpc_type", method.kind),
                Label::from_static_parts("grpc_service", method.service),
                Label::from_static_parts("grpc_method", method.name),
            ]
        };
        let counter = |name: &'static str, labels| {
            recorder.register_counter(&Key::from_parts(name, labels), &METADATA)
        };
        let handled = CODES.map(|code| {
            let mut labels = labels();
            labels.push(Label::from_static_parts("grpc_code", code));
            counter("grpc_server_handled_total", labels)
        });
        let seconds = Key::from_parts("grpc_server_handling_seconds", labels());
        Self {
            started: counter("grpc_server_started_total", labels()),
            handled,
            seconds: recorder.register_histogram(&seconds, &METADATA),
        }
    }
}

/// A call that runs. If it is dropped before it is finished, its client has cancelled it.
pub(crate) struct Call {
    calls: Arc<Calls>,
    at: usize,
    begun: Instant,
    code: Code,
}

impl Call {
    /// The call has been answered with `code`, and nothing follows.
    pub(crate) fn finish(mut self, code: Code) {
        self.code = code;
    }

    /// The call has the head of its answer, with `code`; one whose answer is a stream goes on.
    pub(crate) fn answered(self, response: Response<Body>, code: Code) -> Response<Body> {
        if METHODS[self.at].kind == UNARY || code != Code::Ok {
            self.finish(code);
            return response;
        }
        response.map(|body| Body::new(Followed { body, call: Some(self) }))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let handles = &self.calls.0[self.at];
        handles.handled[self.code as usize].increment(1);
        handles.seconds.record(self.begun.elapsed());
    }
}

/// The stream of an answer; its call ends with it.
struct Followed {
    body: Body,
    call: Option<Call>,
}

impl Followed {
    fn end(&mut self, code: Code) {
        self.call.take().into_iter().for_each(|call| call.finish(code));
    }
}

impl HttpBody for Followed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    let status = Status::from_header_map(trailers);
                    this.end(status.map_or(Code::Ok, |status| status.code()));
                }
            }
            Some(Err(status)) => this.end(status.code()),
            None => this.end(Code::Ok),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_the_api_is_counted() {
        for path in quorate_api::METHODS {
            assert!(METHODS.iter().any(|method| method.path == *path), "{path}");
        }
    }
}
