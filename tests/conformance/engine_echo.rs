//! An Engine.IO server that sends back what it gets, for the public Engine.IO v4 suite.
//!
//! Path `/engine.io/`, port `PORT` or 3000, heartbeat 300/200 ms, as the suite expects.

use std::{error::Error, io::Write, sync::Arc, time::Duration};

use axum::{Router, body::Body, http::Request, routing::any};
use loomio_channels::{
    engineio::{CloseReason, Engine, Frame, Handler, Handshake, Malformed, Message, Options, Session},
    lifecycle::{Lifecycle, Signals},
    listener,
    metrics::Metrics,
};

/// More than the suite opens.
const CONNECTIONS: usize = 500;

struct Echo;

impl Handler for Echo {
    type State = ();

    fn open(&self, _: &Handshake<'_>) {}

    fn message(&self, session: &Arc<Session<Self>>, message: Message) -> Result<(), Malformed> {
        session.send(&[&match message {
            Message::Text(text) => Frame::message(&[text.as_bytes()]),
            Message::Binary(data) => Frame::binary(&data),
        }]);
        Ok(())
    }

    fn closed(&self, _: &Arc<Session<Self>>, _: CloseReason) {}
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    #[expect(clippy::disallowed_methods, reason = "an example has no configuration of its own")]
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(3000);
    let lifecycle = Lifecycle::current();
    let options = Options {
        ping_interval: Duration::from_millis(300),
        ping_timeout: Duration::from_millis(200),
        ..Options::default()
    };
    let metrics = Metrics::default();
    let engine = Engine::new(Echo, options, lifecycle.tasks().clone(), metrics.clone());
    let handler = Arc::clone(&engine);
    let router =
        Router::new().route("/engine.io/", any(move |request: Request<Body>| Arc::clone(&handler).handle(request)));
    let site = listener::Site { router, overflow: Router::new(), connections: CONNECTIONS, metrics };
    let listener = listener::bind(None, port)?;
    writeln!(std::io::stdout(), "listening on {}", listener.local_addr()?.port())?;
    lifecycle.tasks().spawn(Arc::clone(&engine).run(lifecycle.stop().clone()));
    lifecycle.tasks().spawn(listener::serve(listener, site, lifecycle.tasks().clone(), lifecycle.stop().clone()));
    let mut signals = Signals::listen()?;
    lifecycle.until_drain(&mut signals).await;
    lifecycle.stop().cancel();
    engine.close_all(CloseReason::Shutdown);
    lifecycle.finished(Duration::from_secs(1), &mut signals).await;
    Ok(())
}
