//! One HTTP request to a server nearby, without a runtime: for subcommands that only ask.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// How long connecting may take, and again the whole exchange. Docker waits longer for a health check.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Most bytes of an answer. Those of our server are a line or two.
const MOST_BYTES: usize = 4096;

/// There is no answer.
#[derive(Debug, thiserror::Error)]
#[error("{what} {address}")]
pub(super) struct HttpError {
    what: &'static str,
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// What a server answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HttpAnswer {
    /// The first line, such as `HTTP/1.1 200 OK`.
    pub(super) status: String,
    pub(super) body: String,
}

impl HttpAnswer {
    /// Whether the status is 200.
    pub(super) fn is_ok(&self) -> bool {
        let mut words = self.status.split(' ');
        words.next().is_some_and(|version| version.starts_with("HTTP/1.")) && words.next() == Some("200")
    }
}

/// Sends `head`, the lines of a request without the empty one, and `body`; reads until the server closes, as it does for
/// a request in HTTP/1.0.
///
/// # Errors
/// When there is no connection or no answer in time.
pub(super) fn exchange(address: SocketAddr, head: &str, body: &[u8]) -> Result<HttpAnswer, HttpError> {
    let failed = |what| move |source| HttpError { what, address, source };
    let stream = TcpStream::connect_timeout(&address, TIMEOUT).map_err(failed("cannot connect to"))?;
    let answer = talk(stream, head, body).map_err(failed("no answer from"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok(HttpAnswer { status: head.lines().next().unwrap_or_default().to_owned(), body: body.trim().to_owned() })
}

fn talk(mut stream: TcpStream, head: &str, body: &[u8]) -> io::Result<String> {
    let deadline = Instant::now() + TIMEOUT;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // What the server answers may be why it does not take all of the body.
    let sent = stream.write_all(&[format!("{head}\r\n\r\n").as_bytes(), body].concat());
    let mut answer = Vec::new();
    let mut chunk = [0; 512];
    while answer.len() < MOST_BYTES {
        // A timeout for each read would let a server that drips bytes keep us for ever.
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
    if answer.is_empty() {
        sent?;
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    /// What a server that answers one request with `answer` is taken to say.
    fn said(answer: &'static str) -> HttpAnswer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let expected = b"POST / HTTP/1.0\r\nHost: a\r\n\r\nbody";
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 32];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            request
        });
        let answer = exchange(address, "POST / HTTP/1.0\r\nHost: a", b"body").unwrap();
        assert_eq!(&server.join().unwrap(), expected);
        answer
    }

    #[test]
    fn only_200_is_ok() {
        assert!(said("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_ok());
        assert!(said("HTTP/1.0 200 OK\r\n\r\n").is_ok());
        let refused = said("HTTP/1.1 503 Service Unavailable\r\n\r\n{\"redis\":\"down\"}\n");
        assert_eq!((&*refused.status, &*refused.body), ("HTTP/1.1 503 Service Unavailable", "{\"redis\":\"down\"}"));
        assert!(!refused.is_ok());
        assert!(!said("").is_ok());
        assert!(!said("SSH-2.0 200\r\n").is_ok());
    }

    #[test]
    fn an_endless_answer_ends() {
        let flood: &'static str = Box::leak("HTTP/1.1 200 OK\r\n".repeat(500).into_boxed_str());
        assert!(said(flood).is_ok());
    }

    #[test]
    fn an_address_without_a_server_is_told() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = exchange(address, "GET / HTTP/1.0", b"").unwrap_err();
        assert_eq!(error.to_string(), format!("cannot connect to {address}"));
    }
}
