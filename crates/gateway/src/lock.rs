//! The Lock service: a lock is a name that its holder owns.

use std::sync::Arc;

use bytes::Bytes;
use quorate_api::v3lockpb::{
    LockRequest, LockResponse, UnlockRequest, UnlockResponse, lock_server,
};
use quorate_types::kv::{DeleteRange, command, outcome};
use tonic::{Request, Response, Status};

use crate::auth::caller::{Identity, identity};
use crate::backend::Backend;
use crate::error::ApiError;
use crate::ownership::{Queues, Wish, in_their_words};

/// etcd's Lock service over a backend.
pub(crate) struct LockService<B> {
    queues: Arc<Queues<B>>,
}

impl<B: Backend> LockService<B> {
    pub(crate) const fn new(queues: Arc<Queues<B>>) -> Self {
        Self { queues }
    }

    async fn give_up(&self, key: Bytes, by: Option<&Identity>) -> Result<UnlockResponse, Status> {
        if key.is_empty() {
            return Err(ApiError::EmptyKey.into());
        }
        let delete = DeleteRange { key, ..DeleteRange::default() };
        match self.queues.desk().carry_out(command::Body::DeleteRange(delete), by).await? {
            (header, outcome::Body::DeleteRange(_)) => Ok(UnlockResponse { header: Some(header) }),
            _ => Err(ApiError::UnexpectedOutcome.into()),
        }
    }
}

#[tonic::async_trait]
impl<B: Backend> lock_server::Lock for LockService<B> {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let by = identity(&request);
        let LockRequest { name, lease } = request.into_inner();
        let lost = ApiError::SessionExpired;
        let wish = Wish { name, lease, value: None, by, lost };
        let owned = self.queues.own(wish).await.map_err(in_their_words)?;
        let (header, fencing_token) = (Some(owned.found), owned.created);
        Ok(Response::new(LockResponse { header, key: owned.key, fencing_token }))
    }

    async fn unlock(
        &self,
        request: Request<UnlockRequest>,
    ) -> Result<Response<UnlockResponse>, Status> {
        let by = identity(&request);
        let given_up = self.give_up(request.into_inner().key, by.as_ref()).await;
        given_up.map(Response::new).map_err(in_their_words)
    }
}
