//! Whom a certificate names, and until when.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The client's certificate, checked against `--trusted-ca-file`. It is an extension of every gRPC request
/// of a connection that showed one while `--client-cert-auth` is on; requests of the JSON gateway never
/// carry it, as etcd's do not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientCertificate {
    /// The common name of its subject: who the client is, where users and roles are in force.
    pub common_name: Arc<str>,
}

impl ClientCertificate {
    /// Reads a certificate. `None` when its subject has no common name, an empty one, or several: whoever
    /// signs names of machines may not have meant any of them as a user.
    pub(crate) fn from_der(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let mut names = certificate.subject().iter_common_name();
        let name = names.next()?.as_str().ok()?;
        let is_only_one = names.next().is_none();
        (is_only_one && !name.is_empty()).then(|| Self { common_name: name.into() })
    }
}

/// When a certificate ends, in seconds since 1970; `None` when it cannot be read.
pub(crate) fn expires_s(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};

    use super::*;

    fn certificate(names: &[&str]) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for name in names {
            params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String((*name).into()));
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn a_common_name_names_the_client_and_an_empty_one_nobody() {
        let name = |names: &[&str]| ClientCertificate::from_der(&certificate(names));
        assert_eq!(name(&["alice"]).unwrap().common_name.as_ref(), "alice");
        assert_eq!(name(&["älice, root"]).unwrap().common_name.as_ref(), "älice, root");
        assert_eq!(name(&[""]), None);
        assert_eq!(name(&[]), None);
        assert!(expires_s(&certificate(&["a"])).unwrap() > 1_800_000_000);
    }

    #[test]
    fn a_subject_with_two_common_names_names_nobody() {
        // The library that makes certificates keeps one name of each kind, so the second is written over
        // an organisation of the same length: both have object ids of three bytes.
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "alice");
        params.distinguished_name.push(DnType::OrganizationName, "root");
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let der: Vec<u8> = made.der().to_vec();
        assert!(ClientCertificate::from_der(&der.clone().into()).is_some());
        let (organisation, common_name) = ([0x55, 4, 10], [0x55, 4, 3]);
        let mut twice = der;
        for at in 0..twice.len() - 3 {
            if twice[at..at + 3] == organisation {
                twice[at..at + 3].copy_from_slice(&common_name);
            }
        }
        assert_eq!(ClientCertificate::from_der(&twice.into()), None);
    }

    proptest! {
        #[test]
        fn random_bytes_name_nobody(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let certificate = CertificateDer::from(bytes);
            prop_assert_eq!(ClientCertificate::from_der(&certificate), None);
            prop_assert_eq!(expires_s(&certificate), None);
        }
    }
}
