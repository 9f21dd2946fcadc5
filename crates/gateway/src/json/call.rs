//! A call of gRPC without a connection: the same door, the same bytes, no socket.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tonic::codegen::Service;

use crate::auth::Peer;
use crate::backend::Backend;
use crate::door::Door;

/// The door as a service that a client of gRPC can call.
pub(crate) struct InProcess<B>(pub(crate) Arc<Door<B>>);

impl<B> Clone for InProcess<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B: Backend> Service<Request<Body>> for InProcess<B> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let door = Arc::clone(&self.0);
        let peer = request.extensions_mut().remove::<Peer>().unwrap_or_default();
        Box::pin(async move { door.answer(request, peer).await })
    }
}
