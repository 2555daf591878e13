//! Sends back what comes over a WebSocket, for the cases of the Autobahn suite.

use std::{net::Shutdown, ops::ControlFlow, sync::Arc, time::Duration};

use loomio_channels::{
    lifecycle::Tasks,
    websocket::{Allowance, Budget, Connection, Decoder, Frame, Received, Shared, Socket},
};

/// The suite sends up to 16 MiB, in pieces that take their time.
const ALLOWANCE: Allowance = Allowance { max: 16 << 20, patience: Duration::from_mins(1) };

const OUTBOX_BYTES: usize = 64 << 20;

/// What all connections share.
pub(crate) fn shared(tasks: &Tasks) -> Arc<Shared> {
    Arc::new(Shared { tasks: tasks.clone(), budget: Budget::default(), outbox_bytes: OUTBOX_BYTES })
}

/// Serves a connection until it ends.
pub(crate) async fn echo<S: Socket>(socket: Arc<Connection<S>>, mut decoder: Decoder) {
    let back = |received: Received<'_>| {
        let sent = match received {
            Received::Text(text) => socket.send(&[&Frame::text(&[text.as_bytes()])], 0),
            Received::Binary(data) => socket.send(&[&Frame::binary(data)], 0),
            _ => Ok(()),
        };
        if sent.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let code = match socket.read(&mut decoder, || ALLOWANCE, back).await {
        Ok(()) => Some(1013),
        Err(disconnect) => disconnect.code(),
    };
    socket.close(code, Shutdown::Write);
    socket.linger().await;
}
