//! What operators and their tools ask: is it alive, is it ready.

use axum::{Router, http::StatusCode, routing::get};

use crate::lifecycle::Readiness;

/// `GET /health/live`: 200 while the process answers. `GET /health/ready`: 200 while it is subscribed to Redis, else
/// 503.
pub fn routes(readiness: Readiness) -> Router {
    let ready = move || {
        let ready = readiness.get();
        async move {
            if ready {
                (StatusCode::OK, "ready\n")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "not subscribed to redis\n")
            }
        }
    };
    Router::new().route("/health/live", get(|| async { "live\n" })).route("/health/ready", get(ready))
}
