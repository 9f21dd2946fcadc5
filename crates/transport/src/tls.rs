//! Certificates: making a cluster's authority and its nodes' certificates, and the TLS settings that
//! trust nothing else.
//!
//! TLS 1.3 only, provider `ring` only, both sides authenticated against the cluster's authority. No
//! session resumption and no 0-RTT: every handshake proves the certificate again (so that a rotated
//! authority counts at once), and nothing can be replayed. The names in certificates are
//! [`crate::identity`]'s.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

use crate::identity::{NameError, certificate_name};

/// The protocol and its version, as ALPN names it. Nodes with no common one do not talk at all.
pub(crate) const ALPN: &[u8] = b"quorate/1";

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long an authority that [`make_ca`] made is valid.
const CA_VALIDITY: Duration = DAY.saturating_mul(3_650);

/// How long a certificate of [`Ca::issue`] is valid.
const NODE_VALIDITY: Duration = DAY.saturating_mul(730);

/// Certificates are valid from this long before they are made, since clocks differ.
const BACKDATED: Duration = DAY;

/// Why certificates could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A cluster or node name that no certificate can carry.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A certificate could not be made, or an authority not be loaded.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// PEM text that does not hold what it should.
    #[error("{what}: {source}")]
    Pem {
        /// Which of the texts.
        what: &'static str,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// PEM text without any certificate.
    #[error("{0}: holds no certificate")]
    Empty(&'static str),
    /// TLS refuses to work with these certificates: the key does not fit, say.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The trusted authorities cannot check peers.
    #[error("TLS: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// QUIC cannot work with the offered cipher suites.
    #[error("QUIC: {0}")]
    Quic(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// Who a node is, and whom it trusts; all in PEM.
#[derive(Clone)]
pub struct TlsConfig {
    /// The node's certificate, then any intermediate ones.
    pub cert_pem: String,
    /// The private key of the first certificate.
    pub key_pem: String,
    /// The authorities whose nodes are let in: one, or two while the authority is being replaced.
    pub ca_pem: String,
}

impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConfig").finish_non_exhaustive()
    }
}

/// A certificate with its private key.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// Its private key: belongs into a file that only the node may read.
    pub key_pem: String,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

/// A cluster's certificate authority, with its private key.
pub struct Ca {
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

/// Makes an authority for one cluster, valid for ten years.
///
/// # Errors
/// When the name cannot stand in a certificate, or no key can be made.
pub fn make_ca(cluster_name: &str) -> Result<Ca, TlsError> {
    certificate_name(cluster_name, "any")?;
    let now = SystemTime::now();
    let mut params = params(&format!("Quorate cluster {cluster_name}"));
    set_validity(&mut params, now - BACKDATED, now + CA_VALIDITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    let cert_pem = params.self_signed(&key)?.pem();
    Ok(Ca { cert_pem, issuer: Issuer::new(params, key) })
}

impl Ca {
    /// Loads an authority that was saved as [`Ca::cert_pem`] and [`Ca::key_pem`].
    ///
    /// # Errors
    /// When the texts are not a certificate and a key.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, TlsError> {
        let issuer = Issuer::from_ca_cert_pem(cert_pem, KeyPair::from_pem(key_pem)?)?;
        Ok(Self { cert_pem: cert_pem.to_owned(), issuer })
    }

    /// Makes a node's certificate, valid for two years from now. `hosts` are further DNS names or IP
    /// addresses to carry, for tools that check them; nodes do not.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate.
    pub fn issue(
        &self,
        cluster_name: &str,
        node_name: &str,
        hosts: &[String],
    ) -> Result<Issued, TlsError> {
        let now = SystemTime::now();
        self.issue_between(cluster_name, node_name, hosts, (now - BACKDATED, now + NODE_VALIDITY))
    }

    /// As [`Ca::issue`], valid between two instants.
    ///
    /// # Errors
    /// When a name cannot stand in a certificate.
    pub fn issue_between(
        &self,
        cluster_name: &str,
        node_name: &str,
        hosts: &[String],
        validity: (SystemTime, SystemTime),
    ) -> Result<Issued, TlsError> {
        let own = certificate_name(cluster_name, node_name)?;
        let names: Vec<String> = std::iter::once(own).chain(hosts.iter().cloned()).collect();
        let mut params = params(&format!("Quorate node {node_name}"));
        params.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
        set_validity(&mut params, validity.0, validity.1);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // A node is a client of its peers and a server to them.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { cert_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// Makes a key, and a certificate for a client called `common_name`. It names no node, so no node takes
    /// its holder for one.
    ///
    /// # Errors
    /// When the name cannot stand in a certificate.
    pub fn issue_client(&self, common_name: &str) -> Result<Issued, TlsError> {
        let now = SystemTime::now();
        let mut params = params(common_name);
        set_validity(&mut params, now - BACKDATED, now + NODE_VALIDITY);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { cert_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// The authority's certificate: what every node trusts.
    #[must_use]
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The authority's private key: whoever has it can make nodes.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }
}

/// The TLS half of a QUIC server that lets in only nodes of the trusted authorities.
pub(crate) fn server_config(tls: &TlsConfig) -> Result<QuicServerConfig, TlsError> {
    let provider = provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(tls)?, provider.clone());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier.build()?)
        .with_single_cert(chain(tls)?, key(tls)?)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(QuicServerConfig::try_from(config)?)
}

/// The TLS half of a QUIC client that shows the node's certificate and trusts only the authorities.
pub(crate) fn client_config(tls: &TlsConfig) -> Result<QuicClientConfig, TlsError> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(tls)?)
        .with_client_auth_cert(chain(tls)?, key(tls)?)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(QuicClientConfig::try_from(config)?)
}

/// `ring`, with AES-128 first: as strong as the P-256 keys, and cheaper than AES-256 per byte.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    provider.cipher_suites = vec![
        ring::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ring::cipher_suite::TLS13_AES_256_GCM_SHA384,
        ring::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

fn roots(tls: &TlsConfig) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("ca_pem", &tls.ca_pem)? {
        roots.add(certificate)?;
    }
    Ok(Arc::new(roots))
}

fn chain(tls: &TlsConfig) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    certificates("cert_pem", &tls.cert_pem)
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let certificates = certificates.map_err(|source| TlsError::Pem { what, source })?;
    if certificates.is_empty() {
        return Err(TlsError::Empty(what));
    }
    Ok(certificates)
}

fn key(tls: &TlsConfig) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(tls.key_pem.as_bytes())
        .map_err(|source| TlsError::Pem { what: "key_pem", source })
}

fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

fn set_validity(params: &mut CertificateParams, from: SystemTime, to: SystemTime) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let since_epoch = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = epoch + since_epoch(from);
    params.not_after = epoch + since_epoch(to);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(ca: &Ca, issued: &Issued) -> TlsConfig {
        TlsConfig {
            cert_pem: issued.cert_pem.clone(),
            key_pem: issued.key_pem.clone(),
            ca_pem: ca.cert_pem().to_owned(),
        }
    }

    #[test]
    fn an_authority_survives_being_saved_and_loaded() {
        let ca = make_ca("c").unwrap();
        let loaded = Ca::from_pem(ca.cert_pem(), &ca.key_pem()).unwrap();
        let issued = loaded.issue("c", "n1", &["localhost".into(), "127.0.0.1".into()]).unwrap();
        server_config(&config(&ca, &issued)).unwrap();
        client_config(&config(&ca, &issued)).unwrap();
    }

    #[test]
    fn a_clients_certificate_is_no_nodes() {
        let ca = make_ca("c").unwrap();
        let issued = ca.issue_client("n1").unwrap();
        let chain = chain(&config(&ca, &issued)).unwrap();
        let name = certificate_name("c", "n1").unwrap();
        assert!(crate::identity::check_certificate(&chain[0], &name).is_err());
    }

    #[test]
    fn private_keys_never_reach_debug_output() {
        let ca = make_ca("c").unwrap();
        let issued = ca.issue("c", "n1", &[]).unwrap();
        let text = format!("{ca:?} {issued:?} {:?}", config(&ca, &issued));
        assert!(!text.contains("PRIVATE"), "{text}");
        let secret = issued.key_pem.lines().nth(1).unwrap();
        assert!(!text.contains(secret), "{text}");
    }

    #[test]
    fn unusable_texts_are_told_apart() {
        let ca = make_ca("c").unwrap();
        let issued = ca.issue("c", "n1", &[]).unwrap();
        let good = config(&ca, &issued);
        let result = server_config(&TlsConfig { ca_pem: String::new(), ..good.clone() });
        assert!(matches!(result, Err(TlsError::Empty("ca_pem"))));
        let result = client_config(&TlsConfig { key_pem: "nonsense".into(), ..good.clone() });
        assert!(matches!(result, Err(TlsError::Pem { what: "key_pem", .. })));
        let other = ca.issue("c", "n2", &[]).unwrap();
        let result = server_config(&TlsConfig { key_pem: other.key_pem, ..good });
        assert!(matches!(result, Err(TlsError::Tls(_))));
    }
}
