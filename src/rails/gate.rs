//! Who may ask Rails now: everyone while it is up, one at a time while it is down, the others wait.
//!
//! Whoever waits can be dropped at any time; the turn to try goes to the next in the queue.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::RngExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep_until},
};

use super::breaker::{Breaker, Failed, Symptom};

/// The breaker with those who wait before it.
pub(super) struct Gate {
    breaker: Mutex<Breaker>,
    /// Whether Rails is down; changed under the breaker's lock.
    down: watch::Sender<bool>,
    /// The turn to try, given in the order of arrival.
    turn: Arc<Semaphore>,
    /// Outages so far.
    outages: AtomicU64,
}

/// Leave to make one request.
pub(super) struct Pass {
    /// The turn to try, if Rails is down; given back when dropped.
    probe: Option<OwnedSemaphorePermit>,
    outages: u64,
}

impl Gate {
    /// Open.
    pub(super) fn new() -> Self {
        Self {
            breaker: Mutex::default(),
            down: watch::Sender::new(false),
            turn: Arc::new(Semaphore::new(1)),
            outages: AtomicU64::new(0),
        }
    }

    /// Waits until a request may be made, for ever if need be.
    pub(super) async fn pass(&self) -> Pass {
        let mut down = self.down.subscribe();
        while *down.borrow_and_update() {
            tokio::select! {
                biased;
                _ = down.wait_for(|down| !down) => {}
                pass = self.turn() => if let Some(pass) = pass { return pass },
            }
        }
        Pass { probe: None, outages: self.outages() }
    }

    /// The turn to try, if Rails is down, it is time, and nobody waits for it.
    pub(super) fn try_probe(&self) -> Option<Pass> {
        let turn = Arc::clone(&self.turn).try_acquire_owned().ok()?;
        let due = self.lock().next_try().is_some_and(|at| at <= Instant::now());
        due.then(|| Pass { probe: Some(turn), outages: self.outages() })
    }

    /// Waits for the turn to try and then for the time; `None` when Rails turns out to be up. The turn goes back then:
    /// kept by one who needs it no more, it would be missing in the next outage.
    async fn turn(&self) -> Option<Pass> {
        // The semaphore is never closed.
        let turn = Arc::clone(&self.turn).acquire_owned().await.ok()?;
        loop {
            let next = self.lock().next_try()?;
            if next <= Instant::now() {
                return Some(Pass { probe: Some(turn), outages: self.outages() });
            }
            sleep_until(next).await;
        }
    }

    /// Whether the pass still holds: Rails may have been found to be down since it was given.
    pub(super) fn holds(&self, pass: &Pass) -> bool {
        pass.probe.is_some() || !*self.down.borrow()
    }

    /// Whether Rails is up and was so all the time since the pass was given.
    pub(super) fn is_up_since(&self, pass: &Pass) -> bool {
        !*self.down.borrow() && pass.outages == self.outages()
    }

    /// Whether Rails is down.
    pub(super) fn is_down(&self) -> bool {
        *self.down.borrow()
    }

    /// Whether who waits for so long would wait in vain as far as one can tell.
    pub(super) fn is_hopeless(&self, hold: Duration) -> bool {
        self.lock().is_hopeless(hold, Instant::now())
    }

    /// How long until it is tried again, zero if it is up or about to be.
    pub(super) fn next_try_in(&self) -> Duration {
        self.lock().next_try().map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()))
    }

    /// Rails answered. Returns how long the outage was that ends.
    pub(super) fn answered(&self, pass: &Pass) -> Option<Duration> {
        let mut breaker = self.lock();
        let ended = breaker.answered(pass.probe.is_some(), Instant::now());
        if ended.is_some() {
            self.down.send_replace(false);
        }
        ended
    }

    /// Rails could not answer a request made at `asked`.
    pub(super) fn failed(&self, pass: &Pass, asked: Instant, symptom: Symptom) -> Failed {
        let mut breaker = self.lock();
        let failed = breaker.failed(asked, pass.probe.is_some(), symptom, chance(), Instant::now());
        if failed == Failed::Opened {
            self.outages.fetch_add(1, Ordering::Relaxed);
            self.down.send_replace(true);
        }
        failed
    }

    /// Rails answered, though not in a way that shows it to be well: whether it is down stays as it was.
    pub(super) fn undecided(&self, pass: &Pass, asked: Instant) {
        if pass.probe.is_some() {
            self.failed(pass, asked, Symptom::default());
        }
    }

    fn outages(&self) -> u64 {
        self.outages.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From 0 to 1.
pub(super) fn chance() -> f64 {
    rand::rng().random_range(0.0..=1.0)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::{task::JoinSet, time::timeout};

    use super::*;

    const REFUSED: Symptom = Symptom { concerns_all: true, retry_after: None };

    /// A gate that has just closed.
    async fn closed() -> Arc<Gate> {
        let gate = Arc::new(Gate::new());
        let pass = gate.pass().await;
        assert_eq!(gate.failed(&pass, Instant::now(), REFUSED), Failed::Opened);
        assert!(!gate.holds(&pass));
        gate
    }

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_tries_and_an_answer_lets_all_pass() {
        let gate = closed().await;
        let mut waiting = JoinSet::new();
        for _ in 0..10 {
            let gate = Arc::clone(&gate);
            waiting.spawn(async move { gate.pass().await });
        }
        let probe = waiting.join_next().await.unwrap().unwrap();
        assert!(probe.probe.is_some() && gate.holds(&probe));
        assert!(timeout(Duration::from_mins(1), waiting.join_next()).await.is_err(), "the others wait");
        assert!(gate.answered(&probe).is_some());
        drop(probe);
        let others = waiting.join_all().await;
        assert!(others.len() == 9 && others.iter().all(|pass| pass.probe.is_none()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_turn_of_one_who_leaves_goes_to_the_next() {
        let gate = closed().await;
        for _ in 0..10 {
            // It has the turn and waits for the time, or has the time as well.
            let _ = timeout(Duration::from_millis(100), gate.pass()).await;
        }
        let probe = timeout(Duration::from_secs(1), gate.pass()).await.unwrap();
        drop(probe);
        assert!(gate.pass().await.probe.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_turn_does_not_stay_with_one_who_finds_rails_up() {
        let gate = closed().await;
        let probe = gate.pass().await;
        let mut waiting = Box::pin(gate.turn());
        assert!((&mut waiting).now_or_never().is_none());
        gate.answered(&probe);
        drop(probe);
        assert!(matches!((&mut waiting).now_or_never(), Some(None)));
        assert_eq!(gate.turn.available_permits(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_try_is_followed_by_a_pause_and_another() {
        let gate = closed().await;
        let started = Instant::now();
        for _ in 0..20 {
            let probe = gate.pass().await;
            assert_eq!(gate.failed(&probe, Instant::now(), REFUSED), Failed::StillDown);
        }
        let took = started.elapsed();
        assert!((Duration::from_secs(10)..Duration::from_secs(100)).contains(&took), "{took:?}");
        assert!(gate.is_hopeless(took) && !gate.is_hopeless(took + Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_wait_may_try_when_it_is_time_and_nobody_else_does() {
        let gate = closed().await;
        assert!(gate.try_probe().is_none(), "too early");
        tokio::time::advance(Duration::from_secs(1)).await;
        let probe = gate.try_probe();
        assert!(probe.is_some() && gate.try_probe().is_none());
        gate.answered(&probe.unwrap());
        assert!(gate.try_probe().is_none(), "no need");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pass_from_before_an_outage_is_told_from_one_after() {
        let gate = Gate::new();
        let (before, also_before) = (gate.pass().await, gate.pass().await);
        gate.failed(&before, Instant::now(), REFUSED);
        let probe = gate.pass().await;
        gate.answered(&also_before);
        assert!(gate.is_down(), "an answer from before the outage does not end it");
        gate.answered(&probe);
        assert!(gate.is_up_since(&probe) && !gate.is_up_since(&also_before));
    }
}
