use super::*;

const OLD: u64 = 45_000;

fn census(sessions: usize, per_address: usize) -> Arc<Census<u64>> {
    Census::new(SessionLimits { sessions, per_address, unproven_for: Some(OLD) })
}

fn from(address: &str) -> Origin {
    Origin::new(Some(address.parse().unwrap()), None)
}

fn through(connection: u64) -> Origin {
    Origin::new(None, Some(connection))
}

/// A session, its permit, and the session that had to go for it.
type Opened = (Arc<u64>, SessionPermit<u64>, Option<Arc<u64>>);

/// A session with its permit.
fn open(census: &Arc<Census<u64>>, origin: Origin, now: u64) -> Opened {
    let (permit, displaced) = census.admit(origin, now).unwrap();
    let session = Arc::new(permit.number);
    assert!(permit.attach(Arc::downgrade(&session)));
    (session, permit, displaced.and_then(|displaced| displaced.upgrade()))
}

fn refusal(census: &Arc<Census<u64>>, origin: Origin) -> Option<Full> {
    census.admit(origin, 0).err()
}

fn is_empty(census: &Census<u64>) -> bool {
    let counts = census.counts();
    counts.sessions == 0 && counts.addresses.is_empty() && counts.connections.is_empty() && counts.unproven.is_empty()
}

/// Sessions until one is refused.
fn fill(census: &Arc<Census<u64>>, origin: Origin) -> Vec<Opened> {
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
    for (_, permit, _) in &permits {
        permit.prove();
    }
    while refusal(&census, school).is_none() {
        permits.push(open(&census, school, 0));
        permits.last().unwrap().1.prove();
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
    for (_, permit, _) in &permits {
        permit.prove();
    }
    while refusal(&census, through(1)).is_none() {
        permits.push(open(&census, through(1), 0));
        permits.last().unwrap().1.prove();
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
        if let Ok((permit, _)) = census.admit(through(connection), 0) {
            flood.push((Arc::default(), permit, None));
        }
    }
    assert!(browser.1.attach(Arc::downgrade(&browser.0)), "it was not asked to go");
    drop((flood, browser));
    assert!(is_empty(&census));
}

#[test]
fn the_oldest_unproven_session_makes_room() {
    let census = census(1_000_000, 1);
    let permits: Vec<_> = (0..UNPROVEN).map(|_| open(&census, Origin::default(), 0)).collect();
    permits[0].1.prove();
    let filler = open(&census, Origin::default(), 0);
    assert_eq!(filler.2, None);
    let newcomer = open(&census, Origin::default(), 0);
    assert_eq!(newcomer.2.as_ref(), Some(&permits[1].0));
    drop((permits, filler, newcomer));
    assert!(is_empty(&census));
}

#[test]
fn when_all_have_proven_themselves_a_newcomer_is_refused() {
    let census = census(3, 10);
    let permits = [(); 3].map(|()| open(&census, Origin::default(), 0));
    // Half of the places, rounded up, may be unproven.
    assert_eq!(permits[2].2.as_ref(), Some(&permits[0].0));
    permits[1].1.prove();
    permits[2].1.prove();
    assert_eq!(refusal(&census, Origin::default()), Some(Full::Everywhere));
    drop(permits);
    assert!(is_empty(&census));
}

#[test]
fn a_handshake_whose_permit_is_needed_before_it_is_a_session_notices() {
    let census = census(1, 10);
    let (early, _) = census.admit(Origin::default(), 0).unwrap();
    let _late = open(&census, Origin::default(), 0);
    assert!(!early.attach(Weak::new()));
}

#[test]
fn unproven_sessions_end_and_sooner_in_a_crowd() {
    let census = census(1_000_000, 1);
    let mut numbers = Vec::new();
    let alone = open(&census, Origin::default(), 0);
    let proven = open(&census, Origin::default(), 0);
    proven.1.prove();
    let mut overdue = |now| {
        let sessions = census.overdue(now).into_iter().filter_map(|session| session.upgrade());
        numbers.extend(sessions.map(|session| *session));
        numbers.len()
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
    let census = Census::<u64>::new(SessionLimits { sessions: 2, per_address: 1, unproven_for: None });
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
    for (place, (_, permit, _)) in sessions.iter().enumerate() {
        if place % 2 == 0 {
            permit.prove();
        }
        permit.leave_connection();
        permit.leave_connection();
    }
    assert!(census.counts().connections.is_empty());
    assert_eq!(refusal(&census, through(1)), None);
    drop(sessions);
    assert!(is_empty(&census));
}
