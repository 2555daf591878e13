//! What a run leaves behind: a table, pictures, and where they come from.

mod floods;
mod plots;
mod table;
mod targets;

use std::{fmt::Write, fs, io, path::Path, process::Command};

use crate::{
    cli::Arguments,
    procfs,
    results::Results,
    scale::Scale,
    servers::{Kind, Programs},
};

/// Where results are, below the repository.
const RESULTS: &str = "tests/bench/results";

/// What frames the results in the project's README.
const BEGIN: &str = "<!-- bench: begin; written by tests/bench/run -->";
const END: &str = "<!-- bench: end -->";

/// How a deploy is made, for people.
const DEPLOY: &str = "\
Deploy: a balancer gives each new connection to the next of two nodes, and to the other one when that refuses it, by \
503 too (nginx: `proxy_next_upstream`). Each node is told to end (SIGTERM), killed if it takes longer than 10 s, and \
started again; the other one follows after a pause. 100 messages a second of 1 kB go to rooms of 50 to 100 clients \
each, which come back as the official client does: after 0.5 to 1.5 s. Delivered is what clients got of everything \
published to their rooms from beginning to end. Every server gets the same plain `PUBLISH`. This server runs with its \
defaults. Node runs with `@socket.io/redis-streams-adapter`, the adapter that can recover, keeps packets and sessions \
in Redis, and closes its connections at SIGTERM so that sessions are kept. For each client that returns the adapter \
reads from Redis all that was published to anyone since the client's last message, so that thousands wait for each \
other; and whoever gives up after 20 s, as the official client does, has used up its session. socketioxide runs with \
`socketioxide-redis`; it has no recovery. Both of their nodes read every message, and the one that first claims it in \
Redis (`SET NX`) emits it to the clients of both through the adapter.";

/// Pictures that the project's README shows.
const SHOWN: [&str; 5] = ["cpu.svg", "memory.svg", "latency.svg", "growth.svg", "deploy.svg"];

/// A run that is over.
pub(crate) struct Run<'a> {
    pub(crate) arguments: &'a Arguments,
    pub(crate) results: &'a Results,
    pub(crate) scale: &'a Scale,
    pub(crate) programs: &'a Programs,
    /// Of the machine before the run.
    pub(crate) load: f64,
    /// Whether all sizes fitted the machine.
    pub(crate) whole: bool,
}

/// Writes all of it, and shows the table.
pub(crate) fn write(run: &Run<'_>) -> io::Result<()> {
    let root = &run.programs.root;
    let complete = run.whole && run.arguments.is_complete() && run.results.faults.is_empty();
    let directory = root.join(RESULTS).join(if complete { "" } else { "partial" });
    fs::create_dir_all(&directory)?;
    let pictures = plots::draw(run.results, &directory).map_err(io::Error::other)?;
    let (table, floods) = (table::markdown(run.results), floods::markdown(run.results));
    let deploy = if run.results.presence().is_empty() { String::new() } else { format!("{DEPLOY}\n\n") };
    let targets = targets(run.results);
    let origin = origin(run);
    println!("\n{table}\n{deploy}{floods}{targets}\n{origin}");
    let mut text = format!("# Side by side\n\n{origin}\n{table}\n{deploy}{floods}{targets}\n");
    for picture in &pictures {
        let _ = writeln!(text, "![{}]({picture})\n", picture.trim_end_matches(".svg"));
    }
    fs::write(directory.join("README.md"), text.trim_end().to_owned() + "\n")?;
    if complete {
        update(&root.join("README.md"), &format!("{origin}\n{}", table::summary(run.results)), &pictures)?;
    }
    println!("written to {}", directory.display());
    Ok(())
}

/// Replaces what is between the marks in the project's README, if it has them.
fn update(readme: &Path, table: &str, pictures: &[String]) -> io::Result<()> {
    let Ok(text) = fs::read_to_string(readme) else { return Ok(()) };
    let Some((before, rest)) = text.split_once(BEGIN) else { return Ok(()) };
    let Some((_, after)) = rest.split_once(END) else { return Ok(()) };
    let mut new = format!("{before}{BEGIN}\n\n{table}\n");
    for picture in pictures.iter().filter(|picture| SHOWN.contains(&picture.as_str())) {
        let _ = writeln!(new, "![{}]({RESULTS}/{picture})", picture.trim_end_matches(".svg"));
    }
    let _ = write!(new, "\n{END}{after}");
    fs::write(readme, new)
}

fn targets(results: &Results) -> String {
    let mut text = String::new();
    let outcomes = targets::outcomes(results);
    if !outcomes.is_empty() {
        text.push_str("| What this server promises | measured | |\n|---|--:|---|\n");
    }
    for outcome in outcomes {
        let kept = if outcome.kept { "kept" } else { "**missed**" };
        let _ = writeln!(text, "| {} | {} | {kept} |", outcome.promise, outcome.measured);
    }
    for fault in &results.faults {
        let _ = writeln!(text, "\nFAILED: {fault}");
    }
    text
}

/// Machine, versions, date.
fn origin(run: &Run<'_>) -> String {
    let (model, count) = procfs::processors();
    let first_line = |program: &Path, argument: &str| {
        let output = Command::new(program).arg(argument).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned())
    };
    let version = |package: &str| {
        let lock = fs::read_to_string(run.programs.root.join(package)).unwrap_or_default();
        let version = lock.split(r#""version": ""#).nth(1).and_then(|rest| rest.split('"').next());
        version.unwrap_or("unknown").to_owned()
    };
    let date = Command::new("date").args(["-u", "+%Y-%m-%d"]).output().map(|output| output.stdout).unwrap_or_default();
    let mut text = format!(
        "{}; {count} × {model}, {:.0} GB, Linux {}, load {:.1} before the run.\n",
        String::from_utf8_lossy(&date).trim(),
        procfs::memory() as f64 / 1e9,
        procfs::kernel(),
        run.load,
    );
    for kind in run.arguments.kinds() {
        let line = match kind {
            Kind::Ours => first_line(&run.programs.ours, "--version"),
            Kind::Before => first_line(&run.programs.before, "--version").map(|version| format!("Before: {version}")),
            Kind::Node => first_line("node".as_ref(), "--version").map(|node| {
                let socketio = version("tests/reference/node_modules/socket.io/package.json");
                let adapter = version("tests/bench/node_modules/@socket.io/redis-streams-adapter/package.json");
                format!("Node {node} with socket.io {socketio}, as one of several with redis-streams-adapter {adapter}")
            }),
            Kind::Bun => first_line(&run.programs.bun(), "--version").map(|bun| {
                let engine = version("tests/bench/node_modules/@socket.io/bun-engine/package.json");
                let socketio = version("tests/bench/node_modules/socket.io/package.json");
                format!("Bun {bun} with bun-engine {engine} and socket.io {socketio}")
            }),
            Kind::Socketioxide => {
                let crates = ["socketioxide", "socketioxide-redis"].map(|name| locked(&run.programs.root, name));
                let [Some(server), Some(adapter)] = crates else { continue };
                Some(format!("socketioxide {server}, as one of several with socketioxide-redis {adapter}"))
            }
            Kind::Probe => None,
        };
        if let Some(line) = line {
            let _ = writeln!(text, "{line}.");
        }
    }
    let fanout = &run.scale.fanout;
    let _ = writeln!(
        text,
        "Fan-out to {} clients in one room, bursts of {} × 1 kB and {} × 20 kB; medians of {} rounds, and one round of \
         what takes long and varies little. Clients and Redis share the machine with the server. Reproduce: \
         `tests/bench/run`.",
        fanout.clients,
        fanout.burst[0],
        fanout.burst[1],
        run.arguments.rounds.unwrap_or(run.scale.rounds),
    );
    text
}

/// A crate's version in the lock file.
fn locked(root: &Path, name: &str) -> Option<String> {
    let lock = fs::read_to_string(root.join("tests/bench/Cargo.lock")).ok()?;
    let entry = lock.split(&format!("name = \"{name}\"\nversion = \"")).nth(1)?;
    entry.split('"').next().map(str::to_owned)
}
