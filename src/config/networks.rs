//! `TRUSTED_PROXIES`: the peers that a forwarded client address is believed from.

use std::net::IpAddr;

use ipnet::IpNet;

use super::reader::Wrong;

/// What `private` stands for: the networks that Rails takes for proxies by default, and link-local addresses.
const PRIVATE: &str = "127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,169.254.0.0/16,::1/128,fc00::/7,fe80::/10";

/// A set of networks, empty by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// Whether a network of the set contains the address. An IPv4-mapped IPv6 address counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Reads `none`, or addresses, networks and the word `private`, separated by commas or blanks.
    pub(super) fn parse(text: &str) -> Result<Self, Wrong> {
        if text.eq_ignore_ascii_case("none") {
            return Ok(Self::default());
        }
        let words = text.split([',', ' ']).filter(|word| !word.is_empty());
        let networks =
            words.flat_map(|word| if word.eq_ignore_ascii_case("private") { PRIVATE } else { word }.split(','));
        networks.map(network).collect::<Option<_>>().map(Self).ok_or_else(|| {
            Wrong::new(
                "not a list of networks",
                "give addresses such as 203.0.113.7 or networks such as 10.0.0.0/8, separated by commas, \
                 or the word private or none",
            )
        })
    }
}

/// The parser of `ipnet` takes octets with leading zeros, which the standard library refuses as ambiguous.
fn network(text: &str) -> Option<IpNet> {
    let (base, bits) = match text.split_once('/') {
        Some((base, bits)) => (base, Some(bits.parse::<u8>().ok()?)),
        None => (text, None),
    };
    let base: IpAddr = base.parse().ok()?;
    let bits = bits.unwrap_or(if base.is_ipv4() { 32 } else { 128 });
    let canonical = base.to_canonical();
    let bits = if base == canonical { bits } else { bits.checked_sub(96)? };
    IpNet::new(canonical, bits).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(networks: &str, address: &str) -> bool {
        Networks::parse(networks).unwrap().contains(address.parse().unwrap())
    }

    #[test]
    fn private_is_what_is_not_the_internet() {
        for address in
            ["127.0.0.1", "::1", "10.255.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fd00::1", "fe80::1"]
        {
            assert!(contains("private", address), "{address}");
        }
        for address in ["172.32.0.1", "172.15.0.1", "11.0.0.1", "8.8.8.8", "::2", "2001:db8::1", "192.169.0.1"] {
            assert!(!contains("PRIVATE", address), "{address}");
        }
        assert!(contains("private", "::ffff:10.0.0.1") && !contains("private", "::ffff:8.8.8.8"));
    }

    #[test]
    fn lists_of_addresses_and_networks() {
        let list = "203.0.113.7, 198.51.100.0/24 2001:db8::/32,private";
        for address in ["203.0.113.7", "198.51.100.255", "2001:db8:1::", "10.1.1.1"] {
            assert!(contains(list, address), "{address}");
        }
        assert!(!contains(list, "203.0.113.8"));
        assert!(!contains("none", "127.0.0.1"));
        assert!(contains("::ffff:10.0.0.0/104", "10.1.1.1") && !contains("::ffff:10.0.0.0/104", "11.1.1.1"));
        assert!(contains("0.0.0.0/0", "8.8.8.8") && !contains("0.0.0.0/0", "2001:db8::1"));
        for bad in [
            "10.0.0.0/33",
            "::/129",
            "::ffff:10.0.0.0/8",
            "host",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "10.0.0",
            "none,10.0.0.1",
        ] {
            assert!(Networks::parse(bad).is_err(), "{bad}");
        }
    }
}
