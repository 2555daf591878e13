//! The ticket: what a browser brings to go on with its session, and the key that tickets and offsets are sealed with.
//!
//! Any node with the key can open a ticket, and no browser can make or read one; there is no session store. A ticket serves
//! only together with the `channel_token` it was made for.

use argon2::{Algorithm, Argon2, Params, Version};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305,
    aead::{Aead, Payload},
};
use serde::{Deserialize, Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::{SessionId, Token, User};
use crate::{
    config::Secret,
    redis_client::{ConnectionError, Link},
};

/// Bytes of a key.
const KEY: usize = 32;

/// The same for all installations: every node must derive the same key from the secret alone.
const SALT: &[u8] = b"loomio-channels ticket key 2";

/// Where nodes without a secret keep the key that they share.
const SHARED_KEY: &str = "loomio-channels:key";

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
        // 16 MiB and three passes: a browser holds something sealed with the key, and could try secrets on it.
        let params = Params::new(16 * 1024, 3, 1, Some(KEY))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        argon2.hash_password_into(secret.expose().as_bytes(), SALT, &mut key)?;
        Ok(Self(key))
    }

    /// The random key that all nodes share which use the same Redis; the first to ask makes it.
    ///
    /// # Errors
    /// When Redis does not answer or does not let this node read or write the key.
    pub async fn shared(link: &Link) -> Result<Self, ConnectionError> {
        // Read first: a Redis that is full, or a replica, still gives a key that it has.
        let mut text = link.get(SHARED_KEY).await?;
        if text.is_none() {
            link.set_absent(SHARED_KEY, &URL_SAFE_NO_PAD.encode(Self::random().0)).await?;
            text = link.get(SHARED_KEY).await?;
        }
        let text = text.unwrap_or_default();
        let key = URL_SAFE_NO_PAD.decode(text).ok().and_then(|key| key.try_into().ok());
        key.map(Self).ok_or(ConnectionError::Foreign(SHARED_KEY))
    }

    /// Gives this key to a Redis that has none, as when it lost its keys; returns whether nodes that start share this key.
    ///
    /// # Errors
    /// As for [`Key::shared`].
    pub async fn share(&self, link: &Link) -> Result<bool, ConnectionError> {
        let own = URL_SAFE_NO_PAD.encode(self.0);
        let Some(text) = link.get(SHARED_KEY).await? else {
            return link.set_absent(SHARED_KEY, &own).await.map(|()| true);
        };
        Ok(text == own.as_bytes())
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

/// Bytes of XChaCha20-Poly1305's nonce, which is random.
const NONCE: usize = 24;

/// Bound into every seal, so that the key of another purpose or version opens nothing.
const PURPOSE: &[u8] = b"loomio-channels ticket 2";

/// Longest ticket in characters. The message that carries it may have 64 kB; 10,000 groups take a third.
const MAX_SEALED: usize = 60_000;

/// The beginning of the keyed hash of the token that a ticket was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner([u8; 16]);

impl Owner {
    /// The number of the part that this one is in when all are divided evenly.
    pub(super) fn part(self, of: usize) -> usize {
        let [first, second, ..] = self.0;
        usize::from(u16::from_be_bytes([first, second])) % of
    }
}

/// A browser's session as it was when it began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// The session's public id.
    pub session: SessionId,
    /// The browser that it was made for.
    pub owner: Owner,
    /// The session's user, `None` for a visitor's.
    pub user: Option<User>,
    /// When the session began, in seconds since 1970.
    pub issued: u64,
    /// When Redis last said that these are the user's rooms, in seconds since 1970; 0 for never.
    pub vouched: u64,
    /// The offset up to which it was served when it began; empty if that is not known.
    pub offset: String,
    /// Whether the session began before Redis had named the user of the token: it may have got less than it should have,
    /// and must be served from `offset` again, whatever it got since.
    pub provisional: bool,
}

/// A [`User`] in few bytes.
#[derive(Serialize, Deserialize)]
pub(super) struct Compact {
    id: Option<String>,
    /// Ids that are numbers, ascending, each as its distance from the one before: a byte or two.
    steps: Vec<u64>,
    /// All others.
    names: Vec<String>,
}

impl Serialize for User {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (mut numbers, mut names) = (Vec::new(), Vec::new());
        for id in &self.groups {
            match id.parse::<u64>() {
                Ok(number) if number.to_string() == *id => numbers.push(number),
                _ => names.push(id.clone()),
            }
        }
        numbers.sort_unstable();
        let mut last = 0;
        let steps = numbers.into_iter().map(|number| number - std::mem::replace(&mut last, number));
        Compact { id: self.id.clone(), steps: steps.collect(), names }.serialize(serializer)
    }
}

impl From<Compact> for User {
    fn from(compact: Compact) -> Self {
        let mut last = 0_u64;
        let numbers = compact.steps.into_iter().map(|step| {
            last = last.wrapping_add(step);
            last.to_string()
        });
        Self { id: compact.id, groups: numbers.chain(compact.names).collect() }
    }
}

/// A [`User`], or none, as a ticket holds it: some 20 bytes with ten groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PackedUser(Box<[u8]>);

impl PackedUser {
    pub(super) fn new(user: Option<&User>) -> Self {
        // Cannot fail: there are only texts and numbers.
        Self(postcard::to_allocvec(&user).unwrap_or_default().into())
    }

    pub(super) fn unpack(&self) -> Option<User> {
        postcard::from_bytes(&self.0).ok().flatten()
    }

    /// What both users have; none when one of them is none.
    pub(super) fn common(&self, other: &Self) -> Self {
        if self == other {
            return self.clone();
        }
        let both = self.unpack().zip(other.unpack());
        Self::new(both.map(|(one, other)| one.common(&other)).as_ref())
    }
}

/// Seals and opens tickets.
pub struct Tickets {
    cipher: XChaCha20Poly1305,
    owners: [u8; KEY],
}

impl Tickets {
    /// Tickets that every node with the same key can open.
    pub fn new(key: &Key) -> Self {
        Self { cipher: XChaCha20Poly1305::new(&key.part("tickets").into()), owners: key.part("owners of tickets") }
    }

    /// The owner of a ticket that is made for the browser with this token, or for any browser without one.
    pub fn owner(&self, token: Option<&Token>) -> Owner {
        let hash = Sha256::new().chain_update(self.owners).chain_update(token.map_or("", Token::expose)).finalize();
        Owner(std::array::from_fn(|index| hash[index]))
    }

    /// The ticket as text of letters, digits, `-` and `_`. A ticket with more groups than fit, some 25,000, names none,
    /// so that its user's rooms are those that Redis names.
    pub fn seal(&self, mut ticket: Ticket) -> String {
        let sealed = self.encrypt(&ticket);
        match &mut ticket.user {
            Some(user) if sealed.len() > MAX_SEALED => user.groups = Vec::new(),
            _ => return sealed,
        }
        self.encrypt(&ticket)
    }

    fn encrypt(&self, ticket: &Ticket) -> String {
        let nonce: [u8; NONCE] = rand::random();
        // Neither can fail: there are only texts and numbers, and they are far below the cipher's limit.
        let plain = postcard::to_allocvec(ticket).unwrap_or_default();
        let payload = Payload { msg: &plain, aad: PURPOSE };
        let sealed = self.cipher.encrypt(&nonce.into(), payload).unwrap_or_default();
        URL_SAFE_NO_PAD.encode([&nonce[..], &sealed].concat())
    }

    /// The ticket in `text`, if it was sealed with the same key and not touched since.
    pub fn open(&self, text: &str) -> Option<Ticket> {
        if text.len() > MAX_SEALED {
            return None;
        }
        let sealed = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE>()?;
        let plain = self.cipher.decrypt(&(*nonce).into(), Payload { msg: sealed, aad: PURPOSE }).ok()?;
        postcard::from_bytes(&plain).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ticket(tickets: &Tickets) -> Ticket {
        let session = postcard::from_bytes(b"\x100123456789abcdef").unwrap();
        let user = User { id: Some("45".to_owned()), groups: vec!["1".to_owned(), "2".to_owned()] };
        Ticket {
            session,
            owner: tickets.owner(Token::parse("token").as_ref()),
            user: Some(user),
            issued: 1_700_000_000,
            vouched: 1_600_000_000,
            offset: "x".to_owned(),
            provisional: false,
        }
    }

    fn of_groups(groups: impl IntoIterator<Item = u64>) -> Ticket {
        let groups = groups.into_iter().map(|id| id.to_string()).collect();
        let tickets = Tickets::new(&Key::random());
        Ticket { user: Some(User { id: Some("45".to_owned()), groups }), ..ticket(&tickets) }
    }

    #[test]
    fn the_same_secret_gives_the_same_key_and_every_purpose_its_own_part() {
        let key = |text| Key::derive(&Secret::new(text)).unwrap();
        let (one, two) = (key("one"), key("two"));
        assert_eq!(one.part("a"), key("one").part("a"));
        assert_ne!(one.part("a"), one.part("b"));
        assert_ne!(one.part("a"), two.part("a"));
        assert_ne!(Key::random().part("a"), Key::random().part("a"));
    }

    #[test]
    fn a_ticket_opens_with_its_key_only() {
        let (key, other) = (Key::random(), Tickets::new(&Key::random()));
        let (tickets, same) = (Tickets::new(&key), Tickets::new(&key));
        let sealed = tickets.seal(ticket(&tickets));
        assert_eq!(same.open(&sealed), Some(ticket(&tickets)));
        assert_eq!(other.open(&sealed), None);
        assert_ne!(tickets.seal(ticket(&tickets)), sealed, "nonces differ");
        let token = Token::parse("token");
        assert_eq!(tickets.owner(token.as_ref()), same.owner(token.as_ref()));
        assert_ne!(tickets.owner(token.as_ref()), tickets.owner(Token::parse("token2").as_ref()));
        assert_ne!(tickets.owner(token.as_ref()), tickets.owner(None));
        assert_ne!(tickets.owner(token.as_ref()), other.owner(token.as_ref()));
    }

    #[test]
    fn ten_thousand_groups_take_a_third_of_what_a_connect_may_have() {
        let (tickets, ticket) = (Tickets::new(&Key::random()), of_groups((0..10_000).map(|n| 1_000_000 + n * 731)));
        let sealed = tickets.seal(ticket.clone());
        assert!(sealed.len() < 30_000, "{}", sealed.len());
        assert_eq!(tickets.open(&sealed), Some(ticket));
    }

    #[test]
    fn more_groups_than_fit_are_left_out() {
        let (tickets, ticket) = (Tickets::new(&Key::random()), of_groups((0..50_000).map(|n| 1_000_000 + n * 731)));
        let opened = tickets.open(&tickets.seal(ticket)).unwrap().user.unwrap();
        assert_eq!(opened, User { id: Some("45".to_owned()), groups: Vec::new() });
    }

    #[test]
    fn ids_of_any_form_come_back() {
        let tickets = Tickets::new(&Key::random());
        let groups = ["0", "7", "007", "-1", "18446744073709551615", "99999999999999999999", "a b", "\u{e9}"];
        let mut ticket = ticket(&tickets);
        ticket.user = Some(User { id: None, groups: groups.map(str::to_owned).to_vec() });
        let mut back = tickets.open(&tickets.seal(ticket)).unwrap().user.unwrap().groups;
        back.sort_unstable();
        let mut groups = groups;
        groups.sort_unstable();
        assert_eq!(back, groups);
    }

    #[test]
    fn packed_users_are_compared_by_what_they_have() {
        let pack = |id: &str, groups: &[&str]| {
            let groups = groups.iter().map(ToString::to_string).collect();
            PackedUser::new(Some(&User { id: Some(id.to_owned()), groups }))
        };
        let (one, none) = (pack("1", &["2", "30", "x"]), PackedUser::new(None));
        assert_eq!(one, pack("1", &["30", "x", "2"]));
        assert_eq!(one.unpack().map(|user| user.groups), Some(["2", "30", "x"].map(str::to_owned).to_vec()));
        assert_eq!(one.common(&pack("1", &["x", "2", "4"])), pack("1", &["2", "x"]));
        let others = one.common(&pack("5", &["30"])).unpack();
        assert_eq!(others, Some(User { id: None, groups: vec!["30".to_owned()] }));
        assert!(one.common(&none) == none && none.common(&one) == none && none.unpack().is_none());
    }

    proptest! {
        #[test]
        fn a_touched_ticket_does_not_open(position: prop::sample::Index, to: u8) {
            let tickets = Tickets::new(&Key::random());
            let mut sealed = tickets.seal(ticket(&tickets)).into_bytes();
            let byte = position.get_mut(&mut sealed);
            prop_assume!(*byte != to);
            *byte = to;
            if let Ok(text) = String::from_utf8(sealed) {
                prop_assert_eq!(tickets.open(&text), None);
            }
        }

        #[test]
        fn any_text_is_no_ticket(text: String) {
            prop_assert_eq!(Tickets::new(&Key::random()).open(&text), None);
        }
    }
}
