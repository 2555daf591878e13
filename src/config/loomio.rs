//! Where Loomio is, by the precedence of the Node server.
//!
//! The origin its pages have: `PUBLIC_APP_URL`, else `https://` and `CANONICAL_HOST`, else `https://` and `VIRTUAL_HOST`
//! without `channels.`. The Node server compares the text as it stands; here it is first brought into the form browsers
//! send.
//!
//! Where Rails answers: `PRIVATE_APP_URL`, else `APP_URL`, else `PUBLIC_APP_URL`, else `https://` and `CANONICAL_HOST`.

use url::{Position, Url};

use super::{
    mistake::Wrong,
    reader::Reader,
    variable::{APP_URL, CANONICAL_HOST, PRIVATE_APP_URL, PUBLIC_APP_URL, VIRTUAL_HOST, Variable},
};

/// The one origin CORS allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedOrigin {
    /// As browsers send it: scheme, host and a port that is not the scheme's own; `https://loomio.example.org`.
    pub origin: String,
    /// The variable it came from, or `demo`.
    pub variable: &'static str,
}

/// `None` without any of the variables: browsers then refuse to talk to this server, as with the Node server.
pub(super) fn allowed_origin(reader: &mut Reader<'_>) -> Option<AllowedOrigin> {
    // All three are asked for, whichever decides, so that text which is not UTF-8 is found in each.
    let [public, canonical, own] = [&PUBLIC_APP_URL, &CANONICAL_HOST, &VIRTUAL_HOST].map(|name| reader.text(name));
    let (variable, text, parsed) = match (public, canonical, own) {
        (Some(text), _, _) => (&PUBLIC_APP_URL, text, of_url(text)),
        (None, Some(host), _) => (&CANONICAL_HOST, host, of_host(host)),
        (None, None, hosts) => (&VIRTUAL_HOST, hosts?, of_own_hosts(hosts?)),
    };
    let origin = reader.check(variable, text, parsed)?;
    if variable.name == PUBLIC_APP_URL.name && text != origin {
        reader
            .note(format!("PUBLIC_APP_URL is more than an origin; browsers send {origin}, so that is what is allowed"));
    }
    Some(AllowedOrigin { origin, variable: variable.name })
}

/// What to do about a text that is not an address of Loomio.
const MEND: &str = "give the address of Loomio, for example https://loomio.example.org";

fn of_url(text: &str) -> Result<String, Wrong> {
    web_url(text, MEND).map(|url| url.origin().ascii_serialization())
}

/// An address that begins with `http://` or `https://`.
fn web_url(text: &str, mend: &str) -> Result<Url, Wrong> {
    let url = Url::parse(text).map_err(|_| Wrong::new("not an address", mend))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(Wrong::new("neither http:// nor https://", mend));
    }
    // A password with a slash in it: what stands before that would be taken for the host, and the rest be shown.
    if url[Position::BeforePath..].contains('@') {
        return Err(Wrong::new("has an @ after its host", "leave out user and password, which are not used"));
    }
    Ok(url)
}

/// The origin of a host that is reached over `https://`.
fn of_host(host: &str) -> Result<String, Wrong> {
    let wrong = || Wrong::new("not a host name", "give the name alone, for example loomio.example.org");
    if host.contains(|c: char| c.is_whitespace() || "/\\?#@,".contains(c)) {
        return Err(wrong());
    }
    of_url(&format!("https://{host}")).map_err(|_| wrong())
}

/// nginx-proxy takes several names, separated by commas; the first is the one Loomio's own is derived from.
fn of_own_hosts(hosts: &str) -> Result<String, Wrong> {
    let first = hosts.split(',').next().unwrap_or_default().trim();
    of_host(&first.replacen("channels.", "", 1))
}

/// Where Rails answers who may edit a document, below its own address.
const PATH: &str = "api/hocuspocus";

/// The variables that name Rails, in the order in which they are asked.
pub const RAILS_VARIABLES: &str = "PRIVATE_APP_URL, APP_URL, PUBLIC_APP_URL or CANONICAL_HOST";

/// An address of Rails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RailsEndpoint {
    /// `http` or `https`, complete with the path; without credentials, query and fragment.
    pub url: Url,
    /// The variable it came from.
    pub variable: &'static str,
}

/// `None` without any of the variables.
pub(super) fn rails_endpoint(reader: &mut Reader<'_>) -> Option<RailsEndpoint> {
    // All are asked for, whichever decides, so that text which is not UTF-8 is found in each.
    let urls = [&PRIVATE_APP_URL, &APP_URL, &PUBLIC_APP_URL].map(|variable| Some((variable, reader.text(variable)?)));
    let host = reader.text(&CANONICAL_HOST);
    if let Some((variable, text)) = urls.into_iter().flatten().next() {
        return endpoint(reader, variable, text);
    }
    let url = reader.check(&CANONICAL_HOST, host?, of_host(host?))?;
    endpoint(reader, &CANONICAL_HOST, &url)
}

fn endpoint(reader: &mut Reader<'_>, variable: &'static Variable, text: &str) -> Option<RailsEndpoint> {
    let mend = "give the address of Loomio, for example https://loomio.example.org or http://app:3000";
    let parsed = web_url(text, if variable.name == PUBLIC_APP_URL.name { MEND } else { mend });
    let mut url = reader.check(variable, text, parsed)?;
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        reader.note(format!("{} holds more than an address; user, password and query are not used", variable.name));
    }
    // Neither fails on an address that has a host.
    let _ = (url.set_username(""), url.set_password(None));
    url.set_query(None);
    url.set_fragment(None);
    let path = format!("{}/{PATH}", url.path().trim_end_matches('/'));
    url.set_path(&path);
    Some(RailsEndpoint { url, variable: variable.name })
}

#[cfg(test)]
mod tests;
