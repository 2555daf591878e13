use proptest::prelude::*;
use redis::ConnectionAddr;

use super::*;

fn shown(text: &str) -> String {
    RedisUrl::parse(text).unwrap().redacted()
}

#[test]
fn shows_everything_but_passwords() {
    for (text, expected) in [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://redis", "redis://redis/0"),
        ("REDIS://:hunter2@redis/3", "redis://:***@redis/3"),
        ("rediss://loomio:hunter2@r.example.org:6380/1", "rediss://loomio:***@r.example.org:6380/1"),
        ("valkey://hunter2@[::1]:6379", "valkey://***@[::1]:6379/0"),
        ("valkeys://h/?protocol=resp3&password=hunter2", "valkeys://h/0"),
        ("unix:/run/redis.sock", "unix:///run/redis.sock?db=0"),
        ("redis+unix:///run/r.sock?db=2&user=me&pass=hunter2", "redis+unix:///run/r.sock?db=2&user=me&pass=***"),
    ] {
        assert_eq!(shown(text), expected);
        assert!(!format!("{:?}", RedisUrl::parse(text)).contains("hunter2"));
    }
}

#[test]
fn refuses_what_could_not_be_dialled() {
    for text in [
        "",
        "localhost",
        "localhost:6379",
        "http://localhost",
        "redis:",
        "redis://",
        "redis:///0",
        "redis://0.0.0.0",
        "redis://[::]:6379",
        "redis://host:99999",
        "redis://host:0",
        "redis://host/db",
        "redis://host/-1",
        "redis://host/0/1",
        "redis://:pa/ss@host/0",
        "redis://:pa#ss@host",
        "redis://user:12/34@host",
        "redis://user:12?34@host",
        "redis://user:12#34@host",
        "rediss://host/#insecure",
        "redis://:%ff@host",
        "redis://h?protocol=4",
        "unix:",
        "unix:run/redis.sock",
        "unix://run/redis.sock",
        "unix:///run/redis.sock?db=x",
        "unix:///",
    ] {
        assert!(RedisUrl::parse(text).is_err(), "{text}");
    }
}

proptest! {
    /// The Redis client is the judge: it must never refuse at run time what passed at the start.
    #[test]
    fn what_is_accepted_the_client_accepts(
        scheme in "(redis|rediss|valkey|valkeys|unix|redis\\+unix|valkey\\+unix)",
        slashes in "(:|://)",
        rest in "[a-z0-9%:@/?#&=.\\[\\]-]{0,24}",
    ) {
        if let Ok(parsed) = RedisUrl::parse(&format!("{scheme}{slashes}{rest}")) {
            let RedisTarget::Url(url) = &parsed.target else { panic!("not an address: {parsed:?}") };
            prop_assert!(redis::Client::open(url.expose()).is_ok(), "{}", url.expose());
        }
    }

    #[test]
    fn any_password_can_be_encoded(password in ".{1,20}") {
        let encoded = password.bytes().flat_map(|byte| format!("%{byte:02X}").into_bytes()).map(char::from);
        let encoded = encoded.collect::<String>();
        let (_, info, shown) = tcp(&format!("redis://user:{encoded}@host:1/2")).unwrap();
        prop_assert_eq!(shown.as_str(), "redis://user:***@host:1/2");
        prop_assert_eq!(info.redis_settings().password(), Some(&*password));
    }

    #[test]
    fn no_text_is_a_crash(text in ".*") {
        let _ = (RedisUrl::parse(&text), RedisUrl::parse(&format!("redis://{text}")), RedisUrl::parse(&format!("unix:{text}")));
    }
}

mod sentinels {
    use super::*;

    #[test]
    fn reads_every_part() {
        let text = "rediss-sentinel://me:hunter%2F2@a:1,b,[::1]:3/4\
                    ?sentinelServiceName=main&sentinelUsername=watch&sentinelPassword=hunter3";
        let url = RedisUrl::parse(text).unwrap();
        assert_eq!(url.redacted(), "rediss-sentinel://me:***@a:1,b:26379,[::1]:3/4?sentinelServiceName=main");
        let RedisTarget::Sentinel { nodes, service, master } = url.target else { panic!("not of sentinels") };
        let addresses = nodes.iter().map(|node| node.addr().to_string()).collect::<Vec<_>>();
        assert_eq!((addresses, &*service), (vec!["a:1".into(), "b:26379".into(), "::1:3".into()], "main"));
        assert!(nodes.iter().all(|node| matches!(node.addr(), ConnectionAddr::TcpTls { insecure: false, .. })));
        for login in nodes.iter().map(ConnectionInfo::redis_settings) {
            assert_eq!((login.username(), login.password(), login.db()), (Some("watch"), Some("hunter3"), 0));
        }
        let (_, info, _) = tcp("rediss://me:hunter%2F2@a/4").unwrap();
        let expected = SentinelNodeConnectionInfo::default().set_tls_mode(TlsMode::Secure);
        let expected = expected.set_redis_connection_info(info.redis_settings().clone());
        assert_eq!(format!("{master:?}"), format!("{expected:?}"));
    }

    #[test]
    fn most_parts_may_be_absent() {
        let url = RedisUrl::parse("redis-sentinel://:hunter2@a?sentinelServiceName=m").unwrap();
        assert_eq!(url.redacted(), "redis-sentinel://:***@a:26379/0?sentinelServiceName=m");
        let url = RedisUrl::parse("redis-sentinel://a?sentinelServiceName=m").unwrap();
        assert_eq!(url.redacted(), "redis-sentinel://a:26379/0?sentinelServiceName=m");
    }

    #[test]
    fn the_service_and_real_hosts_are_needed() {
        for text in [
            "redis-sentinel:a?sentinelServiceName=m",
            "redis-sentinel://a",
            "redis-sentinel://a?sentinelServiceName=",
            "redis-sentinel://?sentinelServiceName=m",
            "redis-sentinel://a,,b?sentinelServiceName=m",
            "redis-sentinel://a:x?sentinelServiceName=m",
            "redis-sentinel://a/x?sentinelServiceName=m",
            "redis-sentinel://:pa/ss@a?sentinelServiceName=m",
            "redis-sentinel://:pa?ss@a?sentinelServiceName=m",
            "redis-sentinel://0.0.0.0?sentinelServiceName=m",
        ] {
            assert!(RedisUrl::parse(text).unwrap_err().mend.contains("sentinelServiceName"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_a_crash(text in ".*", tls: bool) {
            let scheme = if tls { "rediss" } else { "redis" };
            let _ = RedisUrl::parse(&format!("{scheme}-sentinel://{text}"));
        }
    }
}
