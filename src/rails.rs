//! May this person edit this document? Only Rails knows; here it is asked, and waited for while it restarts.
//!
//! Identical questions at the same time are one request, recent answers are remembered for a moment, and a Rails that
//! is down is tried by one question at a time while the others wait. A question can be dropped at any time; a request that
//! was made for it goes on and is learnt from, since Rails works on it all the same. Knows Rails' endpoint, and nothing
//! of who asks or how.

mod aging;
mod breaker;
mod cache;
mod client;
mod document;
mod flight;
mod gate;
mod limit;

use std::{
    future::pending,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rand::RngExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{
    breaker::{Failed, pause_after},
    cache::Cache,
    client::{Answer, Client, Failure},
    flight::{Attempts, Flights, Joined},
    gate::{Gate, Pass, chance},
};
pub use self::{
    document::{Check, Malformed, Names},
    limit::Limits,
};
use crate::{
    config::{RAILS_VARIABLES, Rails as Settings},
    lifecycle::Tasks,
    metrics::{Counter, Metrics, Timing},
    telemetry::Throttle,
};

/// Checks that may be under way or wait at a time. All editors of a large installation come back at once after a
/// restart, and a waiting check costs about 15 kB with its connection. One more is told that Rails is unavailable.
const MOST_WAITING: usize = 2_048;

/// How much later than Rails is tried again whoever was turned away should come back, spread over this time.
const COME_BACK: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(5);

/// Requests after the first that Rails stumbled over. It may have been a passing trouble, but also the document's type.
const RETRIES_AFTER_STUMBLE: u32 = 1;

/// Rails' status for a question it stumbled over.
const STUMBLED: u16 = 500;

/// When to ask again if a setting has to be mended first.
const MENDING: Duration = Duration::from_mins(1);

/// Rails' answer, or why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The person may edit the document.
    Granted,
    /// The person may not.
    Denied,
    /// No as well, but only since Rails stumbled over the question each time.
    Stumbled,
    /// Rails could not be asked, or not in time.
    Unavailable {
        /// When to ask again.
        retry_after: Duration,
    },
}

/// Asks Rails.
pub struct Rails {
    client: Option<Arc<Client>>,
    hold: Duration,
    gate: Gate,
    /// Requests that may be under way, given in the order of arrival.
    places: Arc<Semaphore>,
    waiting: Semaphore,
    flights: Arc<Flights<Landed>>,
    cache: Mutex<Cache>,
    metrics: Metrics,
    tasks: Tasks,
    stop: CancellationToken,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Landed {
    /// With this status, and that is yes or no.
    Answered { granted: bool, status: u16 },
    /// Rails is said to be elsewhere.
    Redirected,
    /// Rails is not tried again before all who wait would have given up.
    NotNow { again_in: Duration },
}

/// Why a check did not take place or did not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turned {
    NoAddress,
    Full,
    Down,
    Late,
    Stopping,
}

/// What earlier requests for the same check brought.
#[derive(Clone, Copy, Default)]
struct Trouble {
    stumbles: u32,
    failures: u32,
}

/// Counts a check as abandoned when dropped before its end.
struct Unanswered<'a>(&'a Metrics);

/// That a request has to be made again.
struct Again {
    pause: Duration,
    trouble: Trouble,
}

impl Rails {
    /// Asks as the settings say; dials nothing yet. What has to outlast a question runs in `tasks`, and nobody waits
    /// after `stop`.
    pub fn new(settings: &Settings, metrics: Metrics, tasks: Tasks, stop: CancellationToken) -> Arc<Self> {
        let endpoint = settings.endpoint.clone();
        Arc::new(Self {
            client: endpoint.map(|endpoint| Arc::new(Client::new(endpoint, settings.max_concurrency))),
            hold: settings.hold,
            gate: Gate::new(),
            places: Arc::new(Semaphore::new(settings.max_concurrency)),
            waiting: Semaphore::new(MOST_WAITING),
            flights: Flights::new(),
            cache: Mutex::new(Cache::new()),
            metrics,
            tasks,
            stop,
        })
    }

    /// Rails' answer, within the hold time of the settings. Whoever drops this gives up, and nobody else with them.
    pub async fn check(self: &Arc<Self>, check: Check) -> Verdict {
        let started = Instant::now();
        let (kind, user) = (check.kind(), check.user().to_owned());
        let mut attempts = Attempts::default();
        let unanswered = Unanswered(&self.metrics);
        let outcome = self.outcome(check, &mut attempts).await;
        unanswered.end();
        let (attempts, took) = (attempts.load(Ordering::Relaxed), started.elapsed());
        self.metrics.time(Timing::Check, took);
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let (counter, verdict) = match outcome {
            Ok(Landed::Answered { granted, status }) => {
                tracing::info!(kind, user, status, attempts, ms, "checked who may edit a document");
                if granted {
                    (Counter::ChecksGranted, Verdict::Granted)
                } else {
                    (Counter::ChecksDenied, if status == STUMBLED { Verdict::Stumbled } else { Verdict::Denied })
                }
            }
            Ok(Landed::Redirected) => (Counter::ChecksUnavailable, Verdict::Unavailable { retry_after: MENDING }),
            Ok(Landed::NotNow { again_in }) => {
                Turned::Down.report(kind, &user, attempts, ms);
                (Counter::ChecksUnavailable, Verdict::Unavailable { retry_after: again_in + come_back() })
            }
            Err(turned) => {
                turned.report(kind, &user, attempts, ms);
                let retry_after = match turned {
                    Turned::NoAddress => MENDING,
                    _ => self.gate.next_try_in() + come_back(),
                };
                (Counter::ChecksUnavailable, Verdict::Unavailable { retry_after })
            }
        };
        self.metrics.count(counter);
        verdict
    }

    async fn outcome(self: &Arc<Self>, check: Check, attempts: &mut Attempts) -> Result<Landed, Turned> {
        let Some(client) = &self.client else { return Err(Turned::NoAddress) };
        if !self.gate.is_down()
            && let Some(status) = self.cache().get(&check.key(), Instant::now())
        {
            self.metrics.count(Counter::ChecksCached);
            return Ok(Landed::Answered { granted: status == 200, status });
        }
        let _waiting = self.waiting.try_acquire().map_err(|_| Turned::Full)?;
        // Who would wait in vain is told so at once, but for one who finds out whether that is still so.
        let hopeless = self.gate.is_hopeless(self.hold);
        let probe = if hopeless { Some(self.gate.try_probe().ok_or(Turned::Down)?) } else { None };
        let joined = self.join(client, check, probe);
        *attempts = joined.attempts;
        tokio::select! {
            biased;
            landed = timeout(self.hold, joined.landing) => landed.map_err(|_| Turned::Late),
            () = self.stop.cancelled() => Err(Turned::Stopping),
        }
    }

    /// The flight with the same question, or a new one, which begins with the pass if there is one.
    fn join(self: &Arc<Self>, client: &Arc<Client>, check: Check, pass: Option<Pass>) -> Joined<Landed> {
        let (rails, client, check) = (Arc::clone(self), Arc::clone(client), Arc::new(check));
        let joined =
            self.flights.join(check.key(), |attempts| async move { rails.fly(&client, &check, pass, &attempts).await });
        if joined.others {
            self.metrics.count(Counter::ChecksJoined);
        }
        joined
    }

    /// Asks until Rails answers; only once if it was hopeless to begin with and still is.
    async fn fly(
        self: &Arc<Self>,
        client: &Arc<Client>,
        check: &Arc<Check>,
        mut first: Option<Pass>,
        attempts: &AtomicU32,
    ) -> Landed {
        let (probing, mut trouble) = (first.is_some(), Trouble::default());
        loop {
            let pass = match first.take() {
                Some(pass) => pass,
                None => self.gate.pass().await,
            };
            // The semaphore is never closed.
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return pending().await };
            if !self.gate.holds(&pass) {
                continue;
            }
            attempts.fetch_add(1, Ordering::Relaxed);
            let again = match self.attempt(client, check, pass, place, trouble).await {
                Ok(landed) => return landed,
                Err(again) => again,
            };
            let again_in = again.pause.max(self.gate.next_try_in());
            if again_in >= self.hold || (probing && self.gate.is_down()) {
                return Landed::NotNow { again_in };
            }
            trouble = again.trouble;
            sleep(again.pause).await;
        }
    }

    /// Asks once, to the end: when all who wait for the answer have left, Rails still works on the request, so its place
    /// is not free yet, and what becomes of it tells how Rails is. The client's timeout is the bound. Waits for ever
    /// after `stop`.
    async fn attempt(
        self: &Arc<Self>,
        client: &Arc<Client>,
        check: &Arc<Check>,
        pass: Pass,
        place: OwnedSemaphorePermit,
        trouble: Trouble,
    ) -> Result<Landed, Again> {
        let (teller, told) = oneshot::channel();
        let (rails, client, check) = (Arc::clone(self), Arc::clone(client), Arc::clone(check));
        self.tasks.spawn(async move {
            let asked = rails.stop.run_until_cancelled(rails.ask(&client, &check, &pass, trouble)).await;
            drop((place, pass));
            if let Some(step) = asked {
                // Whoever wanted to know may have left.
                let _ = teller.send(step);
            }
        });
        match told.await {
            Ok(step) => step,
            Err(_) => pending().await,
        }
    }

    /// Asks once and learns from the answer how Rails is.
    ///
    /// # Errors
    /// When to ask again.
    async fn ask(&self, client: &Client, check: &Check, pass: &Pass, mut trouble: Trouble) -> Result<Landed, Again> {
        let asked = Instant::now();
        self.metrics.count(Counter::RailsRequests);
        let answer = client.ask(check).await;
        if answer.is_ok() {
            self.metrics.time(Timing::RailsRequest, asked.elapsed());
        }
        let (granted, status) = match answer {
            Ok(Answer::Granted) => (true, 200),
            Ok(Answer::Denied(status)) => (false, status),
            Ok(Answer::Stumbled) => {
                self.gate.undecided(pass, asked);
                trouble.stumbles += 1;
                if trouble.stumbles <= RETRIES_AFTER_STUMBLE {
                    return Err(Again { pause: pause_after(trouble.stumbles, None, chance()), trouble });
                }
                self.remember(check, STUMBLED, pass, asked);
                return Ok(Landed::Answered { granted: false, status: STUMBLED });
            }
            Ok(Answer::Redirected { status, to }) => {
                self.metrics.count(Counter::RailsRedirects);
                report_redirect(client.variable(), status, to.as_deref());
                self.answered(pass);
                return Ok(Landed::Redirected);
            }
            Err(failure) => {
                self.metrics.count(Counter::RailsFailures);
                trouble.failures += 1;
                return Err(Again { pause: self.failed(pass, asked, &failure, trouble.failures), trouble });
            }
        };
        self.answered(pass);
        self.remember(check, status, pass, asked);
        Ok(Landed::Answered { granted, status })
    }

    fn answered(&self, pass: &Pass) {
        // A Rails that comes and goes would write a line each time.
        static AGAIN: Throttle = Throttle::new();
        if let Some(outage) = self.gate.answered(pass)
            && let Some(more_since_last) = AGAIN.allow(std::time::Instant::now())
        {
            let seconds = outage.as_secs();
            tracing::info!(seconds, more_since_last, "rails answers again");
        }
    }

    /// Returns the pause after which to ask again. There is none where nobody could have asked with more luck, as there
    /// is a queue for that; else others are to have their turn in the meantime.
    fn failed(&self, pass: &Pass, asked: Instant, failure: &Failure, failures: u32) -> Duration {
        static FAILURES: Throttle = Throttle::new();
        let failed = self.gate.failed(pass, asked, failure.symptom);
        if failed == Failed::Opened {
            self.cache().clear();
            self.metrics.count(Counter::RailsOutages);
        }
        if let Some(more_since_last) = FAILURES.allow(std::time::Instant::now()) {
            let (reason, hold) = (&failure.reason, self.hold.as_secs());
            tracing::warn!(
                more_since_last,
                "cannot ask rails who may edit, trying on, checks wait up to {hold} s: {reason}"
            );
        }
        if failed != Failed::Alone && failure.symptom.concerns_all {
            return Duration::ZERO;
        }
        pause_after(failures, failure.symptom.retry_after, chance())
    }

    /// Keeps an answer for a moment, unless there was an outage since it was asked for.
    fn remember(&self, check: &Check, status: u16, pass: &Pass, asked: Instant) {
        // An outage that begins after this look clears what is inserted here.
        let mut cache = self.cache();
        if self.gate.is_up_since(pass) {
            cache.insert(check.key(), status, asked);
        }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Unanswered<'_> {
    fn end(self) {
        std::mem::forget(self);
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.count(Counter::ChecksAbandoned);
    }
}

/// How much later than Rails is tried again one who is turned away should ask.
fn come_back() -> Duration {
    rand::rng().random_range(COME_BACK)
}

impl Turned {
    /// Once a minute for each reason, as each concerns many at a time.
    fn report(self, kind: &str, user: &str, attempts: u32, ms: u64) {
        static KINDS: [Throttle; 5] = [const { Throttle::new() }; 5];
        let throttle = KINDS.get(self as usize);
        let Some(more_since_last) = throttle.and_then(|kind| kind.allow(std::time::Instant::now())) else { return };
        match self {
            Self::NoAddress => {
                tracing::error!(more_since_last, "nobody can edit together: set {RAILS_VARIABLES} to where rails is");
            }
            Self::Full => tracing::warn!(more_since_last, most = MOST_WAITING, "too many checks wait for rails"),
            Self::Down => tracing::warn!(more_since_last, "rails is down for longer than checks wait; refused one"),
            Self::Late => {
                tracing::warn!(
                    kind,
                    user,
                    attempts,
                    ms,
                    more_since_last,
                    "rails did not say in time who may edit a document"
                );
            }
            Self::Stopping => {}
        }
    }
}

/// A redirect is a wrong setting: followed, it would turn the question into a GET, and any page would grant.
fn report_redirect(variable: &str, status: u16, to: Option<&str>) {
    static REDIRECTS: Throttle = Throttle::new();
    if let Some(more_since_last) = REDIRECTS.allow(std::time::Instant::now()) {
        let to = to.unwrap_or("nowhere");
        tracing::error!(
            status,
            more_since_last,
            "nobody can edit together: rails redirects to {to}; set {variable} to an address that answers itself"
        );
    }
}
