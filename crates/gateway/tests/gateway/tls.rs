//! TLS on the client port: who is let in, what changes without a restart, and who disturbs nobody.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use quorate_gateway::{ClientTls, ClientTlsFiles, GatewayConfig};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::peer::programs;
use crate::support::{Door, until, within};

/// An authority, and a directory of what it has signed.
pub(crate) struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        fs::write(dir.path().join("ca"), certificate.pem()).expect("a file");
        Self { dir, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Signs a certificate and writes it as `name`.crt and `name`.key.
    pub(crate) fn sign(&self, name: &str, common_name: &str, usage: ExtendedKeyUsagePurpose) {
        self.sign_until(name, common_name, usage, 4095);
    }

    /// The same, until a year ends.
    fn sign_until(&self, name: &str, common_name: &str, usage: ExtendedKeyUsagePurpose, year: i32) {
        let hosts = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(hosts).expect("names");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![usage];
        params.not_after = rcgen::date_time_ymd(year, 12, 31);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).expect("a file");
        fs::write(self.path(&format!("{name}.crt")), certificate.pem()).expect("a file");
    }

    /// What a server is started with that asks clients for certificates if `trusted_ca` is given.
    pub(crate) fn server(&self, trusted_ca: Option<&Path>) -> ClientTls {
        self.sign("server", "server", ExtendedKeyUsagePurpose::ServerAuth);
        let files = ClientTlsFiles {
            cert: self.path("server.crt"),
            key: self.path("server.key"),
            trusted_ca: trusted_ca.map(Path::to_owned),
            client_cert_auth: trusted_ca.is_some(),
        };
        ClientTls::load(files).expect("sound files")
    }

    /// A client that trusts this authority, and shows the certificate called `name`.
    pub(crate) fn client(&self, name: Option<&str>) -> ClientConfig {
        self.client_of(name, rustls::ALL_VERSIONS)
    }

    fn client_of(
        &self,
        name: Option<&str>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.path("ca"))).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots);
        match name {
            None => builder.with_no_client_auth(),
            Some(name) => {
                let chain = vec![certificate(&self.path(&format!("{name}.crt")))];
                let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key")));
                builder.with_client_auth_cert(chain, key.expect("a key")).expect("a pair")
            }
        }
    }
}

fn certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).expect("a certificate")
}

/// Asks for a page by TLS. The certificate that the server has shown, and the answer.
async fn page(
    door: &Door,
    mut config: ClientConfig,
    alpn: &[&str],
) -> Result<(CertificateDer<'static>, String), std::io::Error> {
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(door.address).await?;
    let name = ServerName::try_from("localhost").expect("a name");
    let connector = TlsConnector::from(Arc::new(config));
    let mut stream = within("a handshake", connector.connect(name, stream)).await?;
    let shown = stream.get_ref().1.peer_certificates().expect("a certificate")[0].clone();
    stream.write_all(b"GET /version HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    within("an answer, or a refusal", stream.read_to_string(&mut answer)).await?;
    Ok((shown.into_owned(), answer))
}

#[tokio::test]
async fn clients_that_trust_the_authority_are_served_by_both_versions_of_tls() {
    let authority = Authority::new();
    let door = Door::open_with_tls(GatewayConfig::default(), authority.server(None)).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for alpn in [&["http/1.1"][..], &["h2", "http/1.1"], &[]] {
            let client = authority.client_of(None, &[version]);
            // Where HTTP/2 was agreed on, a client that speaks HTTP/1 is served all the same.
            let (_, answer) = page(&door, client, alpn).await.expect("an answer");
            assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{version:?} {alpn:?}: {answer}");
        }
    }
    page(&door, authority.client(None), &["spdy/3"]).await.expect_err("no common protocol");
    page(&door, Authority::new().client(None), &[]).await.expect_err("another authority");
}

#[tokio::test]
async fn with_a_trusted_authority_a_client_needs_its_certificate() {
    let (authority, other) = (Authority::new(), Authority::new());
    let tls = authority.server(Some(&authority.path("ca")));
    let door = Door::open_with_tls(GatewayConfig::default(), tls).await;
    for authority in [&authority, &other] {
        authority.sign("alice", "alice", ExtendedKeyUsagePurpose::ClientAuth);
    }
    page(&door, authority.client(Some("alice")), &[]).await.expect("its client is let in");
    page(&door, authority.client(None), &[]).await.expect_err("no certificate");
    // A client of the other authority that trusts the server all the same.
    for name in ["alice.crt", "alice.key"] {
        let to = authority.path(&format!("other-{name}"));
        fs::copy(other.path(name), to).expect("a copy");
    }
    page(&door, authority.client(Some("other-alice")), &[]).await.expect_err("a stranger's");
    page(&door, authority.client(Some("server")), &[]).await.expect_err("not made for clients");
    let usage = ExtendedKeyUsagePurpose::ClientAuth;
    authority.sign_until("ended", "alice", usage, 2020);
    page(&door, authority.client(Some("ended")), &[]).await.expect_err("it has ended");
    let metrics = metrics(&door).await;
    assert!(metrics.contains("quorate_gateway_tls_handshakes_total 1\n"), "{metrics}");
    assert!(metrics.contains("quorate_gateway_tls_handshakes_failed_total 4\n"), "{metrics}");
    assert!(metrics.contains("quorate_gateway_tls_handshakes_count 0\n"), "{metrics}");
}

/// The metrics' port speaks no TLS.
async fn metrics(door: &Door) -> String {
    let address = door.metrics_address.to_string();
    crate::support::exchange(&address, b"GET /metrics HTTP/1.0\r\n\r\n").await.1
}

#[tokio::test]
async fn changed_certificates_are_shown_to_new_clients_and_open_ones_go_on() {
    let authority = Authority::new();
    let config =
        GatewayConfig { tls_reload_interval: Duration::from_millis(5), ..GatewayConfig::default() };
    let door = Door::open_with_tls(config, authority.server(None)).await;
    let first = page(&door, authority.client(None), &[]).await.expect("an answer").0;
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = TcpStream::connect(door.address).await.expect("a connection");
    let connector = TlsConnector::from(Arc::new(authority.client(None)));
    let mut open = connector.connect(name, stream).await.expect("a handshake");

    fs::write(authority.path("server.crt"), "half of a cert").expect("a file");
    let failed = "quorate_gateway_tls_reloads_failed_total 1\n";
    until("a reload has failed", async || metrics(&door).await.contains(failed)).await;
    let still = page(&door, authority.client(None), &[]).await.expect("an answer").0;
    assert_eq!(still, first, "a broken file changes nothing");

    authority.sign("server", "server", ExtendedKeyUsagePurpose::ServerAuth);
    let shown = async || page(&door, authority.client(None), &[]).await.expect("an answer").0;
    until("the new certificate is shown", async || shown().await != first).await;
    open.write_all(b"GET /version HTTP/1.0\r\n\r\n").await.expect("the connection is open");
    let mut answer = String::new();
    let read = within("the end of an answer", open.read_to_string(&mut answer)).await;
    read.expect("an answer");
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    let metrics = metrics(&door).await;
    assert!(
        metrics.contains("quorate_gateway_tls_certificate_expires_timestamp_seconds 6"),
        "{metrics}"
    );
}

#[tokio::test]
async fn half_open_handshakes_block_nobody_and_are_bounded() {
    let authority = Authority::new();
    let config = GatewayConfig { max_handshakes: 4, ..GatewayConfig::default() };
    let door = Door::open_with_tls(config, authority.server(None)).await;
    let mut half_open = Vec::new();
    for at in 0..40 {
        let mut stream = TcpStream::connect(door.address).await.expect("a connection");
        if at % 2 == 0 {
            stream.write_all(b"\x16\x03\x01\x02\x00\x01").await.expect("the start of a hello");
        }
        half_open.push(stream);
        page(&door, authority.client(None), &[]).await.expect("others are served");
    }
    // All but those that still have a place were hung up on, the oldest first.
    for stream in &mut half_open[..35] {
        let mut answer = Vec::new();
        // A reset counts too: there was something that nobody had read.
        let _ = within("the gateway hangs up", stream.read_to_end(&mut answer)).await;
    }
    assert!(metrics(&door).await.contains("quorate_gateway_tls_handshakes_cut_total 3"));
}

#[tokio::test]
async fn a_handshake_has_its_time() {
    let authority = Authority::new();
    let handshake_timeout = Duration::from_millis(50);
    let config = GatewayConfig { handshake_timeout, ..GatewayConfig::default() };
    let door = Door::open_with_tls(config, authority.server(None)).await;
    for said in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = TcpStream::connect(door.address).await.expect("a connection");
        stream.write_all(said).await.expect("a few bytes");
        let mut answer = Vec::new();
        // Ends only when the gateway hangs up.
        let _ = within("the gateway hangs up", stream.read_to_end(&mut answer)).await;
        assert!(answer.is_empty());
    }
}

#[tokio::test]
async fn a_client_without_tls_is_closed_and_disturbs_nobody() {
    let authority = Authority::new();
    let door = Door::open_with_tls(GatewayConfig::default(), authority.server(None)).await;
    let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for said in [preface, b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", &[0; 4096], &[0xff; 99]] {
        let mut stream = TcpStream::connect(door.address).await.expect("a connection");
        // The gateway may hang up in the middle.
        let _ = stream.write_all(said).await;
        let mut answer = Vec::new();
        let _ = within("the gateway hangs up", stream.read_to_end(&mut answer)).await;
        assert!(!answer.starts_with(b"HTTP"), "no word of HTTP without TLS");
        page(&door, authority.client(None), &[]).await.expect("others are served");
    }
}

/// What stock etcdctl says, and whether it succeeded.
async fn etcdctl(program: &Path, arguments: Vec<String>) -> (bool, String) {
    let mut command = Command::new(program);
    command.env("ETCDCTL_API", "3").args(["--dial-timeout=2s", "--command-timeout=2s"]);
    command.args(arguments).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().expect("etcdctl starts"));
    let output = output.await.expect("no panic");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test]
async fn stock_etcdctl_speaks_tls_with_its_certificate_and_not_without() {
    let Some(program) = programs().map(|bin| bin.join("etcdctl")) else { return };
    let (authority, other) = (Authority::new(), Authority::new());
    let tls = authority.server(Some(&authority.path("ca")));
    let door = Door::open_with_tls(GatewayConfig::default(), tls).await;
    authority.sign("alice", "alice", ExtendedKeyUsagePurpose::ClientAuth);
    let endpoint = format!("--endpoints=https://localhost:{}", door.address.port());
    let with = |ca: &Authority, certificate: bool, command: &[&str]| {
        let mut words = vec![endpoint.clone(), format!("--cacert={}", ca.path("ca").display())];
        if certificate {
            words.push(format!("--cert={}", authority.path("alice.crt").display()));
            words.push(format!("--key={}", authority.path("alice.key").display()));
        }
        words.extend(command.iter().map(|word| (*word).to_owned()));
        words
    };
    let said = etcdctl(&program, with(&authority, true, &["put", "k", "v"])).await;
    assert_eq!(said, (true, "OK\n".to_owned()));
    let said = etcdctl(&program, with(&authority, true, &["get", "k"])).await;
    assert_eq!(said, (true, "k\nv\n".to_owned()));
    let (is_ok, said) = etcdctl(&program, with(&authority, true, &["endpoint", "health"])).await;
    assert!(is_ok, "{said}");
    assert!(!etcdctl(&program, with(&authority, false, &["get", "k"])).await.0, "no certificate");
    assert!(!etcdctl(&program, with(&other, true, &["get", "k"])).await.0, "a wrong authority");
    let plain = format!("--endpoints=http://localhost:{}", door.address.port());
    let said = etcdctl(&program, vec![plain, "get".to_owned(), "k".to_owned()]).await;
    assert!(!said.0, "no TLS");
    let said = etcdctl(&program, with(&authority, true, &["get", "k"])).await;
    assert_eq!(said, (true, "k\nv\n".to_owned()), "nobody was disturbed");
}
