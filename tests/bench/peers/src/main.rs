//! The least a channel server on the plain crates can do: look the token up, join the rooms, pass messages on.
//!
//! Reads `REDIS_URL` and `PORT` as the real one does. No recovery, no limits beyond the crates' own.

use std::{env, error::Error};

use fred::{
    clients::SubscriberClient,
    interfaces::{ClientLike, EventInterface, KeysInterface, PubsubInterface},
    types::{Builder, config::Config},
};
use serde_json::Value;
use socketioxide::{SocketIo, extract::SocketRef};
use tokio::sync::broadcast::error::RecvError;

/// Slots of the queue between Redis and the rooms: the default of 32 loses most of a burst, and each slot takes memory
/// from the start, so that it is no larger than what the benchmark has under way at the same time.
const QUEUE: usize = 8_192;

async fn join(socket: SocketRef, redis: fred::clients::Client) {
    socket.join("notice");
    let query = socket.req_parts().uri.query().unwrap_or_default();
    let Some(token) = query.split('&').find_map(|pair| pair.strip_prefix("channel_token=")) else { return };
    let Ok(Some(user)) = redis.get::<Option<String>, _>(format!("/current_users/{token}")).await else { return };
    let Ok(user) = serde_json::from_str::<Value>(&user) else { return };
    socket.join(format!("user-{}", user["id"]));
    for group in user["group_ids"].as_array().into_iter().flatten() {
        socket.join(format!("group-{group}"));
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://localhost:6379/0".to_owned());
    let port = env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(5000);
    let mut builder = Builder::from_config(Config::from_url(&url)?);
    let redis = builder.build()?;
    redis.init().await?;
    builder.with_performance_config(|config| config.broadcast_channel_capacity = QUEUE);
    let subscriber: SubscriberClient = builder.build_subscriber_client()?;
    subscriber.init().await?;
    let mut messages = subscriber.message_rx();
    subscriber.subscribe(vec!["/records", "/system_notice"]).await?;

    let (layer, io) = SocketIo::new_layer();
    io.ns("/", move |socket: SocketRef| join(socket, redis.clone()));
    let rooms = io.clone();
    tokio::spawn(async move {
        loop {
            let message = match messages.recv().await {
                Ok(message) => message,
                // What did not fit the queue is gone; the rest still matters.
                Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => return,
            };
            let Some(text) = message.value.as_str() else { continue };
            let Ok(payload) = serde_json::from_str::<Value>(&text) else { continue };
            if message.channel == "/system_notice" {
                let _ = rooms.emit("notice", &payload).await;
            } else if let Some(room) = payload["room"].as_str() {
                let _ = rooms.to(room.to_owned()).emit("records", &payload).await;
            }
        }
    });
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening on {port}");
    Ok(axum::serve(listener, axum::Router::new().layer(layer)).await?)
}
