//! The work that passwords are: argon2id, off the runtime, a few at a time.
//!
//! Users that came from etcd keep their bcrypt hashes until they get another password.
//!
//! One hash takes 19 MiB and two passes (the least that OWASP advises), some 30 ms of one processor. So it is done
//! on threads of its own, at most [`AuthConfig::hashing_threads`](super::AuthConfig::hashing_threads) at a time,
//! with a bounded queue before them: a storm of logins costs a fixed share of the node, and no put waits behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use metrics::Gauge;
use quorate_types::auth::HashForm;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::Semaphore;

use super::config::AuthConfig;
use crate::error::ApiError;

/// KiB of memory of one hash.
const MEMORY_KIB: u32 = 19 * 1024;

/// Passes over that memory.
const PASSES: u32 = 2;

/// What is compared with when there is no hash: it costs the same, and fits no password.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$c29tZSBzYWx0IG9mIG5vYm9keQ$\
                      AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Hashes and compares.
#[derive(Debug)]
pub(crate) struct Passwords {
    free: Arc<Semaphore>,
    waiting: AtomicUsize,
    queue: usize,
    shown: Gauge,
}

/// A place in the queue.
struct Place<'p>(&'p Passwords);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
        self.0.shown.decrement(1);
    }
}

impl Passwords {
    pub(crate) fn new(config: &AuthConfig, shown: Gauge) -> Self {
        let threads = config.hashing_threads.max(1);
        Self {
            free: Arc::new(Semaphore::new(threads)),
            waiting: AtomicUsize::new(0),
            queue: config.hashing_queue + threads,
            shown,
        }
    }

    /// The hash of a password, in the PHC format.
    ///
    /// # Errors
    /// [`ApiError::TooManyRequests`] when too many wait already.
    pub(crate) async fn hash(&self, password: String) -> Result<String, ApiError> {
        self.run(move || {
            let mut salt = [0; 16];
            SystemRandom::new().fill(&mut salt).ok()?;
            let salt = SaltString::encode_b64(&salt).ok()?;
            let hash = argon2()?.hash_password(password.as_bytes(), &salt).ok()?;
            Some(hash.to_string())
        })
        .await?
        .ok_or(ApiError::HashingFailed)
    }

    /// Whether the password is the one of the hash. Without a hash it takes as long, and never is.
    ///
    /// # Errors
    /// As [`hash`](Self::hash).
    pub(crate) async fn matches(
        &self,
        password: String,
        hash: Option<String>,
    ) -> Result<bool, ApiError> {
        self.run(move || {
            let (hash, known) = match &hash {
                Some(hash) => (hash.as_str(), true),
                None => (NOBODY, false),
            };
            match HashForm::of(hash) {
                Some(HashForm::Argon2id) => {
                    let Ok(parsed) = PasswordHash::new(hash) else { return false };
                    let verifier = Argon2::default();
                    verifier.verify_password(password.as_bytes(), &parsed).is_ok() && known
                }
                Some(HashForm::Bcrypt) => bcrypt::verify(&password, hash).unwrap_or(false),
                None => false,
            }
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let place = Place(self);
        self.shown.increment(1);
        if self.waiting.fetch_add(1, Ordering::AcqRel) >= self.queue {
            return Err(ApiError::TooManyRequests);
        }
        let permit = Arc::clone(&self.free).acquire_owned().await;
        let permit = permit.map_err(|_| ApiError::Stopped)?;
        let work = tokio::task::spawn_blocking(move || {
            let done = work();
            // Even if nobody waits any more: the thread is taken until now.
            drop(permit);
            done
        });
        let done = work.await.map_err(|_| ApiError::HashingFailed);
        drop(place);
        done
    }
}

fn argon2() -> Option<Argon2<'static>> {
    let params = Params::new(MEMORY_KIB, PASSES, 1, None).ok()?;
    Some(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passwords(hashing_threads: usize, hashing_queue: usize) -> Passwords {
        let config = AuthConfig { hashing_threads, hashing_queue, ..AuthConfig::default() };
        Passwords::new(&config, Gauge::noop())
    }

    #[tokio::test]
    async fn a_password_fits_its_own_hash_and_nobody_fits_none() {
        let passwords = passwords(2, 8);
        let hash = passwords.hash("secret".to_owned()).await.expect("there is room");
        assert!(hash.starts_with(quorate_types::auth::hashes::ARGON2ID), "{hash}");
        let fits = |password: &str, hash: Option<&String>| {
            passwords.matches(password.to_owned(), hash.cloned())
        };
        assert_eq!(fits("secret", Some(&hash)).await, Ok(true));
        assert_eq!(fits("Secret", Some(&hash)).await, Ok(false));
        assert_eq!(fits("", None).await, Ok(false));
        assert_eq!(fits("x", Some(&String::new())).await, Ok(false));
        let again = passwords.hash("secret".to_owned()).await.expect("there is room");
        assert_ne!(hash, again, "each has a salt of its own");
    }

    #[tokio::test]
    async fn a_password_fits_the_hash_that_etcd_made_of_it() {
        // Published examples: jBCrypt's and crypt_blowfish's.
        for (password, hash) in [
            ("abc", "$2a$06$If6bvum7DFjUnE9p2uDeDu0YHzrHM6tf.iqN8.yx.jNN1ILEf7h0i"),
            ("U*U", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"),
        ] {
            let passwords = passwords(2, 8);
            let fits = |password: &str, hash: &str| {
                passwords.matches(password.to_owned(), Some(hash.to_owned()))
            };
            assert_eq!(fits(password, hash).await, Ok(true), "{password}");
            assert_eq!(fits("other", hash).await, Ok(false), "{password}");
            assert_eq!(fits("", hash).await, Ok(false), "{password}");
            let dear = hash.replacen("$0", "$3", 1);
            assert_eq!(fits(password, &dear).await, Ok(false), "for hours nobody waits");
        }
    }

    #[test]
    fn comparing_with_nobody_costs_what_a_real_comparison_does() {
        let nobody = PasswordHash::new(NOBODY).expect("a hash");
        let params = Params::try_from(&nobody).expect("parameters");
        assert_eq!((params.m_cost(), params.t_cost(), params.p_cost()), (MEMORY_KIB, PASSES, 1));
        assert_eq!(nobody.hash.expect("an output").len(), Params::DEFAULT_OUTPUT_LEN);
    }

    #[tokio::test]
    async fn beyond_the_queue_logins_are_refused_and_give_their_place_back() {
        let passwords = passwords(1, 1);
        let login = || passwords.matches("x".to_owned(), None);
        let (first, second, third) = tokio::join!(login(), login(), login());
        assert_eq!((first, second), (Ok(false), Ok(false)));
        assert_eq!(third, Err(ApiError::TooManyRequests));
        assert_eq!(login().await, Ok(false));
    }
}
