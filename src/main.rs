//! The process: arguments and environment in, exit code out. Everything between is in the library.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// jemalloc gives freed memory back to the system; glibc's allocator keeps most of what lies between blocks in use.
///
/// Measured on 2 cores, glibc first, jemalloc second:
/// * RSS in MB, 60 s after a flood: 63 and 21 after 200,000 polling sessions; 63 and 15 after 64 MiB of messages in the
///   recovery log have expired; 19 and 10 after 500 unfinished messages of 1 MB; 16 and 11 after a message of 7 MB for
///   200 polling browsers with gzip.
/// * RSS without browsers: 6.7 and 7.7 to 8.1 MB. For each of 10,000 idle browsers: 2.3 and 1.9 kB.
/// * CPU in µs: 0.41 and 0.41 for 1 kB in a burst, 14.0 and 12.5 for 1 kB to one user; no difference for a connection.
/// * mimalloc 3 takes 15.8 MB without browsers; with mimalloc 2 the messages with gzip left 1.2 GB.
///
/// The options are in `.cargo/config.toml`, which builds them into jemalloc: it reads them before `main`, and the symbol
/// that could hold them instead needs `unsafe`. A build that does not see the file has jemalloc's defaults.
/// * `background_thread`: memory is given back though no thread allocates; one such thread is enough.
/// * `narenas:2`: with the default (four for each core) a browser takes 2.2 kB; with one, all threads share its locks.
/// * `dirty_decay_ms:1000`: freed pages are given back after 1 s in place of 10 s.
/// * `thp:never`: no huge page for a few kB where the system has them for every process.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    loomio_channels::cli::run()
}
