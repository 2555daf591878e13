//! `POST /api/hocuspocus`: what a Hocuspocus server asks before it opens a document, in the words in which it would ask
//! Rails.
//!
//! Answers for the form of a question. Must not know how Rails is asked.

mod body;

use std::{
    net::IpAddr,
    sync::{Arc, Once},
    time::Duration,
};

use crate::{
    config::Networks,
    listener::{Peer, client},
    metrics::{Counter, Metrics},
    rails::{NoAnswer, Rails},
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
        let check = match body::read(body, self.strict_names).await {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_rounded_up() {
        for (millis, seconds) in [(0, "1"), (1, "1"), (1_000, "1"), (1_001, "2"), (60_000, "60")] {
            let response = later(StatusCode::TOO_MANY_REQUESTS, Duration::from_millis(millis));
            assert_eq!(response.headers()[RETRY_AFTER], seconds);
        }
    }
}
