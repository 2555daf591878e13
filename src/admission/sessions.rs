//! Sessions that are connected or ended lately.
//!
//! A ticket is enough to come back with, but stays the same for as long as its session. This adds what has come since: the
//! session's connection (a newer one takes its place), its end, and what Redis has said of its rooms.

use std::{
    collections::{HashMap, HashSet},
    sync::Weak,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hashlink::LinkedHashMap;
use parking_lot::Mutex;

use super::{Owner, PackedUser, Token, User};

/// Parts of the connected sessions that [`SessionTable::rechecks`] takes one after the other. Sessions with the same token
/// are in the same part.
pub(super) const PARTS: u32 = 60;

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// When Redis last said that the rooms of the ticket are its user's, in seconds since 1970; 0 for not since it was made.
    pub(super) vouched: u64,
    /// Whether Redis has said since that one of them is not: without the key, the ticket does not serve any more.
    pub(super) revoked: bool,
    /// Whether the browser took leave of the session, which must not be recovered then.
    pub(super) left: bool,
    /// What Redis has said of its user while it was connected, if that is not what the ticket says.
    pub(super) changed: Option<Box<Changed>>,
}

/// Rooms that were given to a connected session or taken from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Changed {
    /// The ticket's user with those rooms that the session has had all along.
    pub(super) kept: PackedUser,
    /// The user that Redis named last.
    pub(super) now: PackedUser,
}

/// What the live authorization of a session needs while it is connected.
pub(super) struct Watch {
    token: Token,
    part: usize,
    /// The user that the session began with.
    user: PackedUser,
    /// Whether the connection is known to have the rooms of the user that Redis named last.
    settled: bool,
}

impl Watch {
    /// Of a session that begins with the rooms of `user`; `settled` if these are what Redis said.
    pub(super) fn new(token: Token, owner: Owner, user: Option<&User>, settled: bool) -> Self {
        Self { token, part: owner.part(PARTS as usize), user: PackedUser::new(user), settled }
    }
}

/// A lookup that is due: which user a token has now, for all sessions with that token.
pub(super) struct Recheck<T> {
    pub(super) token: Token,
    /// The sessions, each with the connection that it had when the recheck began.
    pub(super) sessions: Vec<(SessionId, Weak<T>)>,
}

/// All sessions by their id. `T` is a connection.
pub(super) struct SessionTable<T>(Mutex<Tables<T>>);

struct ConnectedSession<T> {
    connection: Weak<T>,
    known: Known,
    watch: Option<Box<Watch>>,
}

struct Tables<T> {
    window: Duration,
    connected: HashMap<SessionId, ConnectedSession<T>>,
    /// The connected sessions with a [`Watch`], by part.
    watched: Vec<HashSet<SessionId>>,
    /// Those that ended within the window, and when, the oldest first.
    ended: LinkedHashMap<SessionId, (Instant, Known)>,
}

impl<T> SessionTable<T> {
    pub(super) fn new(window: Duration) -> Self {
        let watched = vec![HashSet::new(); PARTS as usize];
        Self(Mutex::new(Tables { window, connected: HashMap::new(), watched, ended: LinkedHashMap::new() }))
    }

    /// `None` for a session that ended before the window, on another node, or before a restart.
    pub(super) fn known(&self, id: &SessionId, now: Instant) -> Option<Known> {
        let mut tables = self.0.lock();
        tables.forget(now);
        tables.known(id).cloned()
    }

    /// The session is connected, with rooms that Redis vouched for at `vouched`; returns the connection it replaces.
    pub(super) fn enter(
        &self,
        id: SessionId,
        connection: Weak<T>,
        vouched: u64,
        watch: Option<Watch>,
    ) -> Option<Weak<T>> {
        let mut tables = self.0.lock();
        let known = tables.known(&id).cloned().unwrap_or_default();
        tables.ended.remove(&id);
        let known = Known { vouched, left: false, ..known };
        // What Redis has named last may not be what this connection has.
        let watch = watch.map(|watch| Watch { settled: watch.settled && known.changed.is_none(), ..watch });
        if let Some(watched) = watch.as_ref().and_then(|watch| tables.watched.get_mut(watch.part)) {
            watched.insert(id.clone());
        }
        let connected = ConnectedSession { connection, known, watch: watch.map(Box::new) };
        tables.connected.insert(id, connected).map(|old| old.connection)
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
        self.0.lock().connected.get(id).map(|connected| Weak::clone(&connected.connection))
    }

    /// One recheck for each token in a part of the connected sessions.
    pub(super) fn rechecks(&self, part: usize) -> Vec<Recheck<T>> {
        let tables = self.0.lock();
        let mut rechecks = HashMap::<&str, Recheck<T>>::new();
        for id in tables.watched.get(part).into_iter().flatten() {
            let Some(ConnectedSession { connection, watch: Some(watch), .. }) = tables.connected.get(id) else {
                continue;
            };
            let recheck = rechecks
                .entry(watch.token.expose())
                .or_insert_with(|| Recheck { token: watch.token.clone(), sessions: Vec::new() });
            recheck.sessions.push((id.clone(), Weak::clone(connection)));
        }
        rechecks.into_values().collect()
    }

    /// Redis has named the user of a session, and vouched for it at `vouched` in seconds since 1970, if it has. Returns
    /// whether the session's connection must be given the rooms of that user. Without effect if the session has another
    /// connection by now, whose rooms may be newer than the answer.
    pub(super) fn learn(&self, id: &SessionId, connection: &Weak<T>, user: &PackedUser, vouched: Option<u64>) -> bool {
        let mut tables = self.0.lock();
        let connected = tables.connected.get_mut(id).filter(|connected| connected.connection.ptr_eq(connection));
        let Some(ConnectedSession { known, watch: Some(watch), .. }) = connected else { return false };
        known.vouched = vouched.unwrap_or(known.vouched);
        let (kept, last) =
            known.changed.as_ref().map_or((&watch.user, &watch.user), |changed| (&changed.kept, &changed.now));
        if std::mem::replace(&mut watch.settled, true) && user == last {
            return false;
        }
        let changed = Changed { kept: kept.common(user), now: user.clone() };
        let is_as_at_first = changed.kept == watch.user && changed.now == watch.user;
        known.changed = (!is_as_at_first).then(|| Box::new(changed));
        true
    }

    /// The session's connection could not be given the rooms that Redis named last.
    pub(super) fn doubt(&self, id: &SessionId) {
        if let Some(ConnectedSession { watch: Some(watch), .. }) = self.0.lock().connected.get_mut(id) {
            watch.settled = false;
        }
    }

    /// This connection of the session ended; `left` if the browser took leave.
    pub(super) fn end(&self, id: SessionId, connection: &Weak<T>, left: bool, now: Instant) {
        let mut tables = self.0.lock();
        if tables.connected.get(&id).is_some_and(|current| current.connection.ptr_eq(connection))
            && let Some(ConnectedSession { known, watch, .. }) = tables.connected.remove(&id)
        {
            if let Some(watched) = watch.and_then(|watch| tables.watched.get_mut(watch.part)) {
                watched.remove(&id);
            }
            tables.end(id, Known { left, ..known }, now);
        }
    }
}

impl<T> Tables<T> {
    fn known(&mut self, id: &SessionId) -> Option<&mut Known> {
        let connected = self.connected.get_mut(id).map(|connected| &mut connected.known);
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

    const KNOWN: Known = Known { vouched: 7, revoked: false, left: false, changed: None };

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
        assert!(sessions.enter(id.clone(), Arc::downgrade(&session), 7, None).is_none());
        assert!(known(1_000) == Some(KNOWN) && is_here(&sessions, &id));
        sessions.end(id.clone(), &Arc::downgrade(&session), false, start + Duration::from_secs(1_000));
        assert!(!is_here(&sessions, &id));
        assert_eq!([known(1_060), known(1_061)], [Some(KNOWN), None]);
    }

    #[test]
    fn a_session_that_was_left_is_not_away() {
        let (sessions, session, now, id) =
            (SessionTable::new(WINDOW), Arc::new(()), Instant::now(), SessionId::random());
        sessions.enter(id.clone(), Arc::downgrade(&session), 7, None);
        sessions.end(id.clone(), &Arc::downgrade(&session), true, now);
        assert_eq!(sessions.known(&id, now), Some(Known { left: true, ..KNOWN }));
        sessions.enter(id.clone(), Arc::downgrade(&session), 7, None);
        assert_eq!(sessions.known(&id, now), Some(KNOWN));
    }

    #[test]
    fn the_end_of_a_replaced_connection_changes_nothing() {
        let (sessions, old, new, now, id) =
            (SessionTable::new(WINDOW), Arc::new(()), Arc::new(()), Instant::now(), SessionId::random());
        sessions.enter(id.clone(), Arc::downgrade(&old), 7, None);
        let replaced = sessions.enter(id.clone(), Arc::downgrade(&new), 7, None);
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
            sessions.enter(id.clone(), Arc::downgrade(&session), 7, None);
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
        sessions.enter(id.clone(), Arc::downgrade(&session), 6, None);
        sessions.vouch(&id, 7);
        assert!(is_here(&sessions, &id));
        sessions.revoke(&id, now);
        sessions.end(id.clone(), &Arc::downgrade(&session), false, now);
        assert_eq!(sessions.known(&id, now + WINDOW), Some(Known { revoked: true, ..KNOWN }));
        assert!(!is_here(&sessions, &id));
    }

    fn user(groups: &[usize]) -> PackedUser {
        let groups = groups.iter().map(ToString::to_string).collect();
        PackedUser::new(Some(&User { id: Some("1".to_owned()), groups }))
    }

    /// A watch of a session with the groups 1 and 2, in the part of its token.
    fn watch(token: &str, settled: bool) -> Watch {
        let part = token.len() % PARTS as usize;
        Watch { token: Token::parse(token).unwrap(), part, user: user(&[1, 2]), settled }
    }

    #[test]
    fn sessions_with_one_token_are_one_question_until_they_end() {
        let (sessions, connection, now) = (SessionTable::new(WINDOW), Arc::new(()), Instant::now());
        let connection = Arc::downgrade(&connection);
        let ids: Vec<_> = ["ada", "ada", "bob", "eve5"].map(|token| (token, SessionId::random())).into();
        for (token, id) in &ids {
            sessions.enter(id.clone(), Weak::clone(&connection), 0, Some(watch(token, true)));
        }
        sessions.enter(SessionId::random(), Weak::clone(&connection), 0, None);
        let asked = |part| {
            let rechecks = sessions.rechecks(part).into_iter();
            let mut asked: Vec<_> =
                rechecks.map(|asked| (asked.token.expose().to_owned(), asked.sessions.len())).collect();
            asked.sort();
            asked
        };
        let owned = |token: &str, times| (token.to_owned(), times);
        assert_eq!(asked(3), [owned("ada", 2), owned("bob", 1)]);
        assert_eq!(asked(4), [owned("eve5", 1)]);
        assert_eq!(asked(0), []);
        for (_, id) in &ids[1..] {
            sessions.end(id.clone(), &connection, false, now);
        }
        assert_eq!((asked(3), asked(4)), (vec![owned("ada", 1)], vec![]));
    }

    #[test]
    fn what_redis_says_is_learned_once_and_compared_with_the_ticket() {
        let (sessions, connection, id) = (SessionTable::new(WINDOW), Arc::new(()), SessionId::random());
        let (connection, now) = (Arc::downgrade(&connection), Instant::now());
        sessions.enter(id.clone(), Weak::clone(&connection), 7, Some(watch("ada", true)));
        let learn = |groups| sessions.learn(&id, &connection, &user(groups), Some(8));
        let changed = || sessions.known(&id, now).unwrap().changed.map(|changed| (changed.kept, changed.now));
        assert!(!learn(&[2, 1]) && changed().is_none());
        assert_eq!(sessions.known(&id, now).unwrap().vouched, 8);
        assert!(learn(&[1, 2, 3]) && !learn(&[1, 2, 3]));
        assert_eq!(changed(), Some((user(&[1, 2]), user(&[1, 2, 3]))));
        assert!(learn(&[1, 2]) && changed().is_none(), "all is as it was at first");
        assert!(learn(&[1]) && learn(&[1, 2]));
        assert_eq!(changed(), Some((user(&[1]), user(&[1, 2]))), "it did not have the second all along");
        sessions.doubt(&id);
        assert!(learn(&[1, 2]) && !learn(&[1, 2]), "the connection may not have it yet");
        sessions.end(id.clone(), &connection, false, now);
        assert_eq!(changed(), Some((user(&[1]), user(&[1, 2]))));
        assert!(!learn(&[]), "it has ended");
    }

    #[test]
    fn an_answer_concerns_only_the_connection_that_it_was_asked_for() {
        let (sessions, id, now) = (SessionTable::new(WINDOW), SessionId::random(), Instant::now());
        let (old, new) = (Arc::new(()), Arc::new(()));
        sessions.enter(id.clone(), Arc::downgrade(&old), 7, Some(watch("ada", true)));
        sessions.enter(id.clone(), Arc::downgrade(&new), 7, Some(watch("ada", false)));
        assert!(!sessions.learn(&id, &Arc::downgrade(&old), &user(&[]), Some(8)));
        assert_eq!(sessions.known(&id, now), Some(KNOWN));
        assert!(sessions.learn(&id, &Arc::downgrade(&new), &user(&[1, 2]), None), "its lookup was not done");
        assert_eq!(sessions.known(&id, now), Some(KNOWN));
    }
}
