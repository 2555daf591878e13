//! The server as a process of its own, for what cannot be done to this one, or seen in it: signals, a limit of open
//! files, memory.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
};

use tokio::sync::mpsc;

use super::{until, within};

/// Lines of the log that may wait to be read here.
const LINES: usize = 1_000;

/// A process; killed when dropped.
pub(crate) struct Program {
    process: Child,
    address: SocketAddr,
    /// What it said until it listened.
    started: Vec<String>,
}

impl Program {
    /// One that accepts.
    pub(crate) async fn start(settings: &[(&str, &str)]) -> Self {
        Self::spawn(Command::new(env!("CARGO_BIN_EXE_loomio-channels")), settings).await
    }

    /// One that accepts, with a limit of open files.
    pub(crate) async fn start_with_open_files(limit: usize, settings: &[(&str, &str)]) -> Self {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("ulimit -n {limit} && exec \"$0\""), env!("CARGO_BIN_EXE_loomio-channels")]);
        Self::spawn(shell, settings).await
    }

    async fn spawn(mut command: Command, settings: &[(&str, &str)]) -> Self {
        // Browsers have sockets in this process.
        rlimit::increase_nofile_limit(u64::MAX).unwrap();
        let mut process = command
            .env_clear()
            .envs([("BIND", "127.0.0.1"), ("PORT", "0")])
            .envs(settings.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, mut lines) = mpsc::channel(LINES);
        let output = BufReader::new(process.stdout.take().unwrap());
        // Ends with the process.
        thread::spawn(move || output.lines().map_while(Result::ok).for_each(|line| drop(sender.try_send(line))));
        let mut started = Vec::new();
        let port: u16 = within("the program's port", async {
            loop {
                let line = lines.recv().await.expect("it runs");
                let port = line.split_once("listening on port ").map(|(_, port)| port.trim().parse().unwrap());
                started.push(line);
                if let Some(port) = port {
                    return port;
                }
            }
        })
        .await;
        Self { address: SocketAddr::from(([127, 0, 0, 1], port)), process, started }
    }

    /// A line of what it said until it listened.
    pub(crate) fn said(&self, text: &str) -> Option<&str> {
        self.started.iter().map(String::as_str).find(|line| line.contains(text))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Memory in use, in MB.
    pub(crate) fn rss(&self) -> f64 {
        self.status("VmRSS:")
    }

    /// The most memory that was ever in use, in MB.
    pub(crate) fn peak_rss(&self) -> f64 {
        self.status("VmHWM:")
    }

    /// A number of kilobytes from the kernel's account of the process, in MB.
    fn status(&self, name: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1_000.0
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    }

    /// Whether it has not ended.
    pub(crate) fn runs(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// Waits until it has ended.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        until("the end of the program", async || !self.runs()).await;
        self.process.wait().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
