//! A call of the JSON gateway whose body is bytes.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Status;

use super::call::{Answer, PATIENCE};

/// The first bytes of an answer, through its status.
const HEAD: &[u8] = b"HTTP/1.1 200";

/// Posts `body` over a connection of its own, and waits for the head of the answer.
///
/// # Errors
/// When the connection ends without one.
pub(super) async fn post(address: &str, path: &str, body: &[u8]) -> Result<Answer, String> {
    let answer = async {
        let mut stream = connect(address).await?;
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(&[head.as_bytes(), body].concat()).await?;
        let mut head = [0; HEAD.len()];
        stream.read_exact(&mut head).await?;
        Ok::<_, io::Error>(head)
    };
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(head)) if head == HEAD => Ok(Answer::Served),
        Ok(Ok(head)) if head.starts_with(b"HTTP/1.1 ") => {
            Ok(Answer::Refused(Status::invalid_argument(String::from_utf8_lossy(&head))))
        }
        Ok(Ok(head)) => Err(format!("{path}: no answer of HTTP: {head:?}")),
        Ok(Err(error)) => Err(format!("{path}: {error}")),
        Err(_) => Ok(Answer::Open),
    }
}

/// A connection, as soon as this machine has a port for it: those of closed connections rest for a minute.
pub(super) async fn connect(address: &str) -> io::Result<TcpStream> {
    loop {
        match TcpStream::connect(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                tokio::time::sleep(PATIENCE / 4).await;
            }
            connected => return connected,
        }
    }
}

/// True when nobody listens.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}
