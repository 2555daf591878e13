//! Tasks and their end: everything that runs is spawned here, and stops in two stages.
//!
//! First stage: stop taking work, finish politely. Second stage: go at once. Knows nothing of what the tasks do.

use std::{future::Future, time::Duration};

use tokio::{runtime::Handle, signal::unix};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Spawns tasks that are waited for at the end. Works from any thread.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    runtime: Handle,
}

impl Tasks {
    /// Tasks on the runtime this is called in.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn current() -> Self {
        Self { tracker: TaskTracker::new(), runtime: Handle::current() }
    }

    /// Spawns a task; it should end soon after the first stage.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn_on(task, &self.runtime);
    }

    /// Runs what takes the processor for long on a thread where nobody waits behind it.
    pub fn spawn_blocking(&self, work: impl FnOnce() + Send + 'static) {
        self.tracker.spawn_blocking_on(work, &self.runtime);
    }

    /// The tracker, for parts that bring their own tasks.
    pub fn tracker(&self) -> TaskTracker {
        self.tracker.clone()
    }
}

/// Why the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It was asked to.
    Requested,
    /// A task that must not end has ended.
    Crashed(&'static str),
}

/// The two stages, and the tasks.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    tasks: Tasks,
    stop: CancellationToken,
    crash: tokio::sync::watch::Sender<Option<&'static str>>,
}

impl Lifecycle {
    /// A lifecycle on the runtime this is called in.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn new() -> Self {
        let (crash, _) = tokio::sync::watch::channel(None);
        Self { tasks: Tasks::current(), stop: CancellationToken::new(), crash }
    }

    /// The tasks.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Cancelled when the first stage begins; cancel it to begin.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Spawns a task without which the program is of no use: when it ends before the first stage, that is a crash.
    pub fn spawn_critical(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let critical = self.critical(name);
        self.tasks.spawn(async move {
            task.await;
            drop(critical);
        });
    }

    /// For what must not end and is no task: whoever keeps this crashes the program by dropping it, be it in a panic.
    pub fn critical(&self, name: &'static str) -> Critical {
        Critical { lifecycle: self.clone(), name }
    }

    /// Waits until a signal, a crash, or someone else begins the first stage; then it has begun.
    pub async fn stopped(&self, signals: &mut Signals) -> Stop {
        let mut crash = self.crash.subscribe();
        let why = tokio::select! {
            signal = signals.next() => {
                tracing::info!(signal, "stopping; a second signal stops at once");
                Stop::Requested
            }
            () = self.stop.cancelled() => Stop::Requested,
            name = async { crash.wait_for(Option::is_some).await.map(|name| name.unwrap_or_default()) } => {
                let name = name.unwrap_or_default();
                tracing::error!(task = name, "a task that must not end has ended");
                Stop::Crashed(name)
            }
        };
        self.stop.cancel();
        why
    }

    /// Waits for `future`, at most for `deadline` or until a second signal; returns whether it ended.
    pub async fn within(&self, deadline: Duration, signals: &mut Signals, future: impl Future<Output = ()>) -> bool {
        tokio::select! {
            () = future => true,
            () = tokio::time::sleep(deadline) => false,
            signal = signals.next() => {
                // For the one who waits for the tasks next.
                signals.seen = Some(signal);
                false
            }
        }
    }

    /// Waits for all tasks, at most for `deadline` or until a second signal; returns whether all ended.
    pub async fn finished(&self, deadline: Duration, signals: &mut Signals) -> bool {
        self.tasks.tracker.close();
        tokio::select! {
            () = self.tasks.tracker.wait() => true,
            () = tokio::time::sleep(deadline) => false,
            _ = signals.next() => false,
        }
    }
}

/// Kept by what must not end before the first stage.
#[derive(Debug)]
pub struct Critical {
    lifecycle: Lifecycle,
    name: &'static str,
}

impl Drop for Critical {
    fn drop(&mut self) {
        if !self.lifecycle.stop.is_cancelled() {
            self.lifecycle.crash.send_replace(Some(self.name));
        }
    }
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

/// SIGTERM and SIGINT from when this was made; none is lost in between.
#[derive(Debug)]
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    /// One that came while something else was waited for.
    seen: Option<&'static str>,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the system does not let it.
    pub fn listen() -> std::io::Result<Self> {
        let [terminate, interrupt] = [unix::SignalKind::terminate(), unix::SignalKind::interrupt()].map(unix::signal);
        Ok(Self { terminate: terminate?, interrupt: interrupt?, seen: None })
    }

    /// The name of the next one.
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
pub struct Readiness(std::sync::Arc<std::sync::atomic::AtomicBool>);

impl Readiness {
    /// Says how it is now.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, std::sync::atomic::Ordering::Relaxed);
    }

    /// How it is now.
    pub fn get(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The same, but not ready any more once `stop` is cancelled.
    pub fn until(self, stop: CancellationToken) -> impl Fn() -> bool + Clone {
        move || self.get() && !stop.is_cancelled()
    }
}
