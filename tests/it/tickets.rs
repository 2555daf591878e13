//! What a browser comes back with serves that browser, its rooms of today, and not for ever.

use loomio_channels::metrics::Counter;

use crate::harness::{
    Browser, Server, Session, large_record, numbers, publish, record, start, start_with, start_with_ada, until,
};

const SECRET: (&str, &str) = ("CHANNELS_SECRET", "a secret of both servers");

#[tokio::test]
async fn a_ticket_serves_only_with_the_token_it_was_made_for() {
    let (redis, server, mut ada) = start_with_ada(&[2]).await;
    publish(&redis, &server, "group-2", [0]).await;
    assert_eq!(ada.number().await, 0);
    let borrowed = ada.session.clone();
    publish(&redis, &server, "group-2", [1]).await;
    let thieves = [
        Browser::resume(&server, "invented", &borrowed).await,
        Browser::resume(&server, "invented", &borrowed.without_offset()).await,
        Browser::open(&server, "", &borrowed.packet()).await,
    ];
    publish(&redis, &server, "group-2", [2]).await;
    redis.fence("end").await;
    for mut thief in thieves {
        assert!(!thief.recovered && thief.session.sid != borrowed.sid);
        assert_eq!(thief.missed, []);
        assert_eq!(thief.upto("end").await, []);
    }
    assert_eq!(numbers(&ada.upto("end").await), [1, 2], "she stays connected");
    assert!(Browser::resume(&server, "ada", &ada.cut()).await.recovered);
}

#[tokio::test]
async fn without_the_key_a_browser_keeps_its_rooms_for_unvouched_max_and_no_longer() {
    let (redis, patient) = start_with(&[SECRET]).await;
    let server = Server::start(&redis.url(), &[SECRET, ("UNVOUCHED_MAX", "1s")]).await;
    server.ready().await;
    redis.user("ada", 1, &[2]).await;
    let mut session = Browser::connect(&server, "ada").await.cut();
    redis.forget("ada").await;
    let mut kept = session.clone();
    let mut returns = 0;
    until("the end of the rooms", async || {
        publish(&redis, &server, "group-2", [returns]).await;
        let browser = Browser::resume(&server, "ada", &session).await;
        let has_rooms = browser.recovered;
        assert_eq!(numbers(&browser.missed), if has_rooms { vec![returns] } else { vec![] });
        if has_rooms {
            kept = browser.session.clone();
        }
        session = browser.cut();
        returns += 1;
        !has_rooms
    })
    .await;
    patient.caught_up(&redis).await;
    let mut browser = Browser::resume(&patient, "ada", &kept).await;
    publish(&redis, &server, "group-2", [returns]).await;
    redis.fence("end").await;
    let last = browser.upto("end").await.pop().map(|event| event.number());
    assert_eq!(last, Some(returns), "with the default the last ticket that had rooms still has them");
    redis.user("ada", 1, &[2]).await;
    let mut browser = Browser::resume(&server, "ada", &session).await;
    publish(&redis, &server, "group-2", [returns + 1]).await;
    assert_eq!(numbers(&browser.rest(&redis).await), [returns + 1], "Redis vouches again");
}

#[tokio::test]
async fn absence_counts_from_when_a_browser_was_last_here() {
    let settings = [SECRET, ("RECOVERY_WINDOW", "3s")];
    let (redis, server) = start_with(&settings).await;
    let other = Server::start(&redis.url(), &settings).await;
    other.ready().await;
    redis.user("ada", 1, &[2]).await;
    let first = Browser::connect(&server, "ada").await.cut();
    let mut browser = Browser::connect(&server, "ada").await;
    // A quiet browser is told an offset once a second, so these take longer than the window.
    for _ in 0..5 {
        let event = browser.try_any_event().await.unwrap();
        assert_eq!((event.name.as_str(), event.argument.as_str()), ("session", ""));
    }
    redis.forget("ada").await;
    // A server that knows nothing of the session but the ticket.
    let mut back = Browser::resume(&other, "ada", &browser.cut()).await;
    let mut long_gone = Browser::resume(&other, "ada", &first).await;
    redis.records(record("group-2", 7)).await;
    redis.fence("end").await;
    assert_eq!(numbers(&back.upto("end").await), [7]);
    assert_eq!(long_gone.upto("end").await, []);
}

#[tokio::test]
async fn a_group_gained_while_connected_is_replayed_from_the_beginning_of_the_session_and_once() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[2]).await;
    publish(&redis, &server, "group-3", [0]).await;
    let mut browser = Browser::connect(&server, "ada").await;
    publish(&redis, &server, "group-3", [1]).await;
    publish(&redis, &server, "group-2", [2]).await;
    redis.user("ada", 1, &[2, 3]).await;
    publish(&redis, &server, "group-3", [3]).await;
    publish(&redis, &server, "group-2", [4]).await;
    assert_eq!([browser.number().await, browser.number().await], [2, 4]);
    let before = browser.cut();
    // A connection that dies before anything is read changes nothing.
    for _ in 0..2 {
        let browser = Browser::resume(&server, "ada", &before).await;
        assert_eq!((browser.recovered, numbers(&browser.missed)), (false, vec![1, 3]), "other rooms, another session");
    }
    let mut browser = Browser::resume(&server, "ada", &before).await;
    publish(&redis, &server, "group-3", [5]).await;
    assert_eq!(browser.number().await, 5);
    let session = browser.cut();
    publish(&redis, &server, "group-3", [6]).await;
    let browser = Browser::resume(&server, "ada", &session).await;
    assert_eq!((browser.recovered, numbers(&browser.missed)), (true, vec![6]), "nothing comes twice");
}

#[tokio::test]
async fn a_group_that_was_taken_away_and_given_back_is_replayed_as_a_whole() {
    let (redis, server, browser) = start_with_ada(&[2]).await;
    let session = browser.cut();
    redis.user("ada", 1, &[]).await;
    let mut browser = Browser::resume(&server, "ada", &session).await;
    publish(&redis, &server, "group-2", [0]).await;
    publish(&redis, &server, "user-1", [1]).await;
    assert_eq!(browser.number().await, 1);
    let session = browser.cut();
    redis.user("ada", 1, &[2]).await;
    let browser = Browser::resume(&server, "ada", &session).await;
    assert_eq!(numbers(&browser.missed), [0]);
    let again = Browser::resume(&server, "ada", &browser.cut()).await;
    assert_eq!((again.recovered, numbers(&again.missed)), (true, vec![]));
}

#[tokio::test]
async fn a_group_that_was_taken_away_does_not_come_back_with_the_key_gone() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[1, 2]).await;
    let old = Browser::connect(&server, "ada").await.cut();
    redis.user("ada", 1, &[1]).await;
    let new = Browser::resume(&server, "ada", &old).await.cut();
    redis.forget("ada").await;
    let mut kept = Browser::resume(&server, "ada", &new).await;
    let mut taken = Browser::resume(&server, "ada", &old).await;
    publish(&redis, &server, "group-2", [0]).await;
    publish(&redis, &server, "group-1", [1]).await;
    redis.fence("end").await;
    assert_eq!(numbers(&kept.upto("end").await), [1]);
    assert_eq!(taken.upto("end").await, [], "its ticket names a group that it no longer has");
}

#[tokio::test]
async fn a_browser_that_missed_more_than_replay_bytes_starts_over() {
    let (redis, server) = start_with(&[("REPLAY_BYTES", "64KiB")]).await;
    redis.user("ada", 1, &[]).await;
    let mut browser = Browser::connect(&server, "ada").await;
    publish(&redis, &server, "user-1", [0]).await;
    assert_eq!(browser.number().await, 0);
    let first = browser.cut();
    for number in 1..50 {
        redis.records(large_record("user-1", number, 1_000)).await;
    }
    server.caught_up(&redis).await;
    let browser = Browser::resume(&server, "ada", &first).await;
    assert_eq!((browser.recovered, numbers(&browser.missed)), (true, (1..50).collect()), "this much it may");
    for number in 50..100 {
        redis.records(large_record("user-1", number, 1_000)).await;
    }
    server.caught_up(&redis).await;
    let made_up = Session { offset: Some("made up".to_owned()), ..first.clone() };
    for session in [first.clone(), made_up, Session { pid: "made up".to_owned(), ..first }] {
        let mut browser = Browser::resume(&server, "ada", &session).await;
        assert_eq!((browser.recovered, numbers(&browser.missed)), (false, vec![]));
        publish(&redis, &server, "user-1", [100]).await;
        assert_eq!(browser.number().await, 100);
        let again = Browser::resume(&server, "ada", &browser.cut()).await;
        assert_eq!((again.recovered, numbers(&again.missed)), (true, vec![]));
    }
    assert_eq!(server.count(Counter::NotRecovered), 3);
}

#[tokio::test]
async fn a_short_log_does_not_cut_browsers_that_read() {
    const BROWSERS: usize = 300;
    let (redis, server) = start_with(&[("RECOVERY_LOG_BYTES", "64KiB")]).await;
    redis.user("ada", 1, &[2]).await;
    let mut browsers = Vec::new();
    for _ in 0..BROWSERS {
        browsers.push(Browser::connect(&server, "ada").await);
    }
    redis.many_records((0..100).map(|number| large_record("group-2", number, 10_000))).await;
    redis.fence("end").await;
    for browser in &mut browsers {
        assert_eq!(numbers(&browser.upto("end").await), (0..100).collect::<Vec<_>>());
    }
    assert_eq!(server.count(Counter::SlowClosed), 0);
}
