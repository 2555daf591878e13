//! Requests are counted here. A listener takes them and never answers; how one ends is told by hand.

use std::{future, net::TcpListener, pin::Pin};

use tokio::{
    task::{JoinSet, yield_now},
    time::advance,
};

use super::{super::MAX_WAITING, *};
use crate::{
    config::{Config, Environment},
    lifecycle::Lifecycle,
    metrics::Metrics,
};

struct Setting {
    rails: Arc<Rails>,
    start: Instant,
    _silent: TcpListener,
}

impl Setting {
    /// Two concurrent requests, and callers wait for 10 seconds.
    fn new() -> Self {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", silent.local_addr().unwrap());
        let variables = [("PRIVATE_APP_URL", &*url), ("RAILS_MAX_CONCURRENCY", "2"), ("RAILS_HOLD_SECONDS", "10")];
        let config = Config::from_env(&variables.into_iter().collect::<Environment>()).unwrap();
        let rails = Rails::new(&config, Metrics::default(), Lifecycle::current());
        Self { rails, start: Instant::now(), _silent: silent }
    }

    fn join(&self, name: &str) -> Option<Caller> {
        let check = check(name);
        let flight = self.rails.join(check.key(), check)?;
        let mut task = JoinSet::new();
        task.spawn(flight.outcome.clone());
        Some(Caller { flight, task })
    }

    fn cached(&self, name: &str, millis: u64) -> Option<u16> {
        let status = self.rails.state.lock().cached(&check(name).key(), self.start + Duration::from_millis(millis));
        status.map(|status| status.as_u16())
    }

    /// Flights that have not ended.
    fn flights(&self) -> usize {
        let state = self.rails.state.lock();
        state
            .recent
            .iter()
            .filter(|(_, recent)| matches!(recent, Recent::Flight(flight) if flight.strong_count() > 0))
            .count()
    }

    fn permit(&self) -> Permit {
        self.rails.state.lock().breaker.permit(Instant::now()).unwrap()
    }

    /// Ends a request for this question that was made just now.
    fn learn(&self, name: &str, permit: Permit, answer: Result<u16, Option<Duration>>) -> Learnt {
        self.learn_again(&flight(name), permit, answer)
    }

    fn learn_again(&self, flight: &Flight, permit: Permit, answer: Result<u16, Option<Duration>>) -> Learnt {
        let answer = match answer {
            Ok(status) => Ok(StatusCode::from_u16(status).unwrap()),
            Err(retry_after) => Err(Failure { reason: String::new(), retry_after }),
        };
        let learnt = self.rails.learn(flight, permit, answer);
        self.rails.ended.notify_waiters();
        learnt
    }

    /// Opens the breaker.
    fn outage(&self) {
        let permit = self.permit();
        let learnt = self.learn("failing", permit, Err(Some(Duration::ZERO)));
        assert_eq!(learnt, ControlFlow::Continue(Duration::ZERO));
        assert_eq!(self.count(Counter::RailsOutages), 1);
    }

    /// The number of requests after all that may be made.
    async fn requests(&self) -> u64 {
        for _ in 0..10 {
            yield_now().await;
        }
        self.count(Counter::RailsRequests)
    }

    fn count(&self, counter: Counter) -> u64 {
        self.rails.metrics.get(counter)
    }
}

/// One that waits for the outcome until it is dropped.
struct Caller {
    flight: Arc<Flight>,
    task: JoinSet<Outcome>,
}

impl Caller {
    fn attempts(&self) -> u32 {
        self.flight.attempts.load(Ordering::Relaxed)
    }
}

fn answered(status: u16) -> Learnt {
    ControlFlow::Break(Ok(StatusCode::from_u16(status).unwrap()))
}

fn flight(name: &str) -> Flight {
    let check = check(name);
    Flight {
        key: check.key(),
        check,
        only_probe: false,
        attempts: AtomicU32::new(1),
        server_error: AtomicBool::new(false),
        outcome: future::pending().boxed().shared(),
    }
}

fn check(name: &str) -> Check {
    Check::new("1,a".to_owned(), name.to_owned()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn grants_are_cached_longer_than_denials() {
    for (status, last) in [(200, 4_999), (404, 999)] {
        let setting = Setting::new();
        assert_eq!(setting.learn("a", setting.permit(), Ok(status)), answered(status));
        assert_eq!([0, last, last + 1].map(|at| setting.cached("a", at)), [Some(status), Some(status), None]);
        assert_eq!(setting.cached("another", 0), None);
    }
}

#[tokio::test(start_paused = true)]
async fn no_answer_is_used_across_an_outage() {
    let setting = Setting::new();
    let (early, late) = (setting.permit(), setting.permit());
    assert_eq!(setting.learn("early", early, Ok(200)), answered(200));
    assert_eq!(setting.cached("early", 0), Some(200));
    setting.outage();
    assert_eq!(setting.cached("early", 0), None, "the breaker is open");
    assert_eq!(setting.learn("late", late, Ok(200)), answered(200));
    advance(Duration::from_secs(1)).await;
    assert_eq!(setting.learn("probe", setting.permit(), Ok(200)), answered(200));
    assert_eq!(["early", "late", "probe"].map(|name| setting.cached(name, 1_000)), [None, None, Some(200)]);
}

#[tokio::test(start_paused = true)]
async fn the_cache_is_bounded() {
    let setting = Setting::new();
    for number in 0..=MAX_RECENT {
        assert_eq!(setting.learn(&number.to_string(), setting.permit(), Ok(200)), answered(200));
    }
    assert_eq!(["0", "1"].map(|name| setting.cached(name, 0)), [None, Some(200)]);
}

#[tokio::test(start_paused = true)]
async fn the_second_500_is_the_answer() {
    let setting = Setting::new();
    let first = flight("a");
    let learnt = [(); 2].map(|()| setting.learn_again(&first, setting.permit(), Ok(500)));
    assert!(learnt[0].is_continue() && learnt[1] == answered(500), "{learnt:?}");
    assert_eq!(setting.cached("a", 0), Some(500));
}

#[tokio::test(start_paused = true)]
async fn identical_questions_are_one_request_and_go_on_with_it() {
    let setting = Setting::new();
    let callers: Vec<_> = (0..10).map(|_| setting.join("a").unwrap()).collect();
    assert_eq!(setting.requests().await, 1);
    assert!(callers.iter().all(|progress| progress.attempts() == 1));
    drop(callers);
    assert_eq!(setting.requests().await, 1);
    let later = setting.join("a").unwrap();
    assert_eq!((later.attempts(), setting.count(Counter::ChecksJoined)), (1, 10));
}

#[tokio::test(start_paused = true)]
async fn questions_without_callers_are_not_asked_and_leave_nothing_behind() {
    let setting = Setting::new();
    let [_a, _b, c, d] = ["a", "b", "c", "d"].map(|name| setting.join(name).unwrap());
    let also_d = setting.join("d").unwrap();
    assert_eq!(setting.requests().await, 2);
    drop((c, also_d));
    assert_eq!(setting.requests().await, 2);
    setting.rails.places.add_permits(1);
    assert_eq!(setting.requests().await, 3, "c has left the queue");
    assert_eq!(d.attempts(), 1, "d has a caller left");
    for number in 0..100 {
        drop(setting.join(&number.to_string()));
    }
    assert_eq!(setting.requests().await, 3);
    assert_eq!(setting.flights(), 3);
}

#[tokio::test(start_paused = true)]
async fn one_caller_more_than_may_wait_is_refused() {
    let setting = Setting::new();
    let waits = |caller: &mut Pin<Box<_>>| FutureExt::now_or_never(caller).is_none();
    let caller = |name: String| {
        let rails = Arc::clone(&setting.rails);
        Box::pin(async move { rails.outcome(check(&name)).await.0 })
    };
    let mut callers: Vec<_> = (0..MAX_WAITING).map(|number| caller(number.to_string())).collect();
    assert!(callers.iter_mut().all(waits));
    assert_eq!(caller("0".to_owned()).now_or_never(), Some(Err(Reason::Overloaded)));
    drop(callers);
    assert!(waits(&mut caller("0".to_owned())));
}

#[tokio::test(start_paused = true)]
async fn while_the_breaker_is_open_one_request_at_a_time_is_made() {
    let setting = Setting::new();
    setting.outage();
    let _callers = ["a", "b"].map(|name| setting.join(name).unwrap());
    advance(Duration::from_millis(100)).await;
    assert_eq!(setting.requests().await, 0, "too early");
    advance(Duration::from_millis(400)).await;
    assert_eq!(setting.requests().await, 1);
    advance(Duration::from_secs(1)).await;
    assert_eq!(setting.requests().await, 1, "half-open");
}

#[tokio::test(start_paused = true)]
async fn an_answer_lets_all_pass() {
    let setting = Setting::new();
    setting.outage();
    advance(Duration::from_millis(500)).await;
    let probe = setting.permit();
    let _callers = ["a", "b"].map(|name| setting.join(name).unwrap());
    assert_eq!(setting.requests().await, 0);
    assert_eq!(setting.learn("probe", probe, Ok(404)), answered(404));
    assert_eq!(setting.requests().await, 2);
}

#[tokio::test(start_paused = true)]
async fn while_it_is_hopeless_one_question_may_be_the_probe_and_waits_no_longer() {
    let setting = Setting::new();
    setting.outage();
    advance(Duration::from_secs(10)).await;
    let probe = setting.join("probe").unwrap();
    assert_eq!(setting.requests().await, 1);
    assert!(setting.join("another").is_none() && setting.join("probe").is_none());
    // The client gives up, and the breaker stays open.
    let Caller { flight, mut task } = probe;
    assert!(matches!(task.join_next().await, Some(Ok(Err(Reason::Down)))));
    assert_eq!(flight.attempts.load(Ordering::Relaxed), 1);
}
