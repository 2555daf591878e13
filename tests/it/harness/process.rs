//! The binary as a process of its own, with arguments and an environment of its own: for exit codes, signals, limits,
//! memory and the log.

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use super::{get, until, within};

/// The binary: the one that was built with the tests, unless `LOOMIO_CHANNELS_BIN` names another.
#[expect(clippy::disallowed_methods, reason = "the tests have no configuration of their own")]
fn binary() -> String {
    std::env::var("LOOMIO_CHANNELS_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_loomio-channels").to_owned())
}

/// Runs the binary to its end.
pub(crate) fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Finished {
    Finished(prepare(Command::new(binary()).args(arguments), environment).output().unwrap())
}

fn prepare<'a>(command: &'a mut Command, environment: &[(&str, &str)]) -> &'a mut Command {
    command.env_clear().envs(environment.iter().copied()).stdin(Stdio::null())
}

/// How the process ended and what it printed.
pub(crate) struct Finished(Output);

impl Finished {
    /// `None` after a signal.
    pub(crate) fn code(&self) -> Option<i32> {
        self.0.status.code()
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8(self.0.stdout.clone()).unwrap()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8(self.0.stderr.clone()).unwrap()
    }

    /// Both outputs: the log goes to the first, errors from before there is a log to the second.
    pub(crate) fn said(&self) -> String {
        self.stdout() + &self.stderr()
    }
}

/// A server process that accepts; killed when dropped.
pub(crate) struct Running {
    process: Killed,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Running {
    /// Starts the binary; unless `environment` says otherwise, the port is a free one, and there is no drain before the
    /// stop.
    pub(crate) async fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::spawn(Command::new(binary()).args(arguments), environment).await
    }

    /// The same with a limit of open files.
    pub(crate) async fn start_with_open_files(limit: usize, environment: &[(&str, &str)]) -> Self {
        let limited = format!("ulimit -n {limit} && exec \"$0\"");
        Self::spawn(Command::new("/bin/sh").args(["-c", &limited, &binary()]), environment).await
    }

    async fn spawn(command: &mut Command, environment: &[(&str, &str)]) -> Self {
        // Browsers have their sockets in the process of the test.
        rlimit::increase_nofile_limit(u64::MAX).unwrap();
        let environment = [&[("PORT", "0"), ("DRAIN_SECONDS", "0")], environment].concat();
        let mut process = prepare(command, &environment).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = Arc::default();
        let (out, err) = (process.stdout.take().unwrap(), process.stderr.take().unwrap());
        let readers = vec![keep(out, &lines), keep(err, &lines)];
        let mut running = Self { process: Killed(process), lines, readers };
        until("the server to listen", async || {
            assert!(!running.has_ended(), "the server ended: {:?}", running.log());
            running.find_port().is_some()
        })
        .await;
        running
    }

    fn find_port(&self) -> Option<u16> {
        let line = self.said("listening on port ")?;
        line.split("listening on port ").nth(1)?.trim_matches(|c: char| !c.is_ascii_digit()).parse().ok()
    }

    pub(crate) fn port(&self) -> u16 {
        self.find_port().unwrap()
    }

    /// The address on IPv4.
    pub(crate) fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port()).into()
    }

    /// The status of `/health/ready`.
    pub(crate) async fn readiness(&self) -> u16 {
        get(self, "/health/ready").await.status
    }

    /// Waits until `/health/ready` has this status.
    pub(crate) async fn becomes(&self, readiness: u16) {
        until(&format!("readiness {readiness}"), async || self.readiness().await == readiness).await;
    }

    /// All lines printed so far.
    pub(crate) fn log(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// The first line with this text, if there is one by now.
    pub(crate) fn said(&self, text: &str) -> Option<String> {
        self.lines.lock().unwrap().iter().find(|line| line.contains(text)).cloned()
    }

    /// Waits for a line with this text.
    pub(crate) async fn says(&self, text: &str) -> String {
        until(&format!("the log to say {text:?}"), async || self.said(text).is_some()).await;
        self.said(text).unwrap()
    }

    /// Memory in use, in MB.
    pub(crate) fn rss(&self) -> f64 {
        self.memory("VmRSS:")
    }

    /// The most memory that was ever in use, in MB.
    pub(crate) fn peak_rss(&self) -> f64 {
        self.memory("VmHWM:")
    }

    /// A field in kilobytes of the kernel's status of the process, in MB.
    fn memory(&self, field: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1_000.0
    }

    /// Sends a signal, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.0.try_wait().unwrap().is_some()
    }

    /// Waits until the process has ended by itself; all that it printed is in the log then.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        until("the end of the program", async || self.has_ended()).await;
        let readers = std::mem::take(&mut self.readers);
        within("the rest of the log", async {
            let joined = tokio::task::spawn_blocking(|| readers.into_iter().all(|reader| reader.join().is_ok()));
            assert!(joined.await.unwrap());
        })
        .await;
        self.process.0.wait().unwrap()
    }
}

impl From<&Running> for SocketAddr {
    fn from(running: &Running) -> Self {
        running.address()
    }
}

/// Keeps the lines of an output; ends with the process.
fn keep(output: impl Read + Send + 'static, lines: &Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    let lines = Arc::clone(lines);
    let output = BufReader::new(output);
    thread::spawn(move || output.lines().map_while(Result::ok).for_each(|line| lines.lock().unwrap().push(line)))
}

/// A child process; killed when dropped.
pub(crate) struct Killed(pub(crate) Child);

impl Killed {
    /// Sends a signal, such as `TERM`; nothing happens when the process has ended.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.0.id().to_string();
        let kill = Command::new("kill").args([&format!("-{name}"), &id]).stderr(Stdio::null()).status();
        kill.expect("kill is installed");
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
