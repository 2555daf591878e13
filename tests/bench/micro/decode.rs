//! From what Rails publishes to what browsers get: decoding, fingerprint, offset, encoding.

use divan::{Bencher, black_box, counter::BytesCount};
use loomio_channels::{
    bus::decode,
    engineio::Frame,
    hub::{Epoch, Offset, OffsetKey},
};

fn main() {
    divan::main();
}

const SIZES: [usize; 3] = [100, 1_000, 20_000];

/// A payload in Rails' shape, with `size` bytes of text.
fn payload(size: usize) -> String {
    let text = "abcdefghijklmnopqrstuvwxyz".repeat(size / 26 + 1);
    let text = &text[..size];
    format!(
        r#"{{"room":"group-1","records":{{"events":[{{"id":1,"kind":"new_comment"}}],"comments":[{{"id":1,"body":"{text}"}}]}}}}"#
    )
}

#[divan::bench(args = SIZES)]
fn decode_records(bencher: Bencher<'_, '_>, size: usize) {
    let payload = payload(size);
    bencher.counter(BytesCount::of_str(&payload)).bench(|| decode("/records", black_box(payload.as_bytes())).is_ok());
}

#[divan::bench(args = SIZES)]
fn take_fingerprint(bencher: Bencher<'_, '_>, size: usize) {
    let payload = payload(size);
    let key = OffsetKey::new(&[7; 32]);
    bencher.counter(BytesCount::of_str(&payload)).bench(|| key.fingerprint(black_box(payload.as_bytes())));
}

#[divan::bench]
fn seal_offset(bencher: Bencher<'_, '_>) {
    let key = OffsetKey::new(&[7; 32]);
    let offset = Offset { epoch: Epoch(1), sequence: 2, fingerprint: 3, at: 4, gap: 5 };
    bencher.bench(|| key.seal(black_box(&offset)));
}

#[divan::bench(args = SIZES)]
fn encode_event(bencher: Bencher<'_, '_>, size: usize) {
    let payload = payload(size);
    let event = || Frame::message(&[b"2[\"records\",", payload.as_bytes(), b",\"00000001.2.0000000000000003\"]"]);
    bencher.counter(BytesCount::of_str(&payload)).bench(event);
}
