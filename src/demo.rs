//! The page that shows a newcomer what the server does.
//!
//! Answers for: `GET /demo` and its files, `POST /demo/publish`, and the users that live there.
//! Must not know: how a message reaches a browser. The page is an ordinary client, and publishing here is
//! what Rails does: a message on the bus.

use std::net::SocketAddr;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Json, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::bus::broker::Broker;

const PAGE: &str = include_str!("demo/page.html");
const STYLE: &str = include_str!("demo/page.css");
const SCRIPT: &str = include_str!("demo/page.js");
const CLIENT: &str = include_str!("demo/client.js");

/// The token of the user who is in both groups.
const ADA_TOKEN: &str = "ada-demo-token";
/// The token of the user who is in the shared group only.
const GRACE_TOKEN: &str = "grace-demo-token";

/// Largest message that may be published from the page.
const MAX_PUBLISH_BYTES: usize = 64 * 1024;

/// Everything the page loads and talks to is this server, so nothing else is allowed.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Writes the two users of the page, as Rails writes a user at every boot of its own page.
pub fn seed(broker: &Broker) {
    for (token, user) in [
        (ADA_TOKEN, r#"{"name":"Ada Lovelace","group_ids":[1,2],"id":1}"#),
        (GRACE_TOKEN, r#"{"name":"Grace Hopper","group_ids":[2],"id":2}"#),
    ] {
        broker.set(&format!("/current_users/{token}"), user);
    }
}

/// The routes of the page. `redis_addr` is where the broker listens, for the commands the page suggests.
pub fn routes(broker: Broker, redis_addr: SocketAddr) -> Router {
    let page = Bytes::from(render(redis_addr));
    Router::new()
        .route("/demo", get(move || async move { file("text/html; charset=utf-8", page) }))
        .route("/demo/page.css", get(|| async { file("text/css; charset=utf-8", STYLE) }))
        .route("/demo/page.js", get(|| async { file("text/javascript; charset=utf-8", SCRIPT) }))
        .route("/demo/client.js", get(|| async { file("text/javascript; charset=utf-8", CLIENT) }))
        .route("/demo/publish", post(publish).layer(DefaultBodyLimit::max(MAX_PUBLISH_BYTES)))
        .with_state(broker)
}

fn render(redis_addr: SocketAddr) -> String {
    let host = if redis_addr.ip().is_loopback() || redis_addr.ip().is_unspecified() {
        String::new()
    } else {
        format!("-h {} ", redis_addr.ip())
    };
    PAGE.replace("{{redis-address}}", &format!("{host}-p {}", redis_addr.port()))
        .replace("{{ada-token}}", ADA_TOKEN)
        .replace("{{grace-token}}", GRACE_TOKEN)
}

fn file(kind: &'static str, body: impl Into<Bytes>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        // The page belongs to the binary that serves it.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, body.into()).into_response()
}

#[derive(Deserialize)]
struct Publish {
    channel: String,
    /// Passed on as it was written, as Rails' own payloads are.
    payload: Box<RawValue>,
}

/// Why a message from the page is not published; the text is for whoever tries it by hand.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error("channel must be \"/records\" or \"/system_notice\"")]
    Channel,
    #[error("{}", .0.body_text())]
    Body(#[from] JsonRejection),
}

impl IntoResponse for PublishError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Channel => StatusCode::BAD_REQUEST,
            Self::Body(rejection) => match rejection.status() {
                StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
                status => status,
            },
        };
        (status, Json(json!({ "error": self.to_string() }))).into_response()
    }
}

/// Insists on `content-type: application/json`, which no other site's page can send here unasked.
async fn publish(
    State(broker): State<Broker>,
    body: Result<Json<Publish>, JsonRejection>,
) -> Result<Response, PublishError> {
    let Json(message) = body?;
    if !matches!(message.channel.as_str(), "/records" | "/system_notice") {
        return Err(PublishError::Channel);
    }
    let receivers = broker.publish(&message.channel, Bytes::from(message.payload.get().to_owned()));
    Ok(Json(json!({ "receivers": receivers })).into_response())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    fn router() -> Router {
        routes(Broker::new(), SocketAddr::from(([127, 0, 0, 1], 7777)))
    }

    async fn answer(request: Request<Body>) -> (StatusCode, String) {
        let response = router().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn post(kind: &str, body: impl Into<Body>) -> (StatusCode, String) {
        let request = Request::post("/demo/publish").header(header::CONTENT_TYPE, kind);
        answer(request.body(body.into()).unwrap()).await
    }

    #[tokio::test]
    async fn the_page_is_complete_and_loads_only_from_here() {
        let response = router().oneshot(Request::get("/demo").body(Body::empty()).unwrap()).await.unwrap();
        let policy = &response.headers()[header::CONTENT_SECURITY_POLICY];
        assert!(policy.to_str().unwrap().starts_with("default-src 'none'"));
        let (status, page) = answer(Request::get("/demo").body(Body::empty()).unwrap()).await;
        assert_eq!(status, StatusCode::OK);
        assert!(page.contains("-p 7777") && page.contains(ADA_TOKEN) && page.contains(GRACE_TOKEN));
        assert!(!page.contains("{{"), "a placeholder was left open");
        for text in [&page, STYLE, SCRIPT, CLIENT] {
            assert!(!text.contains("https://"), "an outside resource");
        }
        for (path, named_in) in
            [("/demo/page.css", page.as_str()), ("/demo/page.js", page.as_str()), ("/demo/client.js", SCRIPT)]
        {
            assert!(named_in.contains(path));
            let (status, _) = answer(Request::get(path).body(Body::empty()).unwrap()).await;
            assert_eq!(status, StatusCode::OK);
        }
    }

    #[test]
    fn a_broker_elsewhere_is_named_by_its_address() {
        assert!(render(SocketAddr::from(([192, 0, 2, 7], 7777))).contains("-h 192.0.2.7 -p 7777"));
    }

    #[tokio::test]
    async fn what_the_page_publishes_reaches_the_bus() {
        for channel in ["/records", "/system_notice"] {
            let body = format!(r#"{{"channel":"{channel}","payload":{{"room":"group-1","n":1.50}}}}"#);
            assert_eq!(post("application/json", body).await, (StatusCode::OK, r#"{"receivers":0}"#.into()));
        }
    }

    #[tokio::test]
    async fn refusals_say_why() {
        let (status, text) = post("application/json", r#"{"channel":"chatbot/test","payload":1}"#).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(text, r#"{"error":"channel must be \"/records\" or \"/system_notice\""}"#);
        for body in ["", "{", r#"{"channel":"/records"}"#, "[]"] {
            let (status, text) = post("application/json", body).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
            assert!(text.starts_with(r#"{"error":""#), "{text}");
        }
        let (status, _) = post("text/plain", r#"{"channel":"/records","payload":1}"#).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        let large = format!(r#"{{"channel":"/records","payload":"{}"}}"#, "x".repeat(MAX_PUBLISH_BYTES));
        let (status, text) = post("application/json", large).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(text.starts_with(r#"{"error":""#), "{text}");
    }
}
