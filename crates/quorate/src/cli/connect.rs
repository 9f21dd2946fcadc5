//! How commands reach a node's client port, with or without TLS.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::status::in_words;

/// TLS of a command, under the names that etcdctl has for it.
#[derive(Clone, Default, Debug, clap::Args)]
pub struct Tls {
    /// Authority of the nodes' certificates (PEM); with it, endpoints without a scheme are spoken to by TLS
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// Certificate to show to nodes (PEM)
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Private key of that certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

impl Tls {
    /// Connects to an endpoint: `host:port`, or a URL.
    ///
    /// # Errors
    /// In words, when it cannot be reached or a file cannot be used.
    pub(super) async fn connect(
        &self,
        endpoint: &str,
        connect_timeout: Duration,
        timeout: Duration,
    ) -> Result<Channel, String> {
        let uri = match (endpoint.contains("://"), &self.cacert) {
            (true, _) => endpoint.to_owned(),
            (false, Some(_)) => format!("https://{endpoint}"),
            (false, None) => format!("http://{endpoint}"),
        };
        let is_tls = uri.starts_with("https://");
        let mut to = Endpoint::from_shared(uri).map_err(|error| in_words(&error))?;
        if is_tls {
            to = to.tls_config(self.config()?).map_err(|error| in_words(&error))?;
        }
        let connected = to.connect_timeout(connect_timeout).timeout(timeout).connect().await;
        connected.map_err(|error| in_words(&error))
    }

    fn config(&self) -> Result<ClientTlsConfig, String> {
        let Some(cacert) = &self.cacert else {
            return Err("TLS needs --cacert: the authority of the nodes' certificates".to_owned());
        };
        let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(cacert)?));
        Ok(match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => config.identity(Identity::from_pem(read(cert)?, read(key)?)),
            _ => config,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}
