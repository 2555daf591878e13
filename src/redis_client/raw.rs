//! A bare connection, for a caller that reads the replies without the client.

use std::{io, net::SocketAddr};

use futures_util::future::select_ok;
use redis::{ConnectionAddr, RedisConnectionInfo};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream, lookup_host},
};

use super::{ConnectionError, Connector};
use crate::tls;

/// Longest answer to a login in bytes.
const MAX_ANSWER: usize = 4096;

/// Bytes both ways, over TCP, TLS or a Unix socket.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for T {}

/// A connection to Redis that is logged in and has nothing unread.
pub type RawConnection = Box<dyn Duplex>;

/// The ends of a connection, as this process sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Of TCP, with or without TLS.
    Tcp {
        /// This process' own.
        near: SocketAddr,
        /// The other one.
        far: SocketAddr,
    },
    /// Of a Unix socket.
    Unix,
}

impl Ends {
    /// Whether nothing stands between this process and a Redis that says `client` of this connection
    /// (<https://redis.io/docs/latest/commands/client-info/>): no proxy, and nothing that translates addresses.
    pub fn are_direct(self, client: &str) -> bool {
        let end = |name: &str| client.split_ascii_whitespace().find_map(|field| field.strip_prefix(name));
        let ends = (end("addr="), end("laddr="));
        match self {
            Self::Tcp { near, far } => ends == (Some(&*near.to_string()), Some(&*far.to_string())),
            // Redis names the path, and no port.
            Self::Unix => [ends.0, ends.1].iter().all(|end| end.is_some_and(|end| end.ends_with(":0"))),
        }
    }
}

impl Connector {
    /// A new bare connection. Fails when Redis cannot be reached or refuses the login; there is no timeout for a server
    /// that sends nothing.
    pub async fn dial_raw(&self) -> Result<(RawConnection, Ends), ConnectionError> {
        let client = self.client().await?;
        let info = client.get_connection_info();
        let (mut connection, ends): (RawConnection, _) = match info.addr() {
            ConnectionAddr::Tcp(host, port) => {
                let (stream, ends) = tcp(host, *port).await?;
                (Box::new(stream), ends)
            }
            ConnectionAddr::TcpTls { host, port, .. } => {
                let (stream, ends) = tcp(host, *port).await?;
                (Box::new(tls::connect(host, stream).await?), ends)
            }
            ConnectionAddr::Unix(path) => (Box::new(UnixStream::connect(path).await?), Ends::Unix),
            _ => return Err(io::Error::from(io::ErrorKind::Unsupported).into()),
        };
        log_in(&mut connection, info.redis_settings()).await?;
        Ok((connection, ends))
    }
}

/// The first connection that comes about to any address of `host`.
async fn tcp(host: &str, port: u16) -> io::Result<(TcpStream, Ends)> {
    let mut dials = lookup_host((host, port)).await?.map(|address| Box::pin(TcpStream::connect(address))).peekable();
    if dials.peek().is_none() {
        return Err(io::Error::other("the name has no address"));
    }
    let (stream, _) = select_ok(dials).await?;
    stream.set_nodelay(true)?;
    let ends = Ends::Tcp { near: stream.local_addr()?, far: stream.peer_addr()? };
    Ok((stream, ends))
}

async fn log_in(connection: &mut RawConnection, login: &RedisConnectionInfo) -> Result<(), ConnectionError> {
    if let Some(password) = login.password() {
        let mut answer = ask(connection, redis::cmd("AUTH").arg(login.username()).arg(password)).await?;
        // So say servers before Redis 6, which know passwords only.
        let knows_no_users = answer.as_ref().is_err_and(|text| text.contains("wrong number of arguments"));
        if knows_no_users && login.username().is_some() {
            answer = ask(connection, redis::cmd("AUTH").arg(password)).await?;
        }
        // Only the first word: a server that does not know the command repeats the password after it.
        answer.map_err(|text| ConnectionError::Refused(text.split(' ').take(1).collect()))?;
    }
    // Messages come whatever the database is, but a wrong one is better reported now than at each lookup.
    if login.db() != 0 {
        ask(connection, redis::cmd("SELECT").arg(login.db())).await?.map_err(ConnectionError::Refused)?;
    }
    Ok(())
}

/// Sends a command that is answered with a status, and reads that to its end and no further. `Err` is a refusal.
async fn ask(connection: &mut RawConnection, command: &redis::Cmd) -> io::Result<Result<(), String>> {
    connection.write_all(&command.get_packed_command()).await?;
    connection.flush().await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n") && answer.len() < MAX_ANSWER {
        answer.push(connection.read_u8().await?);
    }
    Ok(match answer.strip_prefix(b"-") {
        None => Ok(()),
        Some(refusal) => Err(refusal.trim_ascii_end().escape_ascii().to_string()),
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    /// Logs in at a server that gives these answers in turn; how that ends, and what was asked.
    async fn login(url: &str, answers: &[&str]) -> (Result<(), String>, String) {
        let (client, mut server) = duplex(1 << 16);
        server.write_all(answers.concat().as_bytes()).await.unwrap();
        server.shutdown().await.unwrap();
        let info = redis::IntoConnectionInfo::into_connection_info(url).unwrap();
        let mut client: RawConnection = Box::new(client);
        let ended = log_in(&mut client, info.redis_settings()).await;
        drop(client);
        let mut asked = String::new();
        server.read_to_string(&mut asked).await.unwrap();
        let words = asked.lines().filter(|line| !line.starts_with(['*', '$']));
        (ended.map_err(|error| error.to_string()), words.collect::<Vec<_>>().join(" "))
    }

    #[tokio::test]
    async fn what_the_address_names_is_given() {
        for (url, asked) in [
            ("redis://host", ""),
            ("redis://host/0", ""),
            ("redis://:secret@host/3", "AUTH secret SELECT 3"),
            ("redis://user:secret@host", "AUTH user secret"),
        ] {
            assert_eq!(login(url, &["+OK\r\n", "+OK\r\n"]).await, (Ok(()), asked.to_owned()), "{url}");
        }
    }

    #[tokio::test]
    async fn a_server_without_users_is_given_the_password_alone() {
        let answers = ["-ERR wrong number of arguments for 'auth' command\r\n", "+OK\r\n"];
        let (ended, asked) = login("redis://user:secret@host", &answers).await;
        assert_eq!((ended, &*asked), (Ok(()), "AUTH user secret AUTH secret"));
    }

    #[tokio::test]
    async fn a_refusal_is_told_without_the_password() {
        for (url, answers, told) in [
            ("redis://:secret@host", &["-WRONGPASS invalid pair\r\n"][..], "WRONGPASS"),
            ("redis://:secret@host", &["-ERR unknown command 'AUTH', with args beginning with: 'secret'\r\n"], "ERR"),
            ("redis://:secret@host/99", &["+OK\r\n", "-ERR DB index \x1b out of range\r\n"], r"\x1b out of range"),
        ] {
            let (ended, _) = login(url, answers).await;
            let said = ended.unwrap_err();
            assert!(said.contains(told) && !said.contains("secret"), "{said}");
        }
    }

    #[test]
    fn a_connection_is_direct_when_redis_sees_the_same_ends() {
        let tcp = |near: &str, far: &str| Ends::Tcp { near: near.parse().unwrap(), far: far.parse().unwrap() };
        let client = "id=3 addr=10.0.0.2:4000 laddr=10.0.0.1:6379 fd=8 name= user=default";
        for (ends, client, direct) in [
            (tcp("10.0.0.2:4000", "10.0.0.1:6379"), client, true),
            (tcp("[::1]:4000", "[::1]:6379"), "addr=[::1]:4000 laddr=[::1]:6379", true),
            (tcp("10.0.0.2:4000", "10.0.0.9:6379"), client, false),
            (tcp("10.0.0.2:4001", "10.0.0.1:6379"), client, false),
            (tcp("10.0.0.2:4000", "10.0.0.1:6379"), "addr=10.0.0.2:4000", false),
            (Ends::Unix, "addr=/run/redis.sock:0 laddr=/run/redis.sock:0", true),
            (Ends::Unix, client, false),
            (Ends::Unix, "", false),
        ] {
            assert_eq!(ends.are_direct(client), direct, "{ends:?} {client}");
        }
    }

    #[tokio::test]
    async fn who_closes_or_talks_for_ever_is_no_redis() {
        assert!(login("redis://:secret@host", &[]).await.0.is_err());
        let long = format!("-{}", "x".repeat(MAX_ANSWER));
        let (ended, _) = login("redis://:secret@host/1", &["+OK\r\n", &long]).await;
        assert!(ended.is_err());
    }
}
