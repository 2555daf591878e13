//! Health checks for operators and their tools.

use axum::{Router, http::StatusCode, routing::get};

/// `GET /health/live`: 200 while the process answers. `GET /health/ready`: 200 while `is_ready`, that is while it is
/// subscribed to Redis and neither drains nor stops, else 503.
pub fn routes(is_ready: impl Fn() -> bool + Clone + Send + Sync + 'static) -> Router {
    let ready = async move || {
        let unready = (StatusCode::SERVICE_UNAVAILABLE, "not subscribed to redis, or stopping\n");
        if is_ready() { (StatusCode::OK, "ready\n") } else { unready }
    };
    Router::new().route("/health/live", get(|| async { "live\n" })).route("/health/ready", get(ready))
}
