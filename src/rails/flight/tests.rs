//! Requests are counted here. A listener takes them and never answers; how one ends is told by hand.

use std::{net::TcpListener, pin::Pin};

use futures_util::FutureExt;
use tokio::{task::yield_now, time::advance};

use super::{
    super::{MAX_WAITING, breaker::Symptom, check::Names},
    *,
};
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
        let settings = Config::from_env(&variables.into_iter().collect::<Environment>()).unwrap().rails;
        let rails = Rails::new(&settings, Metrics::new(), Lifecycle::current());
        Self { rails, start: Instant::now(), _silent: silent }
    }

    fn join(&self, name: &str) -> Option<watch::Receiver<Progress>> {
        let (client, check) = (self.rails.client.as_ref().unwrap(), check(name));
        self.rails.join(client, check.key(), check, Instant::now())
    }

    fn cached(&self, name: &str, millis: u64) -> Option<u16> {
        self.rails.state().cached(&check(name).key(), self.start + Duration::from_millis(millis))
    }

    fn permit(&self) -> Permit {
        self.rails.state().breaker.permit(Instant::now()).unwrap()
    }

    /// Ends a request for this question that was made just now.
    fn learn(&self, name: &str, permit: Permit, answer: Result<u16, Symptom>) -> Result<Outcome, Duration> {
        self.learn_again(&mut self.flight(name), permit, answer)
    }

    fn learn_again(
        &self,
        flight: &mut Flight,
        permit: Permit,
        answer: Result<u16, Symptom>,
    ) -> Result<Outcome, Duration> {
        let answer = answer.map_err(|symptom| Failure { reason: String::new(), symptom });
        let learnt = self.rails.learn(flight, permit, Instant::now(), answer, Instant::now());
        self.rails.ended.notify_waiters();
        learnt
    }

    fn flight(&self, name: &str) -> Flight {
        let (client, check) = (Arc::clone(self.rails.client.as_ref().unwrap()), check(name));
        let progress = watch::Sender::new(Progress::default());
        Flight { client, key: check.key(), check, progress, attempts: 1, server_errors: 0 }
    }

    /// Opens the breaker.
    fn outage(&self) {
        let permit = self.permit();
        assert_eq!(self.learn("failing", permit, Err(Symptom::ALL)), Err(Duration::ZERO));
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

fn check(name: &str) -> Check {
    Check::new("1,a".to_owned(), name.to_owned(), Names::Any).unwrap()
}

#[tokio::test(start_paused = true)]
async fn grants_are_cached_longer_than_denials() {
    for (status, last) in [(200, 4_999), (404, 999)] {
        let setting = Setting::new();
        assert_eq!(setting.learn("a", setting.permit(), Ok(status)), Ok(Ok(status)));
        assert_eq!([0, last, last + 1].map(|at| setting.cached("a", at)), [Some(status), Some(status), None]);
        assert_eq!(setting.cached("another", 0), None);
    }
}

#[tokio::test(start_paused = true)]
async fn no_answer_is_used_across_an_outage() {
    let setting = Setting::new();
    let (early, late) = (setting.permit(), setting.permit());
    setting.learn("early", early, Ok(200)).unwrap().unwrap();
    assert_eq!(setting.cached("early", 0), Some(200));
    setting.outage();
    assert_eq!(setting.cached("early", 0), None, "the breaker is open");
    advance(Duration::from_secs(1)).await;
    setting.learn("probe", setting.permit(), Ok(200)).unwrap().unwrap();
    setting.learn("late", late, Ok(200)).unwrap().unwrap();
    assert_eq!(["early", "late", "probe"].map(|name| setting.cached(name, 1_000)), [None, None, Some(200)]);
}

#[tokio::test(start_paused = true)]
async fn the_cache_is_bounded() {
    let setting = Setting::new();
    for number in 0..=MAX_CACHED {
        setting.learn(&number.to_string(), setting.permit(), Ok(200)).unwrap().unwrap();
    }
    assert_eq!(["0", "1"].map(|name| setting.cached(name, 0)), [None, Some(200)]);
}

#[tokio::test(start_paused = true)]
async fn the_second_500_is_the_answer() {
    let setting = Setting::new();
    let mut flight = setting.flight("a");
    let learnt = [(); 2].map(|()| setting.learn_again(&mut flight, setting.permit(), Ok(500)));
    assert!(matches!(learnt, [Err(_), Ok(Ok(500))]), "{learnt:?}");
    assert_eq!(setting.cached("a", 0), Some(500));
}

#[tokio::test(start_paused = true)]
async fn identical_questions_are_one_request_and_go_on_with_it() {
    let setting = Setting::new();
    let callers: Vec<_> = (0..10).map(|_| setting.join("a").unwrap()).collect();
    assert_eq!(setting.requests().await, 1);
    assert!(callers.iter().all(|progress| progress.borrow().attempts == 1));
    drop(callers);
    assert_eq!(setting.requests().await, 1);
    let later = setting.join("a").unwrap();
    assert_eq!((later.borrow().attempts, setting.count(Counter::ChecksJoined)), (1, 10));
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
    assert_eq!(d.borrow().attempts, 1, "d has a caller left");
    for number in 0..100 {
        drop(setting.join(&number.to_string()));
    }
    assert_eq!(setting.requests().await, 3);
    assert_eq!(setting.rails.state().flights.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_caller_may_join_a_flight_that_the_others_just_left() {
    let setting = Setting::new();
    setting.rails.places.forget_permits(2);
    let first = setting.join("a").unwrap();
    assert_eq!(setting.requests().await, 0);
    drop(first);
    let second = setting.join("a").unwrap();
    assert_eq!((setting.count(Counter::ChecksJoined), setting.requests().await), (1, 0));
    setting.rails.places.add_permits(1);
    assert_eq!((setting.requests().await, second.borrow().attempts), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn one_caller_more_than_may_wait_is_refused() {
    let setting = Setting::new();
    let waits = |caller: &mut Pin<Box<_>>| FutureExt::now_or_never(caller).is_none();
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
    setting.learn("probe", probe, Ok(404)).unwrap().unwrap();
    assert_eq!(setting.requests().await, 2);
}

#[tokio::test(start_paused = true)]
async fn while_it_is_hopeless_one_question_may_be_the_probe_and_waits_no_longer() {
    let setting = Setting::new();
    setting.outage();
    advance(Duration::from_secs(10)).await;
    let probe = setting.join("probe").unwrap();
    assert!(setting.join("another").is_none() && setting.join("probe").is_none());
    drop(probe);
    assert_eq!(setting.requests().await, 1, "a caller who leaves does not take it along");
    // The client gives up, and the breaker stays open.
    let mut progress = setting.rails.state().flights[&check("probe").key()].subscribe();
    let ended = *progress.wait_for(|progress| progress.outcome.is_some()).await.unwrap();
    assert!(matches!(ended, Progress { attempts: 1, outcome: Some(Err((Reason::Down, _))) }));
    assert!(setting.rails.state().flights.is_empty());
}
