//! One request to Rails over HTTP, and what its answer means. Nothing is read but the head.

use std::time::{Duration, SystemTime};

use reqwest::{
    Client as Http, Response, StatusCode, Url,
    header::{CONTENT_TYPE, LOCATION, RETRY_AFTER},
    redirect, retry,
};
use tokio::{sync::OnceCell, task::spawn_blocking};

use super::{breaker::Symptom, document::Check};
use crate::{config::RailsEndpoint, telemetry::chain, tls};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// From the dial to the head of the answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an idle connection is kept. Puma closes it after 20 seconds; who is first does not lose a request.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// What Node's proxy of Loomio sends, letter by letter.
const JSON: &str = "application/json; charset=UTF-8";

/// An answer of Rails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// 200, and nothing else.
    Granted,
    /// No, with this status.
    Denied(u16),
    /// 500: Rails stumbled, which it also does over types it does not know.
    Stumbled,
    /// Ask elsewhere. Never followed.
    Redirected {
        /// The status.
        status: u16,
        /// The origin that it names.
        to: Option<String>,
    },
}

/// No answer for now.
#[derive(Debug)]
pub(super) struct Failure {
    /// For the log; holds nothing of the request.
    pub(super) reason: String,
    /// What it tells of Rails.
    pub(super) symptom: Symptom,
}

/// Connections to Rails.
pub(super) struct Client {
    endpoint: RailsEndpoint,
    /// Connections kept while idle.
    connections: usize,
    /// Made when it is first needed: with TLS it holds all the system's certificates. Why it cannot be made stays true
    /// until a restart, as what it is made of is read once.
    http: OnceCell<Result<Http, String>>,
}

impl Client {
    /// A client that has not dialled yet.
    pub(super) fn new(endpoint: RailsEndpoint, connections: usize) -> Self {
        Self { endpoint, connections, http: OnceCell::new() }
    }

    /// The variable that names Rails.
    pub(super) fn variable(&self) -> &'static str {
        self.endpoint.variable
    }

    /// Asks once.
    pub(super) async fn ask(&self, check: &Check) -> Result<Answer, Failure> {
        let body = serde_json::to_vec(check).unwrap_or_default();
        let http = self.http().await?;
        let request = http.post(self.endpoint.url.clone()).header(CONTENT_TYPE, JSON).body(body);
        match request.send().await {
            Ok(response) => self.read(&response),
            Err(error) => Err(failure(error)),
        }
    }

    async fn http(&self) -> Result<&Http, Failure> {
        let made = self.http.get_or_init(|| async {
            let (url, connections) = (self.endpoint.url.clone(), self.connections);
            // Reads the certificates from disk, which must not hold up what else runs on this thread.
            let built = spawn_blocking(move || build(&url, connections)).await;
            match built {
                Ok(Ok(http)) => Ok(http),
                Ok(Err(error)) => Err(chain(&error)),
                Err(error) => Err(chain(&error)),
            }
        });
        made.await.as_ref().map_err(|reason| Failure {
            reason: reason.clone(),
            symptom: Symptom { concerns_all: true, retry_after: None },
        })
    }

    fn read(&self, response: &Response) -> Result<Answer, Failure> {
        let status = response.status();
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        if status.is_redirection() {
            let to = header(LOCATION).and_then(|to| self.endpoint.url.join(to).ok());
            let to = to.map(|to| to.origin().ascii_serialization());
            return Ok(Answer::Redirected { status: status.as_u16(), to });
        }
        answer(status).ok_or_else(|| {
            let retry_after = header(RETRY_AFTER).and_then(|after| retry_after(after, SystemTime::now()));
            // Who names a time speaks of itself, not of the document.
            let symptom = Symptom { concerns_all: retry_after.is_some(), retry_after };
            Failure { reason: format!("it answers {}", status.as_u16()), symptom }
        })
    }
}

fn build(url: &Url, connections: usize) -> reqwest::Result<Http> {
    tls::install();
    let builder = Http::builder()
        .http1_only()
        // Where the token goes is decided by the settings, not by an answer and not by another variable.
        .redirect(redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .retry(retry::never())
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(REQUEST_TIMEOUT)
        .pool_max_idle_per_host(connections)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .user_agent(concat!("loomio-channels/", env!("CARGO_PKG_VERSION")));
    if url.scheme() == "https" { builder.build() } else { builder.tls_certs_only([]).build() }
}

/// What a status that is no redirect means; `None` when it means that Rails cannot answer now.
fn answer(status: StatusCode) -> Option<Answer> {
    match status.as_u16() {
        200 => Some(Answer::Granted),
        500 => Some(Answer::Stumbled),
        // Whoever answers so, Rails or a proxy before it, has not looked at the question or could not.
        408 | 425 | 429 | 501..=599 => None,
        other => Some(Answer::Denied(other)),
    }
}

fn failure(error: reqwest::Error) -> Failure {
    let concerns_all = error.is_connect();
    let reason = match (error.is_connect(), error.is_timeout()) {
        (true, true) => format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
        (false, true) => format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()),
        _ => chain(&error.without_url()),
    };
    Failure { reason, symptom: Symptom { concerns_all, retry_after: None } }
}

/// Seconds, or a date.
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    Some(httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_200_grants() {
        let answer = |status| answer(StatusCode::from_u16(status).unwrap());
        let granted: Vec<u16> = (100..1_000).filter(|&status| answer(status) == Some(Answer::Granted)).collect();
        assert_eq!(granted, [200]);
        for status in [201, 204, 206, 400, 401, 403, 404, 410, 422, 600] {
            assert_eq!(answer(status), Some(Answer::Denied(status)));
        }
        for status in [408, 425, 429, 501, 502, 503, 504, 507, 521, 530, 599] {
            assert_eq!(answer(status), None, "{status}");
        }
        assert_eq!(answer(500), Some(Answer::Stumbled));
    }

    #[test]
    fn rails_says_when_to_ask_again() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let seconds = |text| retry_after(text, now).map(|after| after.as_secs());
        assert_eq!(["7", " 0 ", "Sun, 06 Nov 1994 08:50:00 GMT"].map(seconds), [Some(7), Some(0), Some(23)]);
        assert_eq!(["-1", "soon", "", "Sun, 06 Nov 1994 08:00:00 GMT"].map(seconds), [None, None, None, Some(0)]);
    }

    #[test]
    fn clients_can_be_made_for_both_schemes() {
        for url in ["http://app:3000/", "https://loomio.example.org/"] {
            assert!(build(&url.parse().unwrap(), 1).is_ok(), "{url}");
        }
    }
}
