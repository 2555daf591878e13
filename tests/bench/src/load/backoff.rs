//! When the official client (socket.io-client 4.8) tries again: `reconnectionDelay` 1 s, doubled up to
//! `reconnectionDelayMax` 5 s, `randomizationFactor` 0.5.

use std::time::Duration;

use rand::RngExt;

const FIRST: f64 = 1_000.0;
const LONGEST: f64 = 5_000.0;
const FACTOR: f64 = 0.5;

/// Attempts after which the delay is the longest anyway.
const ENOUGH: i32 = 16;

#[derive(Default)]
pub(super) struct Backoff {
    attempts: i32,
}

impl Backoff {
    pub(super) fn next(&mut self) -> Duration {
        let delay = FIRST * 2_f64.powi(self.attempts.min(ENOUGH));
        self.attempts += 1;
        let deviation = rand::rng().random_range(-FACTOR..FACTOR) * delay;
        Duration::from_secs_f64((delay + deviation).min(LONGEST) / 1_000.0)
    }

    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let mut backoff = Backoff::default();
        let delays: Vec<f64> = (0..40).map(|_| backoff.next().as_secs_f64()).collect();
        assert!((0.5..=1.5).contains(&delays[0]) && (1.0..=3.0).contains(&delays[1]));
        assert!(delays.iter().skip(4).all(|delay| (5.0..5.001).contains(delay)));
        backoff.reset();
        assert!(backoff.next() < Duration::from_millis(1_501));
    }
}
