use std::{num::NonZeroUsize, time::Duration};

use proptest::prelude::*;

use super::*;

fn environment(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().copied().collect()
}

fn config(pairs: &[(&str, &str)]) -> Config {
    Config::from_env(&environment(pairs)).unwrap()
}

fn mistakes(pairs: &[(&str, &str)]) -> Vec<String> {
    Config::from_env(&environment(pairs)).unwrap_err().0
}

#[test]
fn defaults_are_those_of_the_table() {
    let config = Config::from_env(&Environment { cores: NonZeroUsize::new(6).unwrap(), ..environment(&[]) }).unwrap();
    assert_eq!((config.http.port, config.http.bind, config.http.strict_origin), (5000, None, false));
    assert_eq!(config.http.allowed_origin, None);
    assert_eq!(config.redis.redacted(), "redis://localhost:6379/0");
    assert_eq!(config.engine.ping_interval, Duration::from_secs(25));
    assert_eq!(config.engine.ping_timeout, Duration::from_secs(20));
    assert_eq!(config.engine.connect_timeout, Duration::from_secs(45));
    assert_eq!(config.engine.outbox_bytes, 16 << 20);
    assert_eq!(config.recovery.window, Duration::from_mins(30));
    assert_eq!(config.recovery.log_bytes, 64 << 20);
    assert_eq!((config.recovery.secret, config.recovery.secret_variable), (None, None));
    assert_eq!((config.reauth.period, config.reauth.strict), (Some(Duration::from_mins(1)), false));
    assert_eq!((config.rails.endpoint, config.rails.max_concurrency), (None, 16));
    assert_eq!(config.rails.hold, Duration::from_secs(30));
    assert_eq!((config.collab.auth_per_minute, config.collab.strict_names), (60, false));
    assert!(config.http.trusted_proxies.contains(std::net::Ipv4Addr::LOCALHOST.into()));
    let limits = config.limits;
    assert_eq!((limits.connections, limits.sessions, limits.sessions_per_address), (None, None, 4096));
    assert_eq!(config.shards, 6);
    assert_eq!((config.log.format, config.log.filter.as_str()), (LogFormat::Text, "info"));
    assert!(!config.demo && config.notes.is_empty());
}

#[test]
fn empty_is_unset() {
    let blank = VARIABLES.iter().map(|variable| (variable.name, " ")).collect::<Environment>();
    let (blank, unset) = (Config::from_env(&blank).unwrap(), config(&[]));
    assert_eq!(format!("{blank:?}"), format!("{unset:?}"));
}

#[test]
fn the_help_names_every_variable_and_default() {
    let help = help_table();
    for Variable { name, default, help: text, .. } in VARIABLES {
        assert!(help.contains(&format!("  {name} [default: {default}]\n      {text}\n")), "{name}");
    }
}

#[test]
fn all_mistakes_come_together() {
    let found = mistakes(&[
        ("PORT", "70000"),
        ("BIND", "everywhere"),
        ("STRICT_ORIGIN", "perhaps"),
        ("PUBLIC_APP_URL", "loomio"),
        ("REDIS_URL", "redis://:hunter2@host/x"),
        ("PING_INTERVAL_MS", "10"),
        ("PING_TIMEOUT_MS", "20s"),
        ("CONNECT_TIMEOUT_MS", "-1"),
        ("OUTBOX_BYTES", "1"),
        ("RECOVERY_WINDOW", "soon"),
        ("RECOVERY_LOG_BYTES", "1T"),
        ("CHANNELS_SECRET", "hunter2"),
        ("REAUTH_SECONDS", "1.5"),
        ("REAUTH_STRICT", "very"),
        ("RAILS_MAX_CONCURRENCY", "many"),
        ("RAILS_HOLD_SECONDS", "301"),
        ("COLLAB_AUTH_PER_MINUTE", "0"),
        ("COLLAB_STRICT_NAMES", "some"),
        ("TRUSTED_PROXIES", "proxy"),
        ("MAX_CONNECTIONS", "0"),
        ("MAX_SESSIONS", "unlimited"),
        ("MAX_SESSIONS_PER_ADDRESS", "2000000"),
        ("SHARDS", "0"),
        ("LOG_FORMAT", "xml"),
        ("RUST_LOG", "info,=="),
    ]);
    assert_eq!(found.len(), 25, "{found:#?}");
    assert_eq!(found[0], "PORT=\"70000\": out of range; give a whole number from 0 to 65535");
    assert!(found.iter().any(|mistake| mistake.starts_with("REDIS_URL: what follows the host")), "{found:#?}");
}

#[test]
fn no_seconds_turn_live_authorization_off() {
    assert_eq!(config(&[("REAUTH_SECONDS", "0")]).reauth.period, None);
    assert_eq!(config(&[("REAUTH_SECONDS", "5")]).reauth.period, Some(Duration::from_secs(5)));
}

#[test]
fn questions_to_rails_have_bounds() {
    for (name, bad) in [("RAILS_MAX_CONCURRENCY", "0"), ("RAILS_HOLD_SECONDS", "0"), ("RAILS_HOLD_SECONDS", "5m")] {
        assert_eq!(mistakes(&[(name, bad)]).len(), 1, "{name}");
    }
}

#[test]
fn quotes_of_an_env_file_are_named() {
    assert_eq!(
        mistakes(&[("PORT", "\"5000\"")]),
        [r#"PORT="\"5000\"": not a whole number; remove the quotes around it"#]
    );
}

#[cfg(unix)]
#[test]
fn every_variable_of_the_table_is_read() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    let bad = OsStr::from_bytes(b"hunter\xff");
    for Variable { name, .. } in VARIABLES {
        for demo in [false, true] {
            let found = Config::read(&[(*name, bad)].into_iter().collect(), demo).unwrap_err();
            assert_eq!(found.0.len(), 1);
            assert_eq!(found.0[0], format!("{name}: not UTF-8; write it as plain text"));
        }
    }
    assert!(Config::from_env(&[("UNRELATED", bad)].into_iter().collect()).is_ok());
}

#[test]
fn the_ticket_key_is_ours_before_loomios() {
    let (ours, theirs) = (("CHANNELS_SECRET", "0123456789abcdef"), ("SECRET_COOKIE_TOKEN", "fedcba9876543210"));
    let both = config(&[ours, theirs]).recovery;
    assert_eq!((both.secret, both.secret_variable), (Some(Secret::new(ours.1)), Some("CHANNELS_SECRET")));
    let one = config(&[theirs]).recovery;
    assert_eq!((one.secret, one.secret_variable), (Some(Secret::new(theirs.1)), Some("SECRET_COOKIE_TOKEN")));
    // A short one of Loomio's must not stop a drop-in; it is only remarked on.
    assert_eq!(config(&[("SECRET_COOKIE_TOKEN", "short")]).notes.len(), 1);
}

#[test]
fn strict_without_an_origin_is_a_mistake() {
    assert!(mistakes(&[("STRICT_ORIGIN", "1")])[0].ends_with("set CANONICAL_HOST or PUBLIC_APP_URL"));
    assert!(config(&[("STRICT_ORIGIN", "1"), ("CANONICAL_HOST", "a.org")]).http.strict_origin);
}

#[test]
fn a_misspelt_level_is_remarked_on() {
    assert_eq!(config(&[("RUST_LOG", "inof")]).notes.len(), 1);
    for fine in ["WARN", "off", "info,hyper=warn", "hyper=debug"] {
        assert!(config(&[("RUST_LOG", fine)]).notes.is_empty(), "{fine}");
    }
}

#[test]
fn the_way_to_the_server_needs_nothing_else() {
    let http = Config::http_only(&environment(&[("PORT", "81"), ("REDIS_URL", "nonsense")])).unwrap();
    assert_eq!(http.port, 81);
    assert_eq!(Config::http_only(&environment(&[("PORT", "x"), ("BIND", "x")])).unwrap_err().0.len(), 2);
}

#[test]
fn the_demo_needs_no_environment() {
    let demo = Config::for_demo(None, &environment(&[("REDIS_URL", "nonsense"), ("STRICT_ORIGIN", "1")])).unwrap();
    assert_eq!(demo.http.allowed_origin.unwrap().origin, "http://localhost:5000");
    let demo = Config::for_demo(Some(8080), &environment(&[("PORT", "nonsense")])).unwrap();
    assert_eq!((demo.http.port, demo.demo), (8080, true));
    assert!(demo.summary().contains("http://localhost:8080 (from demo)"));
    let demo = Config::for_demo(None, &environment(&[("CANONICAL_HOST", "a.org"), ("PORT", "81")])).unwrap();
    assert_eq!((demo.http.allowed_origin.unwrap().origin.as_str(), demo.http.port), ("https://a.org", 81));
}

#[test]
fn the_start_block_can_be_read_at_a_glance() {
    let config = config(&[
        ("PUBLIC_APP_URL", "https://loomio.example.org/"),
        ("REDIS_URL", "redis://:hunter2@redis:6379/0"),
        ("SECRET_COOKIE_TOKEN", "0123456789abcdef0123456789abcdef"),
    ]);
    let expected = "
  listen     port 5000 on all interfaces
  limits     connections: as open files allow, sessions: as many, 4096 from one address
  redis      redis://:***@redis:6379/0
  origin     https://loomio.example.org (from PUBLIC_APP_URL)
  rails      https://loomio.example.org/api/hocuspocus (from PUBLIC_APP_URL)
  ticket key SECRET_COOKIE_TOKEN
  recovery   30m, up to 64 MiB
  shards     1
  note       PUBLIC_APP_URL is more than an origin; browsers send https://loomio.example.org, so that is what is allowed";
    assert_eq!(config.summary(), format!("loomio-channels {}{expected}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_start_block_warns_of_a_missing_origin() {
    let summary = config(&[("BIND", "::1"), ("PORT", "81")]).summary();
    assert!(summary.contains("WARNING") && summary.contains("CANONICAL_HOST") && summary.contains("PUBLIC_APP_URL"));
    assert!(summary.contains("[::1]:81"), "{summary}");
}

/// Places a secret may stand in, `{}` being it. Some of them are wrong on purpose.
const PLACES: [(&str, &str); 19] = [
    ("CHANNELS_SECRET", "{}"),
    ("SECRET_COOKIE_TOKEN", "{}"),
    ("REDIS_URL", "redis://:{}@host/0"),
    ("REDIS_URL", "redis://user:{}@host/x"),
    ("REDIS_URL", "redis://{}@host"),
    ("REDIS_URL", "rediss://user:12/{}@host"),
    ("REDIS_URL", "redis://user:12?{}@host"),
    ("REDIS_URL", "redis://user:12#{}@host"),
    ("REDIS_URL", "{}@host:6379"),
    ("REDIS_URL", "redis:{}"),
    ("REDIS_URL", "redis://host?password={}"),
    ("REDIS_URL", "redis://host?protocol={}"),
    ("REDIS_URL", "unix:///run/redis.sock?pass={}"),
    ("REDIS_URL", "redis-sentinel://:{}@a,b?sentinelServiceName=m&sentinelPassword={}"),
    ("REDIS_URL", "redis-sentinel://{}@a,b/0"),
    ("PUBLIC_APP_URL", "https://user:{}@loomio.example.org"),
    ("PUBLIC_APP_URL", "ftp://user:{}@loomio.example.org"),
    ("PRIVATE_APP_URL", "http://user:{}@app:3000"),
    ("APP_URL", "http://app:3000/?key={}"),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_secret_is_ever_shown(
        place in proptest::sample::select(PLACES.to_vec()),
        secret in "QZ[A-Za-z0-9]{4,12}[A-Za-z0-9/?#@:%&=, ]{0,12}QZ",
        encoded: bool,
        port in "(5000|x)",
    ) {
        // What stands before a colon is a user, and shown.
        prop_assume!(encoded || place.1 != "redis://{}@host" || !secret.contains(':'));
        let written = if encoded { url::form_urlencoded::byte_serialize(secret.as_bytes()).collect() } else { secret.clone() };
        let environment = environment(&[(place.0, &place.1.replace("{}", &written)), ("PORT", &port)]);
        for outcome in [Config::from_env(&environment), Config::for_demo(None, &environment)] {
            let mut shown = format!("{outcome:?} {outcome:#?} {environment:?}");
            match outcome {
                Ok(config) => shown += &config.summary(),
                Err(mistakes) => shown += &mistakes.to_string(),
            }
            // Neither the whole nor a piece of it, in whichever case.
            prop_assert!(!shown.to_lowercase().contains("qz"), "{}", shown);
        }
    }
}
