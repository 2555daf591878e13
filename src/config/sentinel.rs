//! `redis-sentinel://[user:password@]host[:port][,host[:port]…][/db]?sentinelServiceName=name`, the form other Redis
//! clients read as well. `rediss-sentinel` is the same over TLS; `sentinelUsername` and `sentinelPassword` log in at
//! the sentinels.

use std::fmt::Write;

use url::Url;

use super::{
    RedisTarget, RedisUrl, Secret,
    mistake::Wrong,
    redis_url::{database, decode, host_of, parameter, shown_login},
};

/// Where sentinels listen unless told otherwise.
const SENTINEL_PORT: u16 = 26379;

const MEND: &str = "give redis-sentinel://[user:password@]host[:port][,host[:port]…][/db]?sentinelServiceName=name, \
                    with every / ? # @ % of a password written as %2F %3F %23 %40 %25";

pub(super) fn parse(text: &str, tls: bool) -> Result<RedisUrl, Wrong> {
    let wrong = |problem: &str| Wrong::new(problem, MEND);
    let (_, after_scheme) = text.split_once("://").ok_or_else(|| wrong("lacks :// after its scheme"))?;
    let (authority, rest) = after_scheme.split_at(after_scheme.find(['/', '?', '#']).unwrap_or(after_scheme.len()));
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (Some(login), hosts),
        None => (None, authority),
    };
    let (user, password) = login.map_or(Ok((None, None)), log_in)?;
    let nodes = hosts.split(',').map(node).collect::<Result<Vec<_>, _>>()?;

    // The host is there for the parser's sake: several at once are no URL.
    let tail = Url::parse(&format!("redis://sentinels{rest}")).map_err(|_| wrong("not an address"))?;
    if tail.fragment().is_some() || tail.query().is_some_and(|query| query.contains('@')) {
        return Err(wrong("has an @ or # after its hosts"));
    }
    let db = database(tail.path().trim_matches('/')).map_err(|Wrong { problem, .. }| wrong(&problem))?;
    let service = parameter(&tail, "sentinelServiceName")
        .filter(|service| !service.is_empty())
        .ok_or_else(|| wrong("does not name the service"))?;
    let sentinel_user = parameter(&tail, "sentinelUsername");
    let sentinel_password = parameter(&tail, "sentinelPassword").map(Secret::new);

    let mut shown = if tls { "rediss-sentinel://".to_owned() } else { "redis-sentinel://".to_owned() };
    shown += &shown_login(user.as_deref().unwrap_or_default(), password.is_some());
    for (index, (host, port)) in nodes.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let _ = if host.contains(':') {
            write!(shown, "{comma}[{host}]:{port}")
        } else {
            write!(shown, "{comma}{host}:{port}")
        };
    }
    let _ = write!(shown, "/{db}?sentinelServiceName={}", service.escape_debug());

    let target = RedisTarget::Sentinel { nodes, service, user, password, db, tls, sentinel_user, sentinel_password };
    Ok(RedisUrl::new(target, shown))
}

/// User and password, both decoded, an empty one absent.
fn log_in(login: &str) -> Result<(Option<String>, Option<Secret>), Wrong> {
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let present = |text: &str| decode(text).map(|text| Some(text).filter(|text| !text.is_empty()));
    Ok((present(user)?, present(password)?.map(Secret::new)))
}

fn node(text: &str) -> Result<(String, u16), Wrong> {
    let wrong = || Wrong::new("one of its hosts is not host[:port]", MEND);
    if text.contains('@') {
        return Err(wrong());
    }
    let url = Url::parse(&format!("redis://{}", text.trim())).map_err(|_| wrong())?;
    let (host, port) = host_of(&url).map_err(|_| wrong())?;
    Ok((host, port.unwrap_or(SENTINEL_PORT)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_every_part() {
        let text = "rediss-sentinel://me:hunter%2F2@a:1,b,[::1]:3/4\
                    ?sentinelServiceName=main&sentinelUsername=watch&sentinelPassword=hunter3";
        let url = RedisUrl::parse(text).unwrap();
        assert_eq!(url.redacted(), "rediss-sentinel://me:***@a:1,b:26379,[::1]:3/4?sentinelServiceName=main");
        assert_eq!(
            url.target(),
            &RedisTarget::Sentinel {
                nodes: vec![("a".into(), 1), ("b".into(), 26379), ("::1".into(), 3)],
                service: "main".into(),
                user: Some("me".into()),
                password: Some(Secret::new("hunter/2")),
                db: 4,
                tls: true,
                sentinel_user: Some("watch".into()),
                sentinel_password: Some(Secret::new("hunter3")),
            }
        );
        assert!(!format!("{:?}", url.target()).contains("hunter"));
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
            let _ = parse(&format!("redis-sentinel://{text}"), tls);
        }
    }
}
