//! Tasks and their end: everything that runs is spawned here and stops in two stages.
//!
//! First stage: take no more work, finish politely. Second stage: end at once. Knows nothing of what the tasks do.

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{runtime::Handle, signal::unix, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Spawns tasks that are waited for at the end. Works from any thread.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    runtime: Handle,
}

impl Tasks {
    /// Tasks on the runtime this is called in. Panics outside of one.
    pub fn current() -> Self {
        Self { tracker: TaskTracker::new(), runtime: Handle::current() }
    }

    /// Spawns a task; it should end soon after the first stage.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn_on(task, &self.runtime);
    }

    /// Runs work that takes the processor for long on a thread of its own, so that no task waits behind it.
    pub fn spawn_blocking(&self, work: impl FnOnce() + Send + 'static) {
        self.tracker.spawn_blocking_on(work, &self.runtime);
    }
}

/// The two stages, and the tasks.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    tasks: Tasks,
    stop: CancellationToken,
    /// Name of the critical task that ended before the first stage.
    crash: Arc<OnceLock<&'static str>>,
}

impl Lifecycle {
    /// A lifecycle on the runtime this is called in. Panics outside of one.
    pub fn current() -> Self {
        Self { tasks: Tasks::current(), stop: CancellationToken::new(), crash: Arc::default() }
    }

    /// The tasks.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Cancelled when the first stage begins; cancel it to begin.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Spawns a task that the program cannot do without: its end before the first stage is a crash.
    pub fn spawn_critical(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let critical = self.critical(name);
        self.tasks.spawn(task.map(move |()| drop(critical)));
    }

    /// A guard for a thread that the program cannot do without: dropping it before the first stage, be it in a panic,
    /// is a crash.
    pub fn critical(&self, name: &'static str) -> Critical {
        Critical { lifecycle: self.clone(), name }
    }

    /// Waits for a signal, a crash or the stop token, then begins the first stage. Returns the name of the critical task
    /// that ended, if one did.
    pub async fn stopped(&self, signals: &mut Signals) -> Option<&'static str> {
        tokio::select! {
            signal = signals.next() => tracing::info!(signal, "stopping; a second signal stops at once"),
            () = self.stop.cancelled() => {}
        }
        self.stop.cancel();
        let crashed = self.crash.get().copied();
        if let Some(task) = crashed {
            tracing::error!(task, "a task that must not end has ended");
        }
        crashed
    }

    /// Waits for `future`, at most for `deadline` or until a second signal; returns whether it ended.
    pub async fn within(&self, deadline: Duration, signals: &mut Signals, future: impl Future<Output = ()>) -> bool {
        tokio::select! {
            () = future => true,
            () = sleep(deadline) => false,
            signal = signals.next() => {
                // Ends the next wait as well.
                signals.seen = Some(signal);
                false
            }
        }
    }

    /// Waits for all tasks, at most for `deadline` or until a second signal; returns whether all ended.
    pub async fn finished(&self, deadline: Duration, signals: &mut Signals) -> bool {
        self.tasks.tracker.close();
        self.within(deadline, signals, self.tasks.tracker.wait()).await
    }
}

/// A guard that must not be dropped before the first stage.
#[derive(Debug)]
pub struct Critical {
    lifecycle: Lifecycle,
    name: &'static str,
}

impl Drop for Critical {
    fn drop(&mut self) {
        if !self.lifecycle.stop.is_cancelled() {
            // Another task may have crashed a moment before.
            let _ = self.lifecycle.crash.set(self.name);
            self.lifecycle.stop.cancel();
        }
    }
}

/// SIGTERM and SIGINT since this was made; none is lost between two waits.
#[derive(Debug)]
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    /// A signal that has ended one wait and is to end the next.
    seen: Option<&'static str>,
}

impl Signals {
    /// Listens from now on. Fails when the system refuses a signal handler.
    pub fn listen() -> io::Result<Self> {
        let [terminate, interrupt] = [unix::SignalKind::terminate(), unix::SignalKind::interrupt()].map(unix::signal);
        Ok(Self { terminate: terminate?, interrupt: interrupt?, seen: None })
    }

    /// The name of the next signal.
    async fn next(&mut self) -> &'static str {
        if let Some(signal) = self.seen.take() {
            return signal;
        }
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Whether the program can do its work at the moment; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Sets it.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Relaxed);
    }

    /// Tells whether the program is ready: no longer once `stop` is cancelled.
    pub fn until(self, stop: CancellationToken) -> impl Fn() -> bool + Clone {
        move || self.0.load(Ordering::Relaxed) && !stop.is_cancelled()
    }
}
