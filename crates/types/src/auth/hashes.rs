//! The forms in which passwords are kept: argon2id, and bcrypt of users that came from etcd.

/// How the hash of a password was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HashForm {
    /// As this build makes them.
    Argon2id,
    /// As etcd makes them.
    Bcrypt,
}

/// What a hash of this build's begins with, in the PHC format: its algorithm and what that costs. No other
/// costs are taken, since whoever logs in chooses when they are paid.
pub const ARGON2ID: &str = "$argon2id$v=19$m=19456,t=2,p=1$";

/// The highest cost of a bcrypt hash that is compared with: some second of one processor. etcd's default is 10.
pub const BCRYPT_COST_MAX: u32 = 14;

/// Bytes of a bcrypt hash, and where its salt begins.
const BCRYPT_BYTES: usize = 60;
const BCRYPT_SALT: usize = 7;

impl HashForm {
    /// The form of a hash; `None` when no password can be compared with it.
    #[must_use]
    pub fn of(hash: &str) -> Option<Self> {
        if hash.starts_with(ARGON2ID) {
            return Some(Self::Argon2id);
        }
        let rest =
            ["$2a$", "$2b$", "$2y$"].iter().find_map(|version| hash.strip_prefix(version))?;
        let (cost, _) = rest.split_once('$')?;
        let is_number = cost.len() == 2 && cost.bytes().all(|byte| byte.is_ascii_digit());
        let cost: u32 = cost.parse().ok().filter(|_| is_number)?;
        let is_bcrypt = hash.len() == BCRYPT_BYTES
            && (4..=BCRYPT_COST_MAX).contains(&cost)
            && hash
                .bytes()
                .skip(BCRYPT_SALT)
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'/');
        is_bcrypt.then_some(Self::Bcrypt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hashes_that_can_be_compared_with_have_a_form() {
        let bcrypt = "$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy";
        let argon2id = format!("{ARGON2ID}c29tZSBzYWx0$AAAA");
        for (hash, form) in [
            (bcrypt.to_owned(), Some(HashForm::Bcrypt)),
            (bcrypt.replace("$10$", "$14$"), Some(HashForm::Bcrypt)),
            (bcrypt.replace("$10$", "$15$"), None),
            (bcrypt.replace("$10$", "$03$"), None),
            (bcrypt.replace("$10$", "$+9$"), None),
            (bcrypt.replace("$2a$", "$1$"), None),
            (bcrypt[..59].to_owned(), None),
            (bcrypt.replace("Wy", "W$"), None),
            (bcrypt.replace("lhWy", "lhé"), None),
            (argon2id.clone(), Some(HashForm::Argon2id)),
            (argon2id.replace("t=2", "t=200"), None),
            (argon2id.replace("argon2id", "argon2i"), None),
            (String::new(), None),
            ("*".to_owned(), None),
        ] {
            assert_eq!(HashForm::of(&hash), form, "{hash}");
        }
    }
}
