//! Sessions that are connected or ended lately.
//!
//! A ticket is enough to come back with, but stays the same for as long as its session. This adds what has come since: the
//! session's connection (a newer one takes its place), its end, and what Redis has said of its rooms.

use std::{
    collections::HashMap,
    sync::Weak,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hashlink::LinkedHashMap;
use parking_lot::Mutex;

/// Sessions that ended and are still remembered, about 100 bytes each. Past this number the oldest are forgotten: their
/// tickets still work, as on a node that never saw them.
const MAX_ENDED: usize = 100_000;

/// The public id of a session: letters, digits, `-` and `_`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct SessionId(Box<str>);

impl SessionId {
    /// An id that no other session has.
    pub fn random() -> Self {
        Self(URL_SAFE_NO_PAD.encode(rand::random::<[u8; 12]>()).into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is known of a session beyond its ticket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// When Redis last said that the rooms of the ticket are its user's, in seconds since 1970; 0 for not since it was made.
    pub(super) vouched: u64,
    /// Whether Redis has said since that one of them is not: without the key, the ticket does not serve any more.
    pub(super) revoked: bool,
    /// Whether the browser took leave of the session, which must not be recovered then.
    pub(super) left: bool,
}

/// All sessions by their id. `T` is a connection.
pub(super) struct SessionTable<T>(Mutex<Tables<T>>);

struct Tables<T> {
    window: Duration,
    connected: HashMap<SessionId, (Weak<T>, Known)>,
    /// Those that ended within the window, and when, the oldest first.
    ended: LinkedHashMap<SessionId, (Instant, Known)>,
}

impl<T> SessionTable<T> {
    pub(super) fn new(window: Duration) -> Self {
        Self(Mutex::new(Tables { window, connected: HashMap::new(), ended: LinkedHashMap::new() }))
    }

    /// `None` for a session that ended before the window, on another node, or before a restart.
    pub(super) fn known(&self, id: &SessionId, now: Instant) -> Option<Known> {
        let mut tables = self.0.lock();
        tables.forget(now);
        tables.known(id).copied()
    }

    /// The session is connected, with rooms that Redis vouched for at `vouched`; returns the connection it replaces.
    pub(super) fn enter(&self, id: SessionId, connection: Weak<T>, vouched: u64) -> Option<Weak<T>> {
        let mut tables = self.0.lock();
        let revoked = tables.known(&id).is_some_and(|known| known.revoked);
        tables.ended.remove(&id);
        let known = Known { vouched, revoked, left: false };
        tables.connected.insert(id, (connection, known)).map(|(old, _)| old)
    }

    /// Redis has said, at `now` in seconds since 1970, that the rooms of the ticket are its user's.
    pub(super) fn vouch(&self, id: &SessionId, now: u64) {
        if let Some(known) = self.0.lock().known(id) {
            known.vouched = now;
        }
    }

    /// Redis has taken a room of the ticket from the session's user.
    pub(super) fn revoke(&self, id: &SessionId, now: Instant) {
        let mut tables = self.0.lock();
        match tables.known(id) {
            Some(known) => known.revoked = true,
            None => tables.end(id.clone(), Known { revoked: true, ..Known::default() }, now),
        }
    }

    /// The connection of a session that is connected.
    pub(super) fn connection(&self, id: &SessionId) -> Option<Weak<T>> {
        self.0.lock().connected.get(id).map(|(connection, _)| Weak::clone(connection))
    }

    /// This connection of the session ended; `left` if the browser took leave.
    pub(super) fn end(&self, id: SessionId, connection: &Weak<T>, left: bool, now: Instant) {
        let mut tables = self.0.lock();
        if tables.connected.get(&id).is_some_and(|(current, _)| current.ptr_eq(connection))
            && let Some((_, known)) = tables.connected.remove(&id)
        {
            tables.end(id, Known { left, ..known }, now);
        }
    }
}

impl<T> Tables<T> {
    fn known(&mut self, id: &SessionId) -> Option<&mut Known> {
        let connected = self.connected.get_mut(id).map(|(_, known)| known);
        connected.or_else(|| self.ended.get_mut(id).map(|(_, known)| known))
    }

    fn end(&mut self, id: SessionId, known: Known, now: Instant) {
        self.ended.insert(id, (now, known));
        self.forget(now);
    }

    fn forget(&mut self, now: Instant) {
        while let Some((_, (oldest, _))) = self.ended.front()
            && (self.ended.len() > MAX_ENDED || now.saturating_duration_since(*oldest) > self.window)
        {
            self.ended.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const WINDOW: Duration = Duration::from_mins(1);

    const KNOWN: Known = Known { vouched: 7, revoked: false, left: false };

    fn is_here(sessions: &SessionTable<()>, id: &SessionId) -> bool {
        sessions.connection(id).is_some()
    }

    #[test]
    fn ids_are_text() {
        let id = SessionId::random();
        assert!(id.as_str().bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
        assert!(id.as_str().len() == 16 && id != SessionId::random());
    }

    #[test]
    fn a_session_is_here_then_away_then_forgotten() {
        let (sessions, session, start, id) =
            (SessionTable::new(WINDOW), Arc::new(()), Instant::now(), SessionId::random());
        let known = |after| sessions.known(&id, start + Duration::from_secs(after));
        assert_eq!(known(0), None);
        assert!(sessions.enter(id.clone(), Arc::downgrade(&session), 7).is_none());
        assert!(known(1_000) == Some(KNOWN) && is_here(&sessions, &id));
        sessions.end(id.clone(), &Arc::downgrade(&session), false, start + Duration::from_secs(1_000));
        assert!(!is_here(&sessions, &id));
        assert_eq!([known(1_060), known(1_061)], [Some(KNOWN), None]);
    }

    #[test]
    fn a_session_that_was_left_is_not_away() {
        let (sessions, session, now, id) =
            (SessionTable::new(WINDOW), Arc::new(()), Instant::now(), SessionId::random());
        sessions.enter(id.clone(), Arc::downgrade(&session), 7);
        sessions.end(id.clone(), &Arc::downgrade(&session), true, now);
        assert_eq!(sessions.known(&id, now), Some(Known { left: true, ..KNOWN }));
        sessions.enter(id.clone(), Arc::downgrade(&session), 7);
        assert_eq!(sessions.known(&id, now), Some(KNOWN));
    }

    #[test]
    fn the_end_of_a_replaced_connection_changes_nothing() {
        let (sessions, old, new, now, id) =
            (SessionTable::new(WINDOW), Arc::new(()), Arc::new(()), Instant::now(), SessionId::random());
        sessions.enter(id.clone(), Arc::downgrade(&old), 7);
        let replaced = sessions.enter(id.clone(), Arc::downgrade(&new), 7);
        assert!(replaced.is_some_and(|replaced| replaced.ptr_eq(&Arc::downgrade(&old))));
        sessions.end(id.clone(), &Arc::downgrade(&old), false, now);
        assert!(is_here(&sessions, &id));
    }

    #[test]
    fn a_session_that_was_back_is_away_for_a_whole_window() {
        let (sessions, session, start, id) =
            (SessionTable::new(WINDOW), Arc::new(()), Instant::now(), SessionId::random());
        let at = |seconds| start + Duration::from_secs(seconds);
        for end in [0, 50] {
            sessions.enter(id.clone(), Arc::downgrade(&session), 7);
            sessions.end(id.clone(), &Arc::downgrade(&session), false, at(end));
        }
        let known = [70, 110, 111].map(|now| sessions.known(&id, at(now)));
        assert_eq!(known, [Some(KNOWN), Some(KNOWN), None]);
    }

    #[test]
    fn what_was_revoked_stays_so_for_a_window() {
        let (sessions, session, now, id) =
            (SessionTable::new(WINDOW), Arc::new(()), Instant::now(), SessionId::random());
        sessions.revoke(&id, now);
        assert_eq!(sessions.known(&id, now), Some(Known { revoked: true, ..Known::default() }));
        sessions.enter(id.clone(), Arc::downgrade(&session), 6);
        sessions.vouch(&id, 7);
        assert!(is_here(&sessions, &id));
        sessions.revoke(&id, now);
        sessions.end(id.clone(), &Arc::downgrade(&session), false, now);
        assert_eq!(sessions.known(&id, now + WINDOW), Some(Known { revoked: true, ..KNOWN }));
        assert!(!is_here(&sessions, &id));
    }
}
