//! What a request asks for.
//!
//! Answers for: the commands the broker knows, and redis's wording for requests that make no sense.
//! Must not know: keys that exist, who asks, what the answer is.

mod parse;
#[cfg(test)]
mod tests;

use std::time::Duration;

use bytes::Bytes;

pub(super) use self::parse::parse;
use super::reply::Protocol;

/// A request that can be carried out.
#[derive(Debug, PartialEq)]
pub(super) enum Command {
    Auth {
        user: Option<Bytes>,
    },
    Client(ClientCommand),
    /// `COMMAND` and its subcommands: the broker describes none of its commands.
    Describe,
    /// `COMMAND DOCS`, which `redis-cli` asks for at its start.
    Document,
    Del(Vec<Bytes>),
    Echo(Bytes),
    Exists(Vec<Bytes>),
    /// No duration stands for a moment that has passed.
    Expire {
        key: Bytes,
        after: Option<Duration>,
    },
    Get(Bytes),
    Hello {
        protocol: Option<Protocol>,
        user: Option<Bytes>,
        name: Option<Bytes>,
    },
    Info,
    Ping(Option<Bytes>),
    PSubscribe(Vec<Bytes>),
    Publish {
        channel: Bytes,
        payload: Bytes,
    },
    PUnsubscribe(Vec<Bytes>),
    Quit,
    Reset,
    Select,
    Set(SetCommand),
    Subscribe(Vec<Bytes>),
    Ttl(Bytes),
    Unsubscribe(Vec<Bytes>),
}

/// The subcommands of `CLIENT`.
#[derive(Debug, PartialEq)]
pub(super) enum ClientCommand {
    GetName,
    Id,
    /// An empty name takes the name away.
    SetName(Bytes),
    /// `SETINFO`, `NO-EVICT`, `NO-TOUCH`: nothing here depends on them.
    Acknowledge,
}

/// `SET` with its options.
#[derive(Debug, PartialEq)]
pub(super) struct SetCommand {
    pub(super) key: Bytes,
    pub(super) value: Bytes,
    pub(super) expiry: Expiry,
    pub(super) condition: Option<Condition>,
    /// Answer with the value that was there before.
    pub(super) get: bool,
}

/// What becomes of a key's remaining time when it is set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Expiry {
    Never,
    After(Duration),
    Keep,
}

/// When a `SET` takes place at all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Condition {
    IfAbsent,
    IfPresent,
}

/// Why a request is refused; the text is redis's and goes to the client.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum CommandError {
    #[error("ERR unknown command '{name}', with args beginning with: {arguments}")]
    Unknown { name: String, arguments: String },
    #[error("ERR unknown subcommand '{0}'. Try CLIENT HELP.")]
    UnknownSubcommand(String),
    #[error("ERR wrong number of arguments for '{0}' command")]
    Arity(String),
    #[error("ERR syntax error")]
    Syntax,
    #[error("ERR value is not an integer or out of range")]
    NotAnInteger,
    #[error("ERR invalid expire time in '{0}' command")]
    ExpireTime(&'static str),
    #[error("ERR DB index is out of range")]
    Database,
    #[error("ERR Protocol version is not an integer or out of range")]
    ProtocolNumber,
    #[error("NOPROTO unsupported protocol version")]
    Protocol,
    #[error("ERR Syntax error in HELLO option '{0}'")]
    HelloOption(String),
    #[error("ERR Unsupported option {0}")]
    ExpireOption(String),
    #[error("ERR Unrecognized option '{0}'")]
    ClientInfo(String),
    #[error("ERR Client names cannot contain spaces, newlines or special characters.")]
    ClientName,
}

impl Command {
    /// The one word to name the command by when it is refused for where it was said.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Auth { .. } => "auth",
            Self::Client(ClientCommand::GetName) => "client|getname",
            Self::Client(ClientCommand::Id) => "client|id",
            Self::Client(ClientCommand::SetName(_)) => "client|setname",
            Self::Client(ClientCommand::Acknowledge) => "client",
            Self::Describe => "command",
            Self::Document => "command|docs",
            Self::Del(_) => "del",
            Self::Echo(_) => "echo",
            Self::Exists(_) => "exists",
            Self::Expire { .. } => "expire",
            Self::Get(_) => "get",
            Self::Hello { .. } => "hello",
            Self::Info => "info",
            Self::Ping(_) => "ping",
            Self::PSubscribe(_) => "psubscribe",
            Self::Publish { .. } => "publish",
            Self::PUnsubscribe(_) => "punsubscribe",
            Self::Quit => "quit",
            Self::Reset => "reset",
            Self::Select => "select",
            Self::Set(_) => "set",
            Self::Subscribe(_) => "subscribe",
            Self::Ttl(_) => "ttl",
            Self::Unsubscribe(_) => "unsubscribe",
        }
    }

    /// Whether a RESP2 client may say it while it is subscribed: its answers share the connection with
    /// messages, and RESP2 cannot tell the two apart.
    pub(super) fn fits_among_messages(&self) -> bool {
        matches!(
            self,
            Self::Subscribe(_)
                | Self::PSubscribe(_)
                | Self::Unsubscribe(_)
                | Self::PUnsubscribe(_)
                | Self::Ping(_)
                | Self::Quit
                | Self::Reset
        )
    }
}
