//! How clients are let in: certificates of the client port, and limits.

use super::ConfigError;
use super::serve::Check;
use quorate_gateway::{ClientTlsFiles, GatewayConfig};

/// How clients are let in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Clients {
    /// Certificates; `None`: clients speak without TLS.
    pub tls: Option<ClientTlsFiles>,
    /// Calls that one connection may have open at a time.
    pub max_concurrent_streams: u32,
    /// Connections at a time.
    pub max_connections: usize,
}

impl Clients {
    /// Connections at a time, whatever the setting: a process has no more file descriptors for them.
    pub const CONNECTIONS_MAX: u64 = 1_000_000;
}

impl Check<'_> {
    pub(super) fn clients(&self) -> Result<Clients, ConfigError> {
        let default = GatewayConfig::default();
        let streams = self.settings.max_concurrent_streams;
        let streams =
            streams.map_or_else(|| default.max_concurrent_streams.into(), |count| count.0);
        let connections = self.settings.max_connections;
        let connections = connections.map_or(default.max_connections as u64, |count| count.0);
        let streams = self.within("max-concurrent-streams", streams, 1..=u32::MAX.into())?;
        Ok(Clients {
            tls: self.client_tls()?,
            max_concurrent_streams: u32::try_from(streams).unwrap_or(u32::MAX),
            max_connections: self.within(
                "max-connections",
                connections,
                1..=Clients::CONNECTIONS_MAX,
            )?,
        })
    }

    /// Certificates come whole or not at all: a client port that is open because a line is missing would be
    /// found by somebody else.
    fn client_tls(&self) -> Result<Option<ClientTlsFiles>, ConfigError> {
        let settings = &self.settings;
        let is_identity = settings.client_cert_auth.is_some_and(|switch| switch.0);
        let (cert, key) = match (&settings.cert_file, &settings.key_file) {
            (Some(cert), Some(key)) => (cert.clone(), key.clone()),
            (Some(_), None) => return Err(self.fail("cert-file", "needs \"key-file\" beside it")),
            (None, Some(_)) => return Err(self.fail("key-file", "needs \"cert-file\" beside it")),
            (None, None) if settings.trusted_ca_file.is_some() => {
                return Err(self.fail("trusted-ca-file", "needs \"cert-file\" and \"key-file\""));
            }
            (None, None) if is_identity => {
                return Err(self.fail("client-cert-auth", "needs \"cert-file\" and \"key-file\""));
            }
            (None, None) => return Ok(None),
        };
        if is_identity && settings.trusted_ca_file.is_none() {
            let what = "needs \"trusted-ca-file\": the authority of clients' certificates";
            return Err(self.fail("client-cert-auth", what));
        }
        let trusted_ca = settings.trusted_ca_file.clone();
        Ok(Some(ClientTlsFiles { cert, key, trusted_ca, client_cert_auth: is_identity }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::{Layers, Settings};
    use super::super::values::{Count, Switch};
    use super::super::{ServeConfig, clients::Clients};

    fn checked(change: impl FnOnce(&mut Settings)) -> Result<Clients, String> {
        let mut flags = Settings {
            cert: Some("c".into()),
            key: Some("k".into()),
            ca: Some("a".into()),
            ..Settings::default()
        };
        change(&mut flags);
        let config = ServeConfig::check(&Layers { flags, ..Layers::default() });
        config.map(|config| config.clients).map_err(|error| error.to_string())
    }

    #[test]
    fn clients_speak_without_tls_unless_there_are_certificates() {
        assert_eq!(checked(|_| {}).unwrap().tls, None);
        let tls = checked(|flags| {
            flags.cert_file = Some("s.crt".into());
            flags.key_file = Some("s.key".into());
            flags.trusted_ca_file = Some("c.crt".into());
            flags.client_cert_auth = Some(Switch(true));
        });
        let tls = tls.unwrap().tls.unwrap();
        assert!(tls.client_cert_auth && tls.trusted_ca == Some("c.crt".into()));
    }

    #[test]
    fn half_of_tls_is_refused() {
        let refused = |change: fn(&mut Settings)| checked(change).unwrap_err();
        assert_eq!(
            refused(|flags| flags.cert_file = Some("f".into())),
            "--cert-file: \"cert-file\" needs \"key-file\" beside it"
        );
        assert_eq!(
            refused(|flags| flags.key_file = Some("f".into())),
            "--key-file: \"key-file\" needs \"cert-file\" beside it"
        );
        assert_eq!(
            refused(|flags| flags.trusted_ca_file = Some("f".into())),
            "--trusted-ca-file: \"trusted-ca-file\" needs \"cert-file\" and \"key-file\""
        );
        assert_eq!(
            refused(|flags| flags.client_cert_auth = Some(Switch(true))),
            "--client-cert-auth: \"client-cert-auth\" needs \"cert-file\" and \"key-file\""
        );
        let error = refused(|flags| {
            flags.cert_file = Some("f".into());
            flags.key_file = Some("f".into());
            flags.client_cert_auth = Some(Switch(true));
        });
        assert_eq!(
            error,
            "--client-cert-auth: \"client-cert-auth\" needs \"trusted-ca-file\": \
             the authority of clients' certificates"
        );
        assert_eq!(
            checked(|flags| flags.client_cert_auth = Some(Switch(false))).unwrap().tls,
            None
        );
    }

    #[test]
    fn limits_have_bounds() {
        let clients = checked(|flags| flags.max_concurrent_streams = Some(Count(7))).unwrap();
        assert_eq!((clients.max_concurrent_streams, clients.max_connections), (7, 16_384));
        let error = checked(|flags| flags.max_concurrent_streams = Some(Count(0))).unwrap_err();
        let expected = "--max-concurrent-streams: \"max-concurrent-streams\" must be between 1 and \
                        4294967295, found 0";
        assert_eq!(error, expected);
        checked(|flags| flags.max_connections = Some(Count(0))).unwrap_err();
    }
}
