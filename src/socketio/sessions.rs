//! Who is here, who was here lately, and who left for good.
//!
//! A ticket is enough to come back with. This adds what a ticket cannot know: whether its session still lives (then
//! the newcomer takes its place), when it ended, and whether the browser took leave of it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use engineioxide_core::Sid;

/// Sessions that ended and are still remembered, about 80 bytes each. Past this number the oldest are forgotten: their
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

enum Record<T> {
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

    pub(super) fn known(&self, sid: Sid, now: Instant) -> Known {
        let mut inner = self.lock();
        inner.forget(self.window, now);
        match inner.records.get(&sid) {
            Some(Record::Here(_)) => Known::Here,
            Some(Record::Ended { left: false, .. }) => Known::Away,
            Some(Record::Ended { left: true, .. }) => Known::Left,
            None => Known::Nothing,
        }
    }

    /// The session is connected from now on; returns the connection it takes the place of.
    pub(super) fn enter(&self, sid: Sid, session: Weak<T>) -> Option<Weak<T>> {
        match self.lock().records.insert(sid, Record::Here(session)) {
            Some(Record::Here(old)) => Some(old),
            _ => None,
        }
    }

    /// This connection of the session ended; `left` if the browser said that it leaves.
    pub(super) fn end(&self, sid: Sid, session: &Weak<T>, left: bool, now: Instant) {
        let mut inner = self.lock();
        let Some(record) = inner.records.get_mut(&sid) else { return };
        if !matches!(&*record, Record::Here(current) if current.ptr_eq(session)) {
            return;
        }
        *record = Record::Ended { left, at: now };
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
            if matches!(self.records.get(&sid), Some(Record::Ended { at: last, .. }) if *last == at) {
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

    #[test]
    fn a_session_is_here_then_away_then_forgotten() {
        let (sessions, session, start, sid) = (Sessions::new(WINDOW), Arc::new(()), Instant::now(), Sid::new());
        let known = |after| sessions.known(sid, start + Duration::from_secs(after));
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
        sessions.end(sid, &Arc::downgrade(&session), true, now);
        assert_eq!(sessions.known(sid, now), Known::Left);
    }

    #[test]
    fn the_end_of_a_replaced_connection_changes_nothing() {
        let (sessions, old, new, now, sid) =
            (Sessions::new(WINDOW), Arc::new(()), Arc::new(()), Instant::now(), Sid::new());
        sessions.enter(sid, Arc::downgrade(&old));
        assert!(
            sessions.enter(sid, Arc::downgrade(&new)).is_some_and(|replaced| replaced.ptr_eq(&Arc::downgrade(&old)))
        );
        sessions.end(sid, &Arc::downgrade(&old), false, now);
        assert_eq!(sessions.known(sid, now), Known::Here);
    }

    #[test]
    fn who_came_and_went_again_is_away_for_a_whole_window() {
        let (sessions, session, start, sid) = (Sessions::new(WINDOW), Arc::new(()), Instant::now(), Sid::new());
        let at = |seconds| start + Duration::from_secs(seconds);
        for end in [0, 50] {
            sessions.enter(sid, Arc::downgrade(&session));
            sessions.end(sid, &Arc::downgrade(&session), false, at(end));
        }
        assert_eq!([70, 110, 111].map(|now| sessions.known(sid, at(now))), [Known::Away, Known::Away, Known::Nothing]);
    }
}
