//! When to ping a client and when to give it up: one ticker for all sessions, no timer for each.
//!
//! Without I/O; time is milliseconds since the engine was made.

use std::collections::BTreeMap;

/// The engine's heartbeat options in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Intervals {
    pub(super) ping: u64,
    pub(super) timeout: u64,
}

/// The server's side of one session's heartbeat (Engine.IO protocol 4, "Heartbeat").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heartbeat {
    /// When something must be done: send a ping, or give up.
    due: u64,
    awaits_pong: bool,
    /// Bytes that the client has taken of what waits for it, since the last ping.
    taken: usize,
}

/// A client that takes at least this much of what waits for it between two beats is alive, even if its pong is late: the
/// ping may be stuck behind a long replay on a slow line. No usable line is slower than this, and a client must not hold
/// memory for ever by taking a byte now and then.
const PROGRESS: usize = 16 * 1024;

/// What a session must do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// Nothing before this time.
    Wait(u64),
    /// Send a ping, and look again at this time.
    Ping(u64),
    /// No pong came in time.
    Dead,
}

impl Heartbeat {
    /// As it is at first, and after each pong.
    pub(super) fn new(now: u64, intervals: Intervals) -> Self {
        Self { due: now + intervals.ping, awaits_pong: false, taken: 0 }
    }

    pub(super) fn beat(&mut self, now: u64, intervals: Intervals) -> Beat {
        if now < self.due {
            return Beat::Wait(self.due);
        }
        if self.awaits_pong && self.taken < PROGRESS {
            return Beat::Dead;
        }
        // Counted from when the ping was due, so that small delays do not add up; unless this process stood still, which
        // is not the client's fault.
        let late = now - self.due;
        let from = if late < intervals.timeout / 4 { self.due } else { now };
        // While a pong is late there is another ping: the client gives up when none arrives for too long.
        *self = Self { due: from + intervals.timeout, awaits_pong: true, taken: 0 };
        Beat::Ping(self.due)
    }

    /// The client has taken bytes that waited for it.
    pub(super) fn progress(&mut self, bytes: usize) {
        self.taken = self.taken.saturating_add(bytes);
    }
}

/// Sessions by the time they are due, in ticks. Each session stands in it once. A session that has ended stays until it is
/// due, so `T` is best an identifier of few bytes.
pub(super) struct Wheel<T> {
    tick: u64,
    slots: BTreeMap<u64, Vec<T>>,
}

impl<T> Wheel<T> {
    /// `tick` is the resolution in milliseconds.
    pub(super) fn new(tick: u64) -> Self {
        Self { tick, slots: BTreeMap::new() }
    }

    pub(super) fn schedule(&mut self, session: T, due: u64) {
        self.slots.entry(due.div_ceil(self.tick)).or_default().push(session);
    }

    /// Takes out all that are due at `now`.
    pub(super) fn due(&mut self, now: u64) -> Vec<T> {
        let later = self.slots.split_off(&(now / self.tick + 1));
        std::mem::replace(&mut self.slots, later).into_values().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVALS: Intervals = Intervals { ping: 300, timeout: 200 };

    #[test]
    fn pings_and_gives_up_without_a_pong() {
        let mut heartbeat = Heartbeat::new(0, INTERVALS);
        assert_eq!(heartbeat.beat(299, INTERVALS), Beat::Wait(300));
        assert_eq!(heartbeat.beat(310, INTERVALS), Beat::Ping(500));
        assert_eq!(heartbeat.beat(499, INTERVALS), Beat::Wait(500));
        assert_eq!(heartbeat.beat(500, INTERVALS), Beat::Dead);
    }

    #[test]
    fn a_pong_starts_over() {
        let mut heartbeat = Heartbeat::new(0, INTERVALS);
        assert_eq!(heartbeat.beat(300, INTERVALS), Beat::Ping(500));
        heartbeat = Heartbeat::new(350, INTERVALS);
        assert_eq!(heartbeat.beat(640, INTERVALS), Beat::Wait(650));
        assert_eq!(heartbeat.beat(650, INTERVALS), Beat::Ping(850));
    }

    #[test]
    fn after_a_standstill_a_client_still_gets_its_ping() {
        let mut heartbeat = Heartbeat::new(0, INTERVALS);
        assert_eq!(heartbeat.beat(900, INTERVALS), Beat::Ping(1_100));
        assert_eq!(heartbeat.beat(1_099, INTERVALS), Beat::Wait(1_100));
        assert_eq!(heartbeat.beat(1_100, INTERVALS), Beat::Dead);
    }

    #[test]
    fn a_client_that_takes_what_waits_is_alive_without_a_pong_and_pinged_again() {
        let mut heartbeat = Heartbeat::new(0, INTERVALS);
        assert_eq!(heartbeat.beat(300, INTERVALS), Beat::Ping(500));
        for timeout in 1..10 {
            heartbeat.progress(PROGRESS / 2);
            assert_eq!(heartbeat.beat(300 + timeout * 200 - 1, INTERVALS), Beat::Wait(300 + timeout * 200));
            heartbeat.progress(PROGRESS / 2);
            assert_eq!(heartbeat.beat(300 + timeout * 200, INTERVALS), Beat::Ping(500 + timeout * 200));
        }
        assert_eq!(heartbeat.beat(2_300, INTERVALS), Beat::Dead);
    }

    #[test]
    fn a_trickle_is_no_life_nor_is_what_was_taken_before_the_ping() {
        let mut heartbeat = Heartbeat::new(0, INTERVALS);
        heartbeat.progress(10 * PROGRESS);
        assert_eq!(heartbeat.beat(300, INTERVALS), Beat::Ping(500));
        heartbeat.progress(PROGRESS - 1);
        assert_eq!(heartbeat.beat(500, INTERVALS), Beat::Dead);
    }

    #[test]
    fn a_late_pong_starts_over_as_well() {
        let mut heartbeat = Heartbeat::new(0, INTERVALS);
        assert_eq!(heartbeat.beat(300, INTERVALS), Beat::Ping(500));
        heartbeat.progress(PROGRESS);
        assert_eq!(heartbeat.beat(500, INTERVALS), Beat::Ping(700));
        heartbeat = Heartbeat::new(510, INTERVALS);
        assert_eq!(heartbeat.beat(700, INTERVALS), Beat::Wait(810));
        assert_eq!(heartbeat.beat(810, INTERVALS), Beat::Ping(1_010));
        assert_eq!(heartbeat.beat(1_010, INTERVALS), Beat::Dead);
    }

    #[test]
    fn the_wheel_gives_each_session_once_and_not_early() {
        let mut wheel = Wheel::new(10);
        for due in [11, 20, 21, 300] {
            wheel.schedule((), due);
        }
        assert_eq!([19, 20, 20, 29, 30, 299, 300].map(|now| wheel.due(now).len()), [0, 2, 0, 0, 1, 0, 1]);
    }
}
