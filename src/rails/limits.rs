//! Rate limits of checks, for each address and each token.
//!
//! Each has an allowance of one minute's checks, which fills up evenly (GCRA). A denied check costs several, so that
//! guessing is soon slower than working. Time is passed in.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use hashlink::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::check::{Check, HashedKey};

const MINUTE: Duration = Duration::from_mins(1);

/// What a denied check costs beyond any other.
const DENIED: u32 = 2;

/// Longest time to a full allowance: denials of many concurrent checks must lock a client out no longer.
const MAX_DEBT: Duration = Duration::from_mins(2);

/// Addresses and tokens remembered, about 4 MB when full. The least recently used then goes, and has its full allowance
/// again; a client with so many addresses is not held back by a limit for each anyway.
const MAX_REMEMBERED: usize = 32_768;

/// Bits of an IPv6 address that do not count: a customer has at least all of them.
const IPV6_HOST_BITS: u32 = 64;

/// The allowances.
pub(super) struct RateLimits {
    /// Time in which one check is earned back.
    each: Duration,
    /// When an allowance is full again.
    full_at: Mutex<LruCache<Subject, Instant>>,
}

/// What has an allowance.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Subject {
    Network(IpAddr),
    Token(HashedKey),
}

impl Subject {
    /// The subjects of a check. Without an address only the token is limited: all clients without one would share an
    /// allowance, and the few that fail or guess would use it up.
    pub(super) fn of(check: &Check, from: Option<IpAddr>) -> Vec<Self> {
        let network = from.map(|address| match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> IPV6_HOST_BITS << IPV6_HOST_BITS).into(),
            address @ IpAddr::V4(_) => address,
        });
        network.map(Self::Network).into_iter().chain([Self::Token(check.token_key())]).collect()
    }
}

impl RateLimits {
    /// Allows each subject `per_minute` checks, at least 1.
    pub(super) fn new(per_minute: u32) -> Self {
        Self { each: MINUTE / per_minute, full_at: Mutex::new(LruCache::new(MAX_REMEMBERED)) }
    }

    /// Counts a check.
    ///
    /// # Errors
    /// The time after which the check may be made; then nothing is counted.
    pub(super) fn admit(&self, subjects: &[Subject], now: Instant) -> Result<(), Duration> {
        let mut full_at = self.full_at.lock();
        let latest = subjects.iter().filter_map(|subject| full_at.get(subject).copied()).max().unwrap_or(now);
        let wait = (latest.saturating_duration_since(now) + self.each).saturating_sub(MINUTE);
        if !wait.is_zero() {
            return Err(wait);
        }
        spend(&mut full_at, subjects, self.each, now);
        Ok(())
    }

    /// Counts what a denied check costs.
    pub(super) fn denied(&self, subjects: &[Subject], now: Instant) {
        let mut full_at = self.full_at.lock();
        spend(&mut full_at, subjects, self.each * DENIED, now);
    }
}

/// An allowance that is smaller than the cost goes into debt.
fn spend(full_at: &mut LruCache<Subject, Instant>, subjects: &[Subject], cost: Duration, now: Instant) {
    for subject in subjects {
        let at = full_at.entry(*subject).or_insert(now);
        *at = ((*at).max(now) + cost).min(now + MAX_DEBT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(token: usize) -> Check {
        Check::new(format!("1,{token}"), "comment-1-body".to_owned()).unwrap()
    }

    fn address(last: u8) -> IpAddr {
        [203, 0, 113, last].into()
    }

    #[test]
    fn an_address_has_a_minutes_checks_and_earns_them_back() {
        let (limits, start) = (RateLimits::new(60), Instant::now());
        for token in 0..60 {
            assert_eq!(limits.admit(&Subject::of(&check(token), Some(address(1))), start), Ok(()), "{token}");
        }
        assert_eq!(limits.admit(&Subject::of(&check(60), Some(address(1))), start), Err(Duration::from_secs(1)));
        assert_eq!(
            limits.admit(&Subject::of(&check(60), Some(address(2))), start),
            Ok(()),
            "another address is not concerned"
        );
        let later = start + Duration::from_secs(2);
        let admitted =
            (0..10).filter(|_| limits.admit(&Subject::of(&check(61), Some(address(1))), later).is_ok()).count();
        assert_eq!(admitted, 2);
    }

    #[test]
    fn a_token_has_the_same_from_wherever_it_comes() {
        let (limits, now) = (RateLimits::new(60), Instant::now());
        let admitted =
            (0..100).filter(|&last| limits.admit(&Subject::of(&check(1), Some(address(last))), now).is_ok()).count();
        assert_eq!(admitted, 60);
        // What was refused for the token's sake was not counted for the address.
        let admitted = (0..100)
            .filter(|&token| limits.admit(&Subject::of(&check(token + 2), Some(address(99))), now).is_ok())
            .count();
        assert_eq!(admitted, 60);
    }

    #[test]
    fn without_an_address_only_the_token_counts() {
        let (limits, now) = (RateLimits::new(1), Instant::now());
        for token in 0..100 {
            assert_eq!(limits.admit(&Subject::of(&check(token), None), now), Ok(()), "{token}");
            limits.denied(&Subject::of(&check(token), None), now);
        }
        assert!(limits.admit(&Subject::of(&check(1), None), now).is_err());
    }

    #[test]
    fn denied_checks_count_more() {
        let (limits, now) = (RateLimits::new(60), Instant::now());
        let admitted = (0..100).filter(|&token| {
            let admitted = limits.admit(&Subject::of(&check(token), Some(address(1))), now).is_ok();
            limits.denied(&Subject::of(&check(token), Some(address(1))), now);
            admitted
        });
        assert_eq!(admitted.count(), 20);
        let much_later = now + MAX_DEBT;
        assert!(
            limits.admit(&Subject::of(&check(0), Some(address(1))), much_later).is_ok(),
            "nobody owes more than a minute"
        );
    }

    #[test]
    fn guessing_stays_slow_for_as_long_as_it_lasts() {
        let (limits, start) = (RateLimits::new(60), Instant::now());
        let admitted = (0..6_000).filter(|&tenth| {
            let now = start + Duration::from_millis(100) * tenth;
            let admitted = limits.admit(&Subject::of(&check(1), Some(address(1))), now).is_ok();
            if admitted {
                limits.denied(&Subject::of(&check(1), Some(address(1))), now);
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
        assert!(limits.admit(&Subject::of(&check(1), of("2001:db8::1")), now).is_ok());
        assert!(limits.admit(&Subject::of(&check(2), of("2001:db8::2")), now).is_err());
        assert!(limits.admit(&Subject::of(&check(3), of("2001:db8:0:1::1")), now).is_ok());
        assert!(limits.admit(&Subject::of(&check(4), of("::ffff:203.0.113.1")), now).is_ok());
        assert!(limits.admit(&Subject::of(&check(5), of("203.0.113.1")), now).is_err());
    }

    #[test]
    fn memory_is_bounded() {
        let (limits, now) = (RateLimits::new(1), Instant::now());
        for token in 0..=MAX_REMEMBERED {
            let from = Ipv6Addr::from_bits((token as u128) << 64).into();
            assert!(limits.admit(&Subject::of(&check(token), Some(from)), now).is_ok());
        }
        assert!(
            limits.admit(&Subject::of(&check(MAX_REMEMBERED), Some(address(1))), now).is_err(),
            "the newest is remembered"
        );
        assert!(limits.admit(&Subject::of(&check(0), Some(address(1))), now).is_ok(), "the oldest is not");
    }
}
