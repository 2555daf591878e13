//! Many browsers that are cut again and again while messages flow.

use std::sync::Arc;

use rand::RngExt;
use tokio::task::JoinSet;

use crate::harness::{Browser, Event, record, start};

/// What a browser got so far: the numbers of its own room and of the one it shares must each be complete.
#[derive(Default)]
struct Diary {
    own: usize,
    shared: usize,
}

impl Diary {
    fn note(&mut self, events: &[Event]) {
        for event in events {
            let next = if event.argument.contains("group-1\"") { &mut self.shared } else { &mut self.own };
            assert_eq!(event.number(), *next, "{}", event.packet);
            *next += 1;
        }
    }

    fn is_complete(&self, own: usize, shared: usize) -> bool {
        (self.own, self.shared) == (own, shared)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn browsers_that_are_cut_all_the_time_while_messages_flow_get_each_once_and_in_order() {
    const BROWSERS: usize = 24;
    const OWN: usize = 100;
    const SHARED: usize = 600;
    let (redis, server) = start().await;
    let server = Arc::new(server);
    let mut browsers = JoinSet::new();
    for user in 0..BROWSERS {
        let token = format!("user{user}");
        redis.user(&token, user, &[1]).await;
        let mut browser = Browser::connect(&*server, &token).await;
        let server = Arc::clone(&server);
        browsers.spawn(async move {
            let mut diary = Diary::default();
            while !diary.is_complete(OWN, SHARED) {
                let reads = rand::rng().random_range(0..20);
                for _ in 0..reads {
                    if !diary.is_complete(OWN, SHARED) {
                        diary.note(&[browser.event().await]);
                    }
                }
                let old = browser;
                let session = old.session.clone();
                // Half of them come back before the old connection is known to be dead.
                let dangling = rand::rng().random_bool(0.5).then_some(old);
                browser = Browser::resume(&*server, &token, &session).await;
                drop(dangling);
                assert!(browser.recovered);
                diary.note(&browser.missed);
            }
            browser
        });
    }
    for number in 0..SHARED {
        let own = (number % (SHARED / OWN) == 0).then_some(number * OWN / SHARED);
        let own = own.into_iter().flat_map(|own| (0..BROWSERS).map(move |user| record(&format!("user-{user}"), own)));
        redis.many_records(own.chain([record("group-1", number)])).await;
    }
    let browsers = browsers.join_all().await;
    redis.fence("end").await;
    for mut browser in browsers {
        assert_eq!(browser.upto("end").await, [], "nothing came twice");
    }
}
