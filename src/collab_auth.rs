//! `POST /api/hocuspocus`: what a Hocuspocus server asks before it opens a document, in the words in which it would ask
//! Rails.
//!
//! Answers for who may ask, how often and in which form. Must not know how Rails is asked.

mod body;

use std::{
    net::IpAddr,
    sync::{Arc, Once},
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    response::{IntoResponse, Response},
    routing::post,
};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER},
};
use tokio::time::Instant;

use crate::{
    config::{Collab, Networks},
    listener::{Peer, client},
    metrics::{Counter, Metrics},
    rails::{Answer, Check, Limits, Names, Rails},
    telemetry::Throttle,
};

struct Endpoint {
    rails: Arc<Rails>,
    limits: Limits,
    names: Names,
    trusted: Networks,
    metrics: Metrics,
    /// That nobody is named has been said.
    nameless: Once,
}

/// The one route. Requests have to carry the [`Peer`] they came from.
pub fn routes(rails: Arc<Rails>, settings: &Collab, trusted: Networks, metrics: Metrics) -> Router {
    let endpoint = Arc::new(Endpoint {
        rails,
        limits: Limits::new(settings.auth_per_minute),
        names: if settings.strict_names { Names::Known } else { Names::Any },
        trusted,
        metrics,
        nameless: Once::new(),
    });
    let answer = move |Extension(Peer { address: peer, .. }): Extension<Peer>, headers: HeaderMap, body: Body| {
        let endpoint = Arc::clone(&endpoint);
        async move {
            let mut response = endpoint.answer(peer, &headers, body).await;
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
    };
    Router::new().route("/api/hocuspocus", post(answer))
}

impl Endpoint {
    async fn answer(&self, peer: IpAddr, headers: &HeaderMap, body: Body) -> Response {
        let question = match body::read(body).await {
            Ok(question) => question,
            Err(bad) => return self.malformed(&bad),
        };
        let check = match Check::new(question.user_secret, question.document_name, self.names) {
            Ok(check) => check,
            Err(bad) => return self.malformed(&bad),
        };
        let client = client::address(peer, headers, &self.trusted);
        if client.is_none() {
            self.report_nameless(peer);
        }
        if let Err(wait) = self.limits.admit(client, &check, Instant::now()) {
            self.metrics.count(Counter::ChecksLimited);
            report_limited(client);
            return later(StatusCode::TOO_MANY_REQUESTS, wait);
        }
        match self.rails.check(check.clone()).await {
            Ok(Answer::Granted) => StatusCode::OK.into_response(),
            Ok(Answer::Denied) => {
                self.limits.denied(client, &check, Instant::now());
                StatusCode::UNAUTHORIZED.into_response()
            }
            // Rails has not said that the user may not, so this is no wrong guess.
            Ok(Answer::ServerError) => StatusCode::UNAUTHORIZED.into_response(),
            Err(unavailable) => later(StatusCode::SERVICE_UNAVAILABLE, unavailable.retry_after),
        }
    }

    fn malformed(&self, error: &dyn std::error::Error) -> Response {
        self.metrics.count(Counter::ChecksMalformed);
        let body = serde_json::json!({ "error": error.to_string() }).to_string();
        (StatusCode::BAD_REQUEST, [(CONTENT_TYPE, "application/json")], body).into_response()
    }

    /// Once: it is a matter of the setting, not of the moment.
    fn report_nameless(&self, peer: IpAddr) {
        self.nameless.call_once(|| {
            tracing::warn!(
                %peer,
                "checks name no client, so only tokens are limited, not addresses: have X-Forwarded-For sent along"
            );
        });
    }
}

fn report_limited(client: Option<IpAddr>) {
    static LIMITED: Throttle = Throttle::new();
    let Some(more_since_last) = LIMITED.allow(std::time::Instant::now()) else { return };
    if let Some(client) = client {
        tracing::warn!(more_since_last, %client, "too many checks from one address or with one token");
    } else {
        tracing::warn!(more_since_last, "too many checks with one token");
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
