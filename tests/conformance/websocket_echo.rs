//! A WebSocket server that sends back what it gets, for the Autobahn suite. Port `PORT` or 9001.

mod echo;

use std::{error::Error, io::Write, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
    response::{IntoResponse, Response},
    routing::any,
};
use loomio_channels::{
    lifecycle::{Lifecycle, Signals},
    listener::{self, Upgrade},
    metrics::Metrics,
    websocket::{Connection, Decoder, Frame, Shared, handshake},
};

use self::echo::{echo, shared};

/// The suite opens one connection at a time.
const CONNECTIONS: usize = 50;

fn accept(request: &Request<Body>, shared: &Arc<Shared>) -> Response {
    let Ok(mut response) = handshake::accept::<_, Body>(request) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let shared = Arc::clone(shared);
    response.extensions_mut().insert(Upgrade::to(move |upgraded| {
        let socket = Connection::new(upgraded.stream, &shared);
        let place = upgraded.place;
        // When the head is not sent, reading fails.
        let _ = socket.send(&[&Frame::verbatim(upgraded.head)], 0);
        shared.tasks.spawn(async move {
            echo(socket, Decoder::with(&upgraded.read)).await;
            drop(place);
        });
    }));
    response
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    #[expect(clippy::disallowed_methods, reason = "an example has no configuration of its own")]
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(9001);
    let lifecycle = Lifecycle::current();
    let shared = shared(lifecycle.tasks());
    let router = Router::new().fallback(any(async move |request: Request<Body>| accept(&request, &shared)));
    let site =
        listener::Site { router, overflow: Router::new(), connections: CONNECTIONS, metrics: Metrics::default() };
    let listener = listener::bind(None, port)?;
    writeln!(std::io::stdout(), "listening on {}", listener.local_addr()?.port())?;
    lifecycle.tasks().spawn(listener::serve(listener, site, lifecycle.tasks().clone(), lifecycle.stop().clone()));
    let mut signals = Signals::listen()?;
    lifecycle.until_drain(&mut signals).await;
    lifecycle.stop().cancel();
    lifecycle.finished(Duration::from_secs(1), &mut signals).await;
    Ok(())
}
