//! The question `may this user edit this document?` and its permitted forms.

use serde::Serialize;
use sha2::{Digest, Sha256};

/// Longest name of a document in bytes. The longest Loomio makes have about 100.
const MAX_NAME: usize = 512;

/// Longest token in bytes, user id included. Rails' have 32 to 64 and an id.
const MAX_SECRET: usize = 1_024;

/// Types of documents that Loomio can edit together today.
const KINDS: [&str; 9] =
    ["comment", "discussion", "poll", "stance", "outcome", "pollTemplate", "discussionTemplate", "group", "user"];

/// Why a question is not put to Rails. The texts are for its sender and repeat nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum InvalidCheck {
    #[error("user_secret has to have 1 to {MAX_SECRET} bytes")]
    SecretLength,
    #[error("user_secret has to be a user id, a comma and a secret")]
    SecretForm,
    #[error("document_name has to have 1 to {MAX_NAME} bytes")]
    NameLength,
    #[error("control characters are not allowed")]
    ControlCharacters,
}

/// May this user edit this document? Serialized, it is the body that Rails expects. Without `Debug`, to stay out of the
/// log.
#[derive(Clone, Serialize)]
pub struct Check {
    user_secret: String,
    document_name: String,
}

/// The SHA-256 of something secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct HashedKey([u8; 32]);

impl Check {
    /// A question in a permitted form.
    ///
    /// # Errors
    /// [`InvalidCheck`] for the first rule that a field breaks: its length, control characters, its form.
    pub fn new(user_secret: String, document_name: String) -> Result<Self, InvalidCheck> {
        if !(1..=MAX_SECRET).contains(&user_secret.len()) {
            return Err(InvalidCheck::SecretLength);
        }
        if document_name.len() > MAX_NAME || document_name.trim().is_empty() {
            return Err(InvalidCheck::NameLength);
        }
        // A NUL would end the name in the protocol between browser and Hocuspocus.
        if user_secret.chars().chain(document_name.chars()).any(char::is_control) {
            return Err(InvalidCheck::ControlCharacters);
        }
        // Rails ignores what follows a second comma and reads ids leniently. With either, one token could be written in
        // endless ways, each with an allowance and a cached answer. An empty secret becomes `nil` in Rails, which could
        // match a user without a secret.
        let is_id = |id: &str| id.parse::<u64>().is_ok_and(|number| number.to_string() == id);
        match user_secret.split_once(',') {
            Some((id, secret)) if is_id(id) && !secret.is_empty() && !secret.contains(',') => {}
            _ => return Err(InvalidCheck::SecretForm),
        }
        Ok(Self { user_secret, document_name })
    }

    /// The document's type if it is one of Loomio's, else `other`: the rest of a name is not for the log.
    pub fn kind(&self) -> &'static str {
        let kind = self.document_name.split('-').next();
        KINDS.into_iter().find(|known| Some(*known) == kind).unwrap_or("other")
    }

    /// The user's id, `0` for a visitor.
    pub fn user(&self) -> &str {
        self.user_secret.split(',').next().unwrap_or_default()
    }

    /// Whether the name is of a form in use today: `<type>-<id>-<field>` or `<type>-new-…-<field>`. A newer Rails may know
    /// more.
    pub fn has_known_name(&self) -> bool {
        let is_word = |part: &&str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let parts: Vec<&str> = self.document_name.split('-').collect();
        let is_form = match parts[..] {
            [_, "new", _, _, ..] => true,
            [_, id, _] => id.bytes().all(|byte| byte.is_ascii_digit()),
            _ => false,
        };
        is_form && self.kind() != "other" && parts.iter().all(is_word)
    }

    /// Identifies the question. Neither text can hold the separator.
    pub(super) fn key(&self) -> HashedKey {
        let hash = Sha256::new_with_prefix(&self.user_secret).chain_update([0]).chain_update(&self.document_name);
        HashedKey(hash.finalize().into())
    }

    /// Identifies the token.
    pub(super) fn token_key(&self) -> HashedKey {
        HashedKey(Sha256::digest(&self.user_secret).into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(secret: &str, name: &str) -> Result<Check, InvalidCheck> {
        Check::new(secret.to_owned(), name.to_owned())
    }

    #[test]
    fn what_loomio_asks_is_asked() {
        for name in [
            "comment-123-body",
            "comment-new-789-100-Discussion-456-body",
            "discussion-new-5-12-description",
            "stance-new-5-99-reason",
            "group-new-0123456789abcdef0123456789abcdef-description",
            "user-1-short_bio",
            "pollTemplate-7-details",
        ] {
            for secret in ["12,abcdef", "0,0123456789abcdef"] {
                assert!(check(secret, name).unwrap().has_known_name(), "{name}");
            }
        }
    }

    #[test]
    fn names_of_other_forms_are_told_apart() {
        for name in
            ["page-1-body", "comment", "comment-x-body", "comment-1-", "comment-new-1", "-1-body", "é-1-b", "a b"]
        {
            assert!(!check("1,a", name).unwrap().has_known_name(), "{name}");
        }
    }

    #[test]
    fn malformed_questions_are_told_apart() {
        let long = |length| "x".repeat(length);
        let long_id = format!("{}0,a", u64::MAX);
        for secret in [
            "1",
            "1,",
            ",a",
            ",",
            "1,,a",
            "1,a,",
            "1,a,b",
            "01,a",
            "00,a",
            "+1,a",
            " 1,a",
            "1 ,a",
            "a,b",
            "\u{661},a",
            &long_id,
        ] {
            assert_eq!(check(secret, "comment-1-body").err(), Some(InvalidCheck::SecretForm), "{secret}");
        }
        assert_eq!(check("", "comment-1-body").err(), Some(InvalidCheck::SecretLength));
        assert_eq!(check(&format!("1,{}", long(MAX_SECRET - 1)), "n").err(), Some(InvalidCheck::SecretLength));
        assert!(check(&format!("1,{}", long(MAX_SECRET - 2)), &long(MAX_NAME)).is_ok());
        for name in ["", "  ", &long(MAX_NAME + 1)] {
            assert_eq!(check("1,a", name).err(), Some(InvalidCheck::NameLength));
        }
        for (secret, name) in [("1,a", "a\0b"), ("1,a\n", "n"), ("1,a", "\u{85}n")] {
            assert_eq!(check(secret, name).err(), Some(InvalidCheck::ControlCharacters));
        }
    }

    #[test]
    fn rails_gets_the_two_fields() {
        let json = serde_json::to_string(&check("1,a\"b", "comment-1-ü").unwrap()).unwrap();
        assert_eq!(json, r#"{"user_secret":"1,a\"b","document_name":"comment-1-ü"}"#);
    }

    #[test]
    fn only_type_and_user_can_be_told_from_the_log() {
        let seen = |secret: &str, name: &str| {
            let check = check(secret, name).unwrap();
            (check.kind(), check.user().to_owned())
        };
        assert_eq!(seen("12,hunter2", "group-new-hunter2-description"), ("group", "12".to_owned()));
        assert_eq!(seen("0,hunter2", "hunter2"), ("other", "0".to_owned()));
        assert_eq!(seen("12345678901234567890,x", "-x"), ("other", "12345678901234567890".to_owned()));
    }

    #[test]
    fn a_key_stands_for_one_question() {
        let keys = [("1,a", "b"), ("1,ab", "c"), ("1,a", "bc"), ("11,a", "b")].map(|(s, n)| check(s, n).unwrap().key());
        let distinct: std::collections::HashSet<_> = keys.into_iter().collect();
        assert_eq!(distinct.len(), keys.len());
        assert!(check("1,a", "b").unwrap().token_key() == check("1,a", "c").unwrap().token_key());
    }

    proptest! {
        #[test]
        fn no_text_is_a_crash(secret: String, name: String) {
            if let Ok(check) = Check::new(secret, name) {
                let _ = (check.kind(), check.user(), check.has_known_name(), check.key());
            }
        }
    }
}
