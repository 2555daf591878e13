//! HTTP long-polling, the way to the client: a GET waits for packets.

use std::{collections::VecDeque, sync::Arc};

use axum::body::Body;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, VARY},
};

use super::{
    Engine, Handler, Session,
    delivery::Delivery,
    frame::SEPARATOR,
    gzip::{Member, Pieces},
    http::{Refusal, respond},
    session::Poll,
};

/// Type of a payload.
pub(super) const TEXT: &str = "text/plain; charset=UTF-8";

/// Payloads at least this long are compressed for clients that take it, as by Node.
const COMPRESS_FROM: usize = 1_024;

impl<H: Handler> Engine<H> {
    /// A GET: what waits for the client, or the next thing to come.
    pub(super) async fn poll(&self, session: &Arc<Session<H>>, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
        let poll = session.poll();
        if matches!(poll, Poll::Refused) {
            return Err(Refusal::BadRequest);
        }
        // From here on the session ends when its client goes away, as what is sent to it could be lost.
        let delivery = Delivery::to(session);
        let packets = match poll {
            Poll::Now(packets) => packets,
            Poll::Later(packets) => packets.await.map_err(|_| Refusal::BadRequest)?,
            Poll::Refused => return Err(Refusal::BadRequest),
        };
        let separators = packets.len().saturating_sub(1) * SEPARATOR.len();
        let length = separators + packets.iter().map(Bytes::len).sum::<usize>();
        if length < COMPRESS_FROM || !accepts_gzip(headers) {
            return Ok(respond(StatusCode::OK, TEXT, Body::new(delivery.of(joined(packets)))));
        }
        let compressed = self.gzipped(packets).await;
        let mut response = respond(StatusCode::OK, TEXT, Body::new(delivery.of(compressed)));
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response.headers_mut().append(VARY, HeaderValue::from_static("Accept-Encoding"));
        Ok(response)
    }

    /// A payload as a gzip stream, of which each packet is compressed once for all clients.
    async fn gzipped(&self, packets: Vec<Bytes>) -> VecDeque<Bytes> {
        let mut member = Member::new();
        for (place, (packet, segment)) in self.compressor.compress(packets, self.now()).await.into_iter().enumerate() {
            if place > 0 {
                member.store(Bytes::from_static(SEPARATOR));
            }
            match segment {
                Some(segment) => member.append(&segment),
                None => member.store(packet),
            }
        }
        member.finish()
    }
}

/// A payload as it is.
fn joined(packets: Vec<Bytes>) -> VecDeque<Bytes> {
    let mut pieces = Pieces::default();
    for (place, packet) in packets.into_iter().enumerate() {
        if place > 0 {
            pieces.copy(SEPARATOR);
        }
        pieces.push(packet);
    }
    pieces.finish()
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
}
