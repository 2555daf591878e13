//! The model on made-up transcripts: what it must find, and what it must let pass.

use std::{collections::BTreeSet, time::Duration};

use super::{Case, Coverage, Entry, Finding, Keys, Noted, Outage, Publication, Verdict, judge};

/// User 1 is in group 7; these are the rooms of messages 0, 1, 2…, published at 10, 20, 30… ms. At 1 ms the client dials
/// and at 2 ms it is welcomed.
fn judged(rooms: &[&str], outages: &[Outage], entries: &[(u64, Entry)]) -> Verdict {
    let ms = Duration::from_millis;
    let publications: Vec<_> = (1..)
        .zip(rooms)
        .map(|(time, &room)| Publication {
            room: room.into(),
            began: ms(10 * time),
            ended: ms(10 * time + 1),
            certain: true,
        })
        .collect();
    let mut keys = Keys::default();
    keys.write(ms(0), ms(0), BTreeSet::from([7]));
    let first = [(1, dialled(false)), (2, welcome(false))];
    let entries = first.iter().chain(entries).cloned();
    let transcript: Vec<_> = entries.map(|(at, entry)| Noted { at: ms(at), entry }).collect();
    let coverage = Coverage { nodes: 1, outages: outages.to_vec() };
    judge(&Case { publications: &publications, coverage: &coverage, keys: &keys, user: 1, transcript: &transcript })
}

fn dialled(returns: bool) -> Entry {
    Entry::Dialled { node: 0, returns }
}

fn welcome(recovered: bool) -> Entry {
    Entry::Welcome { recovered }
}

fn got(number: usize, room: &str) -> Entry {
    Entry::Got { number, room: room.into() }
}

const ROOMS: [&str; 4] = ["user-1", "group-7", "", "user-1"];

fn all() -> Vec<(u64, Entry)> {
    (0..).zip(ROOMS).map(|(number, room)| (100 + number as u64, got(number, room))).collect()
}

#[test]
fn what_is_complete_and_in_order_passes() {
    let verdict = judged(&ROOMS, &[], &all());
    assert_eq!((verdict.findings, verdict.deliveries, verdict.duplicates, verdict.told), (vec![], 4, 0, 0));
    assert!(judged(&["user-2", "group-8", "user-1"], &[], &[(50, got(2, "user-1"))]).findings.is_empty());
}

#[test]
fn a_loss_is_found_once_a_later_message_came() {
    for (missing, &room) in ROOMS[..3].iter().enumerate() {
        let mut entries = all();
        entries.remove(missing);
        let room = room.into();
        assert_eq!(judged(&ROOMS, &[], &entries).findings, [Finding::Lost { missing, evidence: 3, room }]);
    }
    assert!(judged(&ROOMS, &[], &all()[..3]).findings.is_empty(), "the last may be under way");
}

#[test]
fn a_loss_in_a_return_that_is_called_recovered_is_found() {
    let mut entries = all();
    let returns = [(102, Entry::Ended), (103, dialled(true)), (105, welcome(true))];
    entries.splice(1..3, returns);
    let missing = judged(&ROOMS, &[], &entries).findings;
    assert!(matches!(missing[..], [Finding::Lost { missing: 1, .. }, Finding::Lost { missing: 2, .. }]), "{missing:?}");
}

#[test]
fn what_came_before_a_welcome_counts_from_the_welcome_on() {
    let returns =
        [(90, Entry::Ended), (91, dialled(true)), (92, got(0, "user-1")), (93, Entry::Ended), (94, dialled(true))];
    let rest = [(95, got(1, "group-7")), (96, got(2, "")), (97, welcome(true)), (98, got(3, "user-1"))];
    assert_eq!(judged(&ROOMS, &[], &[&returns[..], &rest].concat()).findings, []);
}

#[test]
fn a_loss_that_was_told_passes() {
    let mut entries = all();
    entries.remove(1);
    let reload = |at| [entries.clone(), vec![(at, Entry::Reload)]].concat();
    let verdict = judged(&ROOMS, &[], &reload(200));
    assert_eq!((verdict.findings, verdict.told, verdict.alarms.len()), (vec![], 1, 0));
    let mut early = entries.clone();
    early.insert(0, (5, Entry::Reload));
    assert_eq!(judged(&ROOMS, &[], &early).findings.len(), 1, "a notice before the loss does not tell it");
    let returns = [(200, Entry::Ended), (201, dialled(true)), (202, welcome(false))];
    let verdict = judged(&ROOMS, &[], &[entries, returns.to_vec()].concat());
    assert_eq!((verdict.findings, verdict.told, verdict.returns), (vec![], 1, [0, 1]));
}

#[test]
fn a_swap_is_found_in_a_connection_and_over_a_return() {
    let mut entries = all();
    entries.swap(1, 2);
    assert_eq!(judged(&ROOMS, &[], &entries).findings, [Finding::Swapped { number: 1, after: 2 }]);
    let twice = [all(), vec![(110, got(3, "user-1"))]].concat();
    assert_eq!(judged(&ROOMS, &[], &twice).findings, [Finding::Swapped { number: 3, after: 3 }]);
    let returns = vec![(110, Entry::Ended), (111, dialled(true)), (112, got(0, "user-1")), (113, welcome(true))];
    let late = [all()[1..].to_vec(), returns.clone()].concat();
    assert_eq!(judged(&ROOMS, &[], &late).findings, [Finding::Swapped { number: 0, after: 3 }]);
    let again = judged(&ROOMS, &[], &[all(), returns].concat());
    assert_eq!((again.findings, again.duplicates), (vec![], 1), "a repetition after a return is allowed");
}

#[test]
fn what_comes_late_passes_if_all_that_followed_it_comes_again() {
    let rooms = ["group-7"; 4];
    let first = [1, 2].map(|number| (100, got(number, "group-7")));
    let returns = [(110, Entry::Ended), (111, dialled(true))];
    let judged = |again: &[usize]| {
        let again: Vec<_> = again.iter().map(|&number| (112, got(number, "group-7"))).collect();
        let entries = [&first[..], &returns, &again, &[(113, welcome(true)), (120, got(3, "group-7"))]].concat();
        judged(&rooms, &[], &entries).findings
    };
    assert_eq!(judged(&[0, 1, 2]), []);
    assert_eq!(judged(&[0]), [Finding::Swapped { number: 0, after: 2 }]);
    assert_eq!(judged(&[0, 2]), [Finding::Swapped { number: 0, after: 1 }], "the state of 0 would come last");
}

#[test]
fn an_alien_message_is_found() {
    let is_alien = |rooms: &[&str], entry| {
        let findings = judged(rooms, &[], &[(100, entry)]).findings;
        matches!(findings[..], [Finding::Alien { .. }])
    };
    assert!(is_alien(&["user-2"], got(0, "user-2")));
    assert!(is_alien(&["group-8"], got(0, "group-8")));
    assert!(is_alien(&["user-2"], got(0, "user-1")), "it was published to another room");
    assert!(is_alien(&["user-1"], got(1, "user-1")), "nobody published it");
    assert!(is_alien(&[], Entry::Odd("x".to_owned())));
}

#[test]
fn an_alarm_is_false_when_nothing_was_lost_and_a_node_heard_everything() {
    let ms = Duration::from_millis;
    let returns = [(200, Entry::Ended), (201, dialled(true)), (202, welcome(false))];
    let entries = [all(), returns.to_vec()].concat();
    let outage = |from, to| [Outage { node: 0, cause: "cut", from: ms(from), to: ms(to) }];
    let alarms = |outages: &[Outage]| {
        let verdict = judged(&ROOMS, outages, &entries);
        (verdict.alarms.iter().map(|alarm| alarm.cause).collect::<Vec<_>>(), verdict.excused)
    };
    assert_eq!(alarms(&[]), (vec!["no fault"], 0));
    assert_eq!(alarms(&outage(22, 28)), (vec!["cut"], 0), "nothing was published meanwhile");
    assert_eq!(alarms(&outage(15, 25)), (vec![], 1));
    let noticed = [all(), vec![(200, Entry::Reload)]].concat();
    assert_eq!(judged(&ROOMS, &[], &noticed).alarms.len(), 1);
}

#[test]
fn the_rooms_of_the_session_before_serve_while_redis_is_silent() {
    let ms = Duration::from_millis;
    let mut keys = Keys::default();
    keys.write(ms(0), ms(0), BTreeSet::from([7]));
    keys.write(ms(50), ms(51), BTreeSet::new());
    let publications = [Publication { room: "group-7".into(), began: ms(5_000), ended: ms(5_001), certain: true }];
    let judged = |welcomed: u64| {
        let entries = [
            (1, dialled(false)),
            (2, welcome(false)),
            (90, Entry::Ended),
            (100, dialled(true)),
            (100 + welcomed, welcome(false)),
            (5_002, got(0, "group-7")),
        ];
        let transcript = entries.map(|(at, entry)| Noted { at: ms(at), entry });
        let coverage = Coverage { nodes: 1, outages: Vec::new() };
        let case =
            Case { publications: &publications, coverage: &coverage, keys: &keys, user: 1, transcript: &transcript };
        judge(&case).findings.len()
    };
    assert_eq!([judged(2_000), judged(10)], [0, 1]);
}
