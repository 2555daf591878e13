//! The server as a process of its own, for what cannot be done to this one: signals.

use std::{
    fs,
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
}

impl Program {
    /// One that accepts.
    pub(crate) async fn start(settings: &[(&str, &str)]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_loomio-channels"))
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
        let port = within("the program's port", async {
            loop {
                let line = lines.recv().await.expect("it runs");
                if let Some((_, port)) = line.split_once("listening on port ") {
                    return port.trim().parse().unwrap();
                }
            }
        });
        Self { address: SocketAddr::from(([127, 0, 0, 1], port.await)), process }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes of its memory that are in RAM.
    pub(crate) fn resident(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it runs");
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
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
