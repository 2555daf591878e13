//! Publishes a message: to Redis, as Rails would, or to a running demo.

use std::{
    fs::File,
    io::{self, Read},
    net::{SocketAddr, ToSocketAddrs},
    path::Path,
};

use serde_json::Value;

use super::{CONFIGURATION, FAILURE, Failure, USAGE, http::exchange};
use crate::{
    bus::{MAX_PAYLOAD, Publication, PublicationError},
    config::{Config, Environment},
    redis_client::{ConnectionError, Connector, Denial, Link},
    telemetry::chain,
};

/// Publishes the message in `file` to `room`: to the demo at the address `demo`, else to `REDIS_URL`. Returns the number of
/// subscribers that received it.
pub(super) async fn publish(
    room: &str,
    file: &Path,
    demo: Option<&str>,
    environment: &Environment,
) -> Result<u64, Failure> {
    let text = read(file).map_err(|error| (format!("cannot read {}: {error}", file.display()), FAILURE))?;
    let publication = Publication::new(room, &text).map_err(|error| match error {
        PublicationError::Room(_) => (error.to_string(), USAGE),
        _ => (chain(&error), FAILURE),
    })?;
    match demo {
        Some(address) => to_demo(address, room, &publication).await.map_err(|problem| (problem, FAILURE)),
        None => to_redis(environment, &publication).await,
    }
}

/// What is in the file, or on standard input if it is `-`, up to a byte more than can be published.
fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let input: Box<dyn Read> = if file == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(file)?) };
    input.take(MAX_PAYLOAD as u64 + 1).read_to_end(&mut text)?;
    Ok(text)
}

async fn to_demo(address: &str, room: &str, Publication { payload, .. }: &Publication) -> Result<u64, String> {
    let unknown =
        || format!("`{address}` is not the address of a demo: give the one that it prints, as localhost:5000");
    let host = address.strip_prefix("http://").unwrap_or(address).split('/').next().unwrap_or_default();
    let head = format!(
        "POST /demo/publish/{room} HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}",
        payload.len()
    );
    // The demo listens on 127.0.0.1 unless it is told otherwise, and localhost may stand for another address first.
    let mut addresses: Vec<SocketAddr> = host.to_socket_addrs().map_err(|_| unknown())?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    let answer = exchange(*addresses.first().ok_or_else(unknown)?, &head, payload)
        .await
        .map_err(|error| format!("cannot publish; is the demo running there? {error}"))?;
    let body: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    match (body["receivers"].as_u64(), body["error"].as_str()) {
        (Some(receivers), _) if answer.is_ok() => Ok(receivers),
        (_, Some(error)) => Err(format!("the demo refuses: {error}")),
        _ => Err(unknown()),
    }
}

async fn to_redis(environment: &Environment, Publication { channel, payload }: &Publication) -> Result<u64, Failure> {
    let failed = |error: ConnectionError| {
        let mend = match error {
            ConnectionError::Denied(Denial::Rights) => "grant its user +publish &/records &/system_notice:",
            _ => "is REDIS_URL right?",
        };
        (format!("cannot publish; {mend} {}", chain(&error)), FAILURE)
    };
    let config = Config::from_env(environment).map_err(|mistakes| (mistakes.to_string(), CONFIGURATION))?;
    let link = Link::new(Connector::new(&config.redis).map_err(|error| failed(error.into()))?);
    link.publish(channel, payload).await.map_err(failed)
}
