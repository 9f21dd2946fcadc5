//! A new authority of clients, without a restart.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use quorate_gateway::GatewayConfig;
use rcgen::ExtendedKeyUsagePurpose;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::{Door, exchange, until, within};
use crate::tls::Authority;

async fn connect(door: &Door, client: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(door.address).await?;
    let name = ServerName::try_from("localhost").expect("a name");
    let connector = TlsConnector::from(Arc::clone(client));
    within("a handshake", connector.connect(name, stream)).await
}

/// Whether a connection is answered. A client learns that its certificate is refused only when it reads.
async fn is_served(mut stream: TlsStream<TcpStream>) -> io::Result<bool> {
    stream.write_all(b"GET /version HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    within("an answer, or a refusal", stream.read_to_string(&mut answer)).await?;
    Ok(answer.starts_with("HTTP/1.0 200 OK\r\n"))
}

/// Whether a client is let in now.
async fn is_let_in(door: &Door, client: &Arc<ClientConfig>) -> bool {
    match connect(door, client).await {
        Ok(stream) => is_served(stream).await.unwrap_or(false),
        Err(_) => false,
    }
}

#[tokio::test]
async fn a_changed_authority_of_clients_decides_about_new_connections() {
    let (authority, other) = (Authority::new(), Authority::new());
    let pem = |authority: &Authority| fs::read(authority.path("ca")).expect("a certificate");
    let (before, after) = (pem(&authority), pem(&other));
    // At once: a look at half a file would count as one that failed.
    let trust = |pem: &[u8]| {
        fs::write(authority.path("next"), pem).expect("a file");
        fs::rename(authority.path("next"), authority.path("trusted")).expect("it is replaced");
    };
    trust(&before);
    authority.sign("alice", "alice", ExtendedKeyUsagePurpose::ClientAuth);
    other.sign("bob", "bob", ExtendedKeyUsagePurpose::ClientAuth);
    for name in ["bob.crt", "bob.key"] {
        fs::copy(other.path(name), authority.path(name)).expect("a copy");
    }
    let tls_reload_interval = Duration::from_millis(5);
    let config = GatewayConfig { tls_reload_interval, ..GatewayConfig::default() };
    let tls = authority.server(Some(&authority.path("trusted")));
    let door = Door::open_with_tls(config, tls).await;
    // Each keeps its sessions, and would resume one where it could.
    let alice = Arc::new(authority.client(Some("alice")));
    let bob = Arc::new(authority.client(Some("bob")));
    assert!(is_let_in(&door, &alice).await);
    assert!(!is_let_in(&door, &bob).await);
    let open = connect(&door, &alice).await.expect("a handshake");

    trust(&after);
    until("bob is let in", async || is_let_in(&door, &bob).await).await;
    assert!(!is_let_in(&door, &alice).await, "nobody trusts her authority any more");
    assert!(is_served(open).await.expect("it is open"), "what is open goes on");

    // As during a move from one to the other.
    trust(&[before, after].concat());
    until("alice is let in again", async || is_let_in(&door, &alice).await).await;
    assert!(is_let_in(&door, &bob).await);

    trust(b"half of a cert");
    let failed = "quorate_gateway_tls_reloads_failed_total 1\n";
    let metrics = door.metrics_address.to_string();
    let page = async || exchange(&metrics, b"GET /metrics HTTP/1.0\r\n\r\n").await.1;
    until("a reload has failed", async || page().await.contains(failed)).await;
    assert!(is_let_in(&door, &alice).await && is_let_in(&door, &bob).await, "it changes nothing");
}
