//! The rules of the house, read from the sources: a module imports only from the rows below its own, a third-party
//! crate is used only where it is at home, a type has its name for itself, and no file grows past what one can keep in
//! mind.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use crate::paths::{Import, imports, types};

/// The modules from the top down. A module sees those on rows below its own.
const ROWS: [&[&str]; 9] = [
    &["main"],
    &["cli"],
    &["app"],
    &["socketio", "dispatch", "collab_auth", "admin", "demo"],
    &["admission", "history"],
    &["hub", "bus", "rails", "engineio"],
    &["redis_client", "listener", "websocket"],
    &["lifecycle", "telemetry", "tls"],
    &["config", "metrics"],
];

/// Imports that go sideways or upwards all the same: from, to, why. None today.
const EXCEPTIONS: [(&str, &str, &str); 0] = [];

/// Crates that stay where they belong: the paths below `src/`, without `.rs`, that may name them.
const HOMES: [(&str, &[&str]); 28] = [
    ("anyhow", &["cli", "main"]),
    ("aes", &["hub"]),
    ("argon2", &["admission"]),
    ("chacha20poly1305", &["admission"]),
    ("clap", &["cli"]),
    ("engineioxide_core", &["engineio"]),
    ("flate2", &["engineio"]),
    ("hashlink", &["admission", "engineio", "rails"]),
    ("hyper", &["engineio", "listener"]),
    ("hyper_util", &["listener"]),
    ("ipnet", &["config/networks"]),
    ("prometheus_client", &["metrics"]),
    // What an address may look like is the client's to say.
    ("redis", &["bus/redis", "history/stream", "redis_client", "config/redis_url"]),
    ("postcard", &["admission", "history"]),
    ("reqwest", &["rails"]),
    ("rlimit", &["app"]),
    ("rustls", &["tls"]),
    ("rustls_native_certs", &["tls"]),
    ("sha1", &["websocket"]),
    ("sha2", &["admission", "rails"]),
    ("slab", &["hub"]),
    ("socket2", &["listener", "websocket"]),
    ("socketioxide_core", &["socketio"]),
    ("socketioxide_parser_common", &["socketio"]),
    ("tikv_jemallocator", &["main"]),
    ("tokio_rustls", &["tls"]),
    ("tracing_subscriber", &["telemetry", "config"]),
    ("xxhash_rust", &["bus/redis", "hub"]),
];

/// The one place that reads the process's environment.
const ENVIRONMENT: &str = "config";

const MOST_LINES: usize = 500;

#[test]
fn imports_go_downwards_and_crates_stay_at_home() {
    let mut complaints = String::new();
    for file in files("src") {
        let text = fs::read_to_string(&file).unwrap();
        let place = place(&file);
        for complaint in check(&place, &text) {
            let _ = writeln!(complaints, "src/{place}.rs:{complaint}");
        }
    }
    assert!(complaints.is_empty(), "the table in src/lib.rs says who may see whom:\n{complaints}");
}

#[test]
fn the_map_in_lib_rs_has_the_same_modules_in_the_same_order() {
    let text = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("//! | [")).filter_map(|line| line.split('|').next());
    let mapped: Vec<&str> = rows.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    let expected: Vec<&str> = ROWS[1..].concat();
    assert_eq!(mapped, expected);
    let declared = text.lines().filter_map(|line| line.trim().strip_prefix("pub mod ")?.strip_suffix(';'));
    assert_eq!(declared.collect::<BTreeSet<_>>(), expected.into_iter().collect());
}

#[test]
fn every_crate_with_a_home_is_a_dependency() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    // Not in use today; the rule is there for whoever adds it.
    let unused = ["anyhow"];
    for (name, homes) in HOMES {
        let dashed = name.replace('_', "-");
        let named = |line: &str| line.split(['=', ' ']).next().is_some_and(|key| key == name || key == dashed);
        assert!(unused.contains(&name) || manifest.lines().any(named), "{name} is not in Cargo.toml");
        for home in homes {
            let path = root().join("src").join(home);
            assert!(path.is_dir() || path.with_extension("rs").is_file(), "{name}: there is no {home}");
        }
    }
}

#[test]
fn no_file_is_too_long() {
    let long = |file: &PathBuf| fs::read_to_string(file).unwrap().lines().count() > MOST_LINES;
    let long: Vec<PathBuf> = files("src").into_iter().chain(files("tests")).filter(long).collect();
    assert!(long.is_empty(), "over {MOST_LINES} lines: {long:?}");
}

#[test]
fn a_type_has_its_name_for_itself() {
    let mut declared = BTreeMap::<String, Vec<String>>::new();
    for file in files("src") {
        let place = place(&file);
        if place.ends_with("/tests") || place.contains("/tests/") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let production = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        for name in types(production) {
            declared.entry(name).or_default().push(place.clone());
        }
    }
    declared.retain(|_, places| places.len() > 1);
    assert!(declared.is_empty(), "one name for several types: {declared:#?}");
}

/// What is wrong with the file at `place`, as `<line>: <complaint>`.
fn check(place: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let own = place.split('/').next().unwrap_or_default();
    if own != "lib" && row(own).is_none() {
        complaints.push(format!("1: `{own}` has no row in the table of this test"));
    }
    for Import { line, segments } in imports(place, text) {
        let wrong = match segments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["crate", to, ..] => row(to).filter(|_| !may_see(own, to)).map(|_| format!("must not see `{to}`")),
            ["std", "env", ..] if !is_at_home(place, &[ENVIRONMENT]) => Some("std::env is read in config only".into()),
            [name, ..] => {
                let home = HOMES.iter().find(|(known, _)| *known == name);
                let strange = home.filter(|(_, homes)| !is_at_home(place, homes));
                strange.map(|(name, homes)| format!("`{name}` is at home in {} only", homes.join(", ")))
            }
            [] => None,
        };
        complaints.extend(wrong.map(|wrong| format!("{line}: {wrong}")));
    }
    complaints.dedup();
    complaints
}

fn may_see(from: &str, to: &str) -> bool {
    let excepted = EXCEPTIONS.iter().any(|&(one, other, _)| (one, other) == (from, to));
    from == to || from == "lib" || excepted || row(from) < row(to)
}

fn row(module: &str) -> Option<usize> {
    ROWS.iter().position(|row| row.contains(&module))
}

fn is_at_home(place: &str, homes: &[&str]) -> bool {
    homes.iter().any(|home| place.strip_prefix(home).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// `hub/log` for `src/hub/log.rs`.
fn place(file: &Path) -> String {
    let below = file.strip_prefix(root().join("src")).unwrap().with_extension("");
    below.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// Every Rust file below a directory of the package, apart from what was built there.
fn files(directory: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(directory)];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !["target", "node_modules", "output"].contains(&name.as_str()) {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "found nothing to check in {directory}");
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_wrong_import_is_found_wherever_it_hides() {
    for (place, text, complaint) in [
        ("hub", "use crate::socketio::Member;", "1: must not see `socketio`"),
        ("hub/log", "fn f() {\n    crate::bus::decode();\n}", "2: must not see `bus`"),
        ("hub", "use super::engineio;", "1: must not see `engineio`"),
        ("hub/log", "use super::super::admission::User;", "1: must not see `admission`"),
        ("hub/log", "mod tests {\n use super::super::super::admission;\n}", "2: must not see `admission`"),
        ("config", "use crate::{metrics::Metrics, telemetry};", "1: must not see `metrics`"),
        (
            "engineio",
            "use std::{fmt, sync::Arc};\nuse crate::{\n    lifecycle::Tasks,\n    hub::{Hub, Offset},\n};",
            "4: must not see `hub`",
        ),
        ("app", "use loomio_channels::cli;", "1: must not see `cli`"),
        ("hub", "type T = Vec<crate::bus::Inbound>;", "1: must not see `bus`"),
        (
            "hub",
            "use redis::Client;",
            "1: `redis` is at home in bus/redis, history/stream, redis_client, config/redis_url only",
        ),
        (
            "bus/memory",
            "fn f() { ::redis::cmd(\"x\"); }",
            "1: `redis` is at home in bus/redis, history/stream, redis_client, config/redis_url only",
        ),
        ("app", "fn f() -> anyhow::Result<()> {}", "1: `anyhow` is at home in cli, main only"),
        ("admission/users", "use std::{env, fmt};", "1: std::env is read in config only"),
        ("admission", "#[derive(Debug, clap::Parser)]\nstruct S;", "1: `clap` is at home in cli only"),
        ("novelty", "", "1: `novelty` has no row in the table of this test"),
    ] {
        assert!(check(place, text).contains(&complaint.to_owned()), "{place}: {text}: {:?}", check(place, text));
    }
}

#[test]
fn what_is_allowed_passes() {
    for (place, text) in [
        ("socketio/wire", "use crate::{admission::User, hub::Hub, engineio, metrics::Counter};"),
        ("socketio/wire", "use super::{Member, connect}; use crate::socketio::wire;"),
        ("hub/shard", "use super::log::Log; mod tests { use super::super::offset; }"),
        ("bus", "pub use self::{decode::decode, redis::RedisSource};"),
        ("bus/redis", "use redis::Msg; use super::Inbound; use crate::redis_client::Connector;"),
        ("config/environment", "let set = std::env::var_os(name);"),
        (
            "engineio",
            "// use crate::hub::Hub;\n/* crate::bus /* redis::x */ crate::app */ const S: &str = \"crate::hub\";",
        ),
        ("engineio", "/// [`crate::hub`]\nconst S: &str = r#\"\"crate::hub\"\"#; const C: char = '\"'; // crate::hub"),
        ("engineio", "fn f<'a>(hub: &'a str) -> char { hub.len(); 'c' }"),
        ("main", "fn main() -> ExitCode { loomio_channels::cli::run() }"),
        ("lib", "pub mod hub; pub use crate::app::run;"),
    ] {
        assert_eq!(check(place, text), Vec::<String>::new(), "{place}: {text}");
    }
}

#[test]
fn longer_names_are_not_at_home() {
    assert!(is_at_home("bus/redis", &["bus/redis"]) && is_at_home("bus/redis/resp", &["bus/redis"]));
    assert!(!is_at_home("bus/rediss", &["bus/redis"]) && !is_at_home("bus", &["bus/redis"]));
}
