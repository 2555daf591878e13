//! Requests are counted here. A listener takes them and never answers; how one ends is told by hand.

use std::{net::TcpListener, pin::pin};

use tokio::time::advance;

use super::{
    super::{breaker::Symptom, check::Names},
    *,
};
use crate::{
    config::{Config, Environment},
    lifecycle::Lifecycle,
    metrics::Metrics,
};

type Share = (Arc<Flight>, Shared<BoxFuture<'static, Outcome>>);

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
        let settings = Config::from_env(&variables.into_iter().collect::<Environment>()).unwrap().rails;
        let rails = Rails::new(&settings, Metrics::new(), Lifecycle::new());
        Self { rails, start: Instant::now(), _silent: silent }
    }

    fn join(&self, name: &str) -> Option<Share> {
        let (client, check) = (self.rails.client.as_ref().unwrap(), check(name));
        self.rails.join(client, check.key(), check, Instant::now())
    }

    fn cached(&self, name: &str, millis: u64) -> Option<u16> {
        self.rails.state().cached(&check(name).key(), self.start + Duration::from_millis(millis))
    }

    fn permit(&self) -> Permit {
        self.rails.state().breaker.permit(Instant::now()).unwrap()
    }

    /// Ends a request that was made just now.
    fn learn(&self, name: &str, permit: Permit, head: Result<Head, Symptom>) -> Result<Outcome, Duration> {
        let (flight, _) = self.join(name).unwrap();
        let head = head.map_err(|symptom| Failure { reason: String::new(), symptom });
        let end = self.rails.learn(&flight, permit, Instant::now(), head, Instant::now());
        self.rails.ended.notify_waiters();
        end
    }

    /// Opens the breaker.
    fn outage(&self) {
        let permit = self.permit();
        assert_eq!(self.learn("failing", permit, Err(Symptom::ALL)), Err(Duration::ZERO));
        assert_eq!(self.count(Counter::RailsOutages), 1);
    }

    /// The number of requests after all that may be made for these.
    fn requests(&self, shares: &[&Share]) -> u64 {
        for share in shares {
            assert_eq!(share.1.clone().now_or_never(), None);
        }
        self.count(Counter::RailsRequests)
    }

    fn count(&self, counter: Counter) -> u64 {
        self.rails.metrics.get(counter)
    }
}

fn check(name: &str) -> Check {
    Check::new("1,a".to_owned(), name.to_owned(), Names::Any).unwrap()
}

#[tokio::test]
async fn grants_are_cached_longer_than_denials() {
    tokio::time::pause();
    for (status, last) in [(200, 4_999), (404, 999)] {
        let setting = Setting::new();
        assert_eq!(setting.learn("a", setting.permit(), Ok(Head::Status(status))), Ok(Ok(status)));
        assert_eq!([0, last, last + 1].map(|at| setting.cached("a", at)), [Some(status), Some(status), None]);
        assert_eq!(setting.cached("another", 0), None);
    }
}

#[tokio::test]
async fn no_answer_is_used_across_an_outage() {
    tokio::time::pause();
    let setting = Setting::new();
    let (early, late) = (setting.permit(), setting.permit());
    setting.learn("early", early, Ok(Head::Status(200))).unwrap().unwrap();
    assert_eq!(setting.cached("early", 0), Some(200));
    setting.outage();
    assert_eq!(setting.cached("early", 0), None, "the breaker is open");
    advance(Duration::from_secs(1)).await;
    setting.learn("probe", setting.permit(), Ok(Head::Status(200))).unwrap().unwrap();
    setting.learn("late", late, Ok(Head::Status(200))).unwrap().unwrap();
    assert_eq!(["early", "late", "probe"].map(|name| setting.cached(name, 1_000)), [None, None, Some(200)]);
}

#[tokio::test]
async fn the_cache_is_bounded() {
    tokio::time::pause();
    let setting = Setting::new();
    for number in 0..=MAX_CACHED {
        setting.learn(&number.to_string(), setting.permit(), Ok(Head::Status(200))).unwrap().unwrap();
    }
    assert_eq!(["0", "1"].map(|name| setting.cached(name, 0)), [None, Some(200)]);
}

#[tokio::test]
async fn the_second_500_is_the_answer() {
    let setting = Setting::new();
    let _share = setting.join("a");
    let ends = [500, 500].map(|status| setting.learn("a", setting.permit(), Ok(Head::Status(status))));
    assert!(matches!(ends, [Err(_), Ok(Ok(500))]), "{ends:?}");
}

#[tokio::test]
async fn identical_questions_are_one_request() {
    let setting = Setting::new();
    let shares: Vec<Share> = (0..10).map(|_| setting.join("a").unwrap()).collect();
    assert_eq!(setting.requests(&shares.iter().collect::<Vec<_>>()), 1);
    assert_eq!(setting.count(Counter::ChecksJoined), 9);
    drop(shares);
    assert_eq!(setting.requests(&[&setting.join("a").unwrap()]), 2, "the next begins anew");
}

#[tokio::test]
async fn questions_without_callers_are_not_asked_and_leave_nothing_behind() {
    let setting = Setting::new();
    let shares = ["a", "b", "c", "d"].map(|name| setting.join(name).unwrap());
    let also_c = setting.join("c").unwrap();
    let [_, _, c, d] = &shares;
    assert_eq!(setting.requests(&shares.each_ref()), 2);
    setting.rails.places.add_permits(1);
    assert_eq!(setting.requests(&[d, c]), 3, "c is before d");
    let [_, _, _, d] = shares;
    let e = setting.join("e").unwrap();
    assert_eq!(setting.requests(&[&d, &e]), 3);
    drop((d, also_c));
    setting.rails.places.add_permits(1);
    assert_eq!(setting.requests(&[&e]), 4, "d has left the queue");
    for number in 0..5 * MAX_WAITING {
        drop(setting.join(&number.to_string()));
    }
    assert!(setting.rails.state().flights.len() <= 2 * MAX_WAITING);
}

#[tokio::test]
async fn one_caller_more_than_may_wait_is_refused() {
    let setting = Setting::new();
    let waits = |caller: &mut std::pin::Pin<Box<_>>| FutureExt::now_or_never(caller).is_none();
    let caller = |name: String| {
        let rails = Arc::clone(&setting.rails);
        Box::pin(async move { rails.outcome(check(&name)).await.0.map_err(|(reason, _)| reason) })
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
    let shares = ["a", "b"].map(|name| setting.join(name).unwrap());
    advance(Duration::from_millis(100)).await;
    assert_eq!(setting.requests(&shares.each_ref()), 0, "too early");
    advance(Duration::from_millis(400)).await;
    assert_eq!(setting.requests(&shares.each_ref()), 1);
    advance(Duration::from_secs(1)).await;
    assert_eq!(setting.requests(&shares.each_ref()), 1, "half-open");
}

#[tokio::test(start_paused = true)]
async fn an_answer_lets_all_pass() {
    let setting = Setting::new();
    setting.outage();
    advance(Duration::from_millis(500)).await;
    let probe = setting.permit();
    let shares = ["a", "b"].map(|name| setting.join(name).unwrap());
    assert_eq!(setting.requests(&shares.each_ref()), 0);
    setting.learn("probe", probe, Ok(Head::Status(404))).unwrap().unwrap();
    assert_eq!(setting.requests(&shares.each_ref()), 2);
}

#[tokio::test(start_paused = true)]
async fn while_it_is_hopeless_one_question_may_be_the_probe_and_waits_no_longer() {
    let setting = Setting::new();
    setting.outage();
    advance(Duration::from_secs(10)).await;
    let (flight, outcome) = setting.join("probe").unwrap();
    assert_eq!(setting.count(Counter::RailsRequests), 1, "made at once, so that no caller who leaves takes it along");
    assert!(setting.join("another").is_none() && setting.join("probe").is_none());
    let mut outcome = pin!(outcome);
    assert_eq!((&mut outcome).now_or_never(), None);
    // The client gives up, and the breaker stays open.
    assert!(matches!(outcome.await, Err((Reason::Down, _))));
    assert_eq!(flight.attempts.load(Ordering::Relaxed), 1);
}
