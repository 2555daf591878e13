//! Sessions that are connected, that ended lately, and that their browser took leave of.
//!
//! A ticket is enough to come back with. This adds what a ticket cannot know, as it stays the same for as long as its
//! session: the session's connection (a newer one takes its place), when it ended, whether the browser took leave of it,
//! and what Redis has said of its rooms since it began.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::Rng;

/// Sessions that ended and are still remembered, about 100 bytes each. Past this number the oldest are forgotten: their
/// tickets still work, as on a node that never saw them.
const MAX_ENDED: usize = 100_000;

/// Characters of a session's id.
const LENGTH: usize = 16;

/// The public id of a session: letters, digits, `-` and `_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionId([u8; LENGTH]);

impl SessionId {
    /// An id that no other session has.
    pub fn random() -> Self {
        let mut text = [0; LENGTH];
        let mut bytes = [0; LENGTH / 4 * 3];
        rand::rng().fill_bytes(&mut bytes);
        // Cannot fail: the lengths fit.
        let _ = URL_SAFE_NO_PAD.encode_slice(bytes, &mut text);
        Self(text)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl From<SessionId> for String {
    fn from(id: SessionId) -> Self {
        id.as_str().to_owned()
    }
}

impl TryFrom<String> for SessionId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.into_bytes().try_into().map(Self).map_err(|_| "not the id of a session")
    }
}

/// What is known of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It is connected, or was within the window.
    Recent(Learnt),
    /// The browser took leave of it; it must not be recovered.
    Left,
    /// It ended before the window, on another node, or before a restart.
    Unknown,
}

/// What was learnt of a session's rooms since its ticket was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Learnt {
    /// When Redis last said that the rooms of the ticket are its user's, in seconds since 1970; 0 for not since.
    pub(super) vouched: u64,
    /// Whether Redis has said since that one of them is not: without the key, the ticket does not serve any more.
    pub(super) revoked: bool,
}

struct Record<T> {
    state: State<T>,
    learnt: Learnt,
}

enum State<T> {
    Here(Weak<T>),
    Ended { left: bool, at: Instant },
}

struct Inner<T> {
    records: HashMap<SessionId, Record<T>>,
    /// Ended sessions, the oldest first.
    ended: VecDeque<(Instant, SessionId)>,
}

/// All sessions by their id. `T` is a connection.
pub(super) struct Sessions<T> {
    window: Duration,
    inner: Mutex<Inner<T>>,
}

impl<T> Sessions<T> {
    pub(super) fn new(window: Duration) -> Self {
        Self { window, inner: Mutex::new(Inner { records: HashMap::new(), ended: VecDeque::new() }) }
    }

    pub(super) fn known(&self, id: SessionId, now: Instant) -> Known {
        let mut inner = self.lock();
        inner.forget(self.window, now);
        match inner.records.get(&id) {
            None => Known::Unknown,
            Some(Record { state: State::Ended { left: true, .. }, .. }) => Known::Left,
            Some(Record { learnt, .. }) => Known::Recent(*learnt),
        }
    }

    /// The session is connected from now on, with rooms that Redis has vouched for at `vouched`; returns the connection
    /// it takes the place of.
    pub(super) fn enter(&self, id: SessionId, connection: Weak<T>, vouched: u64) -> Option<Weak<T>> {
        let mut inner = self.lock();
        let revoked = inner.records.get(&id).is_some_and(|record| record.learnt.revoked);
        let record = Record { state: State::Here(connection), learnt: Learnt { vouched, revoked } };
        match inner.records.insert(id, record)?.state {
            State::Here(old) => Some(old),
            State::Ended { .. } => None,
        }
    }

    /// Redis has said, at `now` in seconds since 1970, that the rooms of the ticket are its user's.
    pub(super) fn vouch(&self, id: SessionId, now: u64) {
        if let Some(record) = self.lock().records.get_mut(&id) {
            record.learnt.vouched = now;
        }
    }

    /// Redis has taken a room of the ticket from the session's user.
    pub(super) fn revoke(&self, id: SessionId, now: Instant) {
        let mut inner = self.lock();
        if let Some(record) = inner.records.get_mut(&id) {
            record.learnt.revoked = true;
            return;
        }
        let learnt = Learnt { revoked: true, ..Learnt::default() };
        inner.records.insert(id, Record { state: State::Ended { left: false, at: now }, learnt });
        inner.ended.push_back((now, id));
        inner.forget(self.window, now);
    }

    /// The connection of a session that lives.
    pub(super) fn connection(&self, id: SessionId) -> Option<Weak<T>> {
        match &self.lock().records.get(&id)?.state {
            State::Here(connection) => Some(Weak::clone(connection)),
            State::Ended { .. } => None,
        }
    }

    /// This connection of the session ended; `left` if the browser took leave.
    pub(super) fn end(&self, id: SessionId, connection: &Weak<T>, left: bool, now: Instant) {
        let mut inner = self.lock();
        let Some(Record { state, .. }) = inner.records.get_mut(&id) else { return };
        if !matches!(&*state, State::Here(current) if current.ptr_eq(connection)) {
            return;
        }
        *state = State::Ended { left, at: now };
        inner.ended.push_back((now, id));
        inner.forget(self.window, now);
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Inner<T> {
    fn forget(&mut self, window: Duration, now: Instant) {
        while let Some(&(at, id)) = self.ended.front() {
            if self.ended.len() <= MAX_ENDED && now.saturating_duration_since(at) <= window {
                return;
            }
            self.ended.pop_front();
            // It may have come back, and even ended again: then a later entry speaks for it.
            if matches!(self.records.get(&id).map(|record| &record.state), Some(State::Ended { at: last, .. }) if *last == at)
            {
                self.records.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const WINDOW: Duration = Duration::from_mins(1);

    fn learnt() -> Learnt {
        Learnt { vouched: 7, revoked: false }
    }

    fn is_here(sessions: &Sessions<()>, id: SessionId) -> bool {
        sessions.connection(id).is_some()
    }

    #[test]
    fn ids_are_text_and_come_back() {
        let id = SessionId::random();
        assert!(id.as_str().len() == LENGTH && id != SessionId::random());
        assert_eq!(SessionId::try_from(String::from(id)), Ok(id));
        assert!(SessionId::try_from(String::from("short")).is_err());
    }

    #[test]
    fn a_session_is_here_then_away_then_forgotten() {
        let (sessions, session, start, id) = (Sessions::new(WINDOW), Arc::new(()), Instant::now(), SessionId::random());
        let known = |after| sessions.known(id, start + Duration::from_secs(after));
        assert_eq!(known(0), Known::Unknown);
        assert!(sessions.enter(id, Arc::downgrade(&session), 7).is_none());
        assert!(known(1_000) == Known::Recent(learnt()) && is_here(&sessions, id));
        sessions.end(id, &Arc::downgrade(&session), false, start + Duration::from_secs(1_000));
        assert!(!is_here(&sessions, id));
        assert_eq!([known(1_060), known(1_061)], [Known::Recent(learnt()), Known::Unknown]);
    }

    #[test]
    fn a_session_that_was_left_is_not_away() {
        let (sessions, session, now, id) = (Sessions::new(WINDOW), Arc::new(()), Instant::now(), SessionId::random());
        sessions.enter(id, Arc::downgrade(&session), 7);
        sessions.end(id, &Arc::downgrade(&session), true, now);
        assert_eq!(sessions.known(id, now), Known::Left);
        sessions.enter(id, Arc::downgrade(&session), 7);
        assert_eq!(sessions.known(id, now), Known::Recent(learnt()));
    }

    #[test]
    fn the_end_of_a_replaced_connection_changes_nothing() {
        let (sessions, old, new, now, id) =
            (Sessions::new(WINDOW), Arc::new(()), Arc::new(()), Instant::now(), SessionId::random());
        sessions.enter(id, Arc::downgrade(&old), 7);
        let replaced = sessions.enter(id, Arc::downgrade(&new), 7);
        assert!(replaced.is_some_and(|replaced| replaced.ptr_eq(&Arc::downgrade(&old))));
        sessions.end(id, &Arc::downgrade(&old), false, now);
        assert!(is_here(&sessions, id));
    }

    #[test]
    fn a_session_that_was_back_is_away_for_a_whole_window() {
        let (sessions, session, start, id) = (Sessions::new(WINDOW), Arc::new(()), Instant::now(), SessionId::random());
        let at = |seconds| start + Duration::from_secs(seconds);
        for end in [0, 50] {
            sessions.enter(id, Arc::downgrade(&session), 7);
            sessions.end(id, &Arc::downgrade(&session), false, at(end));
        }
        let known = [70, 110, 111].map(|now| sessions.known(id, at(now)));
        assert_eq!(known, [Known::Recent(learnt()), Known::Recent(learnt()), Known::Unknown]);
    }

    #[test]
    fn what_was_revoked_stays_so_for_a_window() {
        let (sessions, session, now, id) = (Sessions::new(WINDOW), Arc::new(()), Instant::now(), SessionId::random());
        sessions.revoke(id, now);
        assert_eq!(sessions.known(id, now), Known::Recent(Learnt { vouched: 0, revoked: true }));
        sessions.enter(id, Arc::downgrade(&session), 6);
        sessions.vouch(id, 7);
        assert!(is_here(&sessions, id));
        sessions.revoke(id, now);
        sessions.end(id, &Arc::downgrade(&session), false, now);
        assert_eq!(sessions.known(id, now + WINDOW), Known::Recent(Learnt { vouched: 7, revoked: true }));
        assert!(!is_here(&sessions, id));
    }
}
