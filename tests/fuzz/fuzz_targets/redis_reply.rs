#![no_main]

#[path = "../targets.rs"]
#[expect(dead_code, reason = "every program runs one target")]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::redis_reply(data));
