//! HTTP long-polling, the way to the client: a GET waits for packets.

use std::{io::Write, sync::Arc};

use axum::body::Body;
use flate2::{Compression, write::GzEncoder};
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, VARY},
};

use super::{
    CloseReason, Engine, Handler, Session,
    http::{Refusal, respond},
    session::Poll,
};

/// Answers at least this long are compressed for clients that take it, as by Node.
const COMPRESS_FROM: usize = 1_024;

impl<H: Handler> Engine<H> {
    /// A GET: what waits for the client, or the next thing to come.
    pub(super) async fn poll(&self, session: &Arc<Session<H>>, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
        let payload = match session.poll() {
            Poll::Now(payload) => payload,
            Poll::Later(payload) => {
                let mut pending = Pending(Some(session));
                let payload = payload.await.map_err(|_| Refusal::BadRequest)?;
                pending.0 = None;
                payload
            }
            Poll::Refused => return Err(Refusal::BadRequest),
        };
        Ok(answer(payload, headers))
    }
}

/// A GET that waits. When its client goes away, the session ends, as what is sent from now on could be lost.
struct Pending<'a, H: Handler>(Option<&'a Arc<Session<H>>>);

impl<H: Handler> Drop for Pending<'_, H> {
    fn drop(&mut self) {
        if let Some(session) = self.0 {
            session.close(CloseReason::TransportClose);
        }
    }
}

/// An answer to a GET, compressed where that pays.
pub(super) fn answer(payload: Vec<u8>, request: &HeaderMap) -> Response<Body> {
    const TEXT: &str = "text/plain; charset=UTF-8";
    if payload.len() < COMPRESS_FROM || !accepts_gzip(request) {
        return respond(StatusCode::OK, TEXT, payload);
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(payload.len() / 2), Compression::fast());
    let compressed = encoder.write_all(&payload).and_then(|()| encoder.finish());
    match compressed {
        Ok(compressed) => {
            let mut response = respond(StatusCode::OK, TEXT, compressed);
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response.headers_mut().append(VARY, HeaderValue::from_static("Accept-Encoding"));
            response
        }
        Err(_) => respond(StatusCode::OK, TEXT, payload),
    }
}

fn accepts_gzip(request: &HeaderMap) -> bool {
    let encodings = request.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    encodings.flat_map(|value| value.split(',')).any(|encoding| {
        let (name, weight) = encoding.split_once(';').unwrap_or((encoding, ""));
        let refused =
            weight.trim().strip_prefix("q=").and_then(|q| q.trim().parse::<f32>().ok()).is_some_and(|q| q <= 0.0);
        matches!(name.trim(), "gzip" | "*") && !refused
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(encoding: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(encoding))])
    }

    #[test]
    fn gzip_is_used_where_it_is_wanted() {
        for (encoding, accepted) in [
            ("gzip, deflate, br", true),
            ("br;q=1.0, gzip;q=0.5", true),
            ("*", true),
            ("gzip;q=0", false),
            ("br", false),
        ] {
            assert_eq!(accepts_gzip(&headers(encoding)), accepted, "{encoding}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    #[test]
    fn short_answers_stay_as_they_are() {
        let encoded = |length| answer(vec![b'4'; length], &headers("gzip")).headers().contains_key(CONTENT_ENCODING);
        assert_eq!([encoded(COMPRESS_FROM - 1), encoded(COMPRESS_FROM)], [false, true]);
    }
}
