//! The start block: what the process is about to do, on one screen, without secrets.

use super::{
    Config, HttpConfig, LimitsConfig, RAILS_VARIABLES, RailsConfig,
    parse::{show_bytes, show_duration},
};

impl Config {
    /// Version and settings, one aligned line each, without a newline at the end. Holds no secret.
    pub fn summary(&self) -> String {
        let redis =
            if self.demo { "none: messages come from inside the demo".to_owned() } else { self.redis.redacted() };
        let random = if self.demo { "random" } else { "random, kept in Redis for all nodes" };
        let ticket_key = self.recovery.secret_variable.unwrap_or(random);
        let recovery =
            format!("{}, up to {}", show_duration(self.recovery.window), show_bytes(self.recovery.log_bytes as u64));
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
        let lines = lines.into_iter().chain(notes).map(|(name, value)| format!("\n  {name:<11}{value}"));
        format!("loomio-channels {}{}", env!("CARGO_PKG_VERSION"), lines.collect::<Vec<_>>().concat())
    }
}

fn listen(http: &HttpConfig) -> String {
    match (http.bind, http.port) {
        (Some(address), port) => std::net::SocketAddr::new(address, port).to_string(),
        (None, 0) => "a free port on all interfaces".to_owned(),
        (None, port) => format!("port {port} on all interfaces"),
    }
}

/// The numbers that follow from the limit of open files are logged once the limit is known.
fn limits(limits: &LimitsConfig) -> String {
    let connections = limits.connections.map_or("as open files allow".to_owned(), |number| number.to_string());
    let sessions = limits.sessions.map_or("as many".to_owned(), |number| number.to_string());
    format!("connections: {connections}, sessions: {sessions}, {} from one address", limits.sessions_per_address)
}

fn rails(rails: &RailsConfig) -> String {
    match &rails.endpoint {
        Some(endpoint) => format!("{} (from {})", endpoint.url, endpoint.variable),
        None => format!("none, so nobody may edit together; set {RAILS_VARIABLES}"),
    }
}

fn origin(http: &HttpConfig) -> String {
    let Some(allowed) = &http.allowed_origin else {
        let warning = "WARNING: unknown, so browsers will refuse to talk to this server";
        return format!("{warning}; set CANONICAL_HOST or PUBLIC_APP_URL");
    };
    let strict = if http.strict_origin { ", WebSockets too" } else { "" };
    format!("{} (from {}{strict})", allowed.origin, allowed.variable)
}
