//! Clients that watch and do not read: what they cost those who do.

use std::sync::Arc;

use quorate_api::etcdserverpb::watch_request::RequestUnion;
use quorate_api::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use tonic::Code;

use super::{Shared, connections};
use crate::Fault;
use crate::call::{Caller, Duplex, Failure, Method};

/// A stream that is not read any more. It ends with this value.
pub(super) struct Stuck {
    _stream: Duplex,
}

/// Opens the streams, each on a connection of its own, and waits until each is told that it watches.
///
/// # Errors
/// When the servers do not let so many watch.
pub(super) async fn open(shared: &Shared) -> Result<Vec<Stuck>, Fault> {
    let mut open = Vec::new();
    for connection in connections(shared, shared.args.stuck)? {
        let mut caller = Caller::new(Arc::clone(&connection), shared.args.target.timeout);
        let created = watch_all(shared, &mut caller);
        let said = match tokio::time::timeout(shared.args.target.timeout, created).await {
            Ok(Ok(stream)) => {
                open.push(Stuck { _stream: stream });
                continue;
            }
            Ok(Err(failure)) => failure.to_string(),
            Err(_) => "a watcher that is not to read is not there in time".to_owned(),
        };
        return Err(format!("{}: {said}", caller.address()));
    }
    Ok(open)
}

/// A stream with one watcher of everything that is put.
async fn watch_all(shared: &Shared, caller: &mut Caller) -> Result<Duplex, Failure> {
    let mut stream = caller.open(Method::Watch).await?;
    let create = WatchCreateRequest {
        key: shared.args.prefix.clone().into(),
        // From there on, without an end.
        range_end: vec![0].into(),
        ..WatchCreateRequest::default()
    };
    stream.send(&WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) })?;
    match stream.next::<WatchResponse>().await? {
        Some(answer) if answer.created && !answer.canceled => Ok(stream),
        Some(answer) => Err(Failure::client(Code::Internal, answer.cancel_reason)),
        None => Err(Failure::client(Code::Unavailable, "the server ended a stream")),
    }
}
