//! Tokens for passwords, valid at every node.
//!
//! A token says whose it is, at which auth revision and when it was made, under a MAC with the secret that all
//! replicas have since users count. So every node can check one that it has never seen, none is replicated or
//! stored, and a storm of clients that log in again writes nothing to the log. Switching users off and on draws
//! a new secret, which ends all tokens; a new password ends its user's, and so does the end of the user. What roles
//! are taken or deleted changes what a token opens, not whether it is one.
//!
//! As etcd's, a token lives for its time to live after its last use *at a node*: what a node has not seen it takes
//! for that long after it was made. Clocks of nodes are compared with each other only there.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use prost::Message;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

/// What a token begins with: the form, so that it can change.
const FORM: &str = "q1";

/// Longer ones are not looked at.
const TOKEN_BYTES_MAX: usize = 4096;

/// Tokens whose last use is remembered, 100 bytes each. Beyond, a token lives from when it was made.
const USES_MAX: usize = 100_000;

/// What a token says.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Claims {
    /// Whose it is.
    #[prost(string, tag = "1")]
    pub(crate) user: String,
    /// The auth revision that it was made at.
    #[prost(int64, tag = "2")]
    pub(crate) auth_revision: i64,
    /// When it was made.
    #[prost(uint64, tag = "3")]
    issued_unix_ms: u64,
    /// Tells two tokens of one millisecond apart.
    #[prost(fixed64, tag = "4")]
    nonce: u64,
}

/// A token taken apart; nothing in it is proven yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Unproven {
    claims: Claims,
    signed: String,
    mac: [u8; 32],
}

/// Makes and checks tokens of one node.
#[derive(Debug)]
pub(crate) struct SimpleTokens {
    ttl: Duration,
    /// By MAC, the end of what was used here.
    uses: Mutex<HashMap<[u8; 32], Instant>>,
}

/// The time, as both clocks have it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) instant: Instant,
    pub(crate) unix_ms: u64,
}

impl Now {
    /// As of now.
    pub(crate) fn read() -> Self {
        let unix = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let unix_ms = unix.map_or(0, |since| since.as_millis() as u64);
        Self { instant: Instant::now(), unix_ms }
    }
}

impl SimpleTokens {
    pub(crate) fn new(ttl: Duration) -> Self {
        Self { ttl, uses: Mutex::default() }
    }

    /// A token for a user. `None` when the system has no random bytes to give.
    pub(crate) fn make(
        &self,
        secret: &Bytes,
        user: &str,
        auth_revision: i64,
        now: Now,
    ) -> Option<String> {
        let mut nonce = [0; 8];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let claims = Claims {
            user: user.to_owned(),
            auth_revision,
            issued_unix_ms: now.unix_ms,
            nonce: u64::from_ne_bytes(nonce),
        };
        let signed = format!("{FORM}.{}", URL_SAFE_NO_PAD.encode(claims.encode_to_vec()));
        let mac = hmac::sign(&key(secret), signed.as_bytes());
        Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac)))
    }

    /// What the token says, if it was made with the secret and lives still: from now on for its time to live.
    /// Whether its user is still the same is for the caller to see.
    pub(crate) fn open(&self, secret: &Bytes, token: &Unproven, now: Now) -> Option<Claims> {
        if secret.is_empty() {
            return None;
        }
        // In constant time.
        hmac::verify(&key(secret), token.signed.as_bytes(), &token.mac).ok()?;
        let mut uses = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
        match uses.get_mut(&token.mac) {
            Some(end) if *end < now.instant => {
                uses.remove(&token.mac);
                return None;
            }
            Some(end) => *end = now.instant + self.ttl,
            None => {
                let ttl_ms = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
                if token.claims.issued_unix_ms.saturating_add(ttl_ms) < now.unix_ms {
                    return None;
                }
                if uses.len() >= USES_MAX {
                    uses.retain(|_, end| *end >= now.instant);
                }
                if uses.len() < USES_MAX {
                    uses.insert(token.mac, now.instant + self.ttl);
                }
            }
        }
        Some(token.claims.clone())
    }
}

impl Unproven {
    /// Takes a token apart. `None`: it is none of this form.
    pub(crate) fn parse(token: &str) -> Option<Self> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (signed, mac) = token.rsplit_once('.')?;
        let payload = signed.strip_prefix(FORM)?.strip_prefix('.')?;
        let mac = URL_SAFE_NO_PAD.decode(mac).ok()?.try_into().ok()?;
        let claims = Claims::decode(&*URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        Some(Self { claims, signed: signed.to_owned(), mac })
    }

    /// The auth revision that it claims to be of.
    pub(crate) const fn auth_revision(&self) -> i64 {
        self.claims.auth_revision
    }
}

fn key(secret: &Bytes) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, secret)
}

/// 32 random bytes for [`SimpleTokens`]; `None` when the system has none to give.
pub(crate) fn secret() -> Option<Bytes> {
    let mut secret = [0; 32];
    SystemRandom::new().fill(&mut secret).ok()?;
    Some(Bytes::copy_from_slice(&secret))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TTL: Duration = Duration::from_secs(300);

    fn at(start: Now, seconds: u64) -> Now {
        Now {
            instant: start.instant + Duration::from_secs(seconds),
            unix_ms: start.unix_ms + seconds * 1000,
        }
    }

    fn made(tokens: &SimpleTokens, secret: &Bytes, now: Now) -> Unproven {
        let token = tokens.make(secret, "u", 7, now).expect("random bytes");
        Unproven::parse(&token).expect("it is one of ours")
    }

    #[test]
    fn a_token_is_good_at_a_node_that_has_never_seen_it_and_lives_from_its_last_use() {
        let (here, there) = (SimpleTokens::new(TTL), SimpleTokens::new(TTL));
        let (secret, start) = (secret().expect("random bytes"), Now::read());
        let token = made(&here, &secret, start);
        assert_eq!(there.open(&secret, &token, at(start, 299)).expect("it lives").user, "u");
        assert!(there.open(&secret, &token, at(start, 500)).is_some(), "it was used meanwhile");
        assert!(here.open(&secret, &token, at(start, 500)).is_none(), "not here");
        assert!(there.open(&secret, &token, at(start, 801)).is_none(), "it was idle");
        assert!(there.open(&secret, &token, at(start, 802)).is_none(), "and stays dead");
    }

    #[test]
    fn a_token_of_another_secret_or_with_another_user_is_none() {
        let (tokens, start) = (SimpleTokens::new(TTL), Now::read());
        let secret_now = secret().expect("random bytes");
        let token = made(&tokens, &secret_now, start);
        assert!(tokens.open(&secret().expect("random bytes"), &token, start).is_none());
        assert!(tokens.open(&Bytes::new(), &token, start).is_none(), "before there is a secret");
        let claims = Claims { user: "root".to_owned(), ..token.claims.clone() };
        let signed = format!("{FORM}.{}", URL_SAFE_NO_PAD.encode(claims.encode_to_vec()));
        let forged = Unproven { claims, signed, mac: token.mac };
        assert!(tokens.open(&secret_now, &forged, start).is_none());
        assert!(tokens.open(&secret_now, &token, start).is_some());
    }

    proptest! {
        #[test]
        fn whatever_a_client_sends_is_a_token_or_none(token in "(q1)?[.]?[-_a-zA-Z0-9.=]{0,80}") {
            if let Some(parsed) = Unproven::parse(&token) {
                let secret = Bytes::from_static(b"secret");
                prop_assert!(SimpleTokens::new(TTL).open(&secret, &parsed, Now::read()).is_none());
            }
        }

        #[test]
        fn any_changed_byte_makes_a_token_worthless(at in any::<prop::sample::Index>(), to in "[a-zA-Z0-9._-]") {
            let (tokens, secret, now) = (SimpleTokens::new(TTL), Bytes::from_static(b"s"), Now::read());
            let token = tokens.make(&secret, "user", 3, now).expect("random bytes");
            let at = at.index(token.len());
            let changed = format!("{}{to}{}", &token[..at], &token[at + 1..]);
            prop_assume!(changed != token);
            let open = Unproven::parse(&changed).and_then(|parsed| tokens.open(&secret, &parsed, now));
            prop_assert_eq!(open, None);
        }
    }
}
