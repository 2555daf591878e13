//! What Hocuspocus servers are told while Rails restarts, is busy or misbehaves.

use std::time::{Duration, Instant};

use loomio_channels::metrics::Counter;
use tokio::task::JoinSet;

use super::{Told, ask, begin, number, question, server, told};
use crate::{
    harness::{until, within},
    rails::{Answer, Rails},
};

#[tokio::test]
async fn two_hundred_checks_wait_out_a_restart_and_rails_gets_each_distinct_one_once() {
    let mut rails = Rails::start(|_| Answer::Status(200, "")).await;
    let server = server(&rails, &[]).await;
    assert_eq!(ask(&server, "1,a", "comment-1-body").await.status, 200);
    rails.stop().await;
    let mut logins = JoinSet::new();
    // Two browsers of each person.
    for login in 0..200 {
        let exchange = begin(&server, &[], question(&format!("1,{}", login / 2), "comment-2-body")).await;
        logins.spawn(async move { exchange.response().await.status });
    }
    until("all wait", async || server.count(Counter::ChecksJoined) == 100).await;
    // All others are held while one at a time is a probe.
    let before = server.count(Counter::RailsRequests);
    until("five more probes", async || server.count(Counter::RailsRequests) >= before + 5).await;
    assert!(logins.try_join_next().is_none());
    assert!(server.count(Counter::RailsRequests) < 120, "{}", server.count(Counter::RailsRequests));
    rails.up().await;
    assert_eq!(logins.join_all().await, [200; 200]);
    let mut bodies: Vec<String> = rails.asked().into_iter().skip(1).map(|asked| asked.body).collect();
    assert_eq!(bodies.len(), 100);
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len(), 100);
    assert!(rails.most_under_way() <= 16, "{}", rails.most_under_way());
    assert_eq!(server.count(Counter::RailsOutages), 1);
    server.stop().await;
}

#[tokio::test]
async fn while_an_outage_is_young_checks_wait_and_later_they_are_refused_until_a_try_succeeds() {
    let rails = Rails::start(|_| Answer::Status(503, "")).await;
    let server = server(&rails, &[("RAILS_HOLD_SECONDS", "1")]).await;
    assert_eq!(ask(&server, "1,first", "comment-1-body").await.status, 503);
    assert!(rails.requests() >= 3, "it was held");
    let before = rails.requests();
    let started = Instant::now();
    // Held for a second each, they would take minutes.
    within("two hundred refusals", async {
        for number in 0..200 {
            let told = ask(&server, &format!("1,{number}"), "comment-1-body").await;
            assert!(matches!(told, Told { status: 503, retry_after: Some(1..=7), .. }), "{told:?}");
        }
    })
    .await;
    assert!(rails.requests() - before <= 2 + usize::try_from(started.elapsed().as_secs()).unwrap() * 4);
    rails.script(|_| Answer::Status(200, ""));
    until("a try succeeds", async || ask(&server, "1,last", "comment-1-body").await.status == 200).await;
    assert_eq!(server.count(Counter::RailsOutages), 1);
    server.stop().await;
}

#[tokio::test]
async fn rails_says_when_it_wants_to_be_asked_again() {
    let rails = Rails::start(|_| Answer::Status(429, "retry-after: 2\r\n")).await;
    let server = server(&rails, &[]).await;
    let started = Instant::now();
    let waiting = begin(&server, &[], question("1,a", "comment-1-body")).await;
    until("it was asked", async || rails.requests() == 1).await;
    rails.script(|_| Answer::Status(200, ""));
    assert_eq!(waiting.response().await.status, 200);
    assert!(started.elapsed() >= Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(rails.requests(), 2);
    server.stop().await;
}

#[tokio::test]
async fn a_check_is_refused_at_once_when_retry_after_is_longer_than_checks_are_held() {
    let rails = Rails::start(|_| Answer::Status(429, "retry-after: 300\r\n")).await;
    // A check that is held would be held for longer than a test waits.
    let server = server(&rails, &[("RAILS_HOLD_SECONDS", "200")]).await;
    for token in ["1,a", "1,b"] {
        let told = ask(&server, token, "comment-1-body").await;
        assert!(matches!(told, Told { status: 503, retry_after: Some(265..=306), .. }), "{told:?}");
    }
    assert_eq!((rails.requests(), server.count(Counter::RailsOutages)), (1, 1));
    server.stop().await;
}

#[tokio::test]
async fn malformed_and_unfinished_answers_of_rails_grant_nothing() {
    let rails = Rails::start(|asked| match number(asked) {
        1 => Answer::Nothing,
        2 => Answer::Slowly("HTTP/1.1 200 OK\r\n"),
        3 => Answer::Raw("HTTP/1.1 200 OK\r\ncontent-le"),
        4 => Answer::Raw("nonsense\r\n\r\n"),
        _ => Answer::Raw(""),
    })
    .await;
    let server = server(&rails, &[("RAILS_HOLD_SECONDS", "1")]).await;
    for number in 1..=5 {
        let told = ask(&server, "1,a", &format!("comment-{number}-body")).await;
        assert_eq!(told.status, 503, "{number}");
    }
    until("the requests are over", async || rails.under_way() == 0).await;
    server.stop().await;
}

#[tokio::test]
async fn a_rails_that_does_not_answer_is_found_to_be_down_after_all_checks_have_ended() {
    let rails = Rails::start(|asked| if number(asked) == 9 { Answer::Status(200, "") } else { Answer::Nothing }).await;
    let server = server(&rails, &[("RAILS_HOLD_SECONDS", "1"), ("RAILS_MAX_CONCURRENCY", "3")]).await;
    let mut first = JoinSet::new();
    for number in 1..=3 {
        let exchange = begin(&server, &[], question("1,a", &format!("comment-{number}-body"))).await;
        first.spawn(async move { told(exchange).await.status });
    }
    assert_eq!(first.join_all().await, [503; 3]);
    assert_eq!(ask(&server, "1,a", "comment-9-body").await.status, 503, "there is no place");
    assert_eq!((rails.requests(), rails.under_way()), (3, 3));
    until("three failures are an outage", async || server.count(Counter::RailsOutages) == 1).await;
    until("the places are free", async || rails.under_way() == 0).await;
    until("a try succeeds", async || ask(&server, "1,a", "comment-9-body").await.status == 200).await;
    server.stop().await;
}

#[tokio::test]
async fn failures_for_one_document_delay_no_other() {
    let rails = Rails::start(|asked| if number(asked) == 1 { Answer::Raw("") } else { Answer::Status(200, "") }).await;
    let server = server(&rails, &[]).await;
    let troubled = begin(&server, &[], question("1,a", "comment-1-body")).await;
    for failures in 1..=4 {
        until("it has failed again", async || server.count(Counter::RailsFailures) >= failures).await;
        assert_eq!(ask(&server, "1,a", &format!("comment-1{failures}-body")).await.status, 200);
    }
    assert_eq!(server.count(Counter::RailsOutages), 0);
    rails.script(|_| Answer::Status(200, ""));
    assert_eq!(troubled.response().await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn checks_after_an_outage_whose_end_was_not_seen_are_not_refused() {
    let mut rails = Rails::down(|_| Answer::Status(200, ""));
    let server = server(&rails, &[("RAILS_HOLD_SECONDS", "1")]).await;
    let down = Instant::now();
    assert_eq!(ask(&server, "1,a", "comment-1-body").await.status, 503);
    until("the outage is older than a check waits", async || {
        ask(&server, "1,a", "comment-1-body").await.status == 503 && down.elapsed() > Duration::from_millis(1_500)
    })
    .await;
    rails.up().await;
    // Longer than the longest pause between two tries after so short an outage, and than a check waits.
    let alone = Instant::now();
    until("a time without a request", async || alone.elapsed() > Duration::from_millis(1_500)).await;
    assert_eq!(rails.requests(), 0);
    let mut first = JoinSet::new();
    for user in 1..=20 {
        let exchange = begin(&server, &[], question(&format!("{user},a"), "comment-1-body")).await;
        first.spawn(async move { told(exchange).await.status });
    }
    assert_eq!(first.join_all().await, [200; 20]);
    server.stop().await;
}
