//! A body that is read within bounds: of one request, and of all requests together.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::split::{SplitError, Splitter};
use crate::error::message_too_large;

/// The body of a request.
pub(crate) trait RequestBody:
    hyper::body::Body<Data = Bytes, Error: Send> + Unpin + Send + 'static
{
}

impl<R> RequestBody for R where
    R: hyper::body::Body<Data = Bytes, Error: Send> + Unpin + Send + 'static
{
}

/// Bounds of bodies.
#[derive(Clone)]
pub(super) struct Bounds {
    /// Bytes that one unary body, or one object of a streamed one, may have.
    pub(super) bytes_max: usize,
    /// Time that a client may be silent in the midst of a request.
    pub(super) silence_max: Duration,
    /// A permit for each byte that may be held, by all requests together.
    pub(super) free: Arc<Semaphore>,
}

/// One body.
pub(super) struct Intake<R> {
    body: R,
    bounds: Bounds,
    splitter: Splitter,
    /// A permit for each byte that is held here.
    held: Option<OwnedSemaphorePermit>,
}

impl<R: RequestBody> Intake<R> {
    pub(super) const fn new(body: R, bounds: Bounds) -> Self {
        let splitter = Splitter::new(bounds.bytes_max);
        Self { body, bounds, splitter, held: None }
    }

    /// Reads the body to its end. The permits for it go with it.
    ///
    /// # Errors
    /// When it is too large, comes too slowly, breaks off, or there is no room for it now.
    pub(super) async fn whole(mut self) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), Status> {
        let mut text = Vec::new();
        while let Some(chunk) = self.chunk_in_time().await? {
            let (found, limit) = (text.len() + chunk.len(), self.bounds.bytes_max);
            if found > limit {
                return Err(message_too_large(found as u64, limit as u64));
            }
            text.extend_from_slice(&chunk);
        }
        Ok((text, self.held))
    }

    /// The first object of a streamed body; `None` if there is none.
    ///
    /// # Errors
    /// As [`whole`](Self::whole), and when what comes is no object.
    pub(super) async fn first_object(&mut self) -> Result<Option<Vec<u8>>, Status> {
        let silence_max = self.bounds.silence_max;
        let object = tokio::time::timeout(silence_max, self.object()).await;
        object.unwrap_or_else(|_| Err(silent()))
    }

    /// The next object; it may take its time. `None` at the end.
    ///
    /// # Errors
    /// As [`whole`](Self::whole), and when what comes is no object.
    pub(super) async fn object(&mut self) -> Result<Option<Vec<u8>>, Status> {
        loop {
            let object = self.splitter.next().map_err(in_words)?;
            if let Some(object) = object {
                self.release(object.len());
                return Ok(Some(object));
            }
            let Some(chunk) = self.chunk().await? else {
                self.splitter.end().map_err(in_words)?;
                return Ok(None);
            };
            self.splitter.feed(&chunk);
        }
    }

    async fn chunk_in_time(&mut self) -> Result<Option<Bytes>, Status> {
        let silence_max = self.bounds.silence_max;
        tokio::time::timeout(silence_max, self.chunk()).await.unwrap_or_else(|_| Err(silent()))
    }

    /// The next piece of the body, with permits for its bytes.
    async fn chunk(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|_| Status::invalid_argument("the body breaks off"))?;
            // Trailers say nothing here.
            let Ok(chunk) = frame.into_data() else { continue };
            let bytes = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            let permit = Arc::clone(&self.bounds.free).try_acquire_many_owned(bytes);
            let permit = permit.map_err(|_| {
                Status::resource_exhausted("quorate: too many bytes of JSON requests at a time")
            })?;
            match &mut self.held {
                Some(held) => held.merge(permit),
                None => self.held = Some(permit),
            }
            return Ok(Some(chunk));
        }
    }

    fn release(&mut self, bytes: usize) {
        // Blanks between objects are kept until the end; they are few.
        drop(self.held.as_mut().and_then(|held| held.split(bytes)));
    }
}

fn silent() -> Status {
    Status::deadline_exceeded("quorate: the body took too long to arrive")
}

fn in_words(error: SplitError) -> Status {
    match error {
        SplitError::TooLarge { found, limit } => message_too_large(found as u64, limit as u64),
        SplitError::NoObject => Status::invalid_argument("json: expected an object"),
        SplitError::Unfinished => Status::invalid_argument("unexpected EOF"),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    fn bounds(bytes_max: usize, free: &Arc<Semaphore>) -> Bounds {
        Bounds { bytes_max, silence_max: Duration::from_secs(60), free: Arc::clone(free) }
    }

    #[tokio::test]
    async fn a_body_is_held_within_its_own_bound_and_that_of_all() {
        let free = Arc::new(Semaphore::new(10));
        let intake = |text: &'static str, bytes_max| {
            Intake::new(Full::new(Bytes::from_static(text.as_bytes())), bounds(bytes_max, &free))
        };
        let (text, held) = intake("12345678", 8).whole().await.unwrap();
        assert_eq!((text.as_slice(), free.available_permits()), (&b"12345678"[..], 2));
        let refused = intake("123", 8).whole().await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        drop(held);
        assert_eq!(free.available_permits(), 10);
        let refused = intake("123456789", 8).whole().await.unwrap_err();
        assert_eq!(refused.message(), "grpc: received message larger than max (9 vs. 8)");
        assert_eq!(free.available_permits(), 10, "what is refused is given back");
    }

    #[tokio::test]
    async fn objects_give_their_bytes_back_as_they_are_taken() {
        let free = Arc::new(Semaphore::new(10));
        let mut intake = Intake::new(Full::new(Bytes::from_static(b"{}{ }{")), bounds(4, &free));
        assert_eq!(intake.first_object().await.unwrap().unwrap(), b"{}");
        assert_eq!(free.available_permits(), 6);
        assert_eq!(intake.object().await.unwrap().unwrap(), b"{ }");
        assert_eq!(free.available_permits(), 9);
        assert_eq!(intake.object().await.unwrap_err().message(), "unexpected EOF");
        drop(intake);
        assert_eq!(free.available_permits(), 10);
    }
}
