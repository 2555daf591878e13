//! One request to Rails over HTTP. Nothing of the answer is read but the head.

use std::{
    sync::OnceLock,
    time::{Duration, Instant, SystemTime},
};

use http::StatusCode;
use reqwest::{
    Client as Http, Url,
    header::{CONTENT_TYPE, LOCATION, RETRY_AFTER},
    redirect, retry,
};

use super::check::Check;
use crate::{
    config::RailsEndpoint,
    telemetry::{Throttle, chain},
    tls,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// From the dial to the head of the answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an idle connection is kept. Puma closes it after 20 seconds, and a request made just then would be lost.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// Longest pause that Rails can ask for: five minutes are the period of its own rate limit.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(5);

/// As the Node server sends it, letter by letter.
const JSON: &str = "application/json; charset=UTF-8";

/// The status of the answer.
pub(super) type Answer = Result<StatusCode, Failure>;

/// Rails could not be asked, or could not answer.
pub(super) struct Failure {
    /// For the log; holds nothing of the request.
    pub(super) reason: String,
    /// When any other request would have failed as well: the pause that Rails asks for, or zero.
    pub(super) retry_after: Option<Duration>,
}

/// Connections to Rails.
pub(super) struct Client {
    endpoint: RailsEndpoint,
    /// Built with the first question: for `https` it holds the system's certificates, some 800 kB. An error stays until
    /// the next start.
    http: OnceLock<Result<Http, String>>,
}

impl Client {
    pub(super) fn new(endpoint: RailsEndpoint) -> Self {
        Self { endpoint, http: OnceLock::new() }
    }

    /// Makes one request; returns the status of the answer. A redirect is reported and not followed.
    ///
    /// # Errors
    /// [`Failure`] without an answer in time, and when its status shows that Rails has not looked at the question.
    pub(super) async fn ask(&self, check: &Check) -> Answer {
        static REDIRECTS: Throttle = Throttle::new();
        let http = self.http.get_or_init(|| build(&self.endpoint.url).map_err(|error| chain(&error)));
        let http =
            http.as_ref().map_err(|error| Failure { reason: error.clone(), retry_after: Some(Duration::ZERO) })?;
        let body = serde_json::to_vec(check).unwrap_or_default();
        let request = http.post(self.endpoint.url.clone()).header(CONTENT_TYPE, JSON).body(body);
        let response = request.send().await.map_err(failure)?;
        let status = response.status();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        if status.is_redirection()
            && let Some(more_since_last) = REDIRECTS.allow(Instant::now())
        {
            // A wrong setting: if followed, the question would become a GET, and any page would grant.
            let to = header(LOCATION).and_then(|to| self.endpoint.url.join(to).ok());
            let to = to.map_or_else(|| "nowhere".to_owned(), |to| to.origin().ascii_serialization());
            tracing::error!(
                status = status.as_u16(),
                more_since_last,
                "nobody can edit together: rails redirects to {to}; set {} to an address that answers itself",
                self.endpoint.variable
            );
        }
        if is_answer(status.as_u16()) {
            return Ok(status);
        }
        // A server that names a time speaks of itself, not of the document.
        let retry_after = header(RETRY_AFTER).and_then(|after| retry_after(after, SystemTime::now()));
        Err(Failure { reason: format!("it answers {}", status.as_u16()), retry_after })
    }
}

fn build(url: &Url) -> reqwest::Result<Http> {
    tls::install();
    let builder = Http::builder()
        .http1_only()
        // The settings alone decide where a token is sent.
        .redirect(redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .retry(retry::never())
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(REQUEST_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .user_agent(concat!("loomio-channels/", env!("CARGO_PKG_VERSION")));
    if url.scheme() == "https" { builder.build() } else { builder.tls_certs_only([]).build() }
}

/// Whether the status answers the question. With the others Rails, or a proxy before it, has not looked at it or could
/// not.
fn is_answer(status: u16) -> bool {
    !matches!(status, 408 | 425 | 429 | 501..=599)
}

fn failure(error: reqwest::Error) -> Failure {
    let retry_after = error.is_connect().then_some(Duration::ZERO);
    let reason = match (error.is_connect(), error.is_timeout()) {
        (true, true) => format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
        (false, true) => format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()),
        _ => chain(&error.without_url()),
    };
    Failure { reason, retry_after }
}

/// `Retry-After` is a number of seconds or a date.
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let after = match text.trim().parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(after.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overload_and_gateway_errors_are_no_answer() {
        let no_answer: Vec<u16> = (100..1_000).filter(|&status| !is_answer(status)).collect();
        let expected: Vec<u16> = [408, 425, 429].into_iter().chain(501..600).collect();
        assert_eq!(no_answer, expected);
    }

    #[test]
    fn rails_says_when_to_ask_again() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let seconds = |text| retry_after(text, now).map(|after| after.as_secs());
        assert_eq!(["7", " 0 ", "Sun, 06 Nov 1994 08:50:00 GMT"].map(seconds), [Some(7), Some(0), Some(23)]);
        assert_eq!(seconds("86400"), Some(300), "but not for ever");
        assert_eq!(["-1", "soon", "", "Sun, 06 Nov 1994 08:00:00 GMT"].map(seconds), [None, None, None, Some(0)]);
    }

    #[test]
    fn clients_can_be_made_for_both_schemes() {
        for url in ["http://app:3000/", "https://loomio.example.org/"] {
            assert!(build(&url.parse().unwrap()).is_ok(), "{url}");
        }
    }
}
