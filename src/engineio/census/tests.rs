use std::time::Duration;

use super::{super::Unproven, *};

const OLD: u64 = 45_000;

fn census(max_sessions: usize, max_sessions_per_address: usize) -> Arc<Census> {
    let unproven =
        Some(Unproven { timeout: Duration::from_millis(OLD), message_timeout: Duration::MAX, max_payload: 0 });
    Census::new(&Options { unproven, max_sessions, max_sessions_per_address, ..Options::default() })
}

fn from(address: &str) -> Origin {
    Origin::new(Some(address.parse().unwrap()), None)
}

fn through(connection: u64) -> Origin {
    Origin::new(None, Some(connection))
}

/// The permit of a session, and the session that had to go for it.
type Opened = (SessionPermit, Option<Sid>);

fn open(census: &Arc<Census>, origin: Origin, now: u64) -> Opened {
    let opened = census.admit(origin, now).unwrap();
    assert!(!opened.0.is_revoked());
    opened
}

fn refusal(census: &Arc<Census>, origin: Origin) -> Option<Full> {
    census.admit(origin, 0).err()
}

fn is_empty(census: &Census) -> bool {
    let counts = census.counts.lock();
    counts.sessions == 0 && counts.addresses.is_empty() && counts.connections.is_empty() && counts.unproven.is_empty()
}

/// Sessions until one is refused.
fn fill(census: &Arc<Census>, origin: Origin) -> Vec<Opened> {
    let mut sessions = Vec::new();
    while refusal(census, origin).is_none() {
        sessions.push(open(census, origin, 0));
    }
    sessions
}

#[test]
fn an_address_has_so_many_sessions_and_fewer_unproven_ones() {
    let census = census(1_000_000, 2_000);
    let school = from("203.0.113.7");
    let mut permits = fill(&census, school);
    assert!((900..=1_024).contains(&permits.len()), "{}", permits.len());
    assert_eq!(refusal(&census, school), Some(Full::Address));
    assert_eq!(refusal(&census, from("203.0.113.8")), None);
    assert_eq!(refusal(&census, Origin::default()), None, "an address that is not known is not counted");
    for (permit, _) in &permits {
        permit.prove();
    }
    while refusal(&census, school).is_none() {
        permits.push(open(&census, school, 0));
        permits.last().unwrap().0.prove();
    }
    assert_eq!(permits.len(), 2_000);
    permits.pop();
    assert_eq!(refusal(&census, school), None);
    drop(permits);
    assert!(is_empty(&census));
}

#[test]
fn a_network_of_ipv6_is_one_address() {
    let census = census(100, 1);
    let _permit = open(&census, from("2001:db8:1:2::3"), 0);
    assert_eq!(refusal(&census, from("2001:db8:1:2:ffff::")), Some(Full::Address));
    assert_eq!(refusal(&census, from("2001:db8:1:3::3")), None);
}

#[test]
fn a_connection_brings_so_many_polling_sessions_and_fewer_unproven_ones() {
    let census = census(1_000_000, 1);
    let mut permits = fill(&census, through(1));
    assert!((200..=256).contains(&permits.len()), "{}", permits.len());
    assert_eq!((refusal(&census, through(1)), refusal(&census, through(2))), (Some(Full::Connection), None));
    for (permit, _) in &permits {
        permit.prove();
    }
    while refusal(&census, through(1)).is_none() {
        permits.push(open(&census, through(1), 0));
        permits.last().unwrap().0.prove();
    }
    assert_eq!(permits.len(), POLLING_PER_CONNECTION);
    drop(permits);
    assert!(is_empty(&census));
}

#[test]
fn a_browser_beside_a_flood_through_many_connections_keeps_its_session() {
    const CONNECTIONS: u64 = 1_000;
    let census = census(1_000_000, 1);
    let mut flood: Vec<_> = (1..=CONNECTIONS).flat_map(|connection| fill(&census, through(connection))).collect();
    let browser = open(&census, through(CONNECTIONS + 1), 0);
    for connection in (0..50).flat_map(|_| 1..=CONNECTIONS) {
        flood.extend(census.admit(through(connection), 0));
    }
    assert!(!browser.0.is_revoked(), "it was not asked to go");
    drop((flood, browser));
    assert!(is_empty(&census));
}

#[test]
fn the_oldest_unproven_session_makes_room() {
    let census = census(1_000_000, 1);
    let permits: Vec<_> = (0..UNPROVEN).map(|_| open(&census, Origin::default(), 0)).collect();
    permits[0].0.prove();
    let filler = open(&census, Origin::default(), 0);
    assert_eq!(filler.1, None);
    let newcomer = open(&census, Origin::default(), 0);
    assert_eq!(newcomer.1, Some(permits[1].0.sid));
    assert!(permits[1].0.is_revoked());
    drop((permits, filler, newcomer));
    assert!(is_empty(&census));
}

#[test]
fn when_all_have_proven_themselves_a_newcomer_is_refused() {
    let census = census(3, 10);
    let permits = [(); 3].map(|()| open(&census, Origin::default(), 0));
    // Half of the places, rounded up, may be unproven.
    assert_eq!(permits[2].1, Some(permits[0].0.sid));
    permits[1].0.prove();
    permits[2].0.prove();
    assert_eq!(refusal(&census, Origin::default()), Some(Full::Everywhere));
    drop(permits);
    assert!(is_empty(&census));
}

#[test]
fn a_handshake_whose_permit_is_needed_before_it_is_a_session_notices() {
    let census = census(1, 10);
    let (early, _) = census.admit(Origin::default(), 0).unwrap();
    let _late = open(&census, Origin::default(), 0);
    assert!(early.is_revoked());
}

#[test]
fn unproven_sessions_end_and_sooner_in_a_crowd() {
    let census = census(1_000_000, 1);
    let mut sids = Vec::new();
    let alone = open(&census, Origin::default(), 0);
    let proven = open(&census, Origin::default(), 0);
    proven.0.prove();
    let mut overdue = |now| {
        sids.extend(census.overdue(now));
        sids.len()
    };
    assert_eq!([overdue(HURRY), overdue(OLD - 1), overdue(OLD), overdue(OLD * 2)], [0, 0, 1, 1]);
    let crowd: Vec<_> = (0..=UNPROVEN / 2).map(|_| open(&census, Origin::default(), OLD)).collect();
    assert_eq!(overdue(OLD + HURRY - 1), 1);
    assert_eq!(overdue(OLD + HURRY), 2, "as many as it takes for the crowd to be none");
    drop((alone, proven, crowd));
    assert!(is_empty(&census));
}

#[test]
fn where_nobody_has_to_prove_anything_sessions_stay() {
    let census = Census::new(&Options { max_sessions: 2, max_sessions_per_address: 1, ..Options::default() });
    let permits = [(); 2].map(|()| open(&census, Origin::default(), 0));
    assert_eq!(refusal(&census, Origin::default()), Some(Full::Everywhere));
    assert!(census.overdue(u64::MAX).is_empty());
    drop(permits);
    assert!(is_empty(&census));
}

#[test]
fn a_session_that_has_moved_to_a_websocket_does_not_count_for_the_connection_that_brought_it() {
    let census = census(1_000_000, 1_000_000);
    let sessions = fill(&census, through(1));
    assert_eq!(refusal(&census, through(1)), Some(Full::Connection));
    for (place, (permit, _)) in sessions.iter().enumerate() {
        if place % 2 == 0 {
            permit.prove();
        }
        permit.leave_connection();
    }
    assert!(census.counts.lock().connections.is_empty());
    assert_eq!(refusal(&census, through(1)), None);
    drop(sessions);
    assert!(is_empty(&census));
}
