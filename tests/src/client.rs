//! gRPC to one endpoint, for tests that go one request at a time.

use std::time::Duration;

use quorate_api::etcdserverpb::auth_client::AuthClient;
use quorate_api::etcdserverpb::cluster_client::ClusterClient;
use quorate_api::etcdserverpb::kv_client::KvClient;
use quorate_api::etcdserverpb::lease_client::LeaseClient;
use quorate_api::etcdserverpb::maintenance_client::MaintenanceClient;
use quorate_api::etcdserverpb::watch_client::WatchClient;
use quorate_api::etcdserverpb::{
    Member, MemberListRequest, PutRequest, RangeRequest, RangeResponse, StatusRequest,
    StatusResponse,
};
use quorate_api::v3electionpb::election_client::ElectionClient;
use quorate_api::v3lockpb::lock_client::LockClient;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// How long a call may take: above the seven seconds after which a server gives a request up.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Bytes of an answer that are accepted: tests ask for large ones too.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Clients of the services of one endpoint, over one connection that is made when it is needed.
#[derive(Clone)]
pub struct Client {
    /// `KV`.
    pub kv: KvClient<Channel>,
    /// `Lease`.
    pub lease: LeaseClient<Channel>,
    /// `Watch`.
    pub watch: WatchClient<Channel>,
    /// `Maintenance`.
    pub maintenance: MaintenanceClient<Channel>,
    /// `Cluster`.
    pub cluster: ClusterClient<Channel>,
    /// `Auth`.
    pub auth: AuthClient<Channel>,
    /// `Lock`.
    pub lock: LockClient<Channel>,
    /// `Election`.
    pub election: ElectionClient<Channel>,
}

impl Client {
    /// A client of `endpoint`, `host:port`. Called from within a runtime.
    ///
    /// # Panics
    /// When `endpoint` is no address.
    pub fn new(endpoint: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{endpoint}")).expect("an address");
        let channel = endpoint.connect_timeout(TIMEOUT).timeout(TIMEOUT).connect_lazy();
        Self {
            kv: KvClient::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX),
            lease: LeaseClient::new(channel.clone()),
            watch: WatchClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel.clone()),
            cluster: ClusterClient::new(channel.clone()),
            auth: AuthClient::new(channel.clone()),
            lock: LockClient::new(channel.clone()),
            election: ElectionClient::new(channel),
        }
    }
}

/// A runtime for one test.
///
/// # Panics
/// When the process has no file descriptor left.
pub fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime can be made")
}

/// A runtime with a thread of its own, for clients that go on while the test's thread does harm. They are gone
/// when it is dropped, however the test ends.
///
/// # Panics
/// When the process has no file descriptor or no thread left.
pub fn runtime_beside() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().expect("a runtime can be made")
}

/// `Maintenance.Status` of `endpoint`, for code without a runtime.
///
/// # Errors
/// The server's status, or why it could not be asked.
pub fn status(endpoint: &str) -> Result<StatusResponse, Status> {
    runtime().block_on(async {
        let mut client = Client::new(endpoint);
        client.maintenance.status(StatusRequest::default()).await.map(tonic::Response::into_inner)
    })
}

/// The members of the cluster, as `endpoint` has them, for code without a runtime.
///
/// # Errors
/// The server's status, or why it could not be asked.
pub fn members(endpoint: &str) -> Result<Vec<Member>, Status> {
    runtime().block_on(async {
        let request = MemberListRequest { linearizable: true };
        let list = Client::new(endpoint).cluster.member_list(request).await;
        list.map(|list| list.into_inner().members)
    })
}

/// One put at `endpoint`, for code without a runtime.
///
/// # Errors
/// The server's status, or why it could not be asked.
pub fn put(endpoint: &str, key: &'static [u8], value: &'static [u8]) -> Result<(), Status> {
    runtime().block_on(async {
        let request = PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() };
        Client::new(endpoint).kv.put(request).await.map(drop)
    })
}

/// One linearizable get at `endpoint`, for code without a runtime.
///
/// # Errors
/// The server's status, or why it could not be asked.
pub fn get(endpoint: &str, key: &'static [u8]) -> Result<RangeResponse, Status> {
    runtime().block_on(async {
        let request = RangeRequest { key: key.into(), ..RangeRequest::default() };
        Client::new(endpoint).kv.range(request).await.map(tonic::Response::into_inner)
    })
}
