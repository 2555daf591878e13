//! The address of the client that made a request: the address at the other end of the connection, or the address that a
//! trusted proxy names.
//!
//! Pure. Each proxy adds the address it was asked from at the end of `X-Forwarded-For`. What stands before the last address
//! that is not trusted can be forged.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName};

use crate::config::Networks;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The client's address; `None` when all named addresses are trusted, as a trusted server may ask for many clients.
pub fn address(peer: IpAddr, headers: &HeaderMap, trusted: &Networks) -> Option<IpAddr> {
    let mut client = peer;
    let mut named = headers.get_all(FORWARDED_FOR).iter().rev().flat_map(|value| {
        // A value that is no text is no address either, and ends the chain.
        value.to_str().unwrap_or("?").rsplit(',')
    });
    while trusted.contains(client) {
        client = named.next().and_then(parse)?;
    }
    Some(client)
}

/// An address as proxies write it: some add the port.
fn parse(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().or_else(|_| text.parse().map(|address: SocketAddr| address.ip()));
    address.ok().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Environment};

    fn client(trusted: &str, peer: &str, forwarded: &[&[u8]]) -> String {
        let environment: Environment = [("TRUSTED_PROXIES", trusted)].into_iter().collect();
        let trusted = Config::from_env(&environment).unwrap().http.trusted_proxies;
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(FORWARDED_FOR, value.to_vec().try_into().unwrap());
        }
        address(peer.parse().unwrap(), &headers, &trusted).map_or("nobody".to_owned(), |address| address.to_string())
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        assert_eq!(client("private", "203.0.113.1", &[b"198.51.100.1"]), "203.0.113.1");
        assert_eq!(client("none", "127.0.0.1", &[b"198.51.100.1"]), "127.0.0.1");
        assert_eq!(client("private", "10.0.0.1", &[b"198.51.100.1"]), "198.51.100.1");
        assert_eq!(client("private", "10.0.0.1", &[]), "nobody");
    }

    #[test]
    fn what_a_client_writes_itself_does_not_count() {
        let chain: &[&[u8]] = &[b"192.0.2.66, 198.51.100.1 ,10.0.0.7"];
        assert_eq!(client("private", "10.0.0.1", chain), "198.51.100.1");
        let lines: &[&[u8]] = &[b"192.0.2.66", b"198.51.100.1", b"10.0.0.7,10.0.0.8"];
        assert_eq!(client("private", "10.0.0.1", lines), "198.51.100.1");
        assert_eq!(client("private", "10.0.0.1", &[b"10.0.0.3, 10.0.0.2"]), "nobody");
    }

    #[test]
    fn what_is_no_address_ends_the_chain() {
        for odd in [&b"192.0.2.66, unknown"[..], b"192.0.2.66,", b"", b"\xff", b"192.0.2.66;"] {
            assert_eq!(client("private", "10.0.0.1", &[odd]), "nobody", "{odd:?}");
        }
        assert_eq!(client("private", "10.0.0.1", &[b"192.0.2.66, x, 10.0.0.7"]), "nobody");
    }

    #[test]
    fn addresses_in_all_forms() {
        for (text, address) in [
            (&b"198.51.100.1:4711"[..], "198.51.100.1"),
            (b"2001:db8::1", "2001:db8::1"),
            (b"[2001:db8::1]", "2001:db8::1"),
            (b"[2001:db8::1]:4711", "2001:db8::1"),
            (b"::ffff:198.51.100.1", "198.51.100.1"),
        ] {
            assert_eq!(client("private", "::1", &[text]), address);
        }
    }
}
