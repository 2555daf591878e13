//! Live authorization: once in a period Redis is asked again for the user of each connected browser, and the browser's rooms
//! follow without a reconnect.
//!
//! Sessions are asked for in parts, one after the other, so that the lookups are spread evenly over the period however
//! the browsers came. One part is asked for at a time: a Redis that is slow or down delays the round, and no lookups
//! pile up.

use std::time::Instant;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{
    Admission, PackedUser, SessionId, Token, rooms,
    sessions::{PARTS, Recheck},
    users::Found,
    within,
};
use crate::{
    hub::{Clock, Rooms},
    metrics::Counter,
};

/// Tokens that are asked for in one write: few enough that a lookup of a browser that connects does not wait noticeably
/// behind them.
const BATCH: usize = 100;

impl<C: Send + Sync> Admission<C> {
    /// Asks again until `stop`. `set_rooms` gives a connection other rooms, if it is still connected with the session
    /// and its first lookup is done; it returns whether it did.
    pub async fn reauthorize(&self, stop: CancellationToken, set_rooms: impl Fn(&C, &SessionId, Rooms) -> bool) {
        let Some(period) = self.reauth.period else { return stop.cancelled().await };
        let mut ticker = interval(period / PARTS);
        ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut parts = (0..PARTS as usize).cycle();
        while stop.run_until_cancelled(ticker.tick()).await.is_some() {
            let rechecks = self.sessions.rechecks(parts.next().unwrap_or_default());
            stop.run_until_cancelled(self.ask_again(&rechecks, &set_rooms)).await;
        }
    }

    async fn ask_again(&self, rechecks: &[Recheck<C>], set_rooms: &impl Fn(&C, &SessionId, Rooms) -> bool) {
        for rechecks in rechecks.chunks(BATCH) {
            let tokens: Vec<&Token> = rechecks.iter().map(|recheck| &recheck.token).collect();
            let answers = self.users.lookup_again(&tokens).await;
            for (recheck, found) in rechecks.iter().zip(answers) {
                self.follow(recheck, found, set_rooms);
            }
        }
    }

    /// Lets the sessions with a token follow what was found for it. An answer that does not say whose it is changes nothing
    /// for some time: a full Redis evicts keys.
    fn follow(&self, recheck: &Recheck<C>, found: Found, set_rooms: &impl Fn(&C, &SessionId, Rooms) -> bool) {
        let found = if self.reauth.strict { found.strictly() } else { found };
        if matches!(found, Found::Unreadable | Found::Refused(_)) {
            self.metrics.count(Counter::RoomsKept);
        }
        let is_vouched = |id: &SessionId| {
            let known = self.sessions.known(id, Instant::now());
            known.is_some_and(|known| within(known.vouched, self.unvouched_max))
        };
        let vouched = matches!(found, Found::User(_) | Found::Nobody).then(|| Clock::now().unix);
        let user = found.or(None);
        let packed = PackedUser::new(user.as_ref());
        for (id, connection) in &recheck.sessions {
            if vouched.is_none() && is_vouched(id) {
                continue;
            }
            if !self.sessions.learn(id, connection, &packed, vouched) {
                continue;
            }
            // Of the rooms that the browser has already, the hub replays nothing.
            let rooms = Rooms { had: Vec::new(), gained: rooms(user.as_ref()) };
            if connection.upgrade().is_some_and(|connection| set_rooms(&connection, id, rooms)) {
                self.metrics.count(Counter::RoomsChanged);
            } else {
                self.sessions.doubt(id);
            }
        }
    }
}
