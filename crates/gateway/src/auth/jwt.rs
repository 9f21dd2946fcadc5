//! Signed tokens (JWT), with etcd's claims: `username`, `revision` and `exp`.
//!
//! The algorithm is the one that was set and no other, whatever a token's head says; `exp` must be there and lie
//! ahead, without leeway.

use std::fmt;
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};

/// Longer ones are not looked at.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// What a token says.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub(crate) struct Claims {
    /// Whose it is.
    pub(crate) username: String,
    /// The auth revision that it was made at.
    pub(crate) revision: i64,
    /// Seconds since 1970 at which it ends.
    exp: u64,
}

/// Signs and verifies with one key.
#[derive(Clone)]
pub struct Jwt {
    algorithm: Algorithm,
    verifying: DecodingKey,
    /// None at a node that only verifies.
    signing: Option<EncodingKey>,
    ttl: Duration,
}

impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwt").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl Jwt {
    /// With keys as their files hold them: PEM, or the shared key itself for `HS256` and its like. Without a
    /// private key it only verifies.
    ///
    /// # Errors
    /// In words, when the algorithm is not known or a key is not one for it.
    pub(super) fn new(
        algorithm: &str,
        public: Option<&[u8]>,
        private: Option<&[u8]>,
        ttl: Duration,
    ) -> Result<Self, String> {
        let algorithm: Algorithm =
            algorithm.parse().map_err(|_| format!("sign-method {algorithm} is not known"))?;
        let wrong = |which: &'static str| {
            move |error: jsonwebtoken::errors::Error| format!("{which}: {error}")
        };
        let public_pem = public.ok_or("pub-key is missing");
        let (verifying, signing) = match algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
                let key = private.ok_or("priv-key is missing")?;
                if key.len() < 32 {
                    return Err("priv-key has less than 32 bytes".to_owned());
                }
                (DecodingKey::from_secret(key), Some(EncodingKey::from_secret(key)))
            }
            Algorithm::RS256
            | Algorithm::RS384
            | Algorithm::RS512
            | Algorithm::PS256
            | Algorithm::PS384
            | Algorithm::PS512 => (
                DecodingKey::from_rsa_pem(public_pem?).map_err(wrong("pub-key"))?,
                private.map(EncodingKey::from_rsa_pem).transpose().map_err(wrong("priv-key"))?,
            ),
            Algorithm::ES256 | Algorithm::ES384 => (
                DecodingKey::from_ec_pem(public_pem?).map_err(wrong("pub-key"))?,
                private.map(EncodingKey::from_ec_pem).transpose().map_err(wrong("priv-key"))?,
            ),
            Algorithm::EdDSA => (
                DecodingKey::from_ed_pem(public_pem?).map_err(wrong("pub-key"))?,
                private.map(EncodingKey::from_ed_pem).transpose().map_err(wrong("priv-key"))?,
            ),
        };
        Ok(Self { algorithm, verifying, signing, ttl })
    }

    /// A token for a user; `None` at a node that only verifies, or when signing fails.
    pub(super) fn make(&self, user: &str, auth_revision: i64, unix_ms: u64) -> Option<String> {
        let exp = unix_ms / 1000 + self.ttl.as_secs();
        let claims = Claims { username: user.to_owned(), revision: auth_revision, exp };
        encode(&Header::new(self.algorithm), &claims, self.signing.as_ref()?).ok()
    }

    /// What the token says, if it is signed with our key by our algorithm and has not ended.
    pub(super) fn open(&self, token: &str) -> Option<Claims> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let mut validation = Validation::new(self.algorithm);
        validation.leeway = 0;
        // An audience that somebody else's library put in is not ours to judge, as etcd's does not.
        validation.validate_aud = false;
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp"]);
        let claims = decode::<Claims>(token, &self.verifying, &validation).ok()?.claims;
        (!claims.username.is_empty() && claims.revision > 0).then_some(claims)
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use proptest::prelude::*;
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};

    use super::super::token::Now;
    use super::*;

    const TTL: Duration = Duration::from_secs(300);

    fn es256() -> (Jwt, KeyPair) {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let (public, private) = (pair.public_key_pem(), pair.serialize_pem());
        let jwt = Jwt::new("ES256", Some(public.as_bytes()), Some(private.as_bytes()), TTL);
        (jwt.expect("keys of its kind"), pair)
    }

    fn part(json: &str) -> String {
        URL_SAFE_NO_PAD.encode(json)
    }

    #[test]
    fn a_token_is_good_until_it_ends() {
        let (jwt, _) = es256();
        let now = Now::read().unix_ms;
        let token = jwt.make("u", 7, now).expect("it signs");
        let claims = jwt.open(&token).expect("it is good");
        assert_eq!((claims.username.as_str(), claims.revision), ("u", 7));
        let old = jwt.make("u", 7, now - 301_000).expect("it signs");
        assert_eq!(jwt.open(&old), None);
    }

    #[test]
    fn ed25519_signs_too_and_a_key_of_another_kind_is_refused() {
        let pair = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let (public, private) = (pair.public_key_pem(), pair.serialize_pem());
        let keys = (Some(public.as_bytes()), Some(private.as_bytes()));
        let jwt = Jwt::new("EdDSA", keys.0, keys.1, TTL).expect("keys of its kind");
        let token = jwt.make("u", 1, Now::read().unix_ms).expect("it signs");
        assert!(jwt.open(&token).is_some());
        assert_eq!(es256().0.open(&token), None);
        assert!(Jwt::new("RS256", keys.0, keys.1, TTL).is_err());
        assert!(Jwt::new("none", keys.0, keys.1, TTL).is_err());
        assert!(Jwt::new("HS256", None, Some(b"short"), TTL).is_err());
        assert!(Jwt::new("ES256", None, None, TTL).is_err());
    }

    #[test]
    fn no_token_chooses_its_own_algorithm() {
        let (jwt, pair) = es256();
        let body = part(r#"{"username":"root","revision":1,"exp":99999999999}"#);
        for head in [r#"{"alg":"none"}"#, r#"{"alg":"None","typ":"JWT"}"#, r#"{"alg":"ES256"}"#] {
            assert_eq!(jwt.open(&format!("{}.{body}.", part(head))), None, "{head}");
        }
        // The public key as the shared key of a MAC, which a careless verifier would take.
        let public = pair.public_key_pem();
        let claims = Claims { username: "root".into(), revision: 1, exp: 99_999_999_999 };
        let shared = EncodingKey::from_secret(public.as_bytes());
        let token = encode(&Header::new(Algorithm::HS256), &claims, &shared).expect("it signs");
        assert_eq!(jwt.open(&token), None);
    }

    #[test]
    fn a_token_without_a_claim_or_with_a_strange_one_is_refused_without_a_panic() {
        let (jwt, pair) = es256();
        let private = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).expect("a key");
        let far = 99_999_999_999u64;
        let good = format!(r#"{{"username":"u","revision":1,"exp":{far}}}"#);
        let bad = [
            format!(r#"{{"revision":1,"exp":{far}}}"#),
            format!(r#"{{"username":"u","exp":{far}}}"#),
            r#"{"username":"u","revision":1}"#.to_owned(),
            format!(r#"{{"username":"","revision":1,"exp":{far}}}"#),
            format!(r#"{{"username":"u","revision":"1","exp":{far}}}"#),
            format!(r#"{{"username":"u","revision":-1,"exp":{far}}}"#),
            r#"{"username":"u","revision":1,"exp":"99999999999"}"#.to_owned(),
            format!(r#"{{"username":["u"],"revision":1.5,"exp":{far}}}"#),
        ];
        for (json, expected) in bad.iter().map(|json| (json, false)).chain([(&good, true)]) {
            let value: Json = Json(json.clone());
            let token = encode(&Header::new(Algorithm::ES256), &value, &private).expect("it signs");
            assert_eq!(jwt.open(&token).is_some(), expected, "{json}");
        }
        assert_eq!(jwt.open(&"a".repeat(TOKEN_BYTES_MAX + 1)), None);
    }

    /// JSON as it stands.
    struct Json(String);

    impl Serialize for Json {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let value: serde_json::Value = serde_json::from_str(&self.0).expect("JSON");
            value.serialize(serializer)
        }
    }

    proptest! {
        #[test]
        fn whatever_a_client_sends_is_no_token(token in ".{0,200}", json in ".{0,60}") {
            let key = [7; 32];
            let jwt = Jwt::new("HS256", None, Some(&key), TTL).expect("a key");
            prop_assert_eq!(jwt.open(&token), None);
            let parts = format!("{}.{}.{}", part(r#"{"alg":"HS256"}"#), part(&json), part(&token));
            prop_assert_eq!(jwt.open(&parts), None);
        }
    }
}
