//! One HTTP request to a server nearby, for subcommands that only ask; and the health check, for containers whose image
//! holds no other program.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::config::HttpConfig;

/// How long connecting may take, and again the whole exchange. Docker waits longer for a health check.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Most bytes of an answer. Those of our server are a line or two.
const MOST_BYTES: u64 = 4096;

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
        self.status.starts_with("HTTP/1.") && self.status.split(' ').nth(1) == Some("200")
    }
}

/// Sends `head`, the lines of a request without the empty one, and `body`; reads until the server closes, as it does for
/// a request in HTTP/1.0. An error says that there is no connection, or no answer in time.
pub(super) async fn exchange(address: SocketAddr, head: &str, body: &[u8]) -> Result<HttpAnswer, String> {
    let failed = |what| move |error: io::Error| format!("{what} {address}: {error}");
    let stream = timeout(TIMEOUT, TcpStream::connect(address)).await.map_err(io::Error::from).flatten();
    let stream = stream.map_err(failed("cannot connect to"))?;
    let request = [head.as_bytes(), b"\r\n\r\n", body].concat();
    let answer = timeout(TIMEOUT, talk(stream, &request)).await.map_err(io::Error::from).flatten();
    let answer = answer.map_err(failed("no answer from"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    Ok(HttpAnswer { status: head.lines().next().unwrap_or_default().to_owned(), body: body.trim().to_owned() })
}

async fn talk(mut stream: TcpStream, request: &[u8]) -> io::Result<String> {
    let (reader, mut writer) = stream.split();
    let mut answer = Vec::new();
    let mut reader = reader.take(MOST_BYTES);
    // What the server answers may be why it does not take all of the request.
    let (sent, read) = tokio::join!(writer.write_all(request), reader.read_to_end(&mut answer));
    read?;
    if answer.is_empty() {
        sent?;
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Succeeds if the server answers `/health/ready` with a 200; else says why it does not count as ready.
pub(super) async fn check_health(http: &HttpConfig) -> Result<(), String> {
    let address = SocketAddr::new(reachable(http.bind), http.port);
    let answer = exchange(address, "GET /health/ready HTTP/1.0\r\nHost: localhost", b"").await?;
    if answer.is_ok() { Ok(()) } else { Err(format!("not ready: {}", brief(&answer))) }
}

/// The address at which a server bound to `bind` can be dialled from the same machine.
fn reachable(bind: Option<IpAddr>) -> IpAddr {
    match bind {
        Some(IpAddr::V6(address)) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        Some(address) if !address.is_unspecified() => address,
        _ => Ipv4Addr::LOCALHOST.into(),
    }
}

/// Status and body on one line, for Docker's record of health checks.
fn brief(HttpAnswer { status, body }: &HttpAnswer) -> String {
    let status = if status.is_empty() { "an empty answer" } else { status };
    format!("{status} {body}").trim().replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// What a server that answers one request with `answer` is taken to say.
    async fn said(answer: &str) -> HttpAnswer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 32];
            stream.read_exact(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            request
        };
        let (request, answer) = tokio::join!(server, exchange(address, "POST / HTTP/1.0\r\nHost: a", b"body"));
        assert_eq!(&request, b"POST / HTTP/1.0\r\nHost: a\r\n\r\nbody");
        answer.unwrap()
    }

    #[tokio::test]
    async fn only_200_is_ok() {
        assert!(said("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_ok());
        assert!(said("HTTP/1.0 200 OK\r\n\r\n").await.is_ok());
        let refused = said("HTTP/1.1 503 Service Unavailable\r\n\r\n{\"redis\":\"down\"}\n").await;
        assert_eq!((&*refused.status, &*refused.body), ("HTTP/1.1 503 Service Unavailable", "{\"redis\":\"down\"}"));
        assert!(!refused.is_ok());
        assert!(!said("").await.is_ok());
        assert!(!said("SSH-2.0 200\r\n").await.is_ok());
    }

    #[tokio::test]
    async fn an_endless_answer_ends() {
        assert!(said(&"HTTP/1.1 200 OK\r\n".repeat(500)).await.is_ok());
    }

    #[tokio::test]
    async fn an_address_without_a_server_is_told() {
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = exchange(address, "GET / HTTP/1.0", b"").await.unwrap_err();
        assert!(error.starts_with(&format!("cannot connect to {address}: ")), "{error}");
    }

    #[test]
    fn a_refusal_is_one_line() {
        let answer = |status: &str, body: &str| brief(&HttpAnswer { status: status.to_owned(), body: body.to_owned() });
        assert_eq!(answer("HTTP/1.1 503 Service Unavailable", "a\nb"), "HTTP/1.1 503 Service Unavailable a b");
        assert_eq!(answer("", ""), "an empty answer");
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
