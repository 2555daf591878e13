//! How sessions leave before the server stops: a few at a time, so that the servers they turn to are not stormed.

use std::{sync::Arc, time::Duration};

use engineioxide_core::Sid;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{CloseReason, DRAIN_TICK, Engine, Handler, Session};

/// Time for each batch. Where there are fewer sessions than batches, one session leaves in each: 20 returns a second are
/// no burst, and a server with few sessions need not use up its time.
const BATCH: Duration = Duration::from_millis(50);

impl<H: Handler> Engine<H> {
    /// Closes all sessions in batches that are spread evenly over `time`, each at a random moment of its share. A session
    /// whose turn has come stays open until all that was sent to it has left. Ends when no session is open, or after
    /// `time`. Less than one batch closes none. New sessions should be refused before.
    pub async fn close_paced(&self, reason: CloseReason, time: Duration) {
        let batches = usize::try_from(time.as_millis() / BATCH.as_millis()).unwrap_or(usize::MAX);
        if batches > 0 {
            let _ = timeout(time, self.close_in(batches, reason)).await;
        }
    }

    async fn close_in(&self, batches: usize, reason: CloseReason) {
        // The order of the table is random.
        let sids: Vec<Sid> = self.registry.lock().sessions.keys().copied().collect();
        let batches = batches.min(sids.len());
        let mut begin = Instant::now();
        // Their turn has come, and they were open when they were last looked at.
        let mut due = Vec::new();
        for batch in 0..batches {
            sleep_until(begin + BATCH.mul_f64(rand::random())).await;
            begin += BATCH;
            due.extend_from_slice(&sids[sids.len() * batch / batches..sids.len() * (batch + 1) / batches]);
            due.retain(|sid| self.session(*sid).is_some_and(|session| !session.close_if_settled(reason)));
        }
        // Those that are late, and those that were just being opened when new ones began to be refused.
        loop {
            let open: Vec<Arc<Session<H>>> = self.registry.lock().sessions.values().cloned().collect();
            if open.is_empty() {
                return;
            }
            for session in open {
                session.close_if_settled(reason);
            }
            sleep(DRAIN_TICK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::{
        super::{session::Polled, tests::Crowd},
        *,
    };

    const TIME: Duration = Duration::from_secs(10);

    fn waiting(session: &Arc<Session<impl Handler>>) -> oneshot::Receiver<Vec<bytes::Bytes>> {
        match session.poll() {
            Some(Polled::Later(answer)) => answer,
            _ => panic!("a GET that need not wait"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn closes_are_spread_evenly() {
        const SESSIONS: usize = 1_003;
        let crowd = Crowd::of(SESSIONS);
        let answers: Vec<_> = crowd.sessions.iter().map(waiting).collect();
        let look = async {
            let mut left = SESSIONS;
            for tenth in 0..10 {
                sleep(TIME / 10).await;
                let closed = left - crowd.engine.sessions();
                left -= closed;
                // A batch that is due at the edge of a tenth counts for either.
                assert!((94..=107).contains(&closed), "{closed} in tenth {tenth}");
            }
        };
        tokio::join!(crowd.engine.close_paced(CloseReason::Shutdown, TIME), look);
        assert_eq!(crowd.engine.sessions(), 0);
        for answer in answers {
            assert_eq!(answer.await.unwrap(), ["1"]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn few_sessions_leave_one_by_one_and_soon() {
        let crowd = Crowd::of(3);
        let _answers: Vec<_> = crowd.sessions.iter().map(waiting).collect();
        let start = Instant::now();
        let look = async {
            for left in [2, 1] {
                sleep(BATCH).await;
                assert_eq!(crowd.engine.sessions(), left);
            }
        };
        tokio::join!(crowd.engine.close_paced(CloseReason::Shutdown, TIME), look);
        assert!(crowd.engine.sessions() == 0 && start.elapsed() < 4 * BATCH);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_sent_leaves_before_the_close() {
        let crowd = Crowd::of(1);
        let session = &crowd.sessions[0];
        session.send(&[&super::super::Frame::message(&[b"x"])]);
        let client = async {
            sleep(TIME / 2).await;
            assert!(matches!(session.poll(), Some(Polled::Now(packets)) if packets == ["4x"]));
            session.answered();
            assert_eq!(waiting(session).await.unwrap(), ["1"]);
        };
        tokio::join!(crowd.engine.close_paced(CloseReason::Shutdown, TIME), client);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_takes_nothing_does_not_hold_it_up() {
        let crowd = Crowd::of(1);
        for time in [TIME, Duration::ZERO] {
            let start = Instant::now();
            crowd.engine.close_paced(CloseReason::Shutdown, time).await;
            assert_eq!((start.elapsed(), crowd.engine.sessions()), (time, 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_was_being_opened_leaves_too() {
        let crowd = Crowd::of(1);
        let _first = waiting(&crowd.sessions[0]);
        let late = async {
            sleep(Duration::from_millis(1)).await;
            waiting(&crowd.open()).await
        };
        let ((), answer) = tokio::join!(crowd.engine.close_paced(CloseReason::Shutdown, TIME), late);
        assert_eq!(answer.unwrap(), ["1"]);
    }
}
