//! `POST /api/hocuspocus`: what a Hocuspocus server asks before it opens a document, in the words in which it would ask
//! Rails.
//!
//! Answers for the form of a question. Must not know how Rails is asked.

use std::{
    net::IpAddr,
    sync::{Arc, Once},
    time::Duration,
};

use crate::{
    config::Networks,
    listener::{Peer, client},
    metrics::{Counter, Metrics},
    rails::{Check, InvalidCheck, NoAnswer, Rails},
};
use axum::{
    Extension, Json, Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::post,
};
use http::{
    HeaderMap, StatusCode,
    header::{CACHE_CONTROL, RETRY_AFTER},
};
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::time::timeout;

/// Longest body in bytes: a token and a name of the greatest lengths fit in several times.
const MAX_BODY: usize = 8 * 1024;

/// How much of a body that is too long is still read, and thrown away: a client that sends before it reads would
/// otherwise find the connection reset in place of an answer.
const MAX_DISCARDED: usize = 4 * 1024 * 1024;

/// How long a body may take.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct Question {
    user_secret: String,
    document_name: String,
}

/// Why a body holds no question. The texts are for the client, and repeat nothing of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum BadBody {
    #[error("the body has to have at most {MAX_BODY} bytes")]
    TooLong,
    #[error("the body did not come within {} s", READ_TIMEOUT.as_secs())]
    TooSlow,
    #[error("the body ended early")]
    Broken,
    #[error("the body is not JSON")]
    NotJson,
    #[error("the body has to be an object with user_secret and document_name, each once and a string")]
    WrongForm,
    #[error("document_name is of no form known here")]
    UnknownName,
    #[error(transparent)]
    Invalid(#[from] InvalidCheck),
}

struct Endpoint {
    rails: Arc<Rails>,
    strict_names: bool,
    trusted: Networks,
    metrics: Metrics,
    /// Whether it was reported that requests name no client.
    nameless: Once,
}

/// The one route. `strict_names` lets pass only names of documents in forms known here. Requests have to carry the [`Peer`] they came from.
pub fn routes(rails: Arc<Rails>, strict_names: bool, trusted: Networks, metrics: Metrics) -> Router {
    let endpoint = Arc::new(Endpoint { rails, strict_names, trusted, metrics, nameless: Once::new() });
    let answer = move |Extension(Peer { address: peer, .. }): Extension<Peer>, headers: HeaderMap, body: Body| {
        let endpoint = Arc::clone(&endpoint);
        async move { ([(CACHE_CONTROL, "no-store")], endpoint.answer(peer, &headers, body).await) }
    };
    Router::new().route("/api/hocuspocus", post(answer))
}

impl Endpoint {
    async fn answer(&self, peer: IpAddr, headers: &HeaderMap, body: Body) -> Response {
        let check = match read(body, self.strict_names).await {
            Ok(check) => check,
            Err(error) => {
                self.metrics.count(Counter::ChecksMalformed);
                let error = serde_json::json!({ "error": error.to_string() });
                return (StatusCode::BAD_REQUEST, Json(error)).into_response();
            }
        };
        let client = client::address(peer, headers, &self.trusted);
        if client.is_none() {
            // Once, as it is a matter of the setting.
            self.nameless.call_once(|| {
                tracing::warn!(
                    %peer,
                    "checks name no client, so only tokens are limited, not addresses: have X-Forwarded-For sent along"
                );
            });
        }
        match self.rails.check(check, client).await {
            Ok(true) => StatusCode::OK.into_response(),
            Ok(false) => StatusCode::UNAUTHORIZED.into_response(),
            Err(NoAnswer::Limited(wait)) => later(StatusCode::TOO_MANY_REQUESTS, wait),
            Err(NoAnswer::Unavailable(wait)) => later(StatusCode::SERVICE_UNAVAILABLE, wait),
        }
    }
}

/// An answer that says when to ask again, in whole seconds and at least one.
fn later(status: StatusCode, wait: Duration) -> Response {
    let seconds = wait.as_millis().div_ceil(1_000).max(1);
    (status, [(RETRY_AFTER, seconds.to_string())]).into_response()
}

/// Reads the question.
///
/// # Errors
/// [`BadBody`] when the body is too long or too slow, ends early, or holds no question in a permitted form.
async fn read(body: Body, strict_names: bool) -> Result<Check, BadBody> {
    let bytes = timeout(READ_TIMEOUT, collect(body)).await.unwrap_or(Err(BadBody::TooSlow))?;
    let Question { user_secret, document_name } = parse(&bytes)?;
    let check = Check::new(user_secret, document_name)?;
    if strict_names && !check.has_known_name() { Err(BadBody::UnknownName) } else { Ok(check) }
}

async fn collect(mut body: Body) -> Result<Vec<u8>, BadBody> {
    let (mut bytes, mut read) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| BadBody::Broken)?.into_data() else { continue };
        read += data.len();
        if read <= MAX_BODY {
            bytes.extend_from_slice(&data);
        } else if read > MAX_DISCARDED {
            break;
        }
    }
    if read > MAX_BODY { Err(BadBody::TooLong) } else { Ok(bytes) }
}

fn parse(bytes: &[u8]) -> Result<Question, BadBody> {
    let parsed: Result<Question, _> = serde_json::from_slice(bytes);
    match parsed {
        // An array of two strings would pass for a struct.
        Ok(question) if bytes.trim_ascii_start().starts_with(b"{") => Ok(question),
        Err(error) if !error.is_data() => Err(BadBody::NotJson),
        _ => Err(BadBody::WrongForm),
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use futures_util::stream;
    use proptest::prelude::*;

    use super::*;

    fn error(text: &[u8]) -> BadBody {
        parse(text).err().unwrap()
    }

    #[test]
    fn a_question_has_two_texts() {
        let question = parse(br#" {"document_name":"a\u0062","more":[{}],"user_secret":"1,a"} "#).ok().unwrap();
        assert_eq!((question.user_secret.as_str(), question.document_name.as_str()), ("1,a", "ab"));
        for text in [
            r#"{"user_secret":"1,a"}"#,
            r#"{"user_secret":1,"document_name":"a"}"#,
            r#"{"user_secret":"1,a","document_name":null}"#,
            r#"{"user_secret":"1,a","document_name":["a"]}"#,
            r#"{"user_secret":"1,a","user_secret":"2,b","document_name":"a"}"#,
            r#"["1,a","a"]"#,
            "[]",
            "null",
            r#""x""#,
        ] {
            assert_eq!(error(text.as_bytes()), BadBody::WrongForm, "{text}");
        }
    }

    #[test]
    fn what_is_not_json_is_told_so() {
        let surrogate = br#"{"user_secret":"1,\ud800","document_name":"a"}"#;
        let not_utf8 = b"{\"user_secret\":\"1,\xff\",\"document_name\":\"a\"}";
        let trailing = br#"{"user_secret":"1,a","document_name":"a"} x"#;
        let deep = [br#"{"x":"#.as_slice(), &b"[".repeat(8_000)].concat();
        for text in [&b""[..], b"user_secret=1", b"{", surrogate, not_utf8, trailing, &deep] {
            assert_eq!(error(text), BadBody::NotJson, "{}", String::from_utf8_lossy(text));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn length_and_time_are_bounded() {
        let of = |length: usize| Body::from(vec![b' '; length]);
        assert_eq!(collect(of(MAX_BODY)).await.map(|bytes| bytes.len()), Ok(MAX_BODY));
        assert_eq!(collect(of(MAX_BODY + 1)).await, Err(BadBody::TooLong));
        let endless = stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[b' '; 1_024])));
        assert_eq!(collect(Body::from_stream(endless)).await, Err(BadBody::TooLong));
        let silent = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        assert_eq!(read(silent, false).await.err(), Some(BadBody::TooSlow));
        let broken = Body::from_stream(stream::iter([Err::<Bytes, _>(std::io::Error::other("gone"))]));
        assert_eq!(read(broken, false).await.err(), Some(BadBody::Broken));
    }

    #[test]
    fn waits_are_rounded_up() {
        for (millis, seconds) in [(0, "1"), (1, "1"), (1_000, "1"), (1_001, "2"), (60_000, "60")] {
            let response = later(StatusCode::TOO_MANY_REQUESTS, Duration::from_millis(millis));
            assert_eq!(response.headers()[RETRY_AFTER], seconds);
        }
    }

    proptest! {
        #[test]
        fn no_body_is_a_crash(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
