//! The key that tickets and offsets are sealed with.

use argon2::{Algorithm, Argon2, Params, Version};
use sha2::{Digest, Sha256};

use crate::config::Secret;

/// Bytes of a key.
pub(super) const KEY: usize = 32;

/// The same for all installations: every node must derive the same key from the secret alone.
const SALT: &[u8] = b"loomio-channels ticket key 2";

/// With these, Argon2id takes about 50 ms: a browser holds something sealed with the key, and could try secrets on it.
const MEMORY_KIB: u32 = 16 * 1024;
const PASSES: u32 = 3;

/// The key of a process, or of all nodes with the same secret. Each use has its own part of it.
#[derive(Clone)]
pub struct Key([u8; KEY]);

impl Key {
    /// The key that every node with this secret has. Takes about 50 ms and, meanwhile, 16 MiB.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn derive(secret: &Secret) -> Result<Self, argon2::Error> {
        let mut key = [0; KEY];
        let params = Params::new(MEMORY_KIB, PASSES, 1, Some(KEY))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        argon2.hash_password_into(secret.expose().as_bytes(), SALT, &mut key)?;
        Ok(Self(key))
    }

    /// A key that no other process has.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// The part for `purpose`. Parts say nothing of each other or of the key.
    pub fn part(&self, purpose: &str) -> [u8; KEY] {
        Sha256::new().chain_update(self.0).chain_update(purpose).finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_secret_gives_the_same_key_and_every_purpose_its_own_part() {
        let key = |text| Key::derive(&Secret::new(text)).unwrap();
        let (one, two) = (key("one"), key("two"));
        assert_eq!(one.part("a"), key("one").part("a"));
        assert_ne!(one.part("a"), one.part("b"));
        assert_ne!(one.part("a"), two.part("a"));
        assert_ne!(Key::random().part("a"), Key::random().part("a"));
    }
}
