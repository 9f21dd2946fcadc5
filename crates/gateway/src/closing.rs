//! Streams that last as long as their clients like, until the gateway goes down.

use std::future::Future;

use futures::FutureExt;
use futures::stream::{self, BoxStream, Stream, StreamExt};
use tonic::Status;

use crate::error::ApiError;

/// What `answers` has until `closed` resolves; then what is ready already, and why it ends. Clients go on
/// elsewhere, and nobody waits for them to hang up.
pub(crate) fn until_closed<T: Send + 'static>(
    answers: impl Stream<Item = Result<T, Status>> + Send + 'static,
    closed: impl Future<Output = ()> + Send + 'static,
) -> BoxStream<'static, Result<T, Status>> {
    let told = stream::unfold(Some((answers.boxed(), closed.boxed())), |state| async {
        let (mut answers, mut closed) = state?;
        let answer = tokio::select! {
            biased;
            answer = answers.next() => answer,
            () = &mut closed => return Some((Err(ApiError::Stopped.into()), None)),
        };
        match answer {
            Some(answer) => Some((answer, Some((answers, closed)))),
            // It may have ended for the same reason.
            None => {
                let is_closed = (&mut closed).now_or_never().is_some();
                is_closed.then(|| (Err(ApiError::Stopped.into()), None))
            }
        }
    });
    told.boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(
        answers: impl Stream<Item = Result<u32, Status>> + Send + 'static,
        closed: impl Future<Output = ()> + Send + 'static,
    ) -> Vec<Result<u32, String>> {
        let all: Vec<_> = until_closed(answers, closed).collect().await;
        all.into_iter().map(|told| told.map_err(|status| status.message().to_owned())).collect()
    }

    #[tokio::test]
    async fn what_is_ready_is_told_before_the_end_and_its_reason() {
        let ready = || stream::iter([Ok(1), Ok(2)]);
        let never = stream::pending();
        let (open, closed) = (std::future::pending(), std::future::ready(()));
        let stopped = || Err("etcdserver: server stopped".to_owned());
        assert_eq!(told(ready().chain(never), closed.clone()).await, [Ok(1), Ok(2), stopped()]);
        assert_eq!(told(ready(), closed).await, [Ok(1), Ok(2), stopped()]);
        assert_eq!(told(ready(), open).await, [Ok(1), Ok(2)]);
    }
}
