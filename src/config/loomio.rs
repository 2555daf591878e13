//! Where Loomio is, by the precedence of the Node server.
//!
//! The origin its pages have: `PUBLIC_APP_URL`, else `https://` and `CANONICAL_HOST`, else `https://` and `VIRTUAL_HOST`
//! without `channels.`. The Node server compares the text as it stands; here it is first brought into the form browsers
//! send.
//!
//! Where Rails answers: `PRIVATE_APP_URL`, else `APP_URL`, else `PUBLIC_APP_URL`, else `https://` and `CANONICAL_HOST`.

use url::{Position, Url};

use super::{
    reader::{Reader, Wrong},
    variable::{APP_URL, CANONICAL_HOST, PRIVATE_APP_URL, PUBLIC_APP_URL, Setting, VIRTUAL_HOST},
};

/// The one origin CORS allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedOrigin {
    /// As browsers send it: scheme, host and a port that is not the scheme's own; `https://loomio.example.org`.
    pub origin: String,
    /// The variable it came from, or `demo`.
    pub variable: &'static str,
}

/// The variables that name Rails, in the order in which they are asked.
pub const RAILS_VARIABLES: &str = "PRIVATE_APP_URL, APP_URL, PUBLIC_APP_URL or CANONICAL_HOST";

/// Where Rails answers whether a user may edit a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RailsEndpoint {
    /// `http` or `https`, complete with the path; without credentials, query and fragment.
    pub url: Url,
    /// The variable it came from.
    pub variable: &'static str,
}

/// `None` without any of the variables: browsers then refuse to talk to this server, as with the Node server.
pub(super) fn allowed_origin(reader: &mut Reader<'_>) -> Option<AllowedOrigin> {
    let (variable, text, url) = first(reader, &[&PUBLIC_APP_URL, &CANONICAL_HOST, &VIRTUAL_HOST])?;
    let origin = url.origin().ascii_serialization();
    if variable == PUBLIC_APP_URL.variable.name && text != origin {
        let note = "PUBLIC_APP_URL is more than an origin; browsers send";
        reader.notes.push(format!("{note} {origin}, so that is what is allowed"));
    }
    Some(AllowedOrigin { origin, variable })
}

/// `None` without any of the variables.
pub(super) fn rails_endpoint(reader: &mut Reader<'_>) -> Option<RailsEndpoint> {
    let (variable, _, mut url) = first(reader, &[&PRIVATE_APP_URL, &APP_URL, &PUBLIC_APP_URL, &CANONICAL_HOST])?;
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        reader.notes.push(format!("{variable} holds more than an address; user, password and query are not used"));
    }
    // Neither fails on an address that has a host.
    let _ = (url.set_username(""), url.set_password(None));
    url.set_query(None);
    url.set_fragment(None);
    let path = format!("{}/api/hocuspocus", url.path().trim_end_matches('/'));
    url.set_path(&path);
    Some(RailsEndpoint { url, variable })
}

/// Name, text and address of the first variable that is set. All are read, so that text which is not UTF-8 is found in
/// each; other mistakes are those of the first alone.
fn first<'a>(reader: &mut Reader<'a>, settings: &[&Setting<Url>]) -> Option<(&'static str, &'a str, Url)> {
    let texts = settings.iter().map(|setting| reader.text(&setting.variable)).collect::<Vec<_>>();
    let (setting, text) = settings.iter().zip(texts).find_map(|(setting, text)| Some((setting, text?)))?;
    Some((setting.variable.name, text, reader.check(setting, text)?))
}

/// An address of Loomio; `example` is one that would do.
pub(super) fn web_url(text: &str, example: &&str) -> Result<Url, Wrong> {
    let mend = format!("give the address of Loomio, for example {example}");
    let url = Url::parse(text).map_err(|_| Wrong::new("not an address", &*mend))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(Wrong::new("neither http:// nor https://", mend));
    }
    // A password with a slash in it: the part before the slash would be taken for the host, and the rest be shown.
    if url[Position::BeforePath..].contains('@') {
        return Err(Wrong::new("has an @ after its host", "leave out user and password, which are not used"));
    }
    Ok(url)
}

/// A host that is reached over `https://`.
pub(super) fn host(host: &str) -> Result<Url, Wrong> {
    let is_host = !host.contains(|c: char| c.is_whitespace() || "/\\?#@,".contains(c));
    let url = Url::parse(&format!("https://{host}")).ok().filter(|_| is_host);
    url.ok_or_else(|| Wrong::new("not a host name", "give the name alone, for example loomio.example.org"))
}

/// nginx-proxy takes several names, separated by commas. Loomio's own is derived from the first.
pub(super) fn own_hosts(hosts: &str) -> Result<Url, Wrong> {
    let first = hosts.split(',').next().unwrap_or_default().trim();
    host(&first.replacen("channels.", "", 1))
}

#[cfg(test)]
mod tests;
