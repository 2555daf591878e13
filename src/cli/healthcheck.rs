//! Asks the server on this machine whether it is ready, for containers whose image holds no other program.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::config::HttpConfig;

/// For connecting, and again for the whole answer. Docker waits longer than both.
const PATIENCE: Duration = Duration::from_secs(3);
/// A readiness answer is a line or two; more is not ours.
const MOST_BYTES: usize = 4096;

const REQUEST: &[u8] = b"GET /health/ready HTTP/1.0\r\nHost: localhost\r\n\r\n";

/// Why the server does not count as ready.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotReady {
    /// Nothing listens there.
    #[error("cannot connect to {address}")]
    Connect {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    /// Connected, but no answer came.
    #[error("no answer from {address}")]
    Answer {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    /// It says so itself.
    #[error("not ready: {0}")]
    Refused(String),
}

/// Succeeds if the server answers `/health/ready` with a 200.
pub(super) fn ask(http: &HttpConfig) -> Result<(), NotReady> {
    let address = SocketAddr::new(reachable(http.bind), http.port);
    let stream =
        TcpStream::connect_timeout(&address, PATIENCE).map_err(|source| NotReady::Connect { address, source })?;
    let answer = exchange(stream).map_err(|source| NotReady::Answer { address, source })?;
    if is_ok(&answer) { Ok(()) } else { Err(NotReady::Refused(brief(&answer))) }
}

/// The address at which a server bound to `bind` can be dialled from the same machine.
fn reachable(bind: Option<IpAddr>) -> IpAddr {
    match bind {
        Some(IpAddr::V6(address)) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        Some(address) if !address.is_unspecified() => address,
        _ => Ipv4Addr::LOCALHOST.into(),
    }
}

/// Everything the server sends until it closes, which an HTTP/1.0 server does, or until there is enough.
fn exchange(mut stream: TcpStream) -> io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(REQUEST)?;
    let mut answer = Vec::new();
    let mut chunk = [0; 512];
    while answer.len() < MOST_BYTES {
        // A timeout per read would let a server that drips bytes keep us for ever.
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk)? {
            0 => break,
            count => answer.extend(chunk.iter().take(count)),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn is_ok(answer: &str) -> bool {
    let mut words = answer.split(' ');
    words.next().is_some_and(|version| version.starts_with("HTTP/1.")) && words.next() == Some("200")
}

/// Status and body on one line, for Docker's record of health checks.
fn brief(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let status = head.lines().next().filter(|line| !line.is_empty()).unwrap_or("an empty answer");
    let text = format!("{status} {}", body.trim());
    text.trim().replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;
    use crate::config::Networks;

    /// A server that answers one request with `answer`, and what the check made of it.
    fn verdict(answer: &'static str) -> Result<(), NotReady> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; REQUEST.len()];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            request
        });
        let result = ask(&http(None, port));
        assert_eq!(server.join().unwrap(), REQUEST);
        result
    }

    fn http(bind: Option<IpAddr>, port: u16) -> HttpConfig {
        HttpConfig { port, bind, allowed_origin: None, strict_origin: false, trusted_proxies: Networks::default() }
    }

    #[test]
    fn only_200_is_ready() {
        assert!(verdict("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_ok());
        assert!(verdict("HTTP/1.0 200 OK\r\n\r\n").is_ok());
        let refused = verdict("HTTP/1.1 503 Service Unavailable\r\n\r\n{\"redis\":\"down\"}\n").unwrap_err();
        assert_eq!(refused.to_string(), "not ready: HTTP/1.1 503 Service Unavailable {\"redis\":\"down\"}");
        assert_eq!(verdict("").unwrap_err().to_string(), "not ready: an empty answer");
        assert!(verdict("SSH-2.0 200\r\n").is_err());
    }

    #[test]
    fn an_endless_answer_ends() {
        let flood: &'static str = Box::leak("HTTP/1.1 200 OK\r\n".repeat(500).into_boxed_str());
        assert!(verdict(flood).is_ok());
    }

    #[test]
    fn nobody_there_is_not_ready() {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        assert!(matches!(ask(&http(None, port)), Err(NotReady::Connect { .. })));
    }

    #[test]
    fn dials_where_the_server_listens() {
        for (bind, dialled) in
            [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.1.2.3", "10.1.2.3"), ("fd00::1", "fd00::1")]
        {
            assert_eq!(reachable(Some(bind.parse().unwrap())).to_string(), dialled);
        }
        assert_eq!(reachable(None), Ipv4Addr::LOCALHOST);
    }
}
