//! Asks the server on this machine whether it is ready, for containers whose image holds no other program.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::http::{HttpAnswer, exchange};
use crate::config::HttpConfig;

/// Succeeds if the server answers `/health/ready` with a 200; else says why it does not count as ready.
pub(super) async fn ask(http: &HttpConfig) -> Result<(), String> {
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
    use super::*;

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
