//! `REDIS_URL`: what it may look like, and how it is shown. Everything accepted here is accepted by the Redis client.

use std::fmt;

use percent_encoding::percent_decode_str;
use url::Url;

use super::{Secret, reader::Wrong};

/// The fitting answer to most things that can be wrong with such an address.
const MEND: &str = "give redis://[user:password@]host[:port][/db], with every / ? # @ % of a password \
                               written as %2F %3F %23 %40 %25";

/// Where Redis is, checked. `Debug` is redacted.
#[derive(Clone, Default, PartialEq, Eq)]
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

impl Default for RedisTarget {
    fn default() -> Self {
        Self::Url(Secret::default())
    }
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

    /// Reads any of the accepted forms.
    pub(super) fn parse(text: &str) -> Result<Self, Wrong> {
        let scheme = text.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase()).unwrap_or_default();
        match scheme.as_str() {
            "redis" | "valkey" | "rediss" | "valkeys" => tcp(text),
            "unix" | "redis+unix" | "valkey+unix" => unix(text),
            "redis-sentinel" => sentinel(text, false),
            "rediss-sentinel" => sentinel(text, true),
            _ => Err(Wrong::new("starts with no scheme known here", MEND)),
        }
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
    let (user, password) = (decode(url.username())?, url.password().map(decode).transpose()?);
    // Put together from checked parts, so that nothing else can be shown.
    let shown = format!(
        "{}://{}{}{}/{db}",
        url.scheme(),
        shown_login(&user, password.is_some()),
        url.host_str().unwrap_or_default(),
        url.port().map(|port| format!(":{port}")).unwrap_or_default(),
    );
    Ok(RedisUrl { target: RedisTarget::Url(Secret::new(url)), shown })
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
    let user = parameter(&url, "user").map(|user| format!("&user={}", user.escape_debug())).unwrap_or_default();
    let pass = parameter(&url, "pass").map(|_| "&pass=***").unwrap_or_default();
    let shown = format!("{}://{}?db={db}{user}{pass}", url.scheme(), path.display());
    Ok(RedisUrl { target: RedisTarget::Url(Secret::new(url)), shown })
}

/// Host without brackets, and the port if one is given.
fn host_of(url: &Url) -> Result<(String, Option<u16>), Wrong> {
    match url.host_str().unwrap_or_default().trim_matches(['[', ']']) {
        "" => Err(Wrong::new("has no host", MEND)),
        "0.0.0.0" | "::" => {
            Err(Wrong::new("names every interface instead of a host", "give the host Redis runs on, such as redis"))
        }
        _ if url.port() == Some(0) => Err(Wrong::new("has port 0", "give the port of Redis, usually 6379")),
        host => Ok((host.to_owned(), url.port())),
    }
}

fn database(text: &str) -> Result<i64, Wrong> {
    if text.is_empty() {
        return Ok(0);
    }
    let db = text.parse().ok().filter(|db| *db >= 0);
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
fn parameter(url: &Url, name: &str) -> Option<String> {
    url.query_pairs().filter(|(key, _)| key == name).last().map(|(_, value)| value.into_owned())
}

/// `user:***@`. A user without a password is a password in the wrong place more often than not, and hidden as well.
fn shown_login(user: &str, has_password: bool) -> String {
    match (user, has_password) {
        ("", false) => String::new(),
        (_, false) => "***@".to_owned(),
        (user, true) => format!("{}:***@", user.escape_debug()),
    }
}

/// Undoes percent-encoding.
fn decode(text: &str) -> Result<String, Wrong> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Into::into).map_err(|_| Wrong::new("its user or password is not percent-encoded UTF-8", MEND))
}

/// Where sentinels listen unless told otherwise.
const SENTINEL_PORT: u16 = 26379;

const SENTINEL_MEND: &str = "give redis-sentinel://[user:password@]host[:port][,host[:port]…][/db]\
                             ?sentinelServiceName=name, with every / ? # @ % of a password written as %2F %3F %23 %40 \
                             %25";

/// The form other Redis clients read as well; `rediss-sentinel` is the same over TLS. `sentinelUsername` and
/// `sentinelPassword` in the query log in at the sentinels.
fn sentinel(text: &str, tls: bool) -> Result<RedisUrl, Wrong> {
    let wrong = |problem: &str| Wrong::new(problem, SENTINEL_MEND);
    let (_, after_scheme) = text.split_once("://").ok_or_else(|| wrong("lacks :// after its scheme"))?;
    let (authority, rest) = after_scheme.split_at(after_scheme.find(['/', '?', '#']).unwrap_or(after_scheme.len()));
    let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    // User and password, an empty one absent.
    let present = |text| decode(text).map(|text| Some(text).filter(|text| !text.is_empty()));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let (user, password) = (present(user)?, present(password)?.map(Secret::new));
    let nodes = hosts.split(',').map(node).collect::<Result<Vec<_>, _>>()?;

    // A URL has one host, so the parser is given another in place of the list.
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

    let shown_node = |(host, port): &(String, u16)| {
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    };
    let shown = format!(
        "{}://{}{}/{db}?sentinelServiceName={}",
        if tls { "rediss-sentinel" } else { "redis-sentinel" },
        shown_login(user.as_deref().unwrap_or_default(), password.is_some()),
        nodes.iter().map(shown_node).collect::<Vec<_>>().join(","),
        service.escape_debug(),
    );
    let target = RedisTarget::Sentinel { nodes, service, user, password, db, tls, sentinel_user, sentinel_password };
    Ok(RedisUrl { target, shown })
}

fn node(text: &str) -> Result<(String, u16), Wrong> {
    let wrong = || Wrong::new("one of its hosts is not host[:port]", SENTINEL_MEND);
    if text.contains('@') {
        return Err(wrong());
    }
    let url = Url::parse(&format!("redis://{}", text.trim())).map_err(|_| wrong())?;
    let (host, port) = host_of(&url).map_err(|_| wrong())?;
    Ok((host, port.unwrap_or(SENTINEL_PORT)))
}

#[cfg(test)]
mod tests;
