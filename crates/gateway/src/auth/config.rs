//! What an operator may set about tokens and passwords.

use std::time::Duration;

use super::jwt::Jwt;

/// How tokens are made and how passwords are worked on.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    /// What tokens are. Default: simple ones.
    pub tokens: TokenKind,
    /// How long a simple token lives after its last use at a node. Default 300 s, as etcd's.
    pub token_ttl: Duration,
    /// Passwords that are hashed at a time; each takes 19 MiB and a thread. Default: a thread for every second
    /// processor, at least 1 and at most 4, so that logins never take all of a node.
    pub hashing_threads: usize,
    /// Logins that wait for one of those; further ones get `etcdserver: too many requests`. Default 256: at
    /// some 30 ms each, a client waits for no longer than its own timeout.
    pub hashing_queue: usize,
}

/// What tokens are.
#[derive(Clone, Debug)]
pub enum TokenKind {
    /// Ours, which every node of the cluster can check.
    Simple,
    /// Signed ones, which others can make and check too.
    Jwt(Box<Jwt>),
}

/// Why a setting of tokens is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct AuthConfigError(String);

/// How long a signed token lives unless the setting says; as etcd's.
const JWT_TTL: Duration = Duration::from_secs(5 * 60);

impl Default for AuthConfig {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            tokens: TokenKind::Simple,
            token_ttl: Duration::from_secs(300),
            hashing_threads: (processors / 2).clamp(1, 4),
            hashing_queue: 256,
        }
    }
}

impl TokenKind {
    /// Reads etcd's form: `simple`, or `jwt,sign-method=ES256,pub-key=FILE,priv-key=FILE,ttl=5m`. `read` reads a
    /// file.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(
        text: &str,
        read: impl Fn(&str) -> std::io::Result<Vec<u8>>,
    ) -> Result<Self, AuthConfigError> {
        let (kind, options) = text.split_once(',').unwrap_or((text, ""));
        match kind {
            "simple" | "" if options.is_empty() => Ok(Self::Simple),
            "jwt" => {
                jwt(options, read).map(|jwt| Self::Jwt(Box::new(jwt))).map_err(AuthConfigError)
            }
            _ => Err(AuthConfigError(format!("must be simple or jwt,..., found {text:?}"))),
        }
    }
}

fn jwt(options: &str, read: impl Fn(&str) -> std::io::Result<Vec<u8>>) -> Result<Jwt, String> {
    let (mut method, mut public, mut private, mut ttl) = (None, None, None, JWT_TTL);
    let file = |key: &str, path: &str| read(path).map_err(|error| format!("{key} {path}: {error}"));
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let (key, value) =
            option.split_once('=').ok_or_else(|| format!("{option:?} has no value"))?;
        match key {
            "sign-method" => method = Some(value),
            "pub-key" => public = Some(file(key, value)?),
            "priv-key" => private = Some(file(key, value)?),
            "ttl" => ttl = span(value).ok_or_else(|| format!("ttl {value:?} is no time"))?,
            _ => return Err(format!("{key:?} is not known")),
        }
    }
    let method = method.ok_or("sign-method is missing")?;
    Jwt::new(method, public.as_deref(), private.as_deref(), ttl)
}

/// A time as etcd writes it: `5m`, `90s`, `1h`.
fn span(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit_s = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    let seconds = number.parse::<u64>().ok()?.checked_mul(unit_s)?;
    (1..=365 * 24 * 3600).contains(&seconds).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TokenKind, AuthConfigError> {
        TokenKind::parse(text, |path| match path {
            "key" => Ok(vec![7; 32]),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        })
    }

    #[test]
    fn the_setting_is_read_as_etcds_and_says_what_is_wrong() {
        assert!(matches!(parse("simple"), Ok(TokenKind::Simple)));
        assert!(matches!(
            parse("jwt,sign-method=HS256,priv-key=key,ttl=10m"),
            Ok(TokenKind::Jwt(_))
        ));
        for (text, words) in [
            ("jwt", "sign-method is missing"),
            ("jwt,sign-method=none,priv-key=key", "sign-method none is not known"),
            ("jwt,sign-method=HS256", "priv-key is missing"),
            ("jwt,sign-method=RS256,pub-key=gone", "pub-key gone: entity not found"),
            ("jwt,sign-method=HS256,priv-key=key,ttl=0s", "ttl \"0s\" is no time"),
            ("jwt,colour=red", "\"colour\" is not known"),
            ("jwt,sign-method", "\"sign-method\" has no value"),
            ("simple,x", "must be simple or jwt,..., found \"simple,x\""),
            ("basic", "must be simple or jwt,..., found \"basic\""),
        ] {
            assert_eq!(parse(text).expect_err(text).to_string(), words);
        }
        assert_eq!(span("5m"), Some(Duration::from_secs(300)));
        assert_eq!(span("m"), None);
    }
}
