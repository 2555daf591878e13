//! Which origin browsers come from, by the precedence of the Node server: `PUBLIC_APP_URL`, else `https://` and
//! `CANONICAL_HOST`, else `https://` and `VIRTUAL_HOST` without `channels.`.
//!
//! The Node server compares the text as it stands; here it is first brought into the form browsers send.

use url::{Position, Url};

use super::{
    mistake::Wrong,
    reader::{Reader, Reported},
    variable::{CANONICAL_HOST, PUBLIC_APP_URL, VIRTUAL_HOST},
};

/// The one origin CORS allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedOrigin {
    /// As browsers send it: scheme, host and a port that is not the scheme's own; `https://loomio.example.org`.
    pub origin: String,
    /// The variable it came from, or `demo`.
    pub variable: &'static str,
}

/// None if no variable names it. Loomio's pages are then refused by browsers, as with the Node server.
pub(super) fn read(reader: &mut Reader<'_>) -> Result<Option<AllowedOrigin>, Reported> {
    // All three are asked for, whichever decides, so that text which is not UTF-8 is found in each.
    let public = reader.text(&PUBLIC_APP_URL);
    let canonical = reader.text(&CANONICAL_HOST);
    let own = reader.text(&VIRTUAL_HOST);
    let (variable, text, verdict) = match (public?, canonical?, own?) {
        (Some(text), _, _) => (&PUBLIC_APP_URL, text, of_url(text)),
        (None, Some(host), _) => (&CANONICAL_HOST, host, of_host(host)),
        (None, None, Some(hosts)) => (&VIRTUAL_HOST, hosts, of_own_hosts(hosts)),
        (None, None, None) => return Ok(None),
    };
    let origin = reader.check(variable, text, verdict)?;
    if variable.name == PUBLIC_APP_URL.name && text != origin {
        reader
            .note(format!("PUBLIC_APP_URL is more than an origin; browsers send {origin}, so that is what is allowed"));
    }
    Ok(Some(AllowedOrigin { origin, variable: variable.name }))
}

/// What to do about an address of Loomio that is none.
pub(super) const MEND: &str = "give the address of Loomio, for example https://loomio.example.org";

fn of_url(text: &str) -> Result<String, Wrong> {
    web_url(text, MEND).map(|url| url.origin().ascii_serialization())
}

/// An address that begins with `http://` or `https://`.
pub(super) fn web_url(text: &str, mend: &str) -> Result<Url, Wrong> {
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
pub(super) fn of_host(host: &str) -> Result<String, Wrong> {
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

#[cfg(test)]
mod tests {
    use super::{super::Environment, *};

    fn read_from(pairs: &[(&str, &str)]) -> (Option<AllowedOrigin>, Vec<String>, Vec<String>) {
        let environment = pairs.iter().copied().collect::<Environment>();
        let mut reader = Reader::new(&environment);
        let origin = read(&mut reader).ok().flatten();
        (origin, reader.mistakes.iter().map(ToString::to_string).collect(), reader.notes)
    }

    fn allowed(pairs: &[(&str, &str)]) -> (String, &'static str) {
        let (origin, mistakes, _) = read_from(pairs);
        assert_eq!(mistakes, Vec::<String>::new());
        origin.map(|allowed| (allowed.origin, allowed.variable)).unwrap()
    }

    #[test]
    fn precedence_is_that_of_the_node_server() {
        let own = ("VIRTUAL_HOST", "channels.own.org");
        let canonical = ("CANONICAL_HOST", "canonical.org");
        let public = ("PUBLIC_APP_URL", "http://public.org:8080");
        assert_eq!(allowed(&[own]), ("https://own.org".into(), "VIRTUAL_HOST"));
        assert_eq!(allowed(&[own, canonical]), ("https://canonical.org".into(), "CANONICAL_HOST"));
        assert_eq!(allowed(&[own, canonical, public]), ("http://public.org:8080".into(), "PUBLIC_APP_URL"));
        assert_eq!(allowed(&[("PUBLIC_APP_URL", " "), canonical]).1, "CANONICAL_HOST");
        assert_eq!(read_from(&[]), (None, vec![], vec![]));
    }

    #[test]
    fn what_does_not_decide_cannot_be_a_mistake() {
        let pairs = [("PUBLIC_APP_URL", "https://a.org"), ("CANONICAL_HOST", "not a host")];
        assert_eq!(allowed(&pairs).0, "https://a.org");
    }

    #[test]
    fn urls_are_cut_to_what_browsers_send_and_said_so() {
        for text in ["https://a.org/", "https://A.org:443", "https://a.org/path?x#y", "https://user:hunter2@a.org"] {
            let (origin, mistakes, notes) = read_from(&[("PUBLIC_APP_URL", text)]);
            assert_eq!(origin.map(|allowed| allowed.origin).as_deref(), Some("https://a.org"), "{mistakes:?}");
            assert_eq!(notes.len(), 1);
            assert!(!notes[0].contains("hunter2"));
        }
        assert_eq!(read_from(&[("PUBLIC_APP_URL", "https://a.org")]).2, Vec::<String>::new());
        assert_eq!(allowed(&[("CANONICAL_HOST", "bücher.org:8443")]).0, "https://xn--bcher-kva.org:8443");
        assert_eq!(allowed(&[("VIRTUAL_HOST", "channels.a.org, channels.b.org")]).0, "https://a.org");
    }

    #[test]
    fn mistakes_say_what_is_wanted() {
        for text in ["loomio.org", "localhost:3000", "ftp://a.org", "*", "https://", "\"https://a.org\""] {
            let (origin, mistakes, _) = read_from(&[("PUBLIC_APP_URL", text)]);
            assert_eq!((origin, mistakes.len()), (None, 1), "{text}");
        }
        for text in ["https://user:a/hunter2@a.org", "https://user:1/hunter2@a.org", "https://user:a@b/hunter2@a.org"] {
            let (origin, mistakes, _) = read_from(&[("PUBLIC_APP_URL", text)]);
            assert_eq!((origin, mistakes.len()), (None, 1), "{text}");
            assert!(!mistakes[0].contains("hunter2"), "{mistakes:?}");
        }
        for text in ["https://a.org", "a.org/path", "user@a.org", "a b", "a.org:port"] {
            let (_, mistakes, _) = read_from(&[("CANONICAL_HOST", text)]);
            assert!(mistakes[0].starts_with("CANONICAL_HOST"), "{text}");
            assert!(mistakes[0].ends_with("give the name alone, for example loomio.example.org"), "{text}");
        }
    }
}
