//! Where Rails answers, by the precedence of the Node server: `PRIVATE_APP_URL`, else `APP_URL`, else `PUBLIC_APP_URL`,
//! else `https://` and `CANONICAL_HOST`.

use std::{ops::RangeInclusive, time::Duration};

use url::Url;

use super::{
    origin, parse,
    reader::{Reader, Reported},
    variable::{
        APP_URL, CANONICAL_HOST, PRIVATE_APP_URL, PUBLIC_APP_URL, RAILS_HOLD_SECONDS, RAILS_MAX_CONCURRENCY, Variable,
    },
};

/// Where Rails answers who may edit a document, below its own address.
const PATH: &str = "api/hocuspocus";

/// Puma has 5 threads by default and few installations above 100.
const CONCURRENCY: RangeInclusive<usize> = 1..=256;
/// Proxies in front give up after a minute, so more is rarely of use.
const HOLD_SECONDS: RangeInclusive<u64> = 1..=300;

/// How Rails is asked.
#[derive(Clone, Debug)]
pub struct Rails {
    /// Where. `PRIVATE_APP_URL`, else `APP_URL`, else `PUBLIC_APP_URL`, else `CANONICAL_HOST`; without any, nowhere.
    pub endpoint: Option<RailsEndpoint>,
    /// Requests under way at a time. `RAILS_MAX_CONCURRENCY`, default 16.
    pub max_concurrency: usize,
    /// How long a check may take while Rails cannot answer. `RAILS_HOLD_SECONDS`, default 30.
    pub hold: Duration,
}

/// An address of Rails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RailsEndpoint {
    /// `http` or `https`, complete with the path; without credentials, query and fragment.
    pub url: Url,
    /// The variable it came from.
    pub variable: &'static str,
}

/// The variables that name Rails, in the order in which they are asked.
pub const RAILS_VARIABLES: &str = "PRIVATE_APP_URL, APP_URL, PUBLIC_APP_URL or CANONICAL_HOST";

impl Rails {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Reported> {
        let max_concurrency = reader.value(&RAILS_MAX_CONCURRENCY, parse::number(CONCURRENCY));
        let hold = reader.value(&RAILS_HOLD_SECONDS, parse::number(HOLD_SECONDS));
        let endpoint = endpoint(reader);
        Ok(Self { endpoint: endpoint?, max_concurrency: max_concurrency?, hold: Duration::from_secs(hold?) })
    }
}

fn endpoint(reader: &mut Reader<'_>) -> Result<Option<RailsEndpoint>, Reported> {
    let urls = [&PRIVATE_APP_URL, &APP_URL, &PUBLIC_APP_URL].map(|variable| (variable, reader.text(variable)));
    let host = reader.text(&CANONICAL_HOST);
    for (variable, text) in urls {
        if let Some(text) = text? {
            return of_url(reader, variable, text).map(Some);
        }
    }
    let Some(host) = host? else { return Ok(None) };
    let verdict = origin::of_host(host);
    let url = reader.check(&CANONICAL_HOST, host, verdict)?;
    of_url(reader, &CANONICAL_HOST, &url).map(Some)
}

fn of_url(reader: &mut Reader<'_>, variable: &'static Variable, text: &str) -> Result<RailsEndpoint, Reported> {
    let mend = "give the address of Loomio, for example https://loomio.example.org or http://app:3000";
    let verdict = origin::web_url(text, if variable.name == PUBLIC_APP_URL.name { origin::MEND } else { mend });
    let mut url = reader.check(variable, text, verdict)?;
    let removed = !url.username().is_empty() || url.password().is_some() || url.query().is_some();
    // Neither fails on an address that has a host.
    let _ = (url.set_username(""), url.set_password(None));
    url.set_query(None);
    url.set_fragment(None);
    if removed {
        reader.note(format!("{} holds more than an address; user, password and query are not used", variable.name));
    }
    let path = format!("{}/{PATH}", url.path().trim_end_matches('/'));
    url.set_path(&path);
    Ok(RailsEndpoint { url, variable: variable.name })
}

#[cfg(test)]
mod tests {
    use super::{super::Environment, *};

    fn read_from(pairs: &[(&str, &str)]) -> (Option<(String, &'static str)>, Vec<String>, Vec<String>) {
        let environment = pairs.iter().copied().collect::<Environment>();
        let mut reader = Reader::new(&environment);
        let rails = Rails::read(&mut reader).ok().and_then(|rails| rails.endpoint);
        let found = rails.map(|endpoint| (endpoint.url.to_string(), endpoint.variable));
        (found, reader.mistakes.iter().map(ToString::to_string).collect(), reader.notes)
    }

    fn found(pairs: &[(&str, &str)]) -> (String, &'static str) {
        let (found, mistakes, _) = read_from(pairs);
        assert_eq!(mistakes, Vec::<String>::new());
        found.unwrap()
    }

    #[test]
    fn precedence_is_that_of_the_node_server() {
        let private = ("PRIVATE_APP_URL", "http://app:3000");
        let app = ("APP_URL", "https://app.org");
        let public = ("PUBLIC_APP_URL", "https://public.org/");
        let canonical = ("CANONICAL_HOST", "canonical.org");
        let at = |base: &str, variable| (format!("{base}/api/hocuspocus"), variable);
        assert_eq!(found(&[canonical]), at("https://canonical.org", "CANONICAL_HOST"));
        assert_eq!(found(&[canonical, public]), at("https://public.org", "PUBLIC_APP_URL"));
        assert_eq!(found(&[canonical, public, app]), at("https://app.org", "APP_URL"));
        assert_eq!(found(&[canonical, public, app, private]), at("http://app:3000", "PRIVATE_APP_URL"));
        assert_eq!(read_from(&[("VIRTUAL_HOST", "channels.a.org")]), (None, vec![], vec![]));
    }

    #[test]
    fn what_does_not_belong_to_an_address_is_left_out() {
        for (text, url) in [
            ("http://app:3000//", "http://app:3000/api/hocuspocus"),
            ("https://a.org/loomio/", "https://a.org/loomio/api/hocuspocus"),
            ("https://a.org/#top", "https://a.org/api/hocuspocus"),
        ] {
            assert_eq!(found(&[("PRIVATE_APP_URL", text)]).0, url);
            assert!(read_from(&[("PRIVATE_APP_URL", text)]).2.is_empty());
        }
        for text in ["https://user:hunter2@a.org", "https://hunter2@a.org/", "https://a.org?key=hunter2"] {
            assert_eq!(found(&[("APP_URL", text)]).0, "https://a.org/api/hocuspocus");
            let (_, _, notes) = read_from(&[("APP_URL", text)]);
            assert!(notes.len() == 1 && !notes[0].contains("hunter2"), "{notes:?}");
        }
    }

    #[test]
    fn mistakes_are_those_of_the_variable_that_decides() {
        for text in ["app:3000", "app", "ftp://a.org", "https://", "'https://a.org'", "unix:/run/app.sock"] {
            let (found, mistakes, _) = read_from(&[("PRIVATE_APP_URL", text), ("APP_URL", "nonsense")]);
            assert_eq!((found, mistakes.len()), (None, 1), "{text}");
            assert!(mistakes[0].starts_with("PRIVATE_APP_URL"), "{mistakes:?}");
        }
    }

    #[test]
    fn bounds() {
        for (name, bad) in [("RAILS_MAX_CONCURRENCY", "0"), ("RAILS_HOLD_SECONDS", "0"), ("RAILS_HOLD_SECONDS", "5m")] {
            assert_eq!(read_from(&[(name, bad)]).1.len(), 1, "{name}");
        }
    }
}
