//! Who is here, who was here lately, and who left for good.
//!
//! A ticket is enough to come back with. This adds what a ticket cannot know, as it stays the same for as long as its
//! session: whether that still lives (then the newcomer takes its place), when it ended, whether the browser took leave
//! of it, and what changed since it began.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
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

/// What changed in a session since its ticket was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// When Redis last said which rooms its user has, in seconds since 1970; 0 for not since.
    pub(super) vouched: u64,
    /// The rooms it had when it was last served, if they are not those of its ticket.
    pub(super) rooms: Option<Arc<[String]>>,
}

impl Changes {
    /// Of a session whose ticket has the rooms `at_first`, and which has the rooms `now`.
    pub(super) fn new(vouched: u64, at_first: &[String], now: &[String]) -> Self {
        let same = at_first.iter().collect::<HashSet<_>>() == now.iter().collect::<HashSet<_>>();
        Self { vouched, rooms: (!same).then(|| now.into()) }
    }
}

struct Record<T> {
    state: State<T>,
    changes: Changes,
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

    pub(super) fn known(&self, sid: Sid, now: Instant) -> (Known, Changes) {
        let mut inner = self.lock();
        inner.forget(self.window, now);
        let Some(Record { state, changes }) = inner.records.get(&sid) else {
            return (Known::Nothing, Changes::default());
        };
        let known = match state {
            State::Here(_) => Known::Here,
            State::Ended { left: false, .. } => Known::Away,
            State::Ended { left: true, .. } => Known::Left,
        };
        (known, changes.clone())
    }

    /// The session is connected from now on; returns the connection it takes the place of.
    pub(super) fn enter(&self, sid: Sid, session: Weak<T>, changes: Changes) -> Option<Weak<T>> {
        match self.lock().records.insert(sid, Record { state: State::Here(session), changes })?.state {
            State::Here(old) => Some(old),
            State::Ended { .. } => None,
        }
    }

    /// The session has other rooms from now on.
    pub(super) fn change(&self, sid: Sid, rooms: &[String]) {
        if let Some(record) = self.lock().records.get_mut(&sid) {
            record.changes.rooms = Some(rooms.into());
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

    const WINDOW: Duration = Duration::from_mins(1);

    fn changed() -> Changes {
        Changes { vouched: 7, rooms: Some(["group-1".to_owned()].into()) }
    }

    #[test]
    fn a_session_is_here_then_away_then_forgotten() {
        let (sessions, session, start, sid) = (Sessions::new(WINDOW), Arc::new(()), Instant::now(), Sid::new());
        let known = |after| sessions.known(sid, start + Duration::from_secs(after)).0;
        assert_eq!(known(0), Known::Nothing);
        assert!(sessions.enter(sid, Arc::downgrade(&session), Changes::default()).is_none());
        assert_eq!(known(1_000), Known::Here);
        sessions.end(sid, &Arc::downgrade(&session), false, start + Duration::from_secs(1_000));
        assert_eq!([known(1_060), known(1_061)], [Known::Away, Known::Nothing]);
    }

    #[test]
    fn who_left_is_not_away() {
        let (sessions, session, now, sid) = (Sessions::new(WINDOW), Arc::new(()), Instant::now(), Sid::new());
        sessions.enter(sid, Arc::downgrade(&session), changed());
        sessions.end(sid, &Arc::downgrade(&session), true, now);
        assert_eq!(sessions.known(sid, now), (Known::Left, changed()));
    }

    #[test]
    fn the_end_of_a_replaced_connection_changes_nothing() {
        let (sessions, old, new, now, sid) =
            (Sessions::new(WINDOW), Arc::new(()), Arc::new(()), Instant::now(), Sid::new());
        sessions.enter(sid, Arc::downgrade(&old), Changes::default());
        let replaced = sessions.enter(sid, Arc::downgrade(&new), Changes::default());
        assert!(replaced.is_some_and(|replaced| replaced.ptr_eq(&Arc::downgrade(&old))));
        sessions.end(sid, &Arc::downgrade(&old), false, now);
        assert_eq!(sessions.known(sid, now).0, Known::Here);
    }

    #[test]
    fn who_came_and_went_again_is_away_for_a_whole_window() {
        let (sessions, session, start, sid) = (Sessions::new(WINDOW), Arc::new(()), Instant::now(), Sid::new());
        let at = |seconds| start + Duration::from_secs(seconds);
        for end in [0, 50] {
            sessions.enter(sid, Arc::downgrade(&session), changed());
            sessions.end(sid, &Arc::downgrade(&session), false, at(end));
        }
        let known = [70, 110, 111].map(|now| sessions.known(sid, at(now)));
        let forgotten = (Known::Nothing, Changes::default());
        assert_eq!(known, [(Known::Away, changed()), (Known::Away, changed()), forgotten]);
    }
}
