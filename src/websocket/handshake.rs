//! The opening handshake (RFC 6455, section 4.2), without I/O.

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{
    HeaderMap, HeaderName, Method, Request, Response, StatusCode, Version,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE},
};
use sha1::{Digest, Sha1};

/// Appended to the client's key (section 1.3).
const ACCEPT_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The request is no handshake for a WebSocket of version 13.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a WebSocket handshake")]
pub struct NotAHandshake;

/// The response to a handshake, without extensions and subprotocols.
pub fn accept<B, R: Default>(request: &Request<B>) -> Result<Response<R>, NotAHandshake> {
    let headers = request.headers();
    let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| STANDARD.decode(key).is_ok_and(|key| key.len() == 16));
    let key = key.ok_or(NotAHandshake)?;
    if request.method() != Method::GET
        || request.version() < Version::HTTP_11
        || !tokens(headers, UPGRADE).any(|token| token.eq_ignore_ascii_case("websocket"))
        || !tokens(headers, CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
        || headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13")
    {
        return Err(NotAHandshake);
    }
    let accept = STANDARD.encode(Sha1::new().chain_update(key).chain_update(ACCEPT_SUFFIX).finalize());
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_ACCEPT, accept)
        .body(R::default())
        .map_err(|_| NotAHandshake)
}

fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const HEADERS: [(&str, &str); 4] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn request(headers: impl IntoIterator<Item = (&'static str, &'static str)>) -> Request<()> {
        let mut request = Request::new(());
        for (name, value) in headers {
            request.headers_mut().append(name, HeaderValue::from_static(value));
        }
        request
    }

    #[test]
    fn the_accept_key_is_that_of_the_rfc() {
        let response = accept::<_, ()>(&request(HEADERS)).unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(response.headers()[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_handshake_needs_all_its_headers_and_http_1_1() {
        for (without, _) in HEADERS {
            let request = request(HEADERS.into_iter().filter(|(name, _)| *name != without));
            assert!(accept::<_, ()>(&request).is_err(), "{without}");
        }
        let mut old = request(HEADERS);
        *old.version_mut() = Version::HTTP_10;
        assert!(accept::<_, ()>(&old).is_err());
    }
}
