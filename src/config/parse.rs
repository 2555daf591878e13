//! Texts to values: numbers, switches, durations, sizes, addresses. Each check says what it would have taken.

use std::{fmt::Display, net::IpAddr, ops::RangeInclusive, str::FromStr, time::Duration};

use tracing_subscriber::EnvFilter;

use super::{GapNotice, LogFormat, Secret, reader::Wrong};

/// Longest name of a key in bytes.
const MAX_KEY: usize = 200;

const OUT_OF_RANGE: &str = "out of range";

pub(super) fn number<T: FromStr + PartialOrd + Display>(text: &str, range: &RangeInclusive<T>) -> Result<T, Wrong> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = if is_number { text.parse().map_err(|_| OUT_OF_RANGE) } else { Err("not a whole number") };
    within(range, number, format!("give a whole number from {} to {}", range.start(), range.end()))
}

pub(super) fn milliseconds(text: &str, range: &RangeInclusive<u64>) -> Result<Duration, Wrong> {
    number(text, range).map(Duration::from_millis)
}

pub(super) fn seconds(text: &str, range: &RangeInclusive<u64>) -> Result<Duration, Wrong> {
    number(text, range).map(Duration::from_secs)
}

/// `1800`, `1800s`, `30m`, `2h`; the range is in seconds.
pub(super) fn duration(text: &str, range: &RangeInclusive<u64>) -> Result<Duration, Wrong> {
    let seconds = with_unit(text, &[(&["", "s"], 1), (&["m"], 60), (&["h"], 3600)]);
    let [low, high] = [range.start(), range.end()].map(|seconds| show_duration(Duration::from_secs(*seconds)));
    let mend = format!("give seconds or a number with s, m or h, such as 30m, from {low} to {high}");
    within(range, seconds, mend).map(Duration::from_secs)
}

/// `67108864`, `64MiB`, `64MB`, `64M`. As in Docker and Redis, K, KB and KiB are all 1024.
pub(super) fn bytes(text: &str, range: &RangeInclusive<u64>) -> Result<usize, Wrong> {
    let units: [(&[_], _); 4] = [
        (&["", "b"], 1),
        (&["k", "kb", "kib"], 1 << 10),
        (&["m", "mb", "mib"], 1 << 20),
        (&["g", "gb", "gib"], 1 << 30),
    ];
    let [low, high] = [range.start(), range.end()].map(|bytes| show_bytes(*bytes));
    let mend = format!("give bytes or a number with K, M or G, such as 64MiB, from {low} to {high}");
    within(range, with_unit(text, &units), mend).map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
}

/// A whole number and a unit in any case, possibly with a blank between them. `units` holds spellings and factors.
fn with_unit(text: &str, units: &[(&[&str], u64)]) -> Result<u64, &'static str> {
    let (number, unit) = text.split_at(text.bytes().take_while(u8::is_ascii_digit).count());
    if number.is_empty() {
        return Err("does not start with a whole number");
    }
    let unit = unit.trim().to_ascii_lowercase();
    let (_, factor) = units.iter().find(|(spellings, _)| spellings.contains(&&*unit)).ok_or("has an unknown unit")?;
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(*factor)).ok_or(OUT_OF_RANGE)
}

fn within<T: PartialOrd>(range: &RangeInclusive<T>, value: Result<T, &'static str>, mend: String) -> Result<T, Wrong> {
    let value = value.and_then(|value| if range.contains(&value) { Ok(value) } else { Err(OUT_OF_RANGE) });
    value.map_err(|problem| Wrong::new(problem, mend))
}

/// A duration in the largest unit that fits evenly, as [`duration`] reads it.
pub(super) fn show_duration(duration: Duration) -> String {
    match duration.as_secs() {
        0 => "0s".to_owned(),
        seconds if seconds.is_multiple_of(3600) => format!("{}h", seconds / 3600),
        seconds if seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

/// A size in the largest unit that fits evenly, as [`bytes`] reads it.
pub(super) fn show_bytes(bytes: u64) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, size)| bytes > 0 && bytes.is_multiple_of(*size)) {
        Some((unit, size)) => format!("{} {unit}", bytes / size),
        None => format!("{bytes} bytes"),
    }
}

pub(super) fn switch(text: &str) -> Result<bool, Wrong> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(Wrong::new("neither on nor off", "give 1 or 0")),
    }
}

pub(super) fn address(text: &str) -> Result<IpAddr, Wrong> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse().map_err(|_| {
        Wrong::new("not an IP address", "give an address such as 127.0.0.1 or ::1, without a port, or leave it unset")
    })
}

#[expect(clippy::unnecessary_wraps, reason = "every check has this form")]
pub(super) fn secret(text: &str) -> Result<Secret, Wrong> {
    Ok(Secret::new(text))
}

pub(super) fn strong_secret(text: &str) -> Result<Secret, Wrong> {
    let secret = Some(Secret::new(text)).filter(|secret| !secret.is_short());
    secret.ok_or_else(|| Wrong::new("shorter than 16 characters", "make one with `openssl rand -hex 32`"))
}

#[expect(clippy::unnecessary_wraps, reason = "every check has this form")]
pub(super) fn gap_notice(text: &str) -> Result<GapNotice, Wrong> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "off" => GapNotice::Off,
        "reload" => GapNotice::Reload(None),
        _ => GapNotice::Reload(Some(text.to_owned())),
    })
}

/// A key of Redis; `None` for `off`.
pub(super) fn key_or_off(text: &str) -> Result<Option<String>, Wrong> {
    match text {
        _ if text.eq_ignore_ascii_case("off") => Ok(None),
        _ if text.len() > MAX_KEY || text.chars().any(|c| c.is_control() || c.is_whitespace()) => {
            Err(Wrong::new("not a name for a key", "give a short name without blanks, or off"))
        }
        _ => Ok(Some(text.to_owned())),
    }
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, Wrong> {
    match text.to_ascii_lowercase().as_str() {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(Wrong::new("not a log format", "give text or json")),
    }
}

/// Checks the directives of `RUST_LOG`. The set-up of the log parses them again.
pub(super) fn filter(text: &str) -> Result<String, Wrong> {
    // The parser confuses characters with bytes and panics on some text that is not ASCII.
    if text.is_ascii() && EnvFilter::builder().parse(text).is_ok() {
        return Ok(text.to_owned());
    }
    Err(Wrong::new("not a log filter", "give a level such as info, or directives such as info,hyper=warn"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_stay_in_range() {
        let parse = |text| number(text, &(1..=64_usize));
        assert_eq!(parse("64"), Ok(64));
        for text in ["0", "65", "-1", "+1", "1.5", "", "4 ", "99999999999999999999999"] {
            let wrong = parse(text).unwrap_err();
            assert_eq!(wrong.mend, "give a whole number from 1 to 64", "{text}");
        }
    }

    #[test]
    fn durations_in_all_forms() {
        let parse = |text| duration(text, &(1..=24 * 3600));
        for text in ["1800", "1800s", "30m", "30 m", "30M"] {
            assert_eq!(parse(text), Ok(Duration::from_mins(30)), "{text}");
        }
        assert_eq!(parse("2h"), Ok(Duration::from_hours(2)));
        for text in ["0", "25h", "m", "30 min", "-5m", "1h30m", "99999999999999999h"] {
            assert!(parse(text).unwrap_err().mend.ends_with("from 1s to 24h"), "{text}");
        }
    }

    #[test]
    fn sizes_in_all_forms() {
        let parse = |text| bytes(text, &(1..=1 << 40));
        for text in ["67108864", "64MiB", "64MB", "64M", "64m", "64 mib", "65536K"] {
            assert_eq!(parse(text), Ok(64 << 20), "{text}");
        }
        for text in ["", "0", "MiB", "64X", "1.5G", "2048G", "99999999999G"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn switches_addresses_and_filters() {
        assert_eq!(switch("TRUE"), Ok(true));
        assert_eq!(switch("off"), Ok(false));
        assert!(switch("maybe").is_err());
        assert_eq!(address("[::1]"), Ok("::1".parse().unwrap()));
        assert!(address("0.0.0.0:5000").is_err());
        assert!(address("localhost").is_err());
        assert_eq!(filter("info,hyper=warn").as_deref(), Ok("info,hyper=warn"));
        assert!(filter("info,hyper=loud").is_err());
        assert!(filter("info,ü=ü").is_err());
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_read(value in 1..=1_u64 << 40) {
            let shown = show_bytes(value).replace(" bytes", "");
            prop_assert_eq!(bytes(&shown, &(1..=1 << 40)), Ok(usize::try_from(value).unwrap()));
            let time = Duration::from_secs(value);
            prop_assert_eq!(duration(&show_duration(time), &(0..=1 << 40)), Ok(time));
        }

        #[test]
        fn no_text_is_a_crash(text in ".*") {
            let _ = (number(&text, &(0..=u16::MAX)), bytes(&text, &(0..=u64::MAX)), switch(&text), address(&text));
            let _ = (duration(&text, &(0..=u64::MAX)), filter(&text));
        }
    }
}
