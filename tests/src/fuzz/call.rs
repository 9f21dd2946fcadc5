//! A call whose messages are bytes.

use std::time::Duration;

use bytes::Bytes;
use quorate_api::codec::EncodedMessages;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// For so long an answer is awaited: a stream may rightly stay open without one.
pub(super) const PATIENCE: Duration = Duration::from_millis(200);

/// What came of a call.
pub(super) enum Answer {
    /// A response.
    Served,
    /// A status.
    Refused(Status),
    /// Neither: it was given up.
    Open,
}

/// Sends `messages` and waits for the first response.
pub(super) async fn call(channel: &Channel, path: &str, messages: Vec<Bytes>) -> Answer {
    let path = path.parse().expect("names of methods make paths");
    let mut client = Grpc::new(channel.clone());
    let answer = async {
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let request = Request::new(tokio_stream::iter(messages));
        let mut responses = client.streaming(request, path, EncodedMessages).await?.into_inner();
        responses.message().await
    };
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(_)) => Answer::Served,
        Ok(Err(status)) => Answer::Refused(status),
        Err(_) => Answer::Open,
    }
}
