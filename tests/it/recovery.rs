//! A browser that loses its connection and returns gets what it missed, once and in order, or is told of a loss.

use loomio_channels::metrics::Counter;

use crate::harness::{
    Browser, Ended, Server, Session, large_record, numbers, publish, record, start, start_with, start_with_ada, until,
};

mod cuts;

/// The next records are those with these numbers.
async fn expect(browser: &mut Browser, numbers: impl IntoIterator<Item = usize>) {
    for number in numbers {
        assert_eq!(browser.number().await, number);
    }
}

#[tokio::test]
async fn what_was_missed_comes_before_the_answer_and_the_session_is_the_same() {
    let (redis, server, mut browser) = start_with_ada(&[2]).await;
    publish(&redis, &server, "group-2", 0..3).await;
    expect(&mut browser, 0..2).await;
    let session = browser.cut();
    publish(&redis, &server, "user-1", 3..5).await;
    publish(&redis, &server, "group-3", [99]).await;
    redis.notice(record("", 5)).await;
    server.caught_up(&redis).await;

    let mut browser = Browser::resume(&server, "ada", &session).await;
    assert!(browser.recovered);
    assert_eq!((&browser.session.sid, &browser.session.pid), (&session.sid, &session.pid));
    assert_eq!(numbers(&browser.missed), [2, 3, 4, 5]);
    publish(&redis, &server, "user-1", 6..9).await;
    expect(&mut browser, 6..9).await;
    let counters = [Counter::Connects, Counter::Recovered, Counter::NotRecovered, Counter::Replayed];
    assert_eq!(counters.map(|counter| server.count(counter)), [1, 1, 0, 4]);
}

#[tokio::test]
async fn a_session_survives_many_cuts() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[]).await;
    let mut session = Browser::connect(&server, "ada").await.cut();
    for round in 0..20 {
        publish(&redis, &server, "user-1", [2 * round]).await;
        let mut browser = Browser::resume(&server, "ada", &session).await;
        assert_eq!((browser.recovered, numbers(&browser.missed)), (true, vec![2 * round]));
        publish(&redis, &server, "user-1", [2 * round + 1]).await;
        expect(&mut browser, [2 * round + 1]).await;
        session = browser.cut();
    }
}

#[tokio::test]
async fn a_browser_that_never_got_an_event_recovers_from_its_first_offset_or_from_its_pid_alone() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[]).await;
    publish(&redis, &server, "user-1", [0]).await;
    let session = Browser::connect(&server, "ada").await.cut();
    publish(&redis, &server, "user-1", 1..4).await;
    for session in [session.clone(), session.without_offset()] {
        let browser = Browser::resume(&server, "ada", &session).await;
        assert_eq!((browser.recovered, numbers(&browser.missed)), (true, vec![1, 2, 3]));
    }
}

#[tokio::test]
async fn a_visitor_recovers_its_notices() {
    let (redis, server) = start().await;
    let session = Browser::anonymous(&server).await.cut();
    redis.notice(record("", 1)).await;
    server.caught_up(&redis).await;
    let browser = Browser::open(&server, "", &session.packet()).await;
    assert_eq!((browser.recovered, numbers(&browser.missed)), (true, vec![1]));
}

#[tokio::test]
async fn a_browser_that_missed_nothing_recovers_although_the_log_overflowed_with_other_rooms() {
    let (redis, server) = start_with(&[("RECOVERY_LOG_BYTES", "64KiB")]).await;
    redis.user("ada", 1, &[]).await;
    redis.user("bob", 2, &[]).await;
    let quiet = Browser::connect(&server, "ada").await.cut();
    let mut busy = Browser::connect(&server, "bob").await;
    for number in 0..200 {
        redis.records(large_record("user-2", number, 1_000)).await;
        expect(&mut busy, [number]).await;
    }
    publish(&redis, &server, "user-1", [7]).await;
    let browser = Browser::resume(&server, "ada", &quiet).await;
    assert_eq!((browser.recovered, numbers(&browser.missed)), (true, vec![7]));
}

#[tokio::test]
async fn what_the_log_has_lost_is_told_and_what_it_has_left_is_replayed() {
    let (redis, server) = start_with(&[("RECOVERY_LOG_BYTES", "64KiB")]).await;
    redis.user("ada", 1, &[]).await;
    let session = Browser::connect(&server, "ada").await.cut();
    for number in 0..200 {
        redis.records(large_record("user-1", number, 1_000)).await;
    }
    server.caught_up(&redis).await;
    let mut browser = Browser::resume(&server, "ada", &session).await;
    assert!(!browser.recovered && browser.session.sid != session.sid);
    let known = numbers(&browser.missed);
    assert!((40..64).contains(&known.len()), "{}", known.len());
    assert_eq!(known, (200 - known.len()..200).collect::<Vec<_>>());
    publish(&redis, &server, "user-1", [200]).await;
    expect(&mut browser, [200]).await;
}

#[tokio::test]
async fn after_the_window_what_was_missed_is_gone_and_this_is_told() {
    let (redis, server) = start_with(&[("RECOVERY_WINDOW", "1s")]).await;
    redis.user("ada", 1, &[]).await;
    redis.user("bob", 2, &[]).await;
    let session = Browser::connect(&server, "ada").await.cut();
    publish(&redis, &server, "user-1", [1]).await;
    // The newest message always stays.
    publish(&redis, &server, "user-2", [2]).await;
    until("the end of the window", async || {
        let browser = Browser::resume(&server, "ada", &session).await;
        assert_eq!(browser.recovered, numbers(&browser.missed) == [1]);
        !browser.recovered
    })
    .await;
}

#[tokio::test]
async fn an_offset_that_makes_no_sense_costs_repetitions_but_no_record() {
    let (redis, server, mut browser) = start_with_ada(&[]).await;
    publish(&redis, &server, "user-1", 0..4).await;
    expect(&mut browser, 0..2).await;
    let session = browser.cut();
    let offset = session.offset.clone().unwrap();
    let first = if offset.starts_with('A') { "B" } else { "A" };
    let changed = format!("{first}{}", &offset[1..]);
    let return_with = async |offset: &str| {
        let session = Session { offset: Some(offset.to_owned()), ..session.clone() };
        let browser = Browser::resume(&server, "ada", &session).await;
        (browser.recovered, numbers(&browser.missed))
    };
    for offset in ["", "nonsense", "1", "..", "-1.-1.-1", &offset[1..], &format!("{offset}0")] {
        assert_eq!(return_with(offset).await, (true, vec![0, 1, 2, 3]), "{offset}");
    }
    // The place may be known by what was published there, if the time that comes out of it does not speak against that.
    let outcome = return_with(&changed).await;
    assert!([(true, vec![0, 1, 2, 3]), (false, vec![2, 3])].contains(&outcome), "{outcome:?}");
}

#[tokio::test]
async fn an_offset_from_before_the_session_does_not_reach_behind_it() {
    let (redis, server, mut first) = start_with_ada(&[]).await;
    publish(&redis, &server, "user-1", [0]).await;
    expect(&mut first, [0]).await;
    publish(&redis, &server, "user-1", [1]).await;
    expect(&mut first, [1]).await;
    let old = first.session.offset.clone();
    publish(&redis, &server, "user-1", [2]).await;
    expect(&mut first, [2]).await;
    let session = Browser::connect(&server, "ada").await.cut();
    let browser = Browser::resume(&server, "ada", &Session { offset: old, ..session }).await;
    assert_eq!((browser.recovered, numbers(&browser.missed)), (true, vec![]));
}

#[tokio::test]
async fn a_pid_that_was_not_made_here_begins_a_new_session_without_losing_a_record() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[]).await;
    let elsewhere = Server::start(&redis.url(), &[("CHANNELS_SECRET", "the secret of another server")]).await;
    elsewhere.ready().await;
    let foreign = Browser::connect(&elsewhere, "ada").await.cut().pid;
    let mut browser = Browser::connect(&server, "ada").await;
    publish(&redis, &server, "user-1", 0..2).await;
    expect(&mut browser, 0..1).await;
    let session = browser.cut();
    let flipped = |index: usize| {
        let mut pid = session.pid.clone().into_bytes();
        pid[index] = if pid[index] == b'A' { b'B' } else { b'A' };
        String::from_utf8(pid).unwrap()
    };
    let last = session.pid.len() - 2;
    let long = "A".repeat(60_000);
    for pid in
        ["", "x", "null", &session.sid, &session.pid[1..], &foreign, &flipped(0), &flipped(40), &flipped(last), &long]
    {
        let session = Session { pid: pid.to_owned(), ..session.clone() };
        let browser = Browser::resume(&server, "ada", &session).await;
        assert_eq!((browser.recovered, numbers(&browser.missed)), (false, vec![1]), "{pid:.80}");
    }
    let unknown = Session { pid: foreign, offset: None, ..session };
    let browser = Browser::resume(&server, "ada", &unknown).await;
    assert_eq!((browser.recovered, numbers(&browser.missed)), (false, vec![0, 1]), "it may have missed anything");
}

#[tokio::test]
async fn a_ticket_of_another_server_with_the_same_secret_is_honoured() {
    const SECRET: [(&str, &str); 1] = [("CHANNELS_SECRET", "shared by both of them")];
    let (redis, server) = start_with(&SECRET).await;
    let other = Server::start(&redis.url(), &SECRET).await;
    other.ready().await;
    redis.user("ada", 1, &[2]).await;
    let session = Browser::connect(&server, "ada").await.cut();
    redis.forget("ada").await;
    publish(&redis, &server, "group-2", 0..2).await;
    other.caught_up(&redis).await;
    let mut browser = Browser::resume(&other, "ada", &session).await;
    assert_eq!(numbers(&browser.missed), [0, 1]);
    publish(&redis, &server, "group-2", [2]).await;
    expect(&mut browser, [2]).await;
}

#[tokio::test]
async fn a_return_replaces_a_connection_that_still_lives() {
    let (redis, server, mut old) = start_with_ada(&[]).await;
    publish(&redis, &server, "user-1", 0..3).await;
    expect(&mut old, 0..2).await;
    let mut new = Browser::resume(&server, "ada", &old.session).await;
    assert!(new.recovered);
    assert_eq!(numbers(&new.missed), [2]);
    expect(&mut old, [2]).await;
    assert_eq!(old.end().await, Ended::Closed(None));
    publish(&redis, &server, "user-1", 3..5).await;
    assert_eq!(numbers(&new.rest(&redis).await), [3, 4]);
    let again = Browser::resume(&server, "ada", &new.cut()).await;
    assert_eq!((again.recovered, again.missed), (true, vec![]));
}

#[tokio::test]
async fn the_end_of_a_connection_that_was_replaced_does_not_end_the_session() {
    let (redis, server, old) = start_with_ada(&[]).await;
    let mut new = Browser::resume(&server, "ada", &old.session).await;
    old.cut();
    for round in 0..5 {
        publish(&redis, &server, "user-1", [round]).await;
        expect(&mut new, [round]).await;
        let newer = Browser::resume(&server, "ada", &new.session).await;
        assert!(newer.recovered);
        std::mem::replace(&mut new, newer).cut();
    }
}

#[tokio::test]
async fn rooms_are_those_that_the_key_names_when_the_browser_comes_back() {
    let (redis, server, browser) = start_with_ada(&[2, 3]).await;
    let session = browser.cut();
    publish(&redis, &server, "group-2", [0]).await;
    publish(&redis, &server, "group-4", [1]).await;
    redis.user("ada", 1, &[3, 4]).await;
    publish(&redis, &server, "group-3", [2]).await;
    let mut browser = Browser::resume(&server, "ada", &session).await;
    assert_eq!((browser.recovered, numbers(&browser.missed)), (false, vec![1, 2]), "other rooms are another session");
    assert_eq!(server.count(Counter::Recovered), 1, "but nothing is lost");
    for (number, room) in [(3, "group-2"), (4, "group-3"), (5, "group-4")] {
        publish(&redis, &server, room, [number]).await;
    }
    assert_eq!(numbers(&browser.rest(&redis).await), [4, 5]);
}

#[tokio::test]
async fn when_the_key_is_gone_the_rooms_of_the_ticket_serve() {
    let (redis, server, browser) = start_with_ada(&[2]).await;
    let session = browser.cut();
    redis.forget("ada").await;
    publish(&redis, &server, "group-2", [0]).await;
    let mut browser = Browser::resume(&server, "ada", &session).await;
    assert_eq!((browser.recovered, numbers(&browser.missed)), (true, vec![0]));
    publish(&redis, &server, "user-1", [1]).await;
    expect(&mut browser, [1]).await;
}

#[tokio::test]
async fn a_key_that_has_become_null_takes_the_rooms_away() {
    let (redis, server, browser) = start_with_ada(&[2]).await;
    let session = browser.cut();
    redis.user_json("ada", "null").await;
    publish(&redis, &server, "group-2", [0]).await;
    let mut browser = Browser::resume(&server, "ada", &session).await;
    assert_eq!((browser.recovered, numbers(&browser.missed)), (false, vec![]));
    publish(&redis, &server, "group-2", [1]).await;
    assert_eq!(browser.rest(&redis).await, []);
}

#[tokio::test]
async fn a_browser_that_left_the_namespace_begins_a_new_session_and_gets_nothing_from_before() {
    let (redis, server, mut browser) = start_with_ada(&[]).await;
    let left = browser.session.clone();
    browser.leave().await;
    publish(&redis, &server, "user-1", [0]).await;
    for session in [left.clone(), left.without_offset()] {
        let browser = Browser::resume(&server, "ada", &session).await;
        assert_eq!((browser.recovered, numbers(&browser.missed)), (false, vec![]));
        assert_ne!(browser.session.sid, left.sid);
    }
    for connect in ["40".to_owned(), left.packet()] {
        browser = browser.reconnect(&connect).await;
        assert_eq!((browser.recovered, numbers(&browser.missed)), (false, vec![]));
        assert_ne!((&browser.session.sid, &browser.session.pid), (&left.sid, &left.pid));
        publish(&redis, &server, "user-1", [1]).await;
        expect(&mut browser, [1]).await;
        browser.leave().await;
    }
}

#[tokio::test]
async fn the_session_of_another_user_is_not_handed_over() {
    let (redis, server) = start().await;
    redis.user("ada", 1, &[2, 3]).await;
    redis.user("bob", 4, &[3]).await;
    let ada = Browser::connect(&server, "ada").await.cut();
    for (number, room) in ["user-1", "group-2", "group-3", "user-4"].into_iter().enumerate() {
        publish(&redis, &server, room, [number]).await;
    }
    let mut bob = Browser::resume(&server, "bob", &ada).await;
    assert!(!bob.recovered && bob.session.sid != ada.sid);
    assert!(numbers(&bob.missed).iter().all(|number| [2, 3].contains(number)), "rooms of bob only");
    let visitor = Browser::open(&server, "", &ada.packet()).await;
    assert_eq!((visitor.recovered, numbers(&visitor.missed)), (false, vec![]));
    publish(&redis, &server, "group-2", [5]).await;
    publish(&redis, &server, "user-4", [6]).await;
    assert_eq!(numbers(&bob.rest(&redis).await), [6]);
    assert!(Browser::resume(&server, "ada", &ada).await.recovered, "it is still hers");
}

#[tokio::test]
async fn a_visitor_that_signs_in_gets_what_came_since_it_connected() {
    let (redis, server) = start().await;
    let session = Browser::connect(&server, "ada").await.cut();
    redis.user("ada", 1, &[]).await;
    publish(&redis, &server, "user-1", [0]).await;
    let browser = Browser::resume(&server, "ada", &session).await;
    assert_eq!((browser.recovered, numbers(&browser.missed)), (false, vec![0]));
}
