//! What the kernel says about a process, its sockets and the machine.

use std::{fs, io, time::Duration};

use nix::{
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

/// Bytes of a page in `/proc/net/sockstat`.
const PAGE: u64 = 4096;

/// User and system time that the process has used so far, exactly: the ticks of `/proc/<pid>/stat` are 10 ms long.
pub(crate) fn cpu(pid: u32) -> io::Result<Duration> {
    let pid = i32::try_from(pid).map_err(|_| io::ErrorKind::NotFound)?;
    let time = clock_getcpuclockid(Pid::from_raw(pid)).and_then(clock_gettime)?;
    Ok(time.into())
}

/// Resident memory of the process, in bytes. A process that has ended has none.
pub(crate) fn rss(pid: u32) -> io::Result<u64> {
    resident(pid, "VmRSS:")
}

/// The most it has been since [`forget_peak`], or ever.
pub(crate) fn peak(pid: u32) -> io::Result<u64> {
    resident(pid, "VmHWM:")
}

/// Lets the kernel find the peak anew: `5` in `clear_refs` is for that, see proc(5).
pub(crate) fn forget_peak(pid: u32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")
}

fn resident(pid: u32, which: &str) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    match kilobytes(&status, which) {
        0 => Err(io::ErrorKind::NotFound.into()),
        kilobytes => Ok(kilobytes * 1024),
    }
}

/// Open files of the process.
pub(crate) fn files(pid: u32) -> io::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
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
        forget_peak(pid).unwrap();
        assert!(peak(pid).unwrap() > 100_000);
        assert!(cpu(pid).unwrap() < Duration::from_hours(1));
        assert!(cpu(u32::MAX).is_err() && rss(u32::MAX).is_err());
        assert!(memory() > 1 << 20 && !kernel().is_empty());
    }
}
