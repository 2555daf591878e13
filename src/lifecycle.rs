//! Tasks and their end: everything that runs is spawned here and ends in three stages.
//!
//! 1. The drain begins with the first signal: clients are sent away and new ones refused, while all tasks go on.
//! 2. The stop begins when the drain has ended: tasks take no more work and finish politely. Without a drain the program
//!    goes from running to the stop directly, as after a crash.
//! 3. With a second signal, in whichever stage, or at a deadline the tasks are dropped.
//!
//! Knows nothing of what the tasks do.

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

    /// Spawns a task; it should end soon after the stop has begun.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn_on(task, &self.runtime);
    }

    /// Runs work that takes the processor for long on a thread of its own, so that no task waits behind it.
    pub fn spawn_blocking(&self, work: impl FnOnce() + Send + 'static) {
        self.tracker.spawn_blocking_on(work, &self.runtime);
    }
}

/// The stages, and the tasks.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    tasks: Tasks,
    stop: CancellationToken,
    /// A child of `stop`, so that what is refused during the drain is refused after a crash too.
    drain: CancellationToken,
    /// Name of the critical task that ended before the stop.
    crash: Arc<OnceLock<&'static str>>,
}

impl Lifecycle {
    /// A lifecycle on the runtime this is called in. Panics outside of one.
    pub fn current() -> Self {
        let stop = CancellationToken::new();
        Self { tasks: Tasks::current(), drain: stop.child_token(), stop, crash: Arc::default() }
    }

    /// The tasks.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Cancelled when the drain begins, or the stop without one; cancel it to begin the drain.
    pub fn drain(&self) -> &CancellationToken {
        &self.drain
    }

    /// Cancelled when the stop begins; cancel it to begin the stop.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Spawns a task that the program cannot do without: its end before the stop is a crash.
    pub fn spawn_critical(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let critical = self.critical(name);
        self.tasks.spawn(task.map(move |()| drop(critical)));
    }

    /// A guard for a thread that the program cannot do without: dropping it before the stop, be it in a panic,
    /// is a crash.
    pub fn critical(&self, name: &'static str) -> Critical {
        Critical { lifecycle: self.clone(), name }
    }

    /// Waits for a signal, a crash or one of the tokens, then begins the drain.
    pub async fn until_drain(&self, signals: &mut Signals) {
        tokio::select! {
            signal = signals.next() => tracing::info!(signal, "stopping; a second signal stops at once"),
            () = self.drain.cancelled() => {}
        }
        self.drain.cancel();
    }

    /// Waits until `drain` has ended, for a second signal, a crash or the stop token, then begins the stop. Returns the
    /// name of the critical task that ended, if one did.
    pub async fn until_stop(&self, signals: &mut Signals, drain: impl Future<Output = ()>) -> Option<&'static str> {
        tokio::select! {
            () = self.stop.cancelled() => {}
            _ = signals.unless_signalled(drain) => {}
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
            () = sleep(deadline) => false,
            ended = signals.unless_signalled(future) => ended,
        }
    }

    /// Waits for all tasks, at most for `deadline` or until a second signal; returns whether all ended.
    pub async fn finished(&self, deadline: Duration, signals: &mut Signals) -> bool {
        self.tasks.tracker.close();
        self.within(deadline, signals, self.tasks.tracker.wait()).await
    }
}

/// A guard that must not be dropped before the stop.
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

    /// Waits for `future`, at most until a signal, which ends the next wait as well; returns whether it ended.
    async fn unless_signalled(&mut self, future: impl Future<Output = ()>) -> bool {
        tokio::select! {
            () = future => true,
            signal = self.next() => {
                self.seen = Some(signal);
                false
            }
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

    /// Tells whether the program is ready: no longer once `drain` is cancelled.
    pub fn until(self, drain: CancellationToken) -> impl Fn() -> bool + Clone {
        move || self.0.load(Ordering::Relaxed) && !drain.is_cancelled()
    }
}
