//! Members of a group who misuse it: returns that ask for much and read nothing, and many pollers of large answers.

use std::{io, time::Duration};

use tokio::time::{MissedTickBehavior, interval, sleep};

use super::Stranger;
use crate::{
    load::{flood::Order, polling::Polling, session::Session, websocket::WebSocket},
    redis::{Rails, To},
};

/// How long a return leaves unread what it is given.
const UNREAD: Duration = Duration::from_millis(100);

/// What a return with an old offset has missed: below what a server may refuse to replay.
const MISSED: usize = 110;
const MISSED_EACH: usize = 64_000;

/// What pollers are sent.
const LARGE: usize = 300_000;
const LARGE_EVERY: Duration = Duration::from_millis(200);

impl Stranger {
    /// Joins as a member, leaves, and lets the group get messages; returns CONNECT packets that ask for these: with the
    /// offset from before, and with one that is made up.
    pub(super) async fn miss(&self) -> io::Result<Vec<String>> {
        let Order { member, group, port, redis, .. } = self.order;
        let mut session = Session::new(true, false);
        let mut rails = Rails::connect(redis).await?;
        let mut socket = WebSocket::upgrade(self.dial(0).await?, member, port).await?;
        while !socket.read(&mut session, &self.tally).await?.joined {}
        rails.publish(To::Group(group), 1).await?;
        while socket.read(&mut session, &self.tally).await?.records == 0 {}
        drop(socket);
        for _ in 0..MISSED {
            rails.publish(To::Group(group), MISSED_EACH).await?;
        }
        let old = format!("4{}", session.connect());
        let Some((start, offset)) = old.rsplit_once(r#""offset":""#) else { return Ok(vec![old]) };
        let made_up: String = offset.chars().map(other_digit).collect();
        let made_up = format!(r#"{start}"offset":"{made_up}"#);
        Ok(vec![old, made_up])
    }

    /// Returns with an offset, and reads nothing of what it is given.
    pub(super) async fn come_back(&self, index: usize, packets: &[String]) -> io::Result<()> {
        let socket = WebSocket::upgrade(self.dial(index).await?, self.order.member, self.order.port).await?;
        socket.send(&packets[index % packets.len()])?;
        sleep(UNREAD).await;
        Ok(())
    }

    /// Polls as one of the members until the session ends.
    pub(super) async fn poll(&self, index: usize) -> io::Result<()> {
        let user = self.order.member + index;
        let stream = self.dial(index).await?;
        let session = Session::new(false, false);
        let mut polling = Polling::open(stream, user, self.order.port, &session, "Accept-Encoding: gzip\r\n").await?;
        loop {
            polling.request("GET", "").await?;
            self.add(1);
        }
    }

    /// Publishes text that compresses as well as text does.
    pub(super) async fn publish(&self) -> io::Result<()> {
        let mut rails = Rails::connect(self.order.redis).await?;
        let mut tick = interval(LARGE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seed = 1;
        loop {
            tick.tick().await;
            rails.send_text(To::Group(self.order.group), &prose(LARGE, &mut seed)).await?;
            rails.settle(1).await?;
        }
    }
}

/// Another digit for a digit, so that what comes out has the form of what went in.
fn other_digit(digit: char) -> char {
    match digit.to_digit(10) {
        Some(value) => char::from(b'0' + (9 - value) as u8),
        None => digit,
    }
}

/// Words in an order that does not repeat.
fn prose(length: usize, seed: &mut u64) -> String {
    const SYLLABLES: [&str; 16] = [
        "con", "sent", " the ", "pro", "po", "sal ", "a", "gree ", "vote", "d ", "group", " of ", "dis", "cuss",
        "ion ", "to ",
    ];
    let mut text = String::with_capacity(length + 8);
    while text.len() < length {
        // A linear congruential generator; its high bits are good enough for words.
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(SYLLABLES[(*seed >> 60) as usize]);
    }
    text.truncate(length);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_up_offset_has_the_form_of_a_real_one() {
        let made_up: String = "ab12.90.f".chars().map(other_digit).collect();
        assert_eq!(made_up, "ab87.09.f");
    }

    #[test]
    fn prose_has_its_length_and_does_not_repeat() {
        let mut seed = 1;
        let (first, second) = (prose(1_000, &mut seed), prose(1_000, &mut seed));
        assert_eq!((first.len(), second.len()), (1_000, 1_000));
        assert_ne!(first, second);
        assert!(first.bytes().all(|byte| byte == b' ' || byte.is_ascii_lowercase()));
    }
}
