//! From words to commands.
//!
//! Answers for: how many arguments each command takes and what they may be. Pure: the same words always give
//! the same command.
//! Must not know: what a command does.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;

use super::super::reply::Protocol;
use super::super::wire::integer;
use super::{ClientCommand, Command, CommandError, Condition, Expiry, SetCommand};

/// Longest time to live; redis counts milliseconds in 63 bits, and no clock here reaches that far.
const MAX_EXPIRY: Duration = Duration::from_secs(1_000_000_000);

/// Reads a request, the command's name first.
pub(in super::super) fn parse(mut request: Vec<Bytes>) -> Result<Command, CommandError> {
    if request.is_empty() {
        return Err(unknown(b"", &[]));
    }
    let name = request.remove(0);
    let lower = String::from_utf8_lossy(&name).to_ascii_lowercase();
    let wrong_number = || CommandError::Arity(lower.clone());
    let one_or_more = |keys: Vec<Bytes>| {
        if keys.is_empty() { Err(wrong_number()) } else { Ok(keys) }
    };
    Ok(match (lower.as_str(), request.as_slice()) {
        ("auth", [_]) => Command::Auth { user: None },
        ("auth", [user, _]) => Command::Auth { user: Some(user.clone()) },
        ("auth", [_, _, _, ..]) => return Err(CommandError::Syntax),
        ("client", [subcommand, arguments @ ..]) => Command::Client(client(subcommand, arguments)?),
        ("command", [docs, ..]) if docs.eq_ignore_ascii_case(b"docs") => Command::Document,
        ("command", _) => Command::Describe,
        ("del", _) => Command::Del(one_or_more(request)?),
        ("echo", [message]) => Command::Echo(message.clone()),
        ("exists", _) => Command::Exists(one_or_more(request)?),
        ("expire", [key, seconds, options @ ..]) => expire(key, seconds, options)?,
        ("get", [key]) => Command::Get(key.clone()),
        ("hello", arguments) => hello(arguments)?,
        ("info", _) => Command::Info,
        ("ping", []) => Command::Ping(None),
        ("ping", [message]) => Command::Ping(Some(message.clone())),
        ("psubscribe", _) => Command::PSubscribe(one_or_more(request)?),
        ("publish", [channel, payload]) => Command::Publish { channel: channel.clone(), payload: payload.clone() },
        ("punsubscribe", _) => Command::PUnsubscribe(request),
        ("quit", _) => Command::Quit,
        ("reset", []) => Command::Reset,
        ("select", [index]) => match integer(index) {
            Some(0) => Command::Select,
            Some(_) => return Err(CommandError::Database),
            None => return Err(CommandError::NotAnInteger),
        },
        ("set", [key, value, options @ ..]) => Command::Set(set(key, value, options)?),
        ("subscribe", _) => Command::Subscribe(one_or_more(request)?),
        ("ttl", [key]) => Command::Ttl(key.clone()),
        ("unsubscribe", _) => Command::Unsubscribe(request),
        (
            "auth" | "client" | "echo" | "expire" | "get" | "ping" | "publish" | "reset" | "select" | "set" | "ttl",
            _,
        ) => return Err(wrong_number()),
        _ => return Err(unknown(&name, &request)),
    })
}

fn set(key: &Bytes, value: &Bytes, options: &[Bytes]) -> Result<SetCommand, CommandError> {
    let (mut expiry, mut condition, mut get) = (None, None, false);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let lower = option.to_ascii_lowercase();
        match lower.as_slice() {
            b"get" => get = true,
            b"nx" if condition != Some(Condition::IfPresent) => condition = Some(Condition::IfAbsent),
            b"xx" if condition != Some(Condition::IfAbsent) => condition = Some(Condition::IfPresent),
            b"keepttl" if matches!(expiry, None | Some(Expiry::Keep)) => expiry = Some(Expiry::Keep),
            unit @ (b"ex" | b"px") if expiry.is_none() => {
                let amount = options.next().ok_or(CommandError::Syntax)?;
                let amount = integer(amount).ok_or(CommandError::NotAnInteger)?;
                let amount = u64::try_from(amount).unwrap_or(0);
                let after = if unit == b"ex" { Duration::from_secs(amount) } else { Duration::from_millis(amount) };
                if after.is_zero() || after > MAX_EXPIRY {
                    return Err(CommandError::ExpireTime("set"));
                }
                expiry = Some(Expiry::After(after));
            }
            _ => return Err(CommandError::Syntax),
        }
    }
    let expiry = expiry.unwrap_or(Expiry::Never);
    Ok(SetCommand { key: key.clone(), value: value.clone(), expiry, condition, get })
}

fn expire(key: &Bytes, seconds: &Bytes, options: &[Bytes]) -> Result<Command, CommandError> {
    if let Some(option) = options.first() {
        return Err(CommandError::ExpireOption(lossy(option)));
    }
    let seconds = integer(seconds).ok_or(CommandError::NotAnInteger)?;
    let after = u64::try_from(seconds).ok().filter(|&seconds| seconds > 0).map(Duration::from_secs);
    if after.is_some_and(|after| after > MAX_EXPIRY) {
        return Err(CommandError::ExpireTime("expire"));
    }
    Ok(Command::Expire { key: key.clone(), after })
}

fn hello(arguments: &[Bytes]) -> Result<Command, CommandError> {
    let mut arguments = arguments.iter();
    let protocol = match arguments.next().map(|number| integer(number)) {
        None => None,
        Some(Some(2)) => Some(Protocol::Resp2),
        Some(Some(3)) => Some(Protocol::Resp3),
        Some(Some(_)) => return Err(CommandError::Protocol),
        Some(None) => return Err(CommandError::ProtocolNumber),
    };
    let (mut user, mut name) = (None, None);
    while let Some(option) = arguments.next() {
        let syntax = || CommandError::HelloOption(lossy(option));
        if option.eq_ignore_ascii_case(b"auth") {
            user = Some(arguments.next().ok_or_else(syntax)?.clone());
            // The password: anyone may be the default user, nobody may be another.
            arguments.next().ok_or_else(syntax)?;
        } else if option.eq_ignore_ascii_case(b"setname") {
            name = Some(client_name(arguments.next().ok_or_else(syntax)?)?);
        } else {
            return Err(syntax());
        }
    }
    Ok(Command::Hello { protocol, user, name })
}

fn client(subcommand: &Bytes, arguments: &[Bytes]) -> Result<ClientCommand, CommandError> {
    let lower = lossy(subcommand).to_ascii_lowercase();
    match (lower.as_str(), arguments) {
        ("getname", []) => Ok(ClientCommand::GetName),
        ("id", []) => Ok(ClientCommand::Id),
        ("setname", [name]) => Ok(ClientCommand::SetName(client_name(name)?)),
        ("setinfo", [option, _]) => {
            if option.eq_ignore_ascii_case(b"lib-name") || option.eq_ignore_ascii_case(b"lib-ver") {
                Ok(ClientCommand::Acknowledge)
            } else {
                Err(CommandError::ClientInfo(lossy(option)))
            }
        }
        ("no-evict" | "no-touch", [state]) => {
            if state.eq_ignore_ascii_case(b"on") || state.eq_ignore_ascii_case(b"off") {
                Ok(ClientCommand::Acknowledge)
            } else {
                Err(CommandError::Syntax)
            }
        }
        ("getname" | "id" | "setname" | "setinfo" | "no-evict" | "no-touch", _) => {
            Err(CommandError::Arity(format!("client|{lower}")))
        }
        _ => Err(CommandError::UnknownSubcommand(lossy(subcommand))),
    }
}

fn client_name(name: &Bytes) -> Result<Bytes, CommandError> {
    if name.iter().all(u8::is_ascii_graphic) {
        // A copy, so that a short name does not hold on to the read buffer it came in.
        Ok(Bytes::copy_from_slice(name))
    } else {
        Err(CommandError::ClientName)
    }
}

/// Most bytes of a client's own words that come back to it in an error.
const MAX_QUOTE_BYTES: usize = 128;

fn unknown(name: &[u8], arguments: &[Bytes]) -> CommandError {
    let mut quoted = String::new();
    for argument in arguments {
        if quoted.len() >= MAX_QUOTE_BYTES {
            break;
        }
        let room = MAX_QUOTE_BYTES - quoted.len();
        let shown = argument.get(..room).unwrap_or(argument);
        // Writing to a string cannot fail.
        let _ = write!(quoted, "'{}' ", String::from_utf8_lossy(shown));
    }
    CommandError::Unknown { name: lossy(name), arguments: quoted }
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text.get(..MAX_QUOTE_BYTES).unwrap_or(text)).into_owned()
}
