//! Checks of the right to edit a document: the answers to Hocuspocus servers.

mod outages;

use std::sync::Arc;

use loomio_channels::metrics::Counter;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    harness::{Browser, Exchange, Redis, Server, record, until},
    rails::{Answer, Asked, Rails},
};

/// Nothing listens there, and these tests need no Redis.
const NO_REDIS: &str = "redis://127.0.0.1:1/0";

const MANY: (&str, &str) = ("COLLAB_AUTH_PER_MINUTE", "1000000");

async fn server(rails: &Rails, settings: &[(&str, &str)]) -> Server {
    let url = rails.url();
    Server::start(NO_REDIS, &[&[("PRIVATE_APP_URL", url.as_str()), MANY], settings].concat()).await
}

fn question(secret: &str, name: &str) -> String {
    serde_json::json!({ "user_secret": secret, "document_name": name }).to_string()
}

async fn begin(server: &Server, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Exchange {
    Exchange::begin(server, "POST /api/hocuspocus", headers, body.as_ref()).await.unwrap()
}

/// An answer of ours.
#[derive(Debug)]
struct Told {
    status: u16,
    /// Seconds, for the two statuses that have it.
    retry_after: Option<u64>,
    body: Vec<u8>,
}

async fn told(exchange: Exchange) -> Told {
    let response = exchange.response().await;
    let retry_after = response.header("retry-after").map(|seconds| seconds.parse().unwrap());
    assert_eq!(retry_after.is_some(), [429, 503].contains(&response.status));
    Told { status: response.status, retry_after, body: response.body }
}

async fn ask(server: &Server, secret: &str, name: &str) -> Told {
    told(begin(server, &[], question(secret, name)).await).await
}

/// The number in `comment-<number>-body`.
fn number(asked: &Asked) -> u16 {
    asked.name().split('-').nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn only_200_grants_and_rails_is_asked_in_its_own_words() {
    let rails = Rails::start(|asked| Answer::Status(number(asked), "location: http://127.0.0.1:9/\r\n")).await;
    let server = server(&rails, &[]).await;
    for (status, expected) in
        [(200, 200), (201, 401), (204, 401), (400, 401), (401, 401), (403, 401), (404, 401), (301, 503), (307, 503)]
    {
        let told = ask(&server, "7,secret", &format!("comment-{status}-body")).await;
        assert_eq!((told.status, told.body.len()), (expected, 0), "{status}");
    }
    let asked = rails.asked();
    assert_eq!(asked[0].body, r#"{"user_secret":"7,secret","document_name":"comment-200-body"}"#);
    assert!(asked[0].head.starts_with("POST /api/hocuspocus HTTP/1.1\r\n"), "{}", asked[0].head);
    assert!(asked[0].head.contains("content-type: application/json; charset=UTF-8"), "{}", asked[0].head);
    assert_eq!((asked.len(), rails.connections()), (9, 1), "connections are used again");
    assert_eq!(server.count(Counter::ChecksGranted), 1);
    assert_eq!(server.count(Counter::ChecksDenied), 6);
    assert_eq!(server.count(Counter::RailsRedirects), 2);
    server.stop().await;
}

#[tokio::test]
async fn a_check_that_rails_answers_with_500_is_made_once_more() {
    let rails = Rails::start(|_| Answer::Status(500, "")).await;
    let server = server(&rails, &[]).await;
    assert_eq!(ask(&server, "7,secret", "type-1-unknown").await.status, 401);
    assert_eq!(rails.requests(), 2);
    assert_eq!(server.count(Counter::RailsOutages), 0);
    server.stop().await;
}

#[tokio::test]
async fn malformed_questions_are_told_so_and_never_reach_rails() {
    let rails = Rails::start(|_| Answer::Status(200, "")).await;
    let server = server(&rails, &[]).await;
    let long = |length| "x".repeat(length);
    let bodies: Vec<Vec<u8>> = [
        String::new(),
        "user_secret=1,a&document_name=comment-1-body".to_owned(),
        "{".to_owned(),
        "null".to_owned(),
        r#"["1,a","comment-1-body"]"#.to_owned(),
        r#"{"user_secret":"1,a"}"#.to_owned(),
        r#"{"user_secret":["1","a"],"document_name":"comment-1-body"}"#.to_owned(),
        r#"{"user_secret":"1,a","document_name":12}"#.to_owned(),
        question("1", "comment-1-body"),
        question("1,", "comment-1-body"),
        question("1,a,b", "comment-1-body"),
        question("01,a", "comment-1-body"),
        question("1,a", "comment-1-body\0"),
        question("1,a", ""),
        question("1,a", &long(513)),
        question(&format!("1,{}", long(1_023)), "comment-1-body"),
        question("1,a", &long(9_000)),
        question("1,a", &long(1_000_000)),
    ]
    .map(String::into_bytes)
    .into_iter()
    .chain([b"{\"user_secret\":\"1,\xff\",\"document_name\":\"comment-1-body\"}".to_vec()])
    .collect();
    let count = bodies.len() as u64;
    for body in bodies {
        let told = told(begin(&server, &[], &body).await).await;
        let start = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        assert_eq!(told.status, 400, "{start}");
        let json: serde_json::Value = serde_json::from_slice(&told.body).unwrap();
        assert!(json["error"].is_string(), "{start}");
    }
    assert_eq!(rails.requests(), 0);
    assert_eq!(server.count(Counter::ChecksMalformed), count);
    let get = Exchange::begin(&server, "GET /api/hocuspocus", &[], b"").await.unwrap();
    assert_eq!(told(get).await.status, 405);
    server.stop().await;
}

#[tokio::test]
async fn unknown_names_go_to_rails_unless_told_otherwise() {
    let rails = Rails::start(|_| Answer::Status(200, "")).await;
    let lenient = server(&rails, &[]).await;
    assert_eq!(ask(&lenient, "1,a", "page-1-body").await.status, 200);
    lenient.stop().await;
    let strict = server(&rails, &[("COLLAB_STRICT_NAMES", "1")]).await;
    assert_eq!(ask(&strict, "1,a", "page-1-body").await.status, 400);
    assert_eq!(ask(&strict, "0,a", "group-new-0a1b-description").await.status, 200);
    strict.stop().await;
    assert_eq!(rails.requests(), 2);
}

#[tokio::test]
async fn without_an_address_of_rails_the_answer_is_503() {
    let server = Server::start(NO_REDIS, &[]).await;
    assert_eq!(ask(&server, "1,a", "comment-1-body").await.retry_after, Some(60));
    server.stop().await;
}

#[tokio::test]
async fn redirects_are_never_followed() {
    let elsewhere = Rails::start(|_| Answer::Status(200, "")).await;
    let location: &'static str = Box::leak(format!("location: {}/\r\n", elsewhere.url()).into_boxed_str());
    let rails = Rails::start(move |_| Answer::Status(301, location)).await;
    let server = server(&rails, &[]).await;
    let told = ask(&server, "1,a", "comment-1-body").await;
    assert_eq!((told.status, told.retry_after), (503, Some(60)));
    assert_eq!((rails.requests(), elsewhere.connections()), (1, 0));
    server.stop().await;
}

#[tokio::test]
async fn only_the_head_of_an_answer_is_read() {
    let rails = Rails::start(|asked| match number(asked) {
        1 => Answer::Body(1 << 30),
        _ => Answer::Slowly("HTTP/1.1 200 OK\r\n\r\n"),
    })
    .await;
    let server = server(&rails, &[]).await;
    assert_eq!(ask(&server, "1,a", "comment-1-body").await.status, 200);
    until("the connection is closed", async || rails.under_way() == 0).await;
    assert!(rails.body_bytes() < 64 << 20, "{}", rails.body_bytes());
    server.stop().await;
}

#[tokio::test]
async fn an_abandoned_request_occupies_its_place_until_rails_has_answered() {
    let rails =
        Rails::start(|asked| if number(asked) == 1 { Answer::Later(200) } else { Answer::Status(200, "") }).await;
    let server = server(&rails, &[("RAILS_MAX_CONCURRENCY", "1")]).await;
    let first = begin(&server, &[], question("1,a", "comment-1-body")).await;
    until("the first is under way", async || rails.under_way() == 1).await;
    let second = begin(&server, &[], question("1,a", "comment-2-body")).await;
    drop(first);
    until("the first has left", async || server.count(Counter::ChecksAbandoned) == 1).await;
    // An identical check joins the second, so the second still waits: Rails works on the first all the same.
    let third = begin(&server, &[], question("1,a", "comment-2-body")).await;
    until("the third waits with the second", async || server.count(Counter::ChecksJoined) == 1).await;
    assert_eq!(rails.requests(), 1);
    rails.release();
    for waiting in [second, third] {
        assert_eq!(waiting.response().await.status, 200);
    }
    assert_eq!((rails.most_under_way(), rails.requests()), (1, 2));
    assert_eq!(ask(&server, "1,a", "comment-1-body").await.status, 200);
    assert_eq!(rails.requests(), 2, "the answer to the abandoned check was kept");
    server.stop().await;
}

#[tokio::test]
async fn an_abandoned_check_does_not_fail_identical_checks() {
    let rails = Rails::start(|_| Answer::Later(200)).await;
    let server = server(&rails, &[]).await;
    let first = begin(&server, &[], question("1,a", "comment-1-body")).await;
    until("it is under way", async || rails.under_way() == 1).await;
    let second = begin(&server, &[], question("1,a", "comment-1-body")).await;
    let third = begin(&server, &[], question("1,a", "comment-1-body")).await;
    until("the others wait for the same", async || server.count(Counter::ChecksJoined) == 2).await;
    drop((first, third));
    until("two have left", async || server.count(Counter::ChecksAbandoned) == 2).await;
    rails.release();
    assert_eq!(second.response().await.status, 200);
    assert_eq!((rails.requests(), server.count(Counter::ChecksAbandoned)), (1, 2));
    server.stop().await;
}

#[tokio::test]
async fn answers_are_remembered_for_a_moment() {
    let rails = Rails::start(|asked| Answer::Status(number(asked), "")).await;
    let server = server(&rails, &[]).await;
    for name in ["comment-200-body", "comment-401-body"] {
        let first = ask(&server, "1,a", name).await.status;
        assert_eq!(ask(&server, "1,a", name).await.status, first);
    }
    assert_eq!((rails.requests(), server.count(Counter::ChecksCached)), (2, 2));
    assert_eq!(ask(&server, "1,b", "comment-200-body").await.status, 200);
    assert_eq!(rails.requests(), 3, "another token is another question");
    until("the denial is forgotten", async || {
        ask(&server, "1,a", "comment-401-body").await.status == 401 && rails.requests() == 4
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn each_address_and_each_token_has_an_allowance() {
    let rails = Rails::start(|_| Answer::Status(200, "")).await;
    let five = ("COLLAB_AUTH_PER_MINUTE", "5");
    let from = async |server: &Server, address: &str, token: usize| {
        let body = question(&format!("1,{token}"), "comment-1-body");
        told(begin(server, &[("x-forwarded-for", address)], body).await).await
    };
    let server = server(&rails, &[five]).await;
    for token in 0..5 {
        assert_eq!(from(&server, "203.0.113.1", token).await.status, 200);
    }
    let refused = from(&server, "203.0.113.1", 5).await;
    assert!(matches!(refused, Told { status: 429, retry_after: Some(1..=12), .. }), "{refused:?}");
    assert_eq!(from(&server, "203.0.113.2", 5).await.status, 200, "another address");
    for last in 10..14 {
        assert_eq!(from(&server, &format!("203.0.113.{last}"), 5).await.status, 200);
    }
    assert_eq!(from(&server, "203.0.113.14", 5).await.status, 429, "the same token from everywhere");
    server.stop().await;

    let url = rails.url();
    let nobody = [("PRIVATE_APP_URL", url.as_str()), five, ("TRUSTED_PROXIES", "none")];
    let server = Server::start(NO_REDIS, &nobody).await;
    for token in 20..25 {
        assert_eq!(from(&server, &format!("203.0.113.{token}"), token).await.status, 200);
    }
    assert_eq!(from(&server, "203.0.113.30", 30).await.status, 429, "x-forwarded-for is not believed");
    server.stop().await;
}

#[tokio::test]
async fn without_a_client_address_only_the_token_is_limited() {
    let rails = Rails::start(|asked| Answer::Status(number(asked), "")).await;
    let server = server(&rails, &[("COLLAB_AUTH_PER_MINUTE", "5")]).await;
    for user in 0..20 {
        assert_eq!(ask(&server, &format!("{user},wrong"), "comment-401-body").await.status, 401, "{user}");
        assert_eq!(ask(&server, &format!("{user},right"), "comment-200-body").await.status, 200, "{user}");
    }
    for status in [401, 429] {
        assert_eq!(ask(&server, "1,wrong", "comment-403-body").await.status, status, "each token has its allowance");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_denial_after_500_does_not_count_as_a_wrong_guess() {
    let rails = Rails::start(|_| Answer::Status(500, "")).await;
    let server = server(&rails, &[("COLLAB_AUTH_PER_MINUTE", "5")]).await;
    let named = [("x-forwarded-for", "203.0.113.1")];
    for user in 0..4 {
        let exchange = begin(&server, &named, question(&format!("{user},a"), "type-1-unknown")).await;
        assert_eq!(told(exchange).await.status, 401, "{user}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_stop_ends_waiting_checks() {
    let rails = Rails::start(|_| Answer::Nothing).await;
    let mut server = server(&rails, &[]).await;
    let waiting = begin(&server, &[], question("1,a", "comment-1-body")).await;
    until("it is under way", async || rails.under_way() == 1).await;
    server.begin_stop();
    assert_eq!(told(waiting).await.status, 503);
    server.stopped().await;
}

#[tokio::test]
async fn live_updates_arrive_while_ten_thousand_checks_wait() {
    const CHECKS: usize = 10_000;
    const RECORDS: usize = 200;
    let rails = Rails::start(|_| Answer::Later(401)).await;
    let redis = Redis::start().await;
    redis.user("ada", 1, &[1]).await;
    let url = rails.url();
    let settings = [("PRIVATE_APP_URL", url.as_str()), ("RAILS_HOLD_SECONDS", "300")];
    let server = Server::start(&redis.url(), &settings).await;
    server.ready().await;
    let server = Arc::new(server);
    let mut ada = Browser::connect(&*server, "ada").await;

    // As many connections at a time as the limit of open files allows.
    let connections = Arc::new(Semaphore::new(4_000));
    let mut checks = JoinSet::new();
    for number in 0..CHECKS {
        let (server, connections) = (Arc::clone(&server), Arc::clone(&connections));
        checks.spawn(async move {
            let _connection = connections.acquire().await.unwrap();
            let [_, b, c, d] = u32::try_from(number).unwrap().to_be_bytes();
            let address = format!("198.{}.{c}.{d}", 18 + b);
            let body = question(&format!("{number},token"), "comment-1-body");
            begin(&server, &[("x-forwarded-for", &address)], body).await.response().await.status
        });
    }
    // Rails answers none of them before its release, and each record arrives before the next is published.
    for number in 0..RECORDS {
        redis.records(record("group-1", number)).await;
        assert_eq!(ada.number().await, number);
    }
    until("the others were refused", async || server.count(Counter::ChecksUnavailable) > 0).await;
    rails.release();
    let statuses = checks.join_all().await;
    let count = |wanted| statuses.iter().filter(|status| **status == wanted).count();
    let (denied, refused) = (count(401), count(503));
    assert_eq!(denied + refused, CHECKS);
    assert!(denied >= 2_048, "{denied}");
    assert!(rails.most_under_way() <= 16);
}
