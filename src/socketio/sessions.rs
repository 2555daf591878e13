//! Who is here, who was here lately, and who left for good.
//!
//! A ticket is enough to come back with. This adds what a ticket cannot know, as it stays the same for as long as its
//! session: whether that still lives (then the newcomer takes its place), when it ended, whether the browser took leave
//! of it, and what Redis has said of its rooms since it began.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use engineioxide_core::Sid;

/// Sessions that ended and are still remembered, about 100 bytes each. Past this number the oldest are forgotten: their
/// tickets still work, as on a node that never saw them.
const MAX_ENDED: usize = 100_000;

/// What is known of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It is connected.
    Here,
    /// It was cut within the window.
    Away,
    /// The browser left the namespace; it must not be recovered.
    Left,
    /// Nothing: it ended before the window, on another node, or before a restart.
    Nothing,
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
    records: HashMap<Sid, Record<T>>,
    /// Ended sessions, the oldest first.
    ended: VecDeque<(Instant, Sid)>,
}

/// All sessions by their public id.
pub(super) struct Sessions<T> {
    window: Duration,
    inner: Mutex<Inner<T>>,
}

impl<T> Sessions<T> {
    pub(super) fn new(window: Duration) -> Self {
        Self { window, inner: Mutex::new(Inner { records: HashMap::new(), ended: VecDeque::new() }) }
    }

    pub(super) fn known(&self, sid: Sid, now: Instant) -> (Known, Learnt) {
        let mut inner = self.lock();
        inner.forget(self.window, now);
        let Some(Record { state, learnt }) = inner.records.get(&sid) else {
            return (Known::Nothing, Learnt::default());
        };
        let known = match state {
            State::Here(_) => Known::Here,
            State::Ended { left: false, .. } => Known::Away,
            State::Ended { left: true, .. } => Known::Left,
        };
        (known, *learnt)
    }

    /// The session is connected from now on; returns the connection it takes the place of.
    pub(super) fn enter(&self, sid: Sid, session: Weak<T>) -> Option<Weak<T>> {
        let mut inner = self.lock();
        let Some(record) = inner.records.get_mut(&sid) else {
            inner.records.insert(sid, Record { state: State::Here(session), learnt: Learnt::default() });
            return None;
        };
        match std::mem::replace(&mut record.state, State::Here(session)) {
            State::Here(old) => Some(old),
            State::Ended { .. } => None,
        }
    }

    /// Redis has said, at `now` in seconds since 1970, that the rooms of the ticket are its user's.
    pub(super) fn vouch(&self, sid: Sid, now: u64) {
        if let Some(record) = self.lock().records.get_mut(&sid) {
            record.learnt = Learnt { vouched: now, revoked: record.learnt.revoked };
        }
    }

    /// Redis has taken a room of the ticket from the session's user.
    pub(super) fn revoke(&self, sid: Sid, now: Instant) {
        let mut inner = self.lock();
        if let Some(record) = inner.records.get_mut(&sid) {
            record.learnt.revoked = true;
            return;
        }
        let learnt = Learnt { revoked: true, ..Learnt::default() };
        inner.records.insert(sid, Record { state: State::Ended { left: false, at: now }, learnt });
        inner.ended.push_back((now, sid));
        inner.forget(self.window, now);
    }

    /// The connection of a session that lives.
    pub(super) fn connection(&self, sid: Sid) -> Option<Weak<T>> {
        match &self.lock().records.get(&sid)?.state {
            State::Here(connection) => Some(Weak::clone(connection)),
            State::Ended { .. } => None,
        }
    }

    /// This connection of the session ended; `left` if the browser said that it leaves.
    pub(super) fn end(&self, sid: Sid, session: &Weak<T>, left: bool, now: Instant) {
        let mut inner = self.lock();
        let Some(Record { state, .. }) = inner.records.get_mut(&sid) else { return };
        if !matches!(&*state, State::Here(current) if current.ptr_eq(session)) {
            return;
        }
        *state = State::Ended { left, at: now };
        inner.ended.push_back((now, sid));
        inner.forget(self.window, now);
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Inner<T> {
    fn forget(&mut self, window: Duration, now: Instant) {
        while let Some(&(at, sid)) = self.ended.front() {
            if self.ended.len() <= MAX_ENDED && now.saturating_duration_since(at) <= window {
                return;
            }
            self.ended.pop_front();
            // It may have come back, and even ended again: then a later entry speaks for it.
            if matches!(self.records.get(&sid).map(|record| &record.state), Some(State::Ended { at: last, .. }) if *last == at)
            {
                self.records.remove(&sid);
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

    #[test]
    fn a_session_is_here_then_away_then_forgotten() {
        let (sessions, session, start, sid) = (Sessions::new(WINDOW), Arc::new(()), Instant::now(), Sid::new());
        let known = |after| sessions.known(sid, start + Duration::from_secs(after)).0;
        assert_eq!(known(0), Known::Nothing);
        assert!(sessions.enter(sid, Arc::downgrade(&session)).is_none());
        assert_eq!(known(1_000), Known::Here);
        sessions.end(sid, &Arc::downgrade(&session), false, start + Duration::from_secs(1_000));
        assert_eq!([known(1_060), known(1_061)], [Known::Away, Known::Nothing]);
    }

    #[test]
    fn who_left_is_not_away() {
        let (sessions, session, now, sid) = (Sessions::new(WINDOW), Arc::new(()), Instant::now(), Sid::new());
        sessions.enter(sid, Arc::downgrade(&session));
        sessions.vouch(sid, learnt().vouched);
        sessions.end(sid, &Arc::downgrade(&session), true, now);
        assert_eq!(sessions.known(sid, now), (Known::Left, learnt()));
    }

    #[test]
    fn the_end_of_a_replaced_connection_changes_nothing() {
        let (sessions, old, new, now, sid) =
            (Sessions::new(WINDOW), Arc::new(()), Arc::new(()), Instant::now(), Sid::new());
        sessions.enter(sid, Arc::downgrade(&old));
        let replaced = sessions.enter(sid, Arc::downgrade(&new));
        assert!(replaced.is_some_and(|replaced| replaced.ptr_eq(&Arc::downgrade(&old))));
        sessions.end(sid, &Arc::downgrade(&old), false, now);
        assert_eq!(sessions.known(sid, now).0, Known::Here);
    }

    #[test]
    fn who_came_and_went_again_is_away_for_a_whole_window() {
        let (sessions, session, start, sid) = (Sessions::new(WINDOW), Arc::new(()), Instant::now(), Sid::new());
        let at = |seconds| start + Duration::from_secs(seconds);
        for end in [0, 50] {
            sessions.enter(sid, Arc::downgrade(&session));
            sessions.vouch(sid, learnt().vouched);
            sessions.end(sid, &Arc::downgrade(&session), false, at(end));
        }
        let known = [70, 110, 111].map(|now| sessions.known(sid, at(now)));
        let forgotten = (Known::Nothing, Learnt::default());
        assert_eq!(known, [(Known::Away, learnt()), (Known::Away, learnt()), forgotten]);
    }

    #[test]
    fn what_was_revoked_stays_so_for_a_window() {
        let (sessions, session, now, sid) = (Sessions::new(WINDOW), Arc::new(()), Instant::now(), Sid::new());
        sessions.revoke(sid, now);
        assert_eq!(sessions.known(sid, now), (Known::Away, Learnt { vouched: 0, revoked: true }));
        sessions.enter(sid, Arc::downgrade(&session));
        sessions.vouch(sid, learnt().vouched);
        assert_eq!(sessions.connection(sid).and_then(|session| session.upgrade()), Some(Arc::clone(&session)));
        sessions.revoke(sid, now);
        sessions.end(sid, &Arc::downgrade(&session), false, now);
        assert_eq!(sessions.known(sid, now + WINDOW), (Known::Away, Learnt { vouched: 7, revoked: true }));
        assert!(sessions.connection(sid).is_none());
    }
}
