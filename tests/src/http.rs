//! A GET over HTTP/1.0, for health and metrics.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long a server may take for one answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The status code and the body of `path` at `address` (`host:port`, host an IP address).
///
/// # Errors
/// When there is no answer, or none that is HTTP.
pub fn get(address: &str, path: &str) -> Result<(u16, String), String> {
    let answer = exchange(address, path).map_err(|error| format!("{address}{path}: {error}"))?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no end of the HTTP head")?;
    let status = head.split_ascii_whitespace().nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(|| format!("no HTTP status in {head:?}"))?, body.to_owned()))
}

fn exchange(address: &str, path: &str) -> std::io::Result<Vec<u8>> {
    let address: SocketAddr = address.parse().map_err(std::io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}
