//! The ticket: what a browser hands back as `pid` to be served as the one it was.
//!
//! Sealed, so that any node with the key can open it and nobody can make or read one; there is no session store.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305,
    aead::{Aead, Payload},
};
use rand::Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::User;
use crate::config::Secret;

/// Bytes of XChaCha20-Poly1305's nonce, which is random.
const NONCE: usize = 24;

/// Bound into every seal, so that the key of another purpose or version opens nothing.
const PURPOSE: &[u8] = b"loomio-channels ticket 1";

/// Longest sealed ticket in bytes; 10,000 groups take about 150,000.
const MAX_SEALED: usize = 512 * 1024;

/// A browser's session as it was when it began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// The session's public id.
    #[serde(rename = "s")]
    pub session: String,
    /// Who it was, `None` for a visitor.
    #[serde(rename = "u")]
    pub user: Option<User>,
    /// When it began, in seconds since 1970.
    #[serde(rename = "t")]
    pub issued: u64,
    /// Up to where it was served then.
    #[serde(rename = "o")]
    pub offset: String,
    /// Whether the session began before Redis had said whose it is. It may have got less than it should have, and what
    /// it got says nothing of that: it must be served from `offset` again.
    #[serde(rename = "p", default, skip_serializing_if = "std::ops::Not::not")]
    pub provisional: bool,
}

/// Seals and opens tickets.
pub struct Tickets(XChaCha20Poly1305);

impl Tickets {
    /// Tickets with a key made from `secret`, which every node with the same secret can open.
    pub fn with_secret(secret: &Secret) -> Self {
        let key = Sha256::new().chain_update(PURPOSE).chain_update(secret.expose()).finalize();
        Self(XChaCha20Poly1305::new(&key))
    }

    /// Tickets with a random key, which nobody else can open.
    pub fn with_random_key() -> Self {
        let mut key = [0; 32];
        rand::rng().fill_bytes(&mut key);
        Self(XChaCha20Poly1305::new(&key.into()))
    }

    /// The ticket as text of letters, digits, `-` and `_`.
    pub fn seal(&self, ticket: &Ticket) -> String {
        let mut sealed = vec![0; NONCE];
        rand::rng().fill_bytes(&mut sealed);
        let nonce: [u8; NONCE] = sealed.as_slice().try_into().unwrap_or_default();
        // Neither can fail: the ticket has only text and numbers, and it is far below the cipher's limit.
        let plain = serde_json::to_vec(ticket).unwrap_or_default();
        let payload = Payload { msg: &plain, aad: PURPOSE };
        sealed.extend(self.0.encrypt(&nonce.into(), payload).unwrap_or_default());
        URL_SAFE_NO_PAD.encode(sealed)
    }

    /// The ticket in `text`, if it was sealed with the same key and not touched since.
    pub fn open(&self, text: &str) -> Option<Ticket> {
        if text.len() > MAX_SEALED {
            return None;
        }
        let sealed = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE>()?;
        let plain = self.0.decrypt(&(*nonce).into(), Payload { msg: sealed, aad: PURPOSE }).ok()?;
        serde_json::from_slice(&plain).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ticket() -> Ticket {
        let user = User { id: Some("45".to_owned()), groups: vec!["1".to_owned(), "2".to_owned()] };
        Ticket {
            session: "abc".to_owned(),
            user: Some(user),
            issued: 1_700_000_000,
            offset: "x".to_owned(),
            provisional: false,
        }
    }

    #[test]
    fn a_ticket_opens_with_its_key_only() {
        let key = |text| Tickets::with_secret(&Secret::new(text));
        let sealed = key("one").seal(&ticket());
        assert_eq!(key("one").open(&sealed), Some(ticket()));
        assert_eq!(key("two").open(&sealed), None);
        assert_eq!(Tickets::with_random_key().open(&sealed), None);
        assert_ne!(key("one").seal(&ticket()), sealed, "nonces differ");
    }

    #[test]
    fn ten_thousand_groups_fit() {
        let groups = (1_000_000..1_010_000).map(|id| id.to_string()).collect();
        let ticket = Ticket { user: Some(User { id: Some("45".to_owned()), groups }), ..ticket() };
        let tickets = Tickets::with_random_key();
        assert_eq!(tickets.open(&tickets.seal(&ticket)), Some(ticket));
    }

    proptest! {
        #[test]
        fn a_touched_ticket_does_not_open(position: prop::sample::Index, to: u8) {
            let tickets = Tickets::with_random_key();
            let mut sealed = tickets.seal(&ticket()).into_bytes();
            let byte = position.get_mut(&mut sealed);
            prop_assume!(*byte != to);
            *byte = to;
            if let Ok(text) = String::from_utf8(sealed) {
                prop_assert_eq!(tickets.open(&text), None);
            }
        }

        #[test]
        fn any_text_is_no_ticket(text: String) {
            prop_assert_eq!(Tickets::with_random_key().open(&text), None);
        }
    }
}
