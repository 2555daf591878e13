//! How often one address and one token may ask.
//!
//! Each has an allowance of one minute's checks that fills up evenly. A denied check counts several times, so that who
//! guesses is soon slower than who works. Time is passed in.

use std::{
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    aging::Aging,
    document::{Check, Key},
};

const MINUTE: Duration = Duration::from_mins(1);

/// What a denied check counts.
const DENIED: u32 = 3;

/// Addresses and tokens remembered, each; about 2 MB each when full. Then the oldest goes, which gives that one its
/// full allowance back: whoever has so many addresses at hand is not held back by a limit for each.
const MOST: usize = 16_384;

/// Bits of an IPv6 address that count: one customer has at least all the rest.
const IPV6_BITS: u32 = 64;

/// The allowances.
pub struct Limits {
    /// Time in which one check is earned back.
    each: Duration,
    state: Mutex<State>,
}

struct State {
    addresses: Meter<IpAddr>,
    tokens: Meter<Key>,
}

/// For each key the time at which its allowance is full again.
struct Meter<K>(Aging<K, Instant>);

impl Limits {
    /// Allows each address and each token `per_minute` checks, at least 1.
    pub fn new(per_minute: u32) -> Self {
        let state = State { addresses: Meter(Aging::new(MOST)), tokens: Meter(Aging::new(MOST)) };
        Self { each: MINUTE / per_minute, state: Mutex::new(state) }
    }

    /// Counts a check, if it may be made; where the address is not known, for the token only. All who come without one
    /// would share an allowance, and the few who fail or guess would use up that of all the others.
    ///
    /// # Errors
    /// The time after which it may.
    pub fn admit(&self, from: Option<IpAddr>, check: &Check, now: Instant) -> Result<(), Duration> {
        let (address, token) = (from.map(network), check.token_key());
        let mut state = self.lock();
        let wait = address.map_or(Duration::ZERO, |address| state.addresses.wait(&address, self.each, now));
        let wait = wait.max(state.tokens.wait(&token, self.each, now));
        if !wait.is_zero() {
            return Err(wait);
        }
        state.spend(address, token, self.each, now);
        Ok(())
    }

    /// Counts what a denied check costs beyond any other.
    pub fn denied(&self, from: Option<IpAddr>, check: &Check, now: Instant) {
        let more = self.each * (DENIED - 1);
        self.lock().spend(from.map(network), check.token_key(), more, now);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn spend(&mut self, address: Option<IpAddr>, token: Key, cost: Duration, now: Instant) {
        if let Some(address) = address {
            self.addresses.spend(address, cost, now);
        }
        self.tokens.spend(token, cost, now);
    }
}

impl<K: Copy + Eq + Hash> Meter<K> {
    /// How long until there is enough for `cost`.
    fn wait(&self, key: &K, cost: Duration, now: Instant) -> Duration {
        let full_in = self.0.get(key).map_or(Duration::ZERO, |full| full.saturating_duration_since(now));
        (full_in + cost).saturating_sub(MINUTE)
    }

    /// Takes `cost`; who has less owes it.
    fn spend(&mut self, key: K, cost: Duration, now: Instant) {
        let full = self.0.get(&key).map_or(now, |full| (*full).max(now));
        // Denials of many checks under way at once must not lock anyone out for longer than this.
        let full = (full + cost).min(now + MINUTE * 2);
        self.0.insert(key, full, |full| *full <= now);
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let mask = u128::MAX << (Ipv6Addr::BITS - IPV6_BITS);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::document::Names, *};

    fn check(token: usize) -> Check {
        Check::new(format!("1,{token}"), "comment-1-body".to_owned(), Names::Any).unwrap()
    }

    fn address(last: u8) -> IpAddr {
        [203, 0, 113, last].into()
    }

    #[test]
    fn an_address_has_a_minutes_checks_and_earns_them_back() {
        let (limits, start) = (Limits::new(60), Instant::now());
        for token in 0..60 {
            assert_eq!(limits.admit(Some(address(1)), &check(token), start), Ok(()), "{token}");
        }
        assert_eq!(limits.admit(Some(address(1)), &check(60), start), Err(Duration::from_secs(1)));
        assert_eq!(limits.admit(Some(address(2)), &check(60), start), Ok(()), "another address is not concerned");
        let later = start + Duration::from_secs(2);
        let admitted = (0..10).filter(|_| limits.admit(Some(address(1)), &check(61), later).is_ok()).count();
        assert_eq!(admitted, 2);
    }

    #[test]
    fn a_token_has_the_same_from_wherever_it_comes() {
        let (limits, now) = (Limits::new(60), Instant::now());
        let admitted = (0..100).filter(|&last| limits.admit(Some(address(last)), &check(1), now).is_ok()).count();
        assert_eq!(admitted, 60);
        // What was refused for the token's sake was not counted for the address.
        let admitted =
            (0..100).filter(|&token| limits.admit(Some(address(99)), &check(token + 2), now).is_ok()).count();
        assert_eq!(admitted, 60);
    }

    #[test]
    fn without_an_address_only_the_token_counts() {
        let (limits, now) = (Limits::new(1), Instant::now());
        for token in 0..100 {
            assert_eq!(limits.admit(None, &check(token), now), Ok(()), "{token}");
            limits.denied(None, &check(token), now);
        }
        assert!(limits.admit(None, &check(1), now).is_err());
    }

    #[test]
    fn denied_checks_count_more() {
        let (limits, now) = (Limits::new(60), Instant::now());
        let admitted = (0..100).filter(|&token| {
            let admitted = limits.admit(Some(address(1)), &check(token), now).is_ok();
            limits.denied(Some(address(1)), &check(token), now);
            admitted
        });
        assert_eq!(admitted.count(), 20);
        let much_later = now + MINUTE * 2;
        assert!(limits.admit(Some(address(1)), &check(0), much_later).is_ok(), "nobody owes more than a minute");
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let (limits, now) = (Limits::new(1), Instant::now());
        let of = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        assert!(limits.admit(of("2001:db8::1"), &check(1), now).is_ok());
        assert!(limits.admit(of("2001:db8::2"), &check(2), now).is_err());
        assert!(limits.admit(of("2001:db8:0:1::1"), &check(3), now).is_ok());
        assert!(limits.admit(of("::ffff:203.0.113.1"), &check(4), now).is_ok());
        assert!(limits.admit(of("203.0.113.1"), &check(5), now).is_err());
    }

    #[test]
    fn memory_is_bounded() {
        let (limits, now) = (Limits::new(1), Instant::now());
        for token in 0..=MOST {
            let from = Ipv6Addr::from_bits((token as u128) << 64).into();
            assert!(limits.admit(Some(from), &check(token), now).is_ok());
        }
        assert!(limits.admit(Some(address(1)), &check(MOST), now).is_err(), "the newest is remembered");
        assert!(limits.admit(Some(address(1)), &check(0), now).is_ok(), "the oldest is not");
    }
}
