//! Names in certificates: which node of which cluster a certificate speaks for.
//!
//! A node's certificate carries, beside any host names and addresses, exactly one DNS name of ours:
//!
//! ```text
//! <node> ".node." <cluster> ".quorate"
//! ```
//!
//! `<node>` and `<cluster>` are the names themselves where they are one plain DNS label: 1 to 63 of
//! `a-z 0-9 -`, no hyphen at either end, not beginning with `x--`. Any other name (dots, capitals,
//! underscores, other scripts) is written as its UTF-8 bytes in base32hex (RFC 4648 section 7, lower
//! case, no padding), cut into labels of 60 characters, each preceded by `x--`. Two different pairs of
//! names never share a DNS name, so comparing DNS names compares the pairs.

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The longest name of a node or a cluster, in bytes: two of them, encoded, fit a DNS name.
pub const NAME_BYTES_MAX: usize = 64;

/// What ends every name of ours in a certificate.
const SUFFIX: &str = ".quorate";

/// What begins a label that holds base32hex.
const ENCODED: &str = "x--";

/// Characters of base32hex per label: with [`ENCODED`] a label has its 63 at most.
const ENCODED_LABEL_CHARS: usize = 60;

const BASE32HEX: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

/// A name that no certificate can carry.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a name must have 1 to {NAME_BYTES_MAX} bytes, this one has {bytes}")]
pub struct NameError {
    /// How long it is.
    pub bytes: usize,
}

/// The DNS name of a node's certificate.
///
/// # Errors
/// When either name is empty or longer than [`NAME_BYTES_MAX`].
pub fn certificate_name(cluster_name: &str, node_name: &str) -> Result<String, NameError> {
    Ok(format!("{}.node.{}{SUFFIX}", encode(node_name)?, encode(cluster_name)?))
}

/// Why a certificate does not speak for the node that its holder claims to be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("the certificate cannot be read")]
    Unreadable,
    #[error("the certificate names no node of a Quorate cluster")]
    Nameless,
    #[error("the certificate names more than one node")]
    Ambiguous,
    #[error("the certificate is for {certified}, not for {claimed}")]
    Other { certified: String, claimed: String },
}

/// Checks that `certificate` names exactly one node, by the DNS name `claimed`. An exact match, so
/// that a wildcard never speaks for a node.
pub(crate) fn check_certificate(
    certificate: &CertificateDer<'_>,
    claimed: &str,
) -> Result<(), CertificateError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|_| CertificateError::Unreadable)?;
    let names = parsed.subject_alternative_name().map_err(|_| CertificateError::Unreadable)?;
    let names = names.map_or(&[][..], |extension| &extension.value.general_names[..]);
    let mut ours = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) if name.ends_with(SUFFIX) => Some(*name),
        _ => None,
    });
    let certified = ours.next().ok_or(CertificateError::Nameless)?;
    if ours.next().is_some() {
        return Err(CertificateError::Ambiguous);
    }
    if certified != claimed {
        let (certified, claimed) = (certified.escape_default().to_string(), claimed.to_owned());
        return Err(CertificateError::Other { certified, claimed });
    }
    Ok(())
}

fn encode(name: &str) -> Result<String, NameError> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(NameError { bytes: name.len() });
    }
    if is_plain(name) {
        return Ok(name.to_owned());
    }
    let digits = base32hex(name.as_bytes());
    let labels = digits.as_bytes().chunks(ENCODED_LABEL_CHARS).map(|label| {
        let digits: String = label.iter().map(|byte| char::from(*byte)).collect();
        format!("{ENCODED}{digits}")
    });
    Ok(labels.collect::<Vec<_>>().join("."))
}

fn is_plain(name: &str) -> bool {
    name.len() <= 63
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.starts_with(ENCODED)
}

fn base32hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    for chunk in bytes.chunks(5) {
        let mut group = [0; 8];
        group[3..3 + chunk.len()].copy_from_slice(chunk);
        let group = u64::from_be_bytes(group);
        for digit in 0..(chunk.len() * 8).div_ceil(5) {
            let value = (group >> (35 - 5 * digit)) & 31;
            text.push(char::from(BASE32HEX[value as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls::pki_types::ServerName;

    use super::*;

    #[test]
    fn plain_names_stay_readable_and_others_are_encoded() {
        let name = |cluster, node| certificate_name(cluster, node).unwrap();
        assert_eq!(name("prod", "infra-0"), "infra-0.node.prod.quorate");
        assert_eq!(name("prod", "node"), "node.node.prod.quorate");
        // RFC 4648 section 10 has the vectors of base32hex.
        assert_eq!(base32hex(b"foobar"), "cpnmuoj1e8");
        assert_eq!(base32hex(b"fooba"), "cpnmuoj1");
        assert_eq!(base32hex(b"f"), "co");
        assert_eq!(name("Prod", "a.b"), "x--c4n64.node.x--a1p6up0.quorate");
    }

    #[test]
    fn a_name_that_looks_encoded_is_encoded_again() {
        assert_ne!(encode("x--c4n64").unwrap(), "x--c4n64");
    }

    #[test]
    fn empty_and_overlong_names_are_refused() {
        assert_eq!(certificate_name("", "n"), Err(NameError { bytes: 0 }));
        assert_eq!(certificate_name("c", &"n".repeat(65)), Err(NameError { bytes: 65 }));
    }

    proptest! {
        #[test]
        fn every_name_makes_a_valid_dns_name(cluster in ".{1,16}", node in ".{1,16}") {
            let name = certificate_name(&cluster, &node).unwrap();
            prop_assert!(matches!(ServerName::try_from(name), Ok(ServerName::DnsName(_))));
        }

        #[test]
        fn different_names_make_different_dns_names(
            one in ("[a-bA-B.x-]{1,5}", "[a-bA-B.x-]{1,5}"),
            two in ("[a-bA-B.x-]{1,5}", "[a-bA-B.x-]{1,5}"),
        ) {
            let dns = |pair: &(String, String)| certificate_name(&pair.0, &pair.1).unwrap();
            prop_assert_eq!(one == two, dns(&one) == dns(&two));
        }

        #[test]
        fn random_bytes_are_no_certificate(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(check_certificate(&bytes.into(), "a.node.c.quorate").is_err());
        }
    }

    #[test]
    fn the_longest_names_fit() {
        let long = "ß".repeat(32);
        let name = certificate_name(&long, &long).unwrap();
        assert!(name.len() <= 253, "{} characters", name.len());
        assert!(ServerName::try_from(name).is_ok());
    }
}
