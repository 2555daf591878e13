use super::*;
use proptest::prelude::*;

const MAX: usize = 1_000;

fn masked(first: u8, data: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let mut frame = vec![first];
    match data.len() {
        0..126 => frame.push(0x80 | u8::try_from(data.len()).unwrap()),
        length => {
            frame.push(MASKED | 0x7e);
            frame.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(data.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// What a decoder makes of `input` in pieces of `step` bytes.
fn decode(input: &[u8], step: usize) -> Result<Vec<String>, Violation> {
    let (mut decoder, mut events) = (Decoder::default(), Vec::new());
    for piece in input.chunks(step) {
        let flow = decoder.feed(&mut piece.to_vec(), MAX, &Budget::default(), |received| {
            events.push(format!("{received:?}"));
            ControlFlow::<()>::Continue(())
        })?;
        assert_eq!(flow, ControlFlow::Continue(()));
    }
    Ok(events)
}

#[test]
fn reads_frames_in_any_pieces() {
    let input = [
        masked(0x81, b"hello"),
        masked(0x01, "h\u{e9}".as_bytes()),
        masked(0x89, b"?"),
        masked(0x00, &"\u{e9}".as_bytes()[..1]),
        masked(0x80, &"\u{e9}".as_bytes()[1..]),
        masked(0x82, &[9; 300]),
        masked(0x8a, b""),
        masked(0x88, &1000u16.to_be_bytes()),
    ]
    .concat();
    let expected = decode(&input, input.len()).unwrap();
    assert_eq!(expected[..3], ["Text(\"hello\")", "Ping([63])", "Text(\"h\u{e9}\u{e9}\")"]);
    assert_eq!(expected[4..], ["Pong([])", "Close(Some(1000))"]);
    for step in 1..20 {
        assert_eq!(decode(&input, step).unwrap(), expected);
    }
}

#[test]
fn refuses_what_the_protocol_forbids() {
    let unmasked = vec![0x81, 1, b'x'];
    for (input, violation) in [
        (unmasked, Violation::Protocol),
        (masked(0xc1, b"rsv"), Violation::Protocol),
        (masked(0x83, b"opcode"), Violation::Protocol),
        (masked(0x8b, b"opcode"), Violation::Protocol),
        (masked(0x80, b"continues nothing"), Violation::Protocol),
        (masked(0x09, b"fragmented ping"), Violation::Protocol),
        (masked(0x89, &[0; 126]), Violation::Protocol),
        (masked(0x88, b"x"), Violation::Protocol),
        (masked(0x88, &1005u16.to_be_bytes()), Violation::Protocol),
        ([masked(0x01, b"a"), masked(0x81, b"b")].concat(), Violation::Protocol),
        (masked(0x81, &[0xff]), Violation::Encoding),
        (masked(0x88, &[3, 232, 0xff]), Violation::Encoding),
        (masked(0x82, &[0; MAX + 1]), Violation::TooBig),
        ([masked(0x02, &[0; MAX]), masked(0x80, &[0])].concat(), Violation::TooBig),
        ([&[0x82, 0xff][..], &[0xff; 8]].concat(), Violation::TooBig),
    ] {
        assert_eq!(decode(&input, input.len()), Err(violation));
        assert_eq!(decode(&input, 1), Err(violation));
    }
}

#[test]
fn what_follows_a_break_is_kept() {
    let (mut decoder, budget) = (Decoder::default(), Budget::default());
    let mut input = [masked(0x81, b"5"), masked(0x81, b"4a"), masked(0x81, b"4b")[..3].to_vec()].concat();
    let flow = decoder.feed(&mut input, MAX, &budget, |text| ControlFlow::Break(format!("{text:?}")));
    assert_eq!(flow, Ok(ControlFlow::Break("Text(\"5\")".to_owned())));
    let mut texts = Vec::new();
    let mut rest = masked(0x81, b"4b")[3..].to_vec();
    for input in [&mut [][..], &mut rest] {
        let flow = decoder.feed(input, MAX, &budget, |text| {
            texts.push(format!("{text:?}"));
            ControlFlow::<()>::Continue(())
        });
        assert_eq!(flow, Ok(ControlFlow::Continue(())));
    }
    assert_eq!(texts, ["Text(\"4a\")", "Text(\"4b\")"]);
}

/// Feeds pieces of what makes no event.
fn fed(decoder: &mut Decoder, budget: &Budget, pieces: &[&[u8]]) -> Result<(), Violation> {
    for piece in pieces {
        let flow = decoder.feed(&mut piece.to_vec(), MAX, budget, |_| ControlFlow::<()>::Continue(()))?;
        assert_eq!(flow, ControlFlow::Continue(()));
    }
    Ok(())
}

#[test]
fn an_idle_connection_holds_no_buffer() {
    let (mut decoder, budget) = (Decoder::default(), Budget::default());
    let frame = masked(0x82, &[1; 500]);
    fed(&mut decoder, &budget, &frame.chunks(200).collect::<Vec<_>>()).unwrap();
    assert!(decoder.0.is_none());
    let fragments = [masked(0x02, &[1; 100]), masked(0x80, b"")];
    fed(&mut decoder, &budget, &[&fragments[0], &fragments[1]]).unwrap();
    assert!(decoder.0.is_none());
}

#[test]
fn fragments_and_the_next_frame_count_together() {
    let partial = masked(0x80, &[0; MAX / 2 + 1]);
    for cut in [8, 20, partial.len()] {
        let mut decoder = Decoder::default();
        let input: [&[u8]; 2] = [&masked(0x02, &[0; MAX / 2]), &partial[..cut]];
        assert_eq!(fed(&mut decoder, &Budget::default(), &input), Err(Violation::TooBig), "{cut}");
    }
}

#[test]
fn what_does_not_fit_into_the_budget_is_refused() {
    let feed = |decoder: &mut Decoder, input: &[u8]| {
        decoder.feed(&mut input.to_vec(), 10_000, &Budget::of(1_000), |_| ControlFlow::<()>::Continue(()))
    };
    let frame = masked(0x82, &[0; 9_000]);
    let mut decoder = Decoder::default();
    assert_eq!(feed(&mut decoder, &frame), Ok(ControlFlow::Continue(())));
    assert_eq!(feed(&mut decoder, &frame[..500]), Ok(ControlFlow::Continue(())));
    let exhausted = Err(Violation::Exhausted(Exhausted));
    assert_eq!(feed(&mut decoder, &frame[500..8_000]), exhausted);
    assert_eq!(feed(&mut Decoder::default(), &masked(0x02, &[0; 9_000])), exhausted);
}

#[test]
fn text_that_cannot_become_utf8_is_refused_before_its_frame_or_message_is_whole() {
    let text = [masked(0x01, "\u{e9}\u{20ac}".as_bytes()), masked(0x80, &[b'x', 0xf4, 0x90, 0x80, 0x80])].concat();
    let (budget, cut) = (Budget::default(), text.len() - 2);
    for step in [1, 3, text.len()] {
        let mut decoder = Decoder::default();
        let pieces: Vec<_> = text[..cut].chunks(step).collect();
        assert_eq!(fed(&mut decoder, &budget, &pieces), Err(Violation::Encoding), "{step}");
        let mut decoder = Decoder::default();
        let pieces: Vec<_> = text[..cut - 1].chunks(step).collect();
        assert_eq!(fed(&mut decoder, &budget, &pieces), Ok(()), "{step}");
    }
}

#[test]
fn each_message_has_its_own_deadline() {
    let (mut decoder, budget, start) = (Decoder::default(), Budget::default(), Instant::now());
    let mut deadline = |pieces: &[&[u8]], seconds: u64| {
        fed(&mut decoder, &budget, pieces).unwrap();
        let at = decoder.deadline(|| start + std::time::Duration::from_secs(seconds));
        at.map(|at| (at - start).as_secs())
    };
    let (frame, first, last) = (masked(0x82, b"whole"), masked(0x02, b"first"), masked(0x80, b"last"));
    let ping = masked(0x89, b"?");
    assert_eq!(deadline(&[&frame], 1), None);
    assert_eq!(deadline(&[&frame[..3]], 2), Some(2));
    assert_eq!(deadline(&[&frame[3..5]], 3), Some(2));
    assert_eq!(deadline(&[&[&frame[5..], &frame[..1]].concat()], 4), Some(4));
    assert_eq!(deadline(&[&frame[1..], &first], 5), Some(5));
    assert_eq!(deadline(&[&ping[..4]], 6), Some(5));
    assert_eq!(deadline(&[&ping[4..], &last[..1]], 7), Some(5));
    assert_eq!(deadline(&[&last[1..]], 8), None);
}

proptest! {
    #[test]
    fn pieces_do_not_matter(input: Vec<u8>, step in 1usize..50) {
        let whole = decode(&input, input.len().max(1));
        let pieces = decode(&input, step);
        prop_assert_eq!(whole.is_err(), pieces.is_err());
        if whole.is_ok() {
            prop_assert_eq!(whole, pieces);
        }
    }

    #[test]
    fn texts_come_back(texts: Vec<String>, step in 1usize..50) {
        let input: Vec<u8> = texts.iter().flat_map(|text| masked(0x81, text.as_bytes())).collect();
        let expected: Vec<String> = texts.iter().map(|text| format!("Text({text:?})")).collect();
        prop_assert_eq!(decode(&input, step).unwrap(), expected);
    }
}
