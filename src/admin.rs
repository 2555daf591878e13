//! What operators and their tools ask: is it alive, is it ready.

use axum::{Router, http::StatusCode, routing::get};

/// `GET /health/live`: 200 while the process answers. `GET /health/ready`: 200 while `is_ready`, which is when it is
/// subscribed to Redis and not told to stop, else 503.
pub fn routes(is_ready: impl Fn() -> bool + Clone + Send + Sync + 'static) -> Router {
    let ready = move || {
        let ready = is_ready();
        async move {
            if ready {
                (StatusCode::OK, "ready\n")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "not subscribed to redis, or stopping\n")
            }
        }
    };
    Router::new().route("/health/live", get(|| async { "live\n" })).route("/health/ready", get(ready))
}
