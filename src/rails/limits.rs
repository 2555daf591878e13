//! Rate limits of checks, for each address and each token.
//!
//! Each has an allowance of one minute's checks, which fills up evenly (GCRA). A denied check costs several, so that
//! guessing is soon slower than working. Time is passed in.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hashlink::LruCache;
use tokio::time::Instant;

use super::check::{Check, HashedKey};

const MINUTE: Duration = Duration::from_mins(1);

/// The cost of a denied check.
const DENIED: u32 = 3;

/// Longest time to a full allowance: denials of many concurrent checks must lock a client out no longer.
const MAX_DEBT: Duration = Duration::from_mins(2);

/// Addresses and tokens remembered, about 4 MB when full. The least recently used then goes, and has its full allowance
/// again; a client with so many addresses is not held back by a limit for each anyway.
const MAX_REMEMBERED: usize = 32_768;

/// Bits of an IPv6 address that count: a customer has at least all the rest.
const IPV6_BITS: u32 = 64;

/// The allowances.
pub struct RateLimits {
    /// Time in which one check is earned back.
    each: Duration,
    /// When an allowance is full again.
    full_at: Mutex<LruCache<Subject, Instant>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Subject {
    Network(IpAddr),
    Token(HashedKey),
}

impl RateLimits {
    /// Allows each address and each token `per_minute` checks, at least 1.
    pub fn new(per_minute: u32) -> Self {
        Self { each: MINUTE / per_minute, full_at: Mutex::new(LruCache::new(MAX_REMEMBERED)) }
    }

    /// Counts a check. Without an address only the token is limited: all clients without one would share an allowance,
    /// and the few that fail or guess would use it up.
    ///
    /// # Errors
    /// The time after which the check may be made; then nothing is counted.
    pub fn admit(&self, from: Option<IpAddr>, check: &Check, now: Instant) -> Result<(), Duration> {
        let mut full_at = self.lock();
        let wait = subjects(from, check).map(|subject| {
            let full_in = full_at.get(&subject).map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
            (full_in + self.each).saturating_sub(MINUTE)
        });
        match wait.max() {
            Some(wait) if !wait.is_zero() => return Err(wait),
            _ => spend(&mut full_at, from, check, self.each, now),
        }
        Ok(())
    }

    /// Counts what a denied check costs beyond any other.
    pub fn denied(&self, from: Option<IpAddr>, check: &Check, now: Instant) {
        spend(&mut self.lock(), from, check, self.each * (DENIED - 1), now);
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<Subject, Instant>> {
        self.full_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An allowance that is smaller than the cost goes into debt.
fn spend(full_at: &mut LruCache<Subject, Instant>, from: Option<IpAddr>, check: &Check, cost: Duration, now: Instant) {
    for subject in subjects(from, check) {
        let at = full_at.entry(subject).or_insert(now);
        *at = ((*at).max(now) + cost).min(now + MAX_DEBT);
    }
}

fn subjects(from: Option<IpAddr>, check: &Check) -> impl Iterator<Item = Subject> {
    let network = from.map(|address| match address.to_canonical() {
        IpAddr::V6(address) => {
            let mask = u128::MAX << (Ipv6Addr::BITS - IPV6_BITS);
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & mask))
        }
        address @ IpAddr::V4(_) => address,
    });
    [network.map(Subject::Network), Some(Subject::Token(check.token_key()))].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::{super::check::Names, *};

    fn check(token: usize) -> Check {
        Check::new(format!("1,{token}"), "comment-1-body".to_owned(), Names::Any).unwrap()
    }

    fn address(last: u8) -> IpAddr {
        [203, 0, 113, last].into()
    }

    #[test]
    fn an_address_has_a_minutes_checks_and_earns_them_back() {
        let (limits, start) = (RateLimits::new(60), Instant::now());
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
        let (limits, now) = (RateLimits::new(60), Instant::now());
        let admitted = (0..100).filter(|&last| limits.admit(Some(address(last)), &check(1), now).is_ok()).count();
        assert_eq!(admitted, 60);
        // What was refused for the token's sake was not counted for the address.
        let admitted =
            (0..100).filter(|&token| limits.admit(Some(address(99)), &check(token + 2), now).is_ok()).count();
        assert_eq!(admitted, 60);
    }

    #[test]
    fn without_an_address_only_the_token_counts() {
        let (limits, now) = (RateLimits::new(1), Instant::now());
        for token in 0..100 {
            assert_eq!(limits.admit(None, &check(token), now), Ok(()), "{token}");
            limits.denied(None, &check(token), now);
        }
        assert!(limits.admit(None, &check(1), now).is_err());
    }

    #[test]
    fn denied_checks_count_more() {
        let (limits, now) = (RateLimits::new(60), Instant::now());
        let admitted = (0..100).filter(|&token| {
            let admitted = limits.admit(Some(address(1)), &check(token), now).is_ok();
            limits.denied(Some(address(1)), &check(token), now);
            admitted
        });
        assert_eq!(admitted.count(), 20);
        let much_later = now + MAX_DEBT;
        assert!(limits.admit(Some(address(1)), &check(0), much_later).is_ok(), "nobody owes more than a minute");
    }

    #[test]
    fn guessing_stays_slow_for_as_long_as_it_lasts() {
        let (limits, start) = (RateLimits::new(60), Instant::now());
        let admitted = (0..6_000).filter(|&tenth| {
            let now = start + Duration::from_millis(100) * tenth;
            let admitted = limits.admit(Some(address(1)), &check(1), now).is_ok();
            if admitted {
                limits.denied(Some(address(1)), &check(1), now);
            }
            admitted
        });
        // The first minute's 20, and 20 for each of the ten minutes.
        assert!((215..=220).contains(&admitted.count()));
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let (limits, now) = (RateLimits::new(1), Instant::now());
        let of = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        assert!(limits.admit(of("2001:db8::1"), &check(1), now).is_ok());
        assert!(limits.admit(of("2001:db8::2"), &check(2), now).is_err());
        assert!(limits.admit(of("2001:db8:0:1::1"), &check(3), now).is_ok());
        assert!(limits.admit(of("::ffff:203.0.113.1"), &check(4), now).is_ok());
        assert!(limits.admit(of("203.0.113.1"), &check(5), now).is_err());
    }

    #[test]
    fn memory_is_bounded() {
        let (limits, now) = (RateLimits::new(1), Instant::now());
        for token in 0..=MAX_REMEMBERED {
            let from = Ipv6Addr::from_bits((token as u128) << 64).into();
            assert!(limits.admit(Some(from), &check(token), now).is_ok());
        }
        assert!(limits.admit(Some(address(1)), &check(MAX_REMEMBERED), now).is_err(), "the newest is remembered");
        assert!(limits.admit(Some(address(1)), &check(0), now).is_ok(), "the oldest is not");
    }
}
