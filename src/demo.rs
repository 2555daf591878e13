//! The page that shows a newcomer what the server does.
//!
//! Answers for `GET /demo` and its files, `POST /demo/publish/<room>`, and the users of the page. Must not know how a
//! message reaches a browser: the page is an ordinary client, and publishing is what Rails does, a message on the bus.

use std::{fmt::Display, net::IpAddr};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Json, Path, State, rejection::JsonRejection},
    http::{HeaderMap, StatusCode, header, uri::Authority},
    response::IntoResponse,
    routing::{get, post},
};
use serde_json::{Value, json, value::RawValue};

use crate::bus::{MAX_PAYLOAD, MemoryBus, Publication};

const PAGE: &str = include_str!("demo/page.html");
const STYLE: &str = include_str!("demo/page.css");
const SCRIPT: &str = include_str!("demo/page.js");
const CLIENT: &str = include_str!("demo/client.js");

/// The users of the page: their tokens, which the page's script names, and what Rails writes for them.
pub const USERS: &[(&str, &str)] = &[
    ("ada-demo-token", r#"{"name":"Ada Lovelace","group_ids":[1,2],"id":1}"#),
    ("grace-demo-token", r#"{"name":"Grace Hopper","group_ids":[2],"id":2}"#),
];

/// Everything the page loads and talks to is this server, so nothing else is allowed.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The routes of the page, which publishes to `bus`.
pub fn routes(bus: MemoryBus) -> Router {
    Router::new()
        .route("/demo", get(async || file("text/html; charset=utf-8", PAGE)))
        .route("/demo/page.css", get(async || file("text/css; charset=utf-8", STYLE)))
        .route("/demo/page.js", get(async || file("text/javascript; charset=utf-8", SCRIPT)))
        .route("/demo/client.js", get(async || file("text/javascript; charset=utf-8", CLIENT)))
        .route("/demo/publish/{room}", post(publish).layer(DefaultBodyLimit::max(MAX_PAYLOAD)))
        .with_state(bus)
}

fn file(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // The page belongs to the binary that serves it.
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, text)
}

/// Why a message is not published, as an answer.
fn refusal(status: StatusCode, error: impl Display) -> (StatusCode, Json<Value>) {
    (status, Json(json!({ "error": error.to_string() })))
}

/// Publishes a JSON object to a room, see [`Publication::new`].
async fn publish(
    State(bus): State<MemoryBus>,
    Path(room): Path<String>,
    headers: HeaderMap,
    body: Result<Json<Box<RawValue>>, JsonRejection>,
) -> Result<Json<Value>, (StatusCode, Json<Value>)> {
    check_origin(&headers).map_err(|problem| refusal(StatusCode::FORBIDDEN, problem))?;
    let Json(body) = body.map_err(|rejection| refusal(rejection.status(), rejection.body_text()))?;
    let publication = Publication::new(&room, body.get().as_bytes());
    let publication = publication.map_err(|error| refusal(StatusCode::BAD_REQUEST, error))?;
    Ok(Json(json!({ "receivers": bus.publish(publication).await })))
}

/// Admits the page itself, and programs, which send no `Origin`. The origin of another site's page differs, unless its
/// name was made to lead here (DNS rebinding); but such a name is neither localhost nor an address.
fn check_origin(headers: &HeaderMap) -> Result<(), &'static str> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.parse::<Authority>().map(|authority| authority.host().trim_matches(['[', ']']).to_owned());
    if !name.is_ok_and(|name| name == "localhost" || name.parse::<IpAddr>().is_ok()) {
        return Err("use localhost or an IP address in place of this host name");
    }
    let own = ["http", "https"].map(|scheme| format!("{scheme}://{host}"));
    match headers.get(header::ORIGIN) {
        Some(origin) if own.iter().all(|own| own != origin) => Err("another site's page must not publish here"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;
    use crate::{
        bus::{Inbound, MemorySource, Source},
        lifecycle::Readiness,
    };

    fn router() -> (Router, MemorySource) {
        let (bus, source) = MemoryBus::new(Readiness::default());
        (routes(bus), source)
    }

    async fn answer(request: Request<Body>) -> (StatusCode, String) {
        let (router, _source) = router();
        let response = router.oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    fn request(room: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Request<Body> {
        let mut request = Request::post(format!("/demo/publish/{room}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(body.into()).unwrap()
    }

    const JSON: (&str, &str) = ("content-type", "application/json");
    const HOST: (&str, &str) = ("host", "localhost:5000");

    #[tokio::test]
    async fn the_page_is_complete_and_loads_only_from_here() {
        let response = router().0.oneshot(Request::get("/demo").body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/html; charset=utf-8");
        let policy = &response.headers()[header::CONTENT_SECURITY_POLICY];
        assert!(policy.to_str().unwrap().starts_with("default-src 'none'"));
        for text in [PAGE, STYLE, SCRIPT, CLIENT] {
            assert!(!text.contains("https://"), "an outside resource");
        }
        assert!(USERS.iter().all(|(token, _)| SCRIPT.contains(token)));
        for (path, named_in) in [("/demo/page.css", PAGE), ("/demo/page.js", PAGE), ("/demo/client.js", SCRIPT)] {
            assert!(named_in.contains(path));
            let (status, _) = answer(Request::get(path).body(Body::empty()).unwrap()).await;
            assert_eq!(status, StatusCode::OK);
        }
    }

    #[tokio::test]
    async fn what_is_published_reaches_the_bus() {
        let (router, mut source) = router();
        source.next().await;
        for (room, channel) in [("group-1", "/records"), ("notice", "/system_notice")] {
            let response = router.clone().oneshot(request(room, &[JSON, HOST], r#"{"n":1.50}"#)).await.unwrap();
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), r#"{"receivers":1}"#);
            let Inbound::Message { channel: on, payload, .. } = source.next().await else { panic!("no message") };
            assert_eq!(on, channel);
            assert!(payload.unwrap().starts_with(br#"{"n":1.50"#));
        }
    }

    #[tokio::test]
    async fn refusals_say_why() {
        for (room, body) in [("group-x", "{}"), ("group-1", "{"), ("group-1", ""), ("notice", "[]")] {
            let (status, text) = answer(request(room, &[JSON, HOST], body)).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
            assert!(text.starts_with(r#"{"error":""#), "{text}");
        }
        let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(MAX_PAYLOAD));
        let (status, text) = answer(request("group-1", &[JSON, HOST], large)).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(text.starts_with(r#"{"error":""#), "{text}");
        let (status, _) = answer(request("group-1", &[("content-type", "text/plain"), HOST], "{}")).await;
        assert_eq!(status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }

    #[tokio::test]
    async fn only_this_page_and_programs_may_publish() {
        for (host, origin, status) in [
            ("localhost:5000", None, StatusCode::OK),
            ("localhost:5000", Some("http://localhost:5000"), StatusCode::OK),
            ("127.0.0.1:5000", Some("http://127.0.0.1:5000"), StatusCode::OK),
            ("[::1]:5000", Some("http://[::1]:5000"), StatusCode::OK),
            ("localhost", Some("https://localhost"), StatusCode::OK),
            ("localhost:5000", Some("http://localhost:5001"), StatusCode::FORBIDDEN),
            ("localhost:5000", Some("http://evil.example"), StatusCode::FORBIDDEN),
            ("localhost:5000", Some("null"), StatusCode::FORBIDDEN),
            ("evil.example:5000", Some("http://evil.example:5000"), StatusCode::FORBIDDEN),
            ("evil.example:5000", None, StatusCode::FORBIDDEN),
        ] {
            let mut headers = vec![JSON, ("host", host)];
            headers.extend(origin.map(|origin| ("origin", origin)));
            assert_eq!(answer(request("group-1", &headers, "{}")).await.0, status, "{host} {origin:?}");
        }
        assert_eq!(answer(request("group-1", &[JSON], "{}")).await.0, StatusCode::FORBIDDEN);
    }
}
