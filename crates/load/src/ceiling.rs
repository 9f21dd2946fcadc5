//! A server with constant answers: what gRPC alone costs on this machine.
//!
//! No consensus, no disk, no keys: every put and get is answered at once with the same message. A side by
//! side run starts as many of these as the servers it compares have processes; what they reach with the
//! same client is the ceiling of any server behind this protocol.

use std::io::Write;

use bytes::Bytes;
use quorate_api::etcdserverpb::kv_server::{Kv, KvServer};
use quorate_api::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse,
};
use quorate_api::mvccpb::KeyValue;
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use crate::Fault;
use crate::args::Ceiling;

/// HTTP/2 receive window, per stream and connection.
const WINDOW_BYTES: u32 = 8 << 20;

/// Serves until the process ends; prints the address first.
///
/// # Errors
/// When the address cannot be had.
pub(crate) fn run(args: &Ceiling) -> Result<(), Fault> {
    let mut builder = match args.threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
    };
    let runtime = builder.enable_all().build().map_err(|error| format!("no runtime: {error}"))?;
    runtime.block_on(serve(args)).map_err(|error| format!("{}: {error}", args.listen))
}

async fn serve(args: &Ceiling) -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind(args.listen).await?;
    writeln!(std::io::stdout(), "listening on {}", listener.local_addr()?)?;
    tonic::transport::Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .add_service(KvServer::new(Constant { value: vec![b'v'; args.value_size].into() }))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await?;
    Ok(())
}

/// The answers.
struct Constant {
    value: Bytes,
}

/// A header such as a server sends, with every field set: zeros would be left out on the wire.
fn header() -> Option<ResponseHeader> {
    Some(ResponseHeader {
        cluster_id: 1 << 60,
        member_id: 1 << 60,
        revision: 1 << 20,
        raft_term: 2,
    })
}

#[tonic::async_trait]
impl Kv for Constant {
    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let pair = KeyValue {
            key: request.into_inner().key,
            create_revision: 1 << 20,
            mod_revision: 1 << 20,
            version: 1,
            value: self.value.clone(),
            lease: 0,
        };
        Ok(Response::new(RangeResponse {
            header: header(),
            kvs: vec![pair],
            more: false,
            count: 1,
        }))
    }

    async fn put(&self, _: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        Ok(Response::new(PutResponse { header: header(), prev_kv: None }))
    }

    async fn delete_range(
        &self,
        _: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        Ok(Response::new(DeleteRangeResponse {
            header: header(),
            deleted: 0,
            prev_kvs: Vec::new(),
        }))
    }

    async fn txn(&self, _: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        Ok(Response::new(TxnResponse { header: header(), succeeded: true, responses: Vec::new() }))
    }

    async fn compact(
        &self,
        _: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        Ok(Response::new(CompactionResponse { header: header() }))
    }
}
