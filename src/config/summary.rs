//! The start block: what the process is about to do, on one screen, without secrets.

use std::fmt::Write;

use super::{
    Config, Http, Limits, RAILS_VARIABLES, Rails,
    parse::{show_bytes, show_duration},
};

impl Config {
    /// Version and settings, one aligned line each, without a newline at the end. Holds no secret.
    pub fn summary(&self) -> String {
        let redis =
            if self.demo { "none: messages come from inside the demo".to_owned() } else { self.redis.url.redacted() };
        let ticket_key =
            self.recovery.secret_variable.unwrap_or("random, for this process only: set CHANNELS_SECRET to keep it");
        let log_bytes = u64::try_from(self.recovery.log_bytes).unwrap_or(u64::MAX);
        let recovery = format!("{}, up to {}", show_duration(self.recovery.window), show_bytes(log_bytes));
        let lines = [
            ("listen", listen(&self.http)),
            ("limits", limits(&self.limits)),
            ("redis", redis),
            ("origin", origin(&self.http)),
            ("rails", rails(&self.rails)),
            ("ticket key", ticket_key.to_owned()),
            ("recovery", recovery),
            ("shards", self.shards.to_string()),
        ];
        let notes = self.notes.iter().map(|note| ("note", note.clone()));

        let mut block = format!("loomio-channels {}", env!("CARGO_PKG_VERSION"));
        for (name, value) in lines.into_iter().chain(notes) {
            let _ = write!(block, "\n  {name:<11}{value}");
        }
        block
    }
}

fn listen(http: &Http) -> String {
    match (http.bind, http.port) {
        (Some(address), port) => std::net::SocketAddr::new(address, port).to_string(),
        (None, 0) => "a free port on all interfaces".to_owned(),
        (None, port) => format!("port {port} on all interfaces"),
    }
}

/// The numbers that the limit of open files decides are said once that is known.
fn limits(limits: &Limits) -> String {
    let connections = limits.connections.map_or("as open files allow".to_owned(), |number| number.to_string());
    let sessions = limits.sessions.map_or("as many".to_owned(), |number| number.to_string());
    format!("connections: {connections}, sessions: {sessions}, {} from one address", limits.sessions_per_address)
}

fn rails(rails: &Rails) -> String {
    match &rails.endpoint {
        Some(endpoint) => format!("{} (from {})", endpoint.url, endpoint.variable),
        None => format!("none, so nobody may edit together; set {RAILS_VARIABLES}"),
    }
}

fn origin(http: &Http) -> String {
    match &http.allowed_origin {
        Some(allowed) => {
            let strict = if http.strict_origin { ", WebSockets too" } else { "" };
            format!("{} (from {}{strict})", allowed.origin, allowed.variable)
        }
        None => {
            "WARNING: unknown, so browsers will refuse to talk to this server; set CANONICAL_HOST or PUBLIC_APP_URL"
                .to_owned()
        }
    }
}
