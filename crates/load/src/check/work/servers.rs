//! The servers, as one client sees them: it stays with one until a call to it fails.

use std::future::Future;
use std::time::Duration;

use quorate_api::etcdserverpb::kv_client::KvClient;
use quorate_api::etcdserverpb::lease_client::LeaseClient;
use quorate_api::etcdserverpb::watch_client::WatchClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::Fault;

/// How long a client waits after an error before it tries the next endpoint.
const ERROR_PAUSE: Duration = Duration::from_millis(20);

/// Connections to all endpoints, made when they are first needed.
pub(super) struct Servers {
    channels: Vec<Channel>,
    at: usize,
    timeout: Duration,
}

/// How a call failed.
pub(super) enum Failure {
    /// Nothing has happened and nothing will.
    Refused(Status),
    /// It may have been done, or may still be.
    Unknown,
}

impl Servers {
    /// Begins with endpoint number `first`, counted around. Called from within a runtime.
    ///
    /// # Errors
    /// When an endpoint is no address.
    pub(super) fn new(
        endpoints: &[String],
        first: usize,
        timeout: Duration,
    ) -> Result<Self, Fault> {
        let channel = |endpoint: &String| {
            let address = endpoint.strip_prefix("http://").unwrap_or(endpoint);
            let endpoint = Endpoint::from_shared(format!("http://{address}"));
            let endpoint = endpoint.map_err(|error| format!("endpoint {address}: {error}"))?;
            Ok(endpoint.connect_timeout(timeout).tcp_nodelay(true).connect_lazy())
        };
        let channels: Vec<Channel> = endpoints.iter().map(channel).collect::<Result<_, Fault>>()?;
        Ok(Self { at: first % channels.len(), channels, timeout })
    }

    /// The next one.
    pub(super) fn rotate(&mut self) {
        self.at = (self.at + 1) % self.channels.len();
    }

    /// The one that this client is at.
    pub(super) fn channel(&self) -> Channel {
        self.channels[self.at].clone()
    }

    /// `KV` there.
    pub(super) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel())
    }

    /// `Lease` there.
    pub(super) fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel())
    }

    /// `Watch` there.
    pub(super) fn watch(&self) -> WatchClient<Channel> {
        WatchClient::new(self.channel()).max_decoding_message_size(64 << 20)
    }

    /// Waits for `call`, not for ever; after a failure this client is at the next endpoint.
    ///
    /// # Errors
    /// When there is no answer, and whether that leaves anything open.
    pub(super) async fn answer<A>(
        &mut self,
        call: impl Future<Output = Result<Response<A>, Status>>,
    ) -> Result<A, Failure> {
        self.answer_within(self.timeout, call).await
    }

    /// The same with another limit.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub(super) async fn answer_within<A>(
        &mut self,
        timeout: Duration,
        call: impl Future<Output = Result<Response<A>, Status>>,
    ) -> Result<A, Failure> {
        let failure = match tokio::time::timeout(timeout, call).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner()),
            Ok(Err(status)) if is_refusal(status.code()) => Failure::Refused(status),
            Ok(Err(_)) | Err(_) => Failure::Unknown,
        };
        if matches!(failure, Failure::Unknown) {
            self.rotate();
            tokio::time::sleep(ERROR_PAUSE).await;
        }
        Err(failure)
    }
}

/// Whether a server that answers so has done nothing and will do nothing.
fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
    )
}
