//! The engine's requests, and its errors as Node's server answers them.

use std::{borrow::Cow, ops::RangeInclusive, sync::Arc, time::Instant};

use axum::{body::Body, response::IntoResponse};
use engineioxide_core::ProtocolVersion;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_REQUEST_HEADERS, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE,
        ORIGIN, RETRY_AFTER, UPGRADE, VARY,
    },
};
use rand::RngExt;

use super::{
    CloseReason, Engine, Handler, Handshake, Intake,
    census::{Origin, SessionPermit},
    polling::TEXT,
};
use crate::{
    listener::{Peer, client},
    metrics::Counter,
    telemetry::Throttle,
};

/// When a client that was refused for want of room may try again.
const RETRY_AFTER_SECONDS: RangeInclusive<u64> = 1..=5;

/// Cross-origin rules for browsers.
#[derive(Clone, Debug)]
pub struct Cors {
    /// The one origin whose pages may read answers, such as `https://loomio.example.org`.
    pub origin: HeaderValue,
    /// Refuse requests that name another origin. Otherwise the browser does so, which it does not for a WebSocket.
    pub strict: bool,
}

/// The errors of the protocol's reference server: a number and a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("Transport unknown")]
    UnknownTransport,
    #[error("Session ID unknown")]
    UnknownSid,
    #[error("Bad handshake method")]
    BadHandshakeMethod,
    #[error("Bad request")]
    BadRequest,
    #[error("Forbidden")]
    Forbidden,
    #[error("Unsupported protocol version")]
    UnsupportedProtocol,
    /// Not an error of the reference server, which takes every client.
    #[error("Server is busy")]
    Busy,
}

impl Refusal {
    /// To a request: `{"code":1,"message":"Session ID unknown"}`. To an upgrade: the text.
    fn response(self, upgrade: bool) -> Response<Body> {
        let (kind, body) = if upgrade {
            ("text/html", self.to_string())
        } else {
            ("application/json", format!(r#"{{"code":{},"message":"{self}"}}"#, self as u8))
        };
        let status = match self {
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        };
        let mut response = respond(status, kind, body);
        if self == Self::Busy {
            // A random pause, so that refused clients do not all return at the same time.
            let seconds = rand::rng().random_range(RETRY_AFTER_SECONDS);
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// A parameter of a query string; of several, the last.
fn parameter<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    url::form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name).last().map(|(_, value)| value)
}

impl<H: Handler> Engine<H> {
    /// Answers a request to the engine's path.
    pub async fn handle(self: Arc<Self>, request: Request<Body>) -> Response<Body> {
        if request.method() == Method::OPTIONS && self.options.cors.is_some() {
            return self.with_cors(preflight(request.headers()));
        }
        let upgrade = request.headers().contains_key(UPGRADE);
        self.with_cors(self.route(request, upgrade).await.unwrap_or_else(|refusal| {
            tracing::debug!(reason = %refusal, "refused a request");
            refusal.response(upgrade)
        }))
    }

    /// Refuses a request, to this path or another, for want of room.
    pub fn refuse(&self, request: &Request<Body>) -> Response<Body> {
        self.with_cors(Refusal::Busy.response(request.headers().contains_key(UPGRADE)))
    }

    /// The checks in the order of the reference server, so that the same error comes first.
    async fn route(self: &Arc<Self>, request: Request<Body>, upgrade: bool) -> Result<Response<Body>, Refusal> {
        let query = request.uri().query().unwrap_or_default();
        let websocket = match parameter(query, "transport").as_deref() {
            Some("polling") => false,
            Some("websocket") => true,
            _ => return Err(Refusal::UnknownTransport),
        };
        let Some(sid) = parameter(query, "sid").filter(|sid| !sid.is_empty()) else {
            return self.handshake(request, websocket, upgrade);
        };
        let session = sid.parse().ok().and_then(|sid| self.session(sid));
        // Its heartbeat may say that it is over.
        let session = session.filter(|session| session.beat(self.now()).is_some()).ok_or(Refusal::UnknownSid)?;
        if websocket != upgrade || (!upgrade && !session.is_polling()) {
            return Err(Refusal::BadRequest);
        }
        if upgrade {
            return self.upgrade(&request, session);
        }
        match *request.method() {
            // Boxed, or every WebSocket's handshake is as large as these.
            Method::GET => Box::pin(self.poll(&session, request.headers())).await,
            Method::POST => Box::pin(self.post(&session, request.into_body())).await,
            _ => Ok(respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", Body::empty())),
        }
    }

    fn handshake(
        self: &Arc<Self>,
        request: Request<Body>,
        websocket: bool,
        upgrade: bool,
    ) -> Result<Response<Body>, Refusal> {
        if request.method() != Method::GET {
            return Err(Refusal::BadHandshakeMethod);
        }
        if websocket != upgrade {
            return Err(Refusal::BadRequest);
        }
        let is_foreign = |cors: &Cors| request.headers().get(ORIGIN).is_some_and(|origin| *origin != cors.origin);
        if self.options.cors.as_ref().is_some_and(|cors| cors.strict && is_foreign(cors)) {
            return Err(Refusal::Forbidden);
        }
        let query = request.uri().query().unwrap_or_default();
        if parameter(query, "EIO").and_then(|version| version.parse().ok()) != Some(ProtocolVersion::V4) {
            return Err(Refusal::UnsupportedProtocol);
        }
        if websocket {
            return self.accept(request);
        }
        let handshake = Handshake { query, headers: request.headers() };
        let session = self.open(&handshake, None, self.admit(&request, false)?);
        let open = String::from(self.open_packet(session.engine_sid(), true));
        Ok(respond(StatusCode::OK, TEXT, open))
    }

    /// A permit for the session that a request opens.
    pub(super) fn admit(&self, request: &Request<Body>, websocket: bool) -> Result<SessionPermit, Refusal> {
        if !matches!(self.registry.lock().intake, Intake::Open) {
            self.metrics.count(Counter::SessionsRefused);
            return Err(Refusal::Busy);
        }
        let peer = request.extensions().get::<Peer>();
        let trusted = &self.options.trusted_proxies;
        let address = peer.and_then(|peer| client::address(peer.address, request.headers(), trusted));
        let connection = peer.filter(|_| !websocket).map(|peer| peer.connection);
        let (permit, oldest) = self.census.admit(Origin::new(address, connection), self.now()).map_err(|full| {
            static REFUSED: [Throttle; 3] = [const { Throttle::new() }; 3];
            if let Some(more_since_last) = REFUSED[full as usize].allow(Instant::now()) {
                tracing::warn!(more_since_last, "refused a session: there are {full}");
            }
            self.metrics.count(Counter::SessionsRefused);
            Refusal::Busy
        })?;
        if let Some(oldest) = oldest.and_then(|sid| self.session(sid)) {
            oldest.close(CloseReason::Unproven);
        }
        Ok(permit)
    }

    fn with_cors(&self, mut response: Response<Body>) -> Response<Body> {
        if let Some(cors) = &self.options.cors {
            let headers = response.headers_mut();
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, cors.origin.clone());
            headers.append(VARY, HeaderValue::from_static("Origin"));
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        response
    }
}

fn preflight(request: &HeaderMap) -> Response<Body> {
    let headers = [
        (ACCESS_CONTROL_ALLOW_METHODS, "GET,HEAD,PUT,PATCH,POST,DELETE"),
        (VARY, "Access-Control-Request-Headers"),
        (CONTENT_LENGTH, "0"),
    ];
    let wanted = request.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let allowed = wanted.map(|wanted| [(ACCESS_CONTROL_ALLOW_HEADERS, wanted)]);
    (StatusCode::NO_CONTENT, headers, allowed, ()).into_response()
}

/// A whole answer that no cache may keep.
pub(super) fn respond(status: StatusCode, kind: &'static str, body: impl Into<Body>) -> Response<Body> {
    let no_store = HeaderValue::from_static("no-store");
    let headers = [(CONTENT_TYPE, HeaderValue::from_static(kind)), (CACHE_CONTROL, no_store)];
    (status, headers, body.into()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_as_a_form() {
        let query = "EIO=4&transport=web%73ocket&sid=x&sid=a+b&t=x&channel_token=secret";
        for (name, value) in [("EIO", Some("4")), ("transport", Some("websocket")), ("sid", Some("a b")), ("b", None)] {
            assert_eq!(parameter(query, name).as_deref(), value, "{name}");
        }
        assert_eq!(parameter("&&=&%", "sid"), None);
    }

    #[test]
    fn error_codes_are_the_numbers_of_the_reference() {
        let codes = [
            (Refusal::UnknownTransport, 0),
            (Refusal::UnknownSid, 1),
            (Refusal::BadHandshakeMethod, 2),
            (Refusal::BadRequest, 3),
            (Refusal::Forbidden, 4),
            (Refusal::UnsupportedProtocol, 5),
        ];
        assert!(codes.into_iter().all(|(refusal, code)| refusal as u8 == code));
    }
}
