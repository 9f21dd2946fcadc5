//! The configuration in use, and its successor when the files change.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;

use super::files::{ClientTlsFiles, Contents, TlsError};
use crate::metrics::TlsMetrics;

/// TLS of the client port: the configuration that new connections get.
///
/// Connections that are open keep what they began with; no session of before a change is resumed after it.
pub struct ClientTls {
    files: ClientTlsFiles,
    config: ArcSwap<ServerConfig>,
    /// When the certificate ends, in seconds since 1970.
    expires_s: Mutex<Option<i64>>,
    /// What the files held when they were last looked at, broken or not: a broken set is complained of once.
    seen: Mutex<Contents>,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls").field("files", &self.files).finish_non_exhaustive()
    }
}

/// What a look at the files has found.
#[derive(Debug)]
pub(crate) enum Look {
    /// What was there before.
    Same,
    /// A new configuration, which is in use now.
    New,
    /// Something that cannot be used; what was in use before still is.
    Broken(TlsError),
}

impl ClientTls {
    /// Reads the files. Blocks on them.
    ///
    /// # Errors
    /// When they cannot be read or do not make a configuration.
    pub fn load(files: ClientTlsFiles) -> Result<Self, TlsError> {
        let contents = Contents::read(&files)?;
        let (config, expires) = contents.configure(&files)?;
        Ok(Self {
            files,
            config: ArcSwap::from(config),
            expires_s: Mutex::new(expires),
            seen: Mutex::new(contents),
        })
    }

    /// The configuration for a connection that begins now.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// Whether a client's certificate says who it is.
    pub(crate) const fn is_identity(&self) -> bool {
        self.files.client_cert_auth
    }

    /// Looks at the files once. Blocks on them.
    pub(crate) fn look(&self) -> Look {
        let contents = match Contents::read(&self.files) {
            Ok(contents) => contents,
            // In the midst of being replaced, perhaps: the next look tells.
            Err(error) => return Look::Broken(error),
        };
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if *seen == contents {
                return Look::Same;
            }
            seen.clone_from(&contents);
        }
        match contents.configure(&self.files) {
            Ok((config, expires)) => {
                self.config.store(config);
                *self.expires_s.lock().unwrap_or_else(PoisonError::into_inner) = expires;
                Look::New
            }
            Err(error) => Look::Broken(error),
        }
    }

    /// Looks at the files every `interval` until it is dropped.
    pub(crate) async fn follow(self: Arc<Self>, interval: Duration, metrics: TlsMetrics) {
        let mut complaint = String::new();
        self.show_expiry(&metrics);
        loop {
            tokio::time::sleep(interval).await;
            let this = Arc::clone(&self);
            // Only the runtime's end cancels it, and then nobody asks.
            let Ok(look) = tokio::task::spawn_blocking(move || this.look()).await else { return };
            match look {
                Look::Same => {}
                Look::New => {
                    complaint.clear();
                    metrics.reloads_total.increment(1);
                    self.show_expiry(&metrics);
                    tracing::info!("the client port's certificates have changed and are in use");
                }
                Look::Broken(error) => {
                    let text = error.to_string();
                    if text != complaint {
                        metrics.reloads_failed_total.increment(1);
                        tracing::error!(
                            error = text,
                            "the client port's new certificates cannot be used: the old ones stay"
                        );
                        complaint = text;
                    }
                }
            }
        }
    }

    fn show_expiry(&self, metrics: &TlsMetrics) {
        let expires = *self.expires_s.lock().unwrap_or_else(PoisonError::into_inner);
        metrics.certificate_expires_s.set(expires.unwrap_or(0) as f64);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn write(dir: &Path, names: [&str; 2], host: &str) {
        let key = KeyPair::generate().unwrap();
        let made =
            CertificateParams::new(vec![host.to_owned()]).unwrap().self_signed(&key).unwrap();
        fs::write(dir.join(names[0]), made.pem()).unwrap();
        fs::write(dir.join(names[1]), key.serialize_pem()).unwrap();
    }

    fn files(dir: &Path) -> ClientTlsFiles {
        ClientTlsFiles {
            cert: dir.join("cert"),
            key: dir.join("key"),
            trusted_ca: None,
            client_cert_auth: false,
        }
    }

    #[test]
    fn changed_files_are_used_and_broken_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        write(path, ["cert", "key"], "a");
        let tls = ClientTls::load(files(path)).unwrap();
        let first = tls.config();
        assert!(matches!(tls.look(), Look::Same));
        assert!(Arc::ptr_eq(&first, &tls.config()));

        // Half of a change: the certificate is new, its key is not there yet.
        write(path, ["cert", "other-key"], "b");
        let Look::Broken(error) = tls.look() else { panic!("the key is another certificate's") };
        assert!(error.to_string().contains("key-file"), "{error}");
        assert!(Arc::ptr_eq(&first, &tls.config()), "the old one stays");
        assert!(matches!(tls.look(), Look::Same), "it is said once");
        fs::rename(path.join("other-key"), path.join("key")).unwrap();
        assert!(matches!(tls.look(), Look::New));
        let second = tls.config();
        assert!(!Arc::ptr_eq(&first, &second));

        for broken in
            ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n"]
        {
            fs::write(path.join("cert"), broken).unwrap();
            assert!(matches!(tls.look(), Look::Broken(_)), "{broken:?}");
            assert!(Arc::ptr_eq(&second, &tls.config()));
        }
        fs::remove_file(path.join("cert")).unwrap();
        let Look::Broken(error) = tls.look() else { panic!("the file is gone") };
        assert!(error.to_string().starts_with("\"cert-file\" "), "{error}");
        write(path, ["cert", "key"], "c");
        assert!(matches!(tls.look(), Look::New));
    }

    #[test]
    fn what_is_missing_is_said_by_the_name_of_its_setting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        write(path, ["cert", "key"], "a");
        let mut wrong = files(path);
        wrong.client_cert_auth = true;
        assert!(matches!(ClientTls::load(wrong), Err(TlsError::NoAuthority)));
        let mut wrong = files(path);
        wrong.trusted_ca = Some(path.join("key"));
        let error = ClientTls::load(wrong).unwrap_err().to_string();
        let expected =
            format!("\"trusted-ca-file\" {}: holds no certificate", path.join("key").display());
        assert_eq!(error, expected);
    }
}
