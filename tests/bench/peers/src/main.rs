//! The least a channel server on the plain crates can do: look the token up, join the rooms, pass messages on.
//!
//! Reads `REDIS_URL` and `PORT` as the real one does. With `REDIS_ADAPTER` it is one node of several. No recovery, no
//! limits beyond the crates' own.

use std::{
    env,
    error::Error,
    hash::{DefaultHasher, Hash, Hasher},
};

use fred::{
    clients::{Client, SubscriberClient},
    interfaces::{ClientLike, EventInterface, KeysInterface, PubsubInterface},
    types::{Builder, Expiration, RespVersion, SetOptions, config::Config},
};
use serde_json::Value;
use socketioxide::{SocketIo, adapter::Adapter, extract::SocketRef, layer::SocketIoLayer};
use socketioxide_redis::{FredAdapter, RedisAdapterCtr};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::broadcast::error::RecvError,
};

const CHANNELS: [&str; 2] = ["/records", "/system_notice"];

/// Slots of the queue between Redis and the rooms: the default of 32 loses most of a burst, and each slot takes memory
/// from the start, so that it is no larger than what the benchmark has under way at the same time.
const QUEUE: usize = 8_192;

/// The other node has read a message long before.
const CLAIM_SECONDS: i64 = 60;

async fn join<A: Adapter>(socket: SocketRef<A>, redis: Client) {
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

/// All nodes read what Rails publishes, and the adapter brings what one of them emits to the clients of all: the first to
/// claim a message emits it.
async fn claim(redis: &Client, text: &str) -> bool {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let (key, expires) = (format!("claim:{}", hasher.finish()), Some(Expiration::EX(CLAIM_SECONDS)));
    let claimed = redis.set::<Option<String>, _, _>(key, "", expires, Some(SetOptions::NX), false);
    matches!(claimed.await, Ok(Some(_)))
}

/// Passes on what Rails publishes and serves clients until SIGTERM; `claims` is for a node of several.
async fn serve<A: Adapter>(
    io: SocketIo<A>,
    layer: SocketIoLayer<A>,
    subscriber: SubscriberClient,
    claims: Option<Client>,
) -> Result<(), Box<dyn Error>> {
    let port = env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(5000);
    let mut messages = subscriber.message_rx();
    let mut terminated = signal(SignalKind::terminate())?;
    let closing = io.clone();
    subscriber.subscribe(CHANNELS.to_vec()).await?;
    tokio::spawn(async move {
        loop {
            let message = match messages.recv().await {
                Ok(message) => message,
                // What did not fit the queue is gone; the rest still matters.
                Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => return,
            };
            let Some(text) = message.value.as_str() else { continue };
            if let Some(redis) = &claims
                && !claim(redis, &text).await
            {
                continue;
            }
            let Ok(payload) = serde_json::from_str::<Value>(&text) else { continue };
            if message.channel == "/system_notice" {
                let _ = io.emit("notice", &payload).await;
            } else if let Some(room) = payload["room"].as_str() {
                let _ = io.to(room.to_owned()).emit("records", &payload).await;
            }
        }
    });
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening on {port}");
    let end = async move {
        terminated.recv().await;
        let _ = subscriber.unsubscribe(CHANNELS.to_vec()).await;
        closing.close().await;
    };
    Ok(axum::serve(listener, axum::Router::new().layer(layer)).with_graceful_shutdown(end).await?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://localhost:6379/0".to_owned());
    let mut builder = Builder::from_config(Config::from_url(&url)?);
    let redis = builder.build()?;
    redis.init().await?;
    builder.with_performance_config(|config| config.broadcast_channel_capacity = QUEUE);
    let subscriber = builder.build_subscriber_client()?;
    subscriber.init().await?;
    let lookups = redis.clone();
    if env::var_os("REDIS_ADAPTER").is_none() {
        let (layer, io) = SocketIo::new_layer();
        io.ns("/", move |socket: SocketRef<_>| join(socket, lookups.clone()));
        return serve(io, layer, subscriber, None).await;
    }
    // What the adapter asks for.
    builder.with_config(|config| config.version = RespVersion::RESP3);
    let adapter = RedisAdapterCtr::new_with_fred(builder.build_subscriber_client()?).await?;
    let (layer, io) = SocketIo::builder().with_adapter::<FredAdapter<_>>(adapter).build_layer();
    io.ns("/", move |socket: SocketRef<_>| join(socket, lookups.clone())).await?;
    serve(io, layer, subscriber, Some(redis)).await
}
