//! This server beside the others under the same load: starts them in turn, measures, writes a table and pictures.
//!
//! `tests/bench/run --help` says how it measures.

mod balancer;
mod cli;
mod load;
mod procfs;
mod progress;
mod redis;
mod report;
mod results;
mod scale;
mod scenario;
mod servers;
mod stage;

use std::{fs, io, path::PathBuf, process::ExitCode};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::Arguments,
    load::{FLOOD, run_flood},
    progress::{Progress, clock},
    redis::Redis,
    results::Results,
    scale::Scale,
    scenario::{Bench, plan},
    servers::Programs,
};

fn main() -> ExitCode {
    // A flood is this program once more, in a process of its own.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == FLOOD) {
        return exit_code(run_flood(std::env::args_os().skip(1)).map(|()| true));
    }
    let arguments = Arguments::parse();
    exit_code(bench(&arguments))
}

fn exit_code(outcome: io::Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn bench(arguments: &Arguments) -> io::Result<bool> {
    let scratch = Scratch(std::env::temp_dir().join(format!("loomio-channels-bench-{}", std::process::id())));
    tokio::select! {
        outcome = measure(arguments, &scratch) => outcome,
        () = interrupted() => Err(io::Error::other("interrupted")),
    }
}

/// Runs everything that was asked for; returns whether all went well. Servers end with this, also when it is dropped.
async fn measure(arguments: &Arguments, scratch: &Scratch) -> io::Result<bool> {
    let mut scale = if arguments.quick { Scale::quick() } else { Scale::full() };
    let (topics, kinds) = (arguments.topics(), arguments.kinds());
    let whole = make_room(&mut scale, kinds.len())?;
    fs::create_dir_all(&scratch.0)?;
    let peers = std::env::current_exe()?.parent().map(PathBuf::from).unwrap_or_default();
    let programs = Programs {
        root: arguments.root.clone(),
        ours: arguments.ours.clone(),
        before: arguments.before.clone().unwrap_or_default(),
        peers,
        logs: scratch.0.clone(),
    };
    let load = procfs::load();
    let processors = procfs::processors().1 as f64;
    if load > processors / 2.0 {
        eprintln!("other programs are at work here (load {load:.1}): expect latencies to be too high");
    }
    let steps = plan(&topics, &kinds, arguments.rounds, &scale);
    let mut progress = Progress::new(&steps);
    let redis = Redis::start(&scratch.0).await?;
    let mut bench = Bench { programs, redis, scale, results: Results::default() };
    let started = tokio::time::Instant::now();
    for step in &steps {
        let begun = progress.begin(step);
        let outcome = bench.run(step).await;
        progress.end(step, begun, &outcome);
        if let Err(error) = outcome {
            let who: Vec<&str> = step.kinds.iter().map(|kind| kind.label()).collect();
            let what = format!("{}, round {}, {}: {error}", step.topic.label(), step.round, who.join(", "));
            bench.results.faults.push(what);
        }
    }
    let Bench { results, scale, programs, .. } = bench;
    let run = report::Run { arguments, results: &results, scale: &scale, programs: &programs, load, whole };
    report::write(&run)?;
    eprintln!("measured in {}", clock(started.elapsed()));
    Ok(results.faults.is_empty())
}

/// Raises the limit of open files, or says what is left out below it; returns whether nothing is.
fn make_room(scale: &mut Scale, servers: usize) -> io::Result<bool> {
    let files = rlimit::increase_nofile_limit(u64::MAX)? as usize;
    scale.fit_endurance(files);
    let most = scale.most(servers);
    if files < most {
        eprintln!(
            "a process may have {files} open files here, and {most} are needed: larger crowds are left out \
             (raise the limit with `ulimit -Hn {most}` as root, or in limits.conf)"
        );
        scale.fit(files);
    }
    Ok(files >= most)
}

async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), signal(SignalKind::hangup()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}

/// A directory for servers' output, removed at the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind is a few lines of text in the system's own directory for such.
        let _ = fs::remove_dir_all(&self.0);
    }
}
