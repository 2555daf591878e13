//! What `/proc` says about a process and about the kernel's sockets.

use std::{fs, io, time::Duration};

/// Clock ticks per second in `/proc/<pid>/stat`; Linux fixes it at 100 for programs (`USER_HZ`).
const TICKS_PER_SECOND: u64 = 100;

/// Bytes of a page in `/proc/net/sockstat`.
const PAGE: u64 = 4096;

/// User and system time that the process has used so far, in steps of 10 ms.
pub(crate) fn cpu(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything, so count from its end: utime and stime are fields 14 and 15.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    if after_name.trim_start().starts_with('Z') {
        return Err(io::ErrorKind::NotFound.into());
    }
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// Resident memory of the process, in bytes.
pub(crate) fn rss(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(kilobytes(&status, "VmRSS:") * 1024)
}

/// Memory of all TCP sockets of this machine, both ends of each connection, in bytes.
pub(crate) fn socket_memory() -> io::Result<u64> {
    let stat = fs::read_to_string("/proc/net/sockstat")?;
    let tcp = stat.lines().find(|line| line.starts_with("TCP:")).unwrap_or_default();
    let pages: u64 = tcp.rsplit_once("mem ").and_then(|(_, pages)| pages.trim().parse().ok()).unwrap_or_default();
    Ok(pages * PAGE)
}

/// `model name` of the first processor, and how many there are.
pub(crate) fn processors() -> (String, usize) {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    (model.unwrap_or("unknown processor").to_owned(), count)
}

/// Memory of the machine in bytes.
pub(crate) fn memory() -> u64 {
    kilobytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemTotal:") * 1024
}

/// Release of the running kernel.
pub(crate) fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Processes that wanted to run during the last minute.
pub(crate) fn load() -> f64 {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or_default()
}

fn kilobytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_time_and_memory() {
        let pid = std::process::id();
        assert!(rss(pid).unwrap() > 100_000);
        assert!(cpu(pid).unwrap() < Duration::from_hours(1));
        assert!(cpu(u32::MAX).is_err() && rss(u32::MAX).is_err());
        assert!(memory() > 1 << 20 && !kernel().is_empty());
    }
}
