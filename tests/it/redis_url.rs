//! The ways to Redis that an address can name, as the binary takes it, and what is said where there is none.

use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::harness::{Browser, Redis, Running, Sentinel, free_port, record};

const PASSWORD: &str = "p@ss:w/rd";
const ESCAPED: &str = "p%40ss%3Aw%2Frd";

async fn server(url: &str, trusted: Option<&str>) -> Running {
    let trusted = trusted.map(|file| ("SSL_CERT_FILE", file));
    let environment: Vec<_> = [("REDIS_URL", url)].into_iter().chain(trusted).collect();
    Running::start(&[], &environment).await
}

/// A user is known and gets a record, where the address leads to database 3.
async fn works(redis: &Redis, url: &str, trusted: Option<&str>) {
    redis.user("ada", 1, &[]).await;
    redis.command(&["MOVE", "/current_users/ada", "3"]).await;
    let server = server(url, trusted).await;
    server.says("subscribed to redis").await;
    let mut browser = Browser::connect(&server, "ada").await;
    redis.records(record("user-1", 1)).await;
    assert_eq!(browser.number().await, 1, "{url}");
}

/// What is said when there is no subscription.
async fn complaint(url: &str, trusted: Option<&str>) -> String {
    let said = server(url, trusted).await.says("cannot subscribe").await;
    assert!(said.contains("REDIS_URL"), "{said}");
    said
}

#[tokio::test]
async fn a_password_is_given() {
    let redis = Redis::start().await;
    redis.command(&["CONFIG", "SET", "requirepass", PASSWORD]).await;
    let at = |login: &str| format!("redis://{login}127.0.0.1:{}/3", redis.port());
    works(&redis, &at(&format!(":{ESCAPED}@")), None).await;
    let said = complaint(&at(":wrong-password@"), None).await;
    assert!(said.contains("refuses the login: WRONGPASS") && !said.contains("wrong-password"), "{said}");
    let said = complaint(&at(&format!(":{ESCAPED}@")).replace("/3", "/99"), None).await;
    assert!(said.contains("DB index is out of range"), "{said}");
    let said = complaint(&at(""), None).await;
    assert!(said.contains("NOAUTH"), "{said}");
}

#[tokio::test]
async fn a_user_needs_both_channels() {
    let redis = Redis::start().await;
    let rights = ["on", "resetchannels", "~/current_users/*", "+get", "+select", "+subscribe", "+ping", "&/records"];
    for (user, more) in [("both", &["&/system_notice"][..]), ("one", &[])] {
        let password = format!(">{PASSWORD}");
        redis.command(&[&["ACL", "SETUSER", user, &password], &rights[..], more].concat()).await;
    }
    let at = |user| format!("redis://{user}:{ESCAPED}@127.0.0.1:{}/3", redis.port());
    works(&redis, &at("both"), None).await;
    let said = complaint(&at("one"), None).await;
    assert!(said.contains("refuses the subscription: NOPERM"), "{said}");
}

#[tokio::test]
async fn a_unix_socket_leads_there() {
    let redis = Redis::start().await;
    redis.command(&["CONFIG", "SET", "requirepass", PASSWORD]).await;
    works(&redis, &format!("unix://{}?db=3&pass={ESCAPED}", redis.socket().display()), None).await;
}

/// Makes a key and a certificate for `names`; returns their paths.
fn certificate(directory: &TempDir, names: &str) -> [String; 2] {
    let [key, certificate] = ["key", "certificate"].map(|kind| {
        let path = directory.path().join(format!("{names}.{kind}"));
        path.into_os_string().into_string().unwrap()
    });
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", &format!("/CN={names}")])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-addext", &format!("subjectAltName={names}")])
        .args(["-keyout", &key, "-out", &certificate])
        .stderr(Stdio::null())
        .status();
    assert!(made.expect("openssl is installed").success());
    [key, certificate]
}

#[tokio::test]
async fn tls_needs_a_certificate_that_the_system_trusts() {
    let (redis, directory) = (Redis::start().await, TempDir::new().unwrap());
    let [key, own] = certificate(&directory, "DNS:localhost");
    let [_, other] = certificate(&directory, "IP:127.0.0.1");
    let port = free_port().to_string();
    let settings = ["tls-auth-clients", "no", "tls-key-file", &key, "tls-cert-file", &own, "tls-port", &port];
    redis.command(&[&["CONFIG", "SET"], &settings[..]].concat()).await;
    let at = |host| format!("rediss://{host}:{port}/3");
    works(&redis, &at("localhost"), Some(&own)).await;
    let missing = format!("{own}.missing");
    for (host, trusted, reason) in [
        ("localhost", &other, "UnknownIssuer"),
        ("127.0.0.1", &own, "not valid for name"),
        ("localhost", &missing, "No such file"),
    ] {
        let said = complaint(&at(host), Some(trusted)).await;
        assert!(said.contains(reason), "{said}");
    }
}

#[tokio::test]
async fn a_sentinel_knows_the_way() {
    let redis = Redis::start().await;
    let sentinel = Sentinel::start(&redis);
    works(&redis, &sentinel.url("main", 3), None).await;
    let said = complaint(&sentinel.url("other", 3), None).await;
    assert!(said.contains("does not answer"), "{said}");
}

#[tokio::test]
async fn a_server_that_is_not_redis_is_recognized() {
    let other = server("redis://127.0.0.1:1", None).await;
    let said = complaint(&format!("redis://127.0.0.1:{}", other.port()), None).await;
    assert!(said.contains("what answers is not redis"), "{said}");
}
