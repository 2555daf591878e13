//! The binary as its users start it: with arguments and an environment of its own, every line it prints kept.

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use crate::harness::{until, within};

/// Runs it to its end.
pub(crate) fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Finished {
    Finished(command(arguments, environment).output().unwrap())
}

fn command(arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loomio-channels"));
    command.args(arguments).env_clear().envs(environment.iter().copied()).stdin(Stdio::null());
    command
}

/// How it ended and what it said.
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

    /// Both, since some of it is said where there is a log and some before.
    pub(crate) fn said(&self) -> String {
        self.stdout() + &self.stderr()
    }
}

/// A server that runs; killed when dropped.
pub(crate) struct Running {
    process: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Running {
    /// Starts it and waits until it listens.
    pub(crate) async fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = command(arguments, environment);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = Arc::default();
        let (out, err) = (process.stdout.take().unwrap(), process.stderr.take().unwrap());
        let readers = vec![keep(out, &lines), keep(err, &lines)];
        let mut running = Self { process, lines, readers };
        until("the server to listen", async || {
            assert!(running.process.try_wait().unwrap().is_none(), "it ended: {:?}", running.log());
            running.find_port().is_some()
        })
        .await;
        running
    }

    fn find_port(&self) -> Option<u16> {
        let lines = self.lines.lock().unwrap();
        let line =
            lines.iter().find_map(|line| line.split_once("listening on port ").map(|(_, rest)| rest.to_owned()))?;
        line.trim_matches(|c: char| !c.is_ascii_digit()).parse().ok()
    }

    pub(crate) fn port(&self) -> u16 {
        self.find_port().unwrap()
    }

    /// Where it listens on IPv4.
    pub(crate) fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port()).into()
    }

    /// Everything said so far, as lines.
    pub(crate) fn log(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits for a line with this text.
    pub(crate) async fn says(&self, text: &str) -> String {
        let found = || self.log().into_iter().find(|line| line.contains(text));
        until(&format!("the log to say {text:?}"), async || found().is_some()).await;
        found().unwrap()
    }

    /// Sends a signal, such as `TERM`.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.process.id().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &id]).stderr(Stdio::null()).status();
        assert!(status.unwrap().success() || name != "TERM");
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    /// Waits until it has ended by itself; all it said is in the log then.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        until("the end of the program", async || self.has_ended()).await;
        let readers = std::mem::take(&mut self.readers);
        within("the rest of the log", async {
            let joined = tokio::task::spawn_blocking(|| readers.into_iter().all(|reader| reader.join().is_ok()));
            assert!(joined.await.unwrap());
        })
        .await;
        self.process.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Ends with the process.
fn keep(output: impl Read + Send + 'static, lines: &Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    let lines = Arc::clone(lines);
    let output = BufReader::new(output);
    thread::spawn(move || output.lines().map_while(Result::ok).for_each(|line| lines.lock().unwrap().push(line)))
}
