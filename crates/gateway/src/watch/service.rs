//! The RPC.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use quorate_api::etcdserverpb::{WatchRequest, WatchResponse, watch_server};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};

use super::hub::Hub;
use super::permits::Permits;
use super::stream::ClientStream;
use crate::auth::caller::{identity, peer};
use crate::backend::Backend;
use crate::door::REQUIRE_LEADER;

/// Responses that wait for the connection: what more there is stays in the registry, where it is bounded.
const RESPONSES_MAX: usize = 1;

/// etcd's Watch service over a backend.
pub(crate) struct WatchService<B> {
    hub: Arc<Hub<B>>,
}

impl<B: Backend> WatchService<B> {
    pub(crate) fn new(hub: Arc<Hub<B>>) -> Self {
        Self { hub }
    }
}

#[tonic::async_trait]
impl<B: Backend> watch_server::Watch for WatchService<B> {
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let required = request.metadata().get(REQUIRE_LEADER);
        let requires_leader = required.is_some_and(|value| value == "true");
        let (responses, sent) = mpsc::channel(RESPONSES_MAX);
        let permits = Permits::of(identity(&request), peer(&request));
        let stream = ClientStream::new(Arc::clone(&self.hub), requires_leader, permits, responses);
        // It ends when its client has gone: then nobody takes the responses.
        drop(tokio::spawn(stream.run(request.into_inner())));
        let sent = stream::unfold(sent, |mut sent| async {
            sent.recv().await.map(|response| (response, sent))
        });
        Ok(Response::new(sent.boxed()))
    }
}
