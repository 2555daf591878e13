//! `REDIS_URL`: what it may look like, and how it is shown. The Redis client judges what it can be dialled with.

use std::fmt;

use redis::{ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, TlsMode, sentinel::SentinelNodeConnectionInfo};
use url::{Position, Url};

use super::{Secret, reader::Wrong};

/// The fitting answer to most things that can be wrong with such an address.
const MEND: &str = "give redis://[user:password@]host[:port][/db], with every / ? # @ % of a password \
                    written as %2F %3F %23 %40 %25";
const UNIX_MEND: &str = "give unix:///path/of/the.sock[?db=0&user=name&pass=password]";
const SENTINEL_MEND: &str = "give redis-sentinel://[user:password@]host[:port][,host[:port]…][/db]\
                             ?sentinelServiceName=name, with every / ? # @ % of a password written as %2F %3F %23 %40 \
                             %25";

/// Where sentinels listen unless told otherwise.
const SENTINEL_PORT: u16 = 26379;

/// Where Redis is, checked. `Debug` is redacted.
#[derive(Clone, Default)]
pub struct RedisUrl {
    /// How to reach it.
    pub target: RedisTarget,
    shown: String,
}

/// How to reach Redis.
#[derive(Clone)]
pub enum RedisTarget {
    /// A server, by TCP, TLS or Unix socket: an address for `redis::Client::open`.
    Url(Secret),
    /// The server which sentinels call the master of `service`.
    Sentinel {
        /// Every sentinel, at least one, with the login there.
        nodes: Vec<ConnectionInfo>,
        /// The name the sentinels know the master by.
        service: String,
        /// Login, database and TLS at the master.
        master: SentinelNodeConnectionInfo,
    },
}

impl Default for RedisTarget {
    fn default() -> Self {
        Self::Url(Secret::default())
    }
}

impl RedisUrl {
    /// For logs: scheme, user, host, port and database, with `***` for every password.
    pub fn redacted(&self) -> String {
        self.shown.clone()
    }

    /// Reads any of the accepted forms.
    pub(super) fn parse(text: &str) -> Result<Self, Wrong> {
        let scheme = text.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase()).unwrap_or_default();
        match scheme.as_str() {
            "redis" | "valkey" | "rediss" | "valkeys" => {
                let (url, _, shown) = tcp(text)?;
                Ok(Self { target: RedisTarget::Url(Secret::new(url)), shown: shown.into() })
            }
            "unix" | "redis+unix" | "valkey+unix" => unix(text),
            "redis-sentinel" => sentinel(text, &scheme, "redis"),
            "rediss-sentinel" => sentinel(text, &scheme, "rediss"),
            _ => Err(Wrong::new("starts with no scheme known here", MEND)),
        }
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisUrl({:?})", self.shown)
    }
}

/// An address with a host: as the Redis client takes it, what the client made of it, and the form to show.
fn tcp(text: &str) -> Result<(Url, ConnectionInfo, Url), Wrong> {
    let wrong = |problem| Wrong::new(problem, MEND);
    let url = Url::parse(text).map_err(|_| wrong("not an address"))?;
    let mut shown = url.clone();
    // A user without a password is a password in the wrong place more often than not, and hidden as well.
    let hidden = match url.password() {
        Some(_) => shown.set_password(Some("***")),
        None if !url.username().is_empty() => shown.set_username("***"),
        None => Ok(()),
    };
    hidden.map_err(|()| wrong("has no host"))?;
    let path = url.path().trim_matches('/');
    if !path.is_empty() && path.parse::<i64>().is_err() {
        return Err(wrong("what follows the host is not a database number"));
    }
    let info = info(&url, MEND)?;
    if url.port() == Some(0) {
        return Err(Wrong::new("has port 0", "give the port of Redis, usually 6379"));
    }
    shown.set_query(None);
    shown.set_path(&info.redis_settings().db().to_string());
    Ok((url, info, shown))
}

fn unix(text: &str) -> Result<RedisUrl, Wrong> {
    let url = Url::parse(text).map_err(|_| Wrong::new("not an address", UNIX_MEND))?;
    if url.path() == "/" || !url.username().is_empty() || url.password().is_some() {
        return Err(Wrong::new("not the path of a socket", UNIX_MEND));
    }
    let info = info(&url, UNIX_MEND)?;
    let (path, login) = (info.addr(), info.redis_settings());
    let user = login.username().map(|user| format!("&user={}", user.escape_debug())).unwrap_or_default();
    let pass = if login.password().is_some() { "&pass=***" } else { "" };
    let shown = format!("{}://{path}?db={}{user}{pass}", url.scheme(), login.db());
    Ok(RedisUrl { target: RedisTarget::Url(Secret::new(url)), shown })
}

/// What the Redis client makes of an address.
fn info(url: &Url, mend: &str) -> Result<ConnectionInfo, Wrong> {
    if url.fragment().is_some() {
        return Err(Wrong::new("has a fragment", "leave out # and what follows; certificates are always checked"));
    }
    if url.query().is_some_and(|query| query.contains('@')) {
        return Err(Wrong::new("has a ? before its @", mend));
    }
    let info = url.clone().into_connection_info().map_err(|error| {
        // What the client says after the dash may be a piece of the address.
        Wrong::new(error.to_string().split(" - ").next().unwrap_or_default().to_lowercase(), mend)
    })?;
    if info.redis_settings().db() < 0 { Err(Wrong::new("has a negative database", mend)) } else { Ok(info) }
}

/// The form other Redis clients read as well; `rediss-sentinel` is the same over TLS. `sentinelUsername` and
/// `sentinelPassword` in the query log in at the sentinels. `scheme` is the same for a server of this kind.
fn sentinel(text: &str, own_scheme: &str, scheme: &str) -> Result<RedisUrl, Wrong> {
    let wrong = |problem: &str| Wrong::new(problem, SENTINEL_MEND);
    let (_, after_scheme) = text.split_once("://").ok_or_else(|| wrong("lacks :// after its scheme"))?;
    let (authority, rest) = after_scheme.split_at(after_scheme.find(['/', '?', '#']).unwrap_or(after_scheme.len()));
    let (login, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));

    // A URL has one host, so the parser is given another in place of the list.
    let master = tcp(&format!("{scheme}://{login}sentinels{rest}"));
    let (url, master, shown) = master.map_err(|Wrong { problem, .. }| wrong(&problem))?;
    let parameter = |name| url.query_pairs().filter(|(key, _)| key == name).last().map(|(_, value)| value);
    let service = parameter("sentinelServiceName").filter(|service| !service.is_empty());
    let service = service.ok_or_else(|| wrong("does not name the service"))?.into_owned();
    let mut node_login = RedisConnectionInfo::default();
    if let Some(user) = parameter("sentinelUsername") {
        node_login = node_login.set_username(user);
    }
    if let Some(password) = parameter("sentinelPassword") {
        node_login = node_login.set_password(password);
    }

    let (mut nodes, mut shown_nodes) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let wrong = || wrong("one of its hosts is not host[:port]");
        let (mut node, ..) = tcp(&format!("{scheme}://{}", host.trim())).map_err(|_| wrong())?;
        node.set_port(node.port().or(Some(SENTINEL_PORT))).map_err(|()| wrong())?;
        shown_nodes.push(node[Position::BeforeHost..Position::AfterPort].to_owned());
        nodes.push(info(&node, SENTINEL_MEND)?.set_redis_settings(node_login.clone()));
    }
    let shown = format!(
        "{own_scheme}://{}{}{}?sentinelServiceName={}",
        &shown[Position::BeforeUsername..Position::BeforeHost],
        shown_nodes.join(","),
        shown.path(),
        service.escape_debug(),
    );
    let mut at_master =
        SentinelNodeConnectionInfo::default().set_redis_connection_info(master.redis_settings().clone());
    if scheme == "rediss" {
        at_master = at_master.set_tls_mode(TlsMode::Secure);
    }
    Ok(RedisUrl { target: RedisTarget::Sentinel { nodes, service, master: at_master }, shown })
}

#[cfg(test)]
mod tests;
