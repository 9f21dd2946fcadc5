//! What the files of the client port say, as a configuration of rustls.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::certificate::expires_s;

/// What a client may agree on: gRPC, and the pages and the JSON gateway.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Largest file in bytes that is read: a bundle of authorities has a few hundred KiB.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The files of the client port, under etcd's names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientTlsFiles {
    /// `--cert-file`: the server's certificate and those between it and its authority (PEM).
    pub cert: PathBuf,
    /// `--key-file`: its private key (PEM).
    pub key: PathBuf,
    /// `--trusted-ca-file`: the authorities of clients (PEM). When given, a client must show a certificate of one
    /// of them, as with etcd.
    pub trusted_ca: Option<PathBuf>,
    /// `--client-cert-auth`: the common name of that certificate is the user, where users are in force.
    pub client_cert_auth: bool,
}

/// Why files are no configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("\"{setting}\" {path}: {source}")]
    File {
        /// The setting.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("\"{setting}\" {path}: {what}")]
    Content {
        /// The setting.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The files do not go together.
    #[error("\"cert-file\" {cert} and \"key-file\" {key}: {source}")]
    Pair {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// What rustls said.
        source: rustls::Error,
    },
    /// There is nobody to trust.
    #[error(
        "\"client-cert-auth\" needs \"trusted-ca-file\": the authority of clients' certificates"
    )]
    NoAuthority,
}

/// The bytes of the files. Compared to learn whether they have changed; never printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    trusted_ca: Option<Vec<u8>>,
}

impl Contents {
    /// Reads the files.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(crate) fn read(files: &ClientTlsFiles) -> Result<Self, TlsError> {
        if files.client_cert_auth && files.trusted_ca.is_none() {
            return Err(TlsError::NoAuthority);
        }
        let trusted_ca = files.trusted_ca.as_deref();
        Ok(Self {
            cert: read("cert-file", &files.cert)?,
            key: read("key-file", &files.key)?,
            trusted_ca: trusted_ca.map(|path| read("trusted-ca-file", path)).transpose()?,
        })
    }

    /// Makes the configuration, and says when the server's certificate ends, in seconds since 1970.
    ///
    /// # Errors
    /// When the files do not hold what they should, or do not go together.
    pub(crate) fn configure(
        &self,
        files: &ClientTlsFiles,
    ) -> Result<(Arc<ServerConfig>, Option<i64>), TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = certificates("cert-file", &files.cert, &self.cert)?;
        let expires = chain.first().and_then(expires_s);
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| content("key-file", &files.key, error.to_string()))?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| content("cert-file", &files.cert, error.to_string()))?;
        let builder = match (&files.trusted_ca, &self.trusted_ca) {
            (Some(path), Some(text)) => {
                let fail = |what: String| content("trusted-ca-file", path, what);
                let mut roots = RootCertStore::empty();
                for authority in certificates("trusted-ca-file", path, text)? {
                    roots.add(authority).map_err(|error| fail(error.to_string()))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = verifier.build().map_err(|error| fail(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|source| TlsError::Pair {
            cert: files.cert.clone(),
            key: files.key.clone(),
            source,
        })?;
        config.alpn_protocols = ALPN.iter().map(|protocol| protocol.to_vec()).collect();
        Ok((Arc::new(config), expires))
    }
}

fn read(setting: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let read = || {
        let length = std::fs::metadata(path)?.len();
        if length > FILE_BYTES_MAX {
            return Err(io::Error::other(format!("has {length} bytes, at most {FILE_BYTES_MAX}")));
        }
        std::fs::read(path)
    };
    read().map_err(|source| TlsError::File { setting, path: path.to_owned(), source })
}

fn certificates(
    setting: &'static str,
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| content(setting, path, error.to_string()))?;
    if found.is_empty() {
        return Err(content(setting, path, "holds no certificate".to_owned()));
    }
    Ok(found)
}

fn content(setting: &'static str, path: &Path, what: String) -> TlsError {
    TlsError::Content { setting, path: path.to_owned(), what }
}
