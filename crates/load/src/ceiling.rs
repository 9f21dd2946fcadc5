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
    PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, ResponseHeader, TxnRequest,
    TxnResponse,
};
use quorate_api::mvccpb::KeyValue;
use tokio::net::TcpListener;
use tonic::codegen::tokio_stream;
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
    let serve = async {
        let listener = TcpListener::bind(args.listen).await?;
        writeln!(std::io::stdout(), "listening on {}", listener.local_addr()?)?;
        serve(listener, args.value_size).await
    };
    runtime.block_on(serve).map_err(|error| format!("{}: {error}", args.listen))
}

async fn serve(listener: TcpListener, value_size: usize) -> Result<(), Box<dyn std::error::Error>> {
    tonic::transport::Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .add_service(KvServer::new(Constant { value: vec![b'v'; value_size].into() }))
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
    type RangeStreamStream = tokio_stream::Once<Result<RangeStreamResponse, Status>>;

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

    /// The same as one part.
    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let range_response = Some(self.range(request).await?.into_inner());
        Ok(Response::new(tokio_stream::once(Ok(RangeStreamResponse { range_response }))))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::{Caller, Connection, Method};
    use crate::drive::runtime;
    use std::sync::Arc;
    use std::time::Duration;
    use tonic::Code;

    #[test]
    fn callers_and_the_server_understand_each_other() {
        runtime().expect("a runtime").block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let endpoint = listener.local_addr().expect("bound").to_string();
            let serving = tokio::spawn(async move {
                // It ends when it is aborted.
                let _ = serve(listener, 300_000).await;
            });
            let connection = Arc::new(Connection::new(&endpoint).expect("an address"));
            let mut caller = Caller::new(Arc::clone(&connection), Duration::from_secs(10));
            let get = RangeRequest { key: "k".into(), ..RangeRequest::default() };
            let answer: RangeResponse = caller.ask(Method::Range, &get).await.expect("served");
            assert_eq!(answer.kvs[0].key, "k");
            assert_eq!(answer.kvs[0].value.len(), 300_000, "an answer of many frames");
            let put = PutRequest::default();
            let answer: PutResponse = caller.ask(Method::Put, &put).await.expect("served");
            assert!(answer.header.is_some());

            serving.abort();
            assert!(serving.await.is_err_and(|ended| ended.is_cancelled()));
            let failure = Caller::new(
                Arc::new(Connection::new(&endpoint).expect("an address")),
                Duration::from_secs(10),
            )
            .ask::<PutResponse>(Method::Put, &put)
            .await
            .expect_err("nobody listens");
            assert_eq!(failure.code, Code::Unavailable, "{failure}");
        });
    }

    #[test]
    fn a_broken_connection_is_dialed_again() {
        runtime().expect("a runtime").block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let endpoint = listener.local_addr().expect("bound").to_string();
            let connection = Arc::new(Connection::new(&endpoint).expect("an address"));
            let mut caller = Caller::new(connection, Duration::from_secs(10));
            let put = PutRequest::default();
            // Hangs up on the first caller, then serves.
            let server = async {
                let (first, _) = listener.accept().await.expect("a caller");
                drop(first);
                let _ = serve(listener, 1).await;
            };
            let calls = async {
                caller.ask::<PutResponse>(Method::Put, &put).await.expect_err("it hung up");
                caller.ask::<PutResponse>(Method::Put, &put).await.expect("dialed again");
            };
            tokio::select! {
                () = server => panic!("the server ended"),
                () = calls => {}
            }
        });
    }
}
