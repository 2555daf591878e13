//! `REDIS_URL`: what it may look like, and how it is shown. Everything accepted here is accepted by the Redis client.

use std::fmt;

use url::{Host, Url};

use super::{Secret, mistake::Wrong, sentinel};

/// The fitting answer to most things that can be wrong with such an address.
pub(super) const MEND: &str = "give redis://[user:password@]host[:port][/db], with every / ? # @ % of a password \
                               written as %2F %3F %23 %40 %25";

/// Where Redis is, checked. `Display` is [`RedisUrl::redacted`].
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    target: RedisTarget,
    shown: String,
}

/// How to reach Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisTarget {
    /// A server, by TCP, TLS or Unix socket: an address for `redis::Client::open`.
    Url(Secret),
    /// The server which sentinels call the master of `service`.
    Sentinel {
        /// Host and port of every sentinel, at least one.
        nodes: Vec<(String, u16)>,
        /// The name the sentinels know the master by.
        service: String,
        /// User at the master.
        user: Option<String>,
        /// Password at the master.
        password: Option<Secret>,
        /// Database at the master.
        db: i64,
        /// Whether master and sentinels are dialled over TLS.
        tls: bool,
        /// User at the sentinels.
        sentinel_user: Option<String>,
        /// Password at the sentinels.
        sentinel_password: Option<Secret>,
    },
}

impl RedisUrl {
    /// How to reach it.
    pub fn target(&self) -> &RedisTarget {
        &self.target
    }

    /// For logs: scheme, user, host, port and database, with `***` for every password.
    pub fn redacted(&self) -> String {
        self.shown.clone()
    }

    pub(super) fn new(target: RedisTarget, shown: String) -> Self {
        Self { target, shown }
    }

    /// Reads any of the accepted forms.
    pub(super) fn parse(text: &str) -> Result<Self, Wrong> {
        let scheme = text.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase()).unwrap_or_default();
        match scheme.as_str() {
            "redis" | "valkey" | "rediss" | "valkeys" => tcp(text),
            "unix" | "redis+unix" | "valkey+unix" => unix(text),
            "redis-sentinel" => sentinel::parse(text, false),
            "rediss-sentinel" => sentinel::parse(text, true),
            _ => Err(Wrong::new("starts with no scheme known here", MEND)),
        }
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({:?})", self.shown)
    }
}

fn tcp(text: &str) -> Result<RedisUrl, Wrong> {
    let url = Url::parse(text).map_err(|_| Wrong::new("not an address", MEND))?;
    host_of(&url)?;
    let db = database(url.path().trim_matches('/'))?;
    protocol(&url)?;
    if url.fragment().is_some() {
        let mend = "leave out # and what follows; certificates are always checked";
        return Err(Wrong::new("has a fragment", mend));
    }
    let user = decode(url.username())?;
    let password = url.password().map(decode).transpose()?;
    // Shown from its parts, so that nothing comes through which was not looked at.
    let shown = format!(
        "{}://{}{}{}/{db}",
        url.scheme(),
        shown_login(&user, password.is_some()),
        url.host_str().unwrap_or_default(),
        url.port().map(|port| format!(":{port}")).unwrap_or_default(),
    );
    Ok(RedisUrl::new(RedisTarget::Url(Secret::new(url)), shown))
}

fn unix(text: &str) -> Result<RedisUrl, Wrong> {
    let mend = "give unix:///path/of/the.sock[?db=0&user=name&pass=password]";
    let url = Url::parse(text).map_err(|_| Wrong::new("not an address", mend))?;
    let path = url.to_file_path().map_err(|()| Wrong::new("has no socket path", mend))?;
    if path.as_os_str() == "/" || !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err(Wrong::new("not the path of a socket", mend));
    }
    protocol(&url)?;
    let db = parameter(&url, "db").map_or(Ok(0), |db| database(&db))?;
    let user = parameter(&url, "user").map(|user| format!("&user={}", shown_user(&user))).unwrap_or_default();
    let pass = parameter(&url, "pass").map(|_| "&pass=***").unwrap_or_default();
    let shown = format!("{}://{}?db={db}{user}{pass}", url.scheme(), path.display());
    Ok(RedisUrl::new(RedisTarget::Url(Secret::new(url)), shown))
}

/// Host without brackets, and the port if one is given.
pub(super) fn host_of(url: &Url) -> Result<(String, Option<u16>), Wrong> {
    let host = match url.host() {
        Some(Host::Domain(name)) => name.to_owned(),
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Ipv6(address)) => address.to_string(),
        None => String::new(),
    };
    match host.as_str() {
        "" => Err(Wrong::new("has no host", MEND)),
        "0.0.0.0" | "::" => {
            Err(Wrong::new("names every interface instead of a host", "give the host Redis runs on, such as redis"))
        }
        _ if url.port() == Some(0) => Err(Wrong::new("has port 0", "give the port of Redis, usually 6379")),
        _ => Ok((host, url.port())),
    }
}

pub(super) fn database(text: &str) -> Result<i64, Wrong> {
    if text.is_empty() {
        return Ok(0);
    }
    let db = text.parse().ok().filter(|db: &i64| *db >= 0);
    db.ok_or_else(|| Wrong::new("what follows the host is not a database number", MEND))
}

fn protocol(url: &Url) -> Result<(), Wrong> {
    if url.query().is_some_and(|query| query.contains('@')) {
        return Err(Wrong::new("has a ? before its @", MEND));
    }
    match parameter(url, "protocol").as_deref() {
        None | Some("2" | "resp2" | "3" | "resp3") => Ok(()),
        Some(_) => Err(Wrong::new("asks for an unknown protocol", "give protocol=resp2 or protocol=resp3, or neither")),
    }
}

/// The last value of a query parameter, as the Redis client takes it.
pub(super) fn parameter(url: &Url, name: &str) -> Option<String> {
    url.query_pairs().filter(|(key, _)| key == name).last().map(|(_, value)| value.into_owned())
}

/// `user:***@`. A user without a password is a password in the wrong place more often than not, and hidden as well.
pub(super) fn shown_login(user: &str, has_password: bool) -> String {
    match (user, has_password) {
        ("", false) => String::new(),
        (_, false) => "***@".to_owned(),
        (user, true) => format!("{}:***@", shown_user(user)),
    }
}

fn shown_user(user: &str) -> String {
    user.escape_debug().to_string()
}

/// Undoes percent-encoding.
pub(super) fn decode(text: &str) -> Result<String, Wrong> {
    let wrong = || Wrong::new("its user or password is not percent-encoded UTF-8", MEND);
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'%').then_some(tail).and_then(|tail| tail.split_first_chunk::<2>());
        let decoded = code.and_then(|([high, low], after)| Some((hex(*high)? * 16 + hex(*low)?, after)));
        let (byte, after) = decoded.unwrap_or((first, tail));
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    #[test]
    fn decodes_as_urls_do() {
        assert_eq!(decode("a%2Fb%25%zz%4").as_deref(), Ok("a/b%%zz%4"));
        assert!(decode("%ff").is_err());
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
                let RedisTarget::Url(url) = parsed.target() else { panic!("not an address: {parsed}") };
                prop_assert!(redis::Client::open(url.expose()).is_ok(), "{}", url.expose());
            }
        }

        #[test]
        fn any_password_can_be_encoded(password in ".{1,20}") {
            let encoded = password.bytes().flat_map(|byte| format!("%{byte:02X}").into_bytes()).map(char::from);
            let encoded = encoded.collect::<String>();
            prop_assert_eq!(shown(&format!("redis://user:{encoded}@host:1/2")), "redis://user:***@host:1/2");
            prop_assert_eq!(decode(&encoded), Ok(password));
        }

        #[test]
        fn no_text_is_a_crash(text in ".*") {
            let _ = (RedisUrl::parse(&text), RedisUrl::parse(&format!("redis://{text}")), RedisUrl::parse(&format!("unix:{text}")));
        }
    }
}
