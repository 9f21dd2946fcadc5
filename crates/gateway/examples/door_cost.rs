//! What the front door alone costs: a gateway whose backend answers at once, under load over loopback.
//!
//! `cargo run --release -p quorate-gateway --example door_cost -- [CALLERS] [CALLS]`, by default 64
//! callers on 4 connections and 200,000 calls of each kind with values of 256 bytes. Prints the CPU time
//! of the server's thread per call, and calls per second (which the client's share of the cores bounds).

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use metrics_exporter_prometheus::PrometheusBuilder;
use quorate_api::etcdserverpb::kv_client::KvClient;
use quorate_api::etcdserverpb::{PutRequest, RangeRequest};
use quorate_gateway::{
    Answer, Backend, BackendError, Backup, BackupError, BackupForm, Consistency, Gateway,
    GatewayConfig, GroupStatus, Happened, Member, MemberChange, MemberError, MemberRefusal,
    MembersAnswer, NodeStatus,
};
use quorate_types::auth::Directory;
use quorate_types::kv::{
    Command, KeyValue, Outcome, PutOutcome, Query, RangeOutcome, outcome::Body,
};
use quorate_types::{ClusterId, LogIndex, NodeId, Term};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};

const CONNECTIONS: usize = 4;
const VALUE: &[u8] = &[b'v'; 256];

/// Answers at once, always the same.
struct Constant;

impl Backend for Constant {
    async fn propose(&self, _: Command) -> Result<Answer, BackendError> {
        Ok(answer(Body::Put(PutOutcome { prev_kv: None })))
    }

    async fn read(&self, _: Query, _: Consistency) -> Result<Answer, BackendError> {
        let kv = KeyValue {
            key: "key-0000000001".into(),
            create_revision: 2,
            mod_revision: 3,
            version: 2,
            value: Bytes::from_static(VALUE),
            lease: 0,
        };
        Ok(answer(Body::Range(RangeOutcome { kvs: vec![kv], more: false, count: 1 })))
    }

    fn follow(&self, _: i64) -> BoxStream<'static, Result<Happened, BackendError>> {
        stream::pending().boxed()
    }

    fn auth_is_off(&self) -> bool {
        true
    }

    fn directory(&self) -> Option<Arc<Directory>> {
        None
    }

    fn node_status(&self) -> NodeStatus {
        NodeStatus {
            cluster_id: ClusterId(u64::MAX),
            member_id: NodeId(u64::MAX),
            member_name: "n1".to_owned(),
            leader: Some(NodeId(u64::MAX)),
            raft_term: Term(1),
            raft_index: LogIndex(1),
            raft_applied: LogIndex(1),
            db_size_bytes: 0,
            db_in_use_bytes: 0,
            is_learner: false,
            errors: Vec::new(),
        }
    }

    fn members(&self) -> Vec<Member> {
        Vec::new()
    }

    async fn members_now(&self) -> Result<(Vec<Member>, Term), BackendError> {
        Ok((Vec::new(), Term(2)))
    }

    async fn change_members(&self, _: MemberChange) -> Result<MembersAnswer, MemberError> {
        Err(MemberRefusal::NotFound.into())
    }

    async fn move_leader(&self, _: NodeId) -> Result<(), MemberError> {
        Err(MemberRefusal::BadTransferee.into())
    }

    async fn defragment(&self) -> Result<(), BackendError> {
        Ok(())
    }

    async fn backup(&self, _: BackupForm) -> Result<Backup, BackupError> {
        Err(BackupError::Busy)
    }

    async fn groups(&self) -> Vec<GroupStatus> {
        Vec::new()
    }

    fn is_ready(&self) -> bool {
        true
    }
}

fn answer(body: Body) -> Answer {
    Answer { outcome: Outcome { revision: 3, body: Some(body) }, raft_term: Term(1) }
}

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1).map(|number| number.parse());
    let callers = arguments.next().and_then(Result::ok).unwrap_or(64);
    let calls = arguments.next().and_then(Result::ok).unwrap_or(200_000);
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = format!("http://{}", listener.local_addr()?);
    let (tell, told) = std::sync::mpsc::channel();
    thread::Builder::new().name("server".to_owned()).spawn(move || {
        tell.send(fs::read_link("/proc/thread-self")).expect("the main thread waits");
        serve(listener);
    })?;
    let thread = told.recv().expect("the server thread says who it is")?;
    let schedstat = std::path::Path::new("/proc").join(thread).join("schedstat");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            let endpoint = Endpoint::from_shared(address.clone()).expect("an address");
            channels.push(endpoint.connect().await.expect("the gateway listens"));
        }
        for kind in [Kind::Put, Kind::Get] {
            load(&channels, callers, calls / 10, kind).await;
            let (cpu, begun) = (cpu_time(&schedstat)?, Instant::now());
            load(&channels, callers, calls, kind).await;
            let (cpu, took) = (cpu_time(&schedstat)? - cpu, begun.elapsed());
            writeln!(
                io::stdout(),
                "{kind:?} from {callers} callers: {:.1} us of server CPU per call, {:.0} calls/s",
                cpu.as_secs_f64() * 1e6 / calls as f64,
                calls as f64 / took.as_secs_f64()
            )?;
        }
        Ok(())
    })
}

fn serve(listener: std::net::TcpListener) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let recorder = PrometheusBuilder::new().build_recorder();
        let page = recorder.handle();
        let gateway = Gateway::new(
            Arc::new(Constant),
            GatewayConfig::default(),
            Arc::new(move || page.render()),
            &recorder,
        );
        let listener = TcpListener::from_std(listener).expect("a listener");
        gateway.serve(listener, std::future::pending()).await;
    });
}

/// A kind of call.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Put,
    Get,
}

async fn load(channels: &[Channel], callers: usize, calls: usize, kind: Kind) {
    let mut running = JoinSet::new();
    for caller in 0..callers {
        let mut kv = KvClient::new(channels[caller % channels.len()].clone());
        let calls = calls / callers;
        running.spawn(async move {
            for _ in 0..calls {
                match kind {
                    Kind::Put => kv.put(put()).await.map(|_| ()),
                    Kind::Get => kv.range(get()).await.map(|_| ()),
                }
                .expect("the gateway answers");
            }
        });
    }
    running.join_all().await;
}

fn put() -> PutRequest {
    PutRequest {
        key: "key-0000000001".into(),
        value: Bytes::from_static(VALUE),
        ..PutRequest::default()
    }
}

fn get() -> RangeRequest {
    RangeRequest { key: "key-0000000001".into(), ..RangeRequest::default() }
}

/// CPU time of a thread since its start, from its `schedstat`.
fn cpu_time(schedstat: &std::path::Path) -> io::Result<Duration> {
    let text = fs::read_to_string(schedstat)?;
    let nanos = text.split(' ').next().and_then(|word| word.parse().ok());
    nanos.map(Duration::from_nanos).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
