//! `TRUSTED_PROXIES`: whose word counts when they say for whom they ask.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::mistake::Wrong;

/// Written for the networks that are not part of the internet, in which containers and their proxies live.
const PRIVATE: &str = "private";
/// Written for nobody.
const NONE: &str = "none";

/// What Rails takes for proxies by default, and addresses of links.
const PRIVATE_NETWORKS: [Network; 8] = [
    Network::v4([127, 0, 0, 0], 8),
    Network::v4([10, 0, 0, 0], 8),
    Network::v4([172, 16, 0, 0], 12),
    Network::v4([192, 168, 0, 0], 16),
    Network::v4([169, 254, 0, 0], 16),
    Network { base: IpAddr::V6(Ipv6Addr::LOCALHOST), bits: 128 },
    Network { base: IpAddr::V6(Ipv6Addr::from_bits(0xfc << 120)), bits: 7 },
    Network { base: IpAddr::V6(Ipv6Addr::from_bits(0xfe8 << 116)), bits: 10 },
];

/// Addresses, as a set of networks; none of them by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<Network>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    base: IpAddr,
    /// Leading bits that count.
    bits: u8,
}

impl Network {
    const fn v4([a, b, c, d]: [u8; 4], bits: u8) -> Self {
        Self { base: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), bits }
    }

    fn contains(self, address: IpAddr) -> bool {
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                (base.to_bits() ^ address.to_bits()).leading_zeros() >= u32::from(self.bits)
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                (base.to_bits() ^ address.to_bits()).leading_zeros() >= u32::from(self.bits)
            }
            _ => false,
        }
    }
}

impl Networks {
    /// Whether the address is in one of them. An IPv4 address counts as one in whichever form it comes.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(address))
    }

    /// Addresses and networks, separated by commas or blanks.
    pub(super) fn parse(text: &str) -> Result<Self, Wrong> {
        if text.eq_ignore_ascii_case(NONE) {
            return Ok(Self(Vec::new()));
        }
        let mut networks = Vec::new();
        for word in text.split([',', ' ']).filter(|word| !word.is_empty()) {
            if word.eq_ignore_ascii_case(PRIVATE) {
                networks.extend(PRIVATE_NETWORKS);
            } else {
                networks.push(network(word).ok_or_else(|| {
                    Wrong::new(
                        "not a list of networks",
                        "give addresses such as 203.0.113.7 or networks such as 10.0.0.0/8, separated by commas, \
                         or the word private or none",
                    )
                })?);
            }
        }
        Ok(Self(networks))
    }
}

fn network(word: &str) -> Option<Network> {
    let (base, bits) = match word.split_once('/') {
        Some((base, bits)) => (base, Some(bits.parse::<u8>().ok()?)),
        None => (word, None),
    };
    let base: IpAddr = base.parse().ok()?;
    let most = if base.is_ipv4() { 32 } else { 128 };
    let bits = bits.unwrap_or(most);
    // IPv4 in the form of IPv6 counts as IPv4 here as well.
    match base.to_canonical() {
        IpAddr::V4(mapped) if base.is_ipv6() => bits.checked_sub(96).map(|bits| Network { base: mapped.into(), bits }),
        _ => (bits <= most).then_some(Network { base, bits }),
    }
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
