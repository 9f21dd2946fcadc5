//! A call whose requests and answers are streams: requests are sent at any time, answers come at any time.

use bytes::{Buf, Bytes};
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use prost::Message;
use tonic::Code;

use super::{Broken, Caller, Failure, Live, Method, PREFIX_BYTES, body_of, frame, outcome};

/// A call that goes on in both directions until it is dropped or the server ends it.
pub(crate) struct Duplex {
    outgoing: SendStream<Bytes>,
    incoming: Incoming,
    received: Received,
}

/// Servers may send the head of an answer only together with its first message.
enum Incoming {
    Head(ResponseFuture),
    Body(RecvStream),
}

impl Caller {
    /// Begins a call of `method`. Nothing has been answered yet when this returns.
    ///
    /// # Errors
    /// When the connection is not there, or breaks.
    pub(crate) async fn open(&mut self, method: Method) -> Result<Duplex, Failure> {
        let live = match self.live.take() {
            Some(live) => live,
            None => self.connection.live().await?,
        };
        let Live { sender, dial } = live;
        let mut sender = sender.ready().await.map_err(broken)?;
        let (response, outgoing) = sender.send_request(self.head(method), false).map_err(broken)?;
        self.live = Some(Live { sender, dial });
        let (incoming, received) = (Incoming::Head(response), Received::default());
        Ok(Duplex { outgoing, incoming, received })
    }
}

impl Duplex {
    /// Sends a request. It waits in memory while the server does not take it.
    ///
    /// # Errors
    /// When the call has ended.
    pub(crate) fn send(&mut self, request: &impl Message) -> Result<(), Failure> {
        self.outgoing.send_data(frame(request), false).map_err(broken)
    }

    /// The next message, decoded; `None` when the server has ended the call without an error. Dropping the future
    /// loses nothing.
    ///
    /// # Errors
    /// The status with which the server ended the call, or what broke it.
    pub(crate) async fn next<A: Message + Default>(&mut self) -> Result<Option<A>, Failure> {
        loop {
            if let Some(message) = self.received.take()? {
                let decoded = A::decode(message);
                return decoded.map(Some).map_err(|error| Failure::client(Code::Internal, error));
            }
            let body = match &mut self.incoming {
                Incoming::Head(response) => {
                    let head = response.await.map_err(broken)?;
                    self.incoming = Incoming::Body(body_of(head).map_err(failure)?);
                    continue;
                }
                Incoming::Body(body) => body,
            };
            match body.data().await {
                Some(chunk) => {
                    let chunk = chunk.map_err(broken)?;
                    // Releasing cannot fail: these bytes were just received on this stream.
                    let _ = body.flow_control().release_capacity(chunk.len());
                    self.received.add(chunk);
                }
                None => {
                    let trailers = body.trailers().await.map_err(broken)?;
                    return outcome(&trailers.unwrap_or_default()).map(|()| None).map_err(failure);
                }
            }
        }
    }
}

fn broken(error: h2::Error) -> Failure {
    Failure::client(Code::Unavailable, error)
}

fn failure(broken_call: Broken) -> Failure {
    match broken_call {
        Broken::Status(failure) => failure,
        Broken::Stream(error) => broken(error),
    }
}

/// What has come of the answers and was not taken yet.
#[derive(Default)]
struct Received {
    bytes: Bytes,
}

impl Received {
    fn add(&mut self, chunk: Bytes) {
        self.bytes = match self.bytes.is_empty() {
            true => chunk,
            false => [&self.bytes[..], &chunk[..]].concat().into(),
        };
    }

    /// The next whole message.
    fn take(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some([compressed, size @ ..]) = self.bytes.first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        if *compressed != 0 {
            return Err(Failure::client(Code::Internal, "the answer is compressed"));
        }
        let size = u32::from_be_bytes(*size) as usize;
        if self.bytes.len() - PREFIX_BYTES < size {
            return Ok(None);
        }
        self.bytes.advance(PREFIX_BYTES);
        Ok(Some(self.bytes.split_to(size)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_they_are_cut() {
        let texts = ["", "a", "some words", "the last one"];
        let sent: Vec<u8> = texts.iter().flat_map(|text| frame(&(*text).to_owned())).collect();
        for size in 1..sent.len() {
            let (mut received, mut found) = (Received::default(), Vec::new());
            for chunk in sent.chunks(size) {
                received.add(Bytes::copy_from_slice(chunk));
                while let Some(message) = received.take().expect("not compressed") {
                    found.push(String::decode(message).expect("a whole message"));
                }
            }
            assert_eq!(found, texts, "in pieces of {size}");
        }
    }

    #[test]
    fn a_compressed_message_is_refused() {
        let mut received = Received::default();
        received.add(Bytes::from_static(&[1, 0, 0, 0, 0]));
        assert!(received.take().is_err());
    }
}
