//! The command line: arguments and environment in, exit code out.
//!
//! Answers for what is typed, and what is said before there is a log. Must not know how anything is
//! served: that is [`crate::app`].

mod http;
mod publish;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use tokio::runtime;

use crate::{
    app::{self, AppError, Mode},
    config::{self, Config, Environment, Mistakes},
    telemetry,
};

/// The process could not do its work.
const FAILURE: u8 = 1;
/// The arguments make no sense; clap's own choice.
const USAGE: u8 = 2;
/// The configuration has to be mended first: `EX_CONFIG` of sysexits(3).
const CONFIGURATION: u8 = 78;

/// What is wrong and how to mend it, said where there is no log; and the exit code.
type Failure = (String, u8);

const EXAMPLES: &str = "\
Examples:
  REDIS_URL=redis://redis:6379/0 CANONICAL_HOST=loomio.example.org loomio-channels
      serve, in place of the Node channel server
  loomio-channels demo --port 8080
      try it out without Redis and without Loomio
  echo '{\"records\":{}}' | loomio-channels publish group-1 -
      publish to Redis as Rails would, to try whether updates arrive
  loomio-channels healthcheck && echo ready
      ask the server on this machine

Exit codes: 0 done, 1 failed, 2 wrong arguments, 78 wrong configuration (nothing will change until it is mended)";

const PUBLISH_EXAMPLES: &str = "\
Examples:
  loomio-channels publish group-1 fixtures/redis/records/reaction.json --demo localhost:5000
      every browser of the demo that is in group 1 gets the records
  echo '{\"records\":{\"comments\":[{\"id\":1,\"body\":\"Hello\"}]}}' | loomio-channels publish user-45 -
      the browsers of user 45, through the Redis that REDIS_URL names
  echo '{\"notice\":\"Back at noon\",\"reload\":false}' | loomio-channels publish notice -
      a banner in every browser

Says how many subscribers received the message: each running server is one, however many browsers it has.";

/// Live updates for Loomio: passes what Rails publishes to Redis on to every browser in the room, over Socket.IO.
///
/// Takes the place of Loomio's Node channel server, with the same environment, and brings returning browsers what they
/// missed. All settings come from the environment.
#[derive(Debug, Parser)]
#[command(name = "loomio-channels", version)]
#[command(after_help = format!("Environment:\n{}\n{EXAMPLES}", config::help_table()))]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, PartialEq, Eq, Subcommand)]
enum Command {
    /// Serve browsers until told to stop (the default)
    Serve,
    /// Serve a page to try it out, without Redis and Loomio; on this machine only, unless BIND says otherwise
    Demo {
        /// Port to listen on, in place of PORT
        #[arg(long)]
        port: Option<u16>,
    },
    /// Publish a message as Rails would, to Redis or to a running demo
    #[command(after_help = PUBLISH_EXAMPLES)]
    Publish {
        /// Room that gets it: group-<id>, user-<id>, or notice for everyone
        room: String,
        /// File with a JSON object, or - for standard input; of records, `room` is set to ROOM
        file: PathBuf,
        /// Publish to the demo at this address, for example localhost:5000, and not to Redis
        #[arg(long, value_name = "ADDRESS")]
        demo: Option<String>,
    },
    /// Ask the server on this machine whether it is ready: exit code 0 if so, else 1
    Healthcheck,
    /// The commands in compose files that were written for the Node server
    #[command(hide = true)]
    Npm {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// Does what the arguments of the process ask for.
pub fn run() -> ExitCode {
    let command = Cli::parse().command.unwrap_or(Command::Serve);
    perform(command, &Environment::process()).unwrap_or_else(|(problem, code)| {
        // If standard error is closed, the exit code has to do.
        let _ = writeln!(io::stderr().lock(), "loomio-channels: {problem}");
        ExitCode::from(code)
    })
}

fn perform(command: Command, environment: &Environment) -> Result<ExitCode, Failure> {
    match command {
        Command::Serve => serve(Config::from_env(environment), Mode::Serve),
        Command::Demo { port } => serve(Config::for_demo(port, environment), Mode::Demo),
        Command::Publish { room, file, demo } => {
            let subscribers = block_on(publish::publish(&room, &file, demo.as_deref(), environment))?;
            let plural = if subscribers == 1 { "" } else { "s" };
            let hint = if subscribers == 0 { ": no channel server is subscribed there" } else { "" };
            // If standard output is closed, the exit code has to do.
            let _ = writeln!(io::stdout().lock(), "received by {subscribers} subscriber{plural}{hint}");
            Ok(ExitCode::SUCCESS)
        }
        Command::Healthcheck => {
            // Docker knows no other codes here than 0 and 1.
            let http = Config::http_only(environment).map_err(|mistakes| (mistakes.to_string(), FAILURE))?;
            block_on(async { http::check_health(&http).await.map_err(|problem| (problem, FAILURE)) })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Npm { arguments } => perform(npm(&arguments)?, environment),
    }
}

fn serve(config: Result<Config, Mistakes>, mode: Mode) -> Result<ExitCode, Failure> {
    let config = config.map_err(|mistakes| (mistakes.to_string(), CONFIGURATION))?;
    telemetry::init(&config.log).map_err(|error| (telemetry::chain(&error), FAILURE))?;
    tracing::info!("{}", config.summary());
    let Err(error) = app::run(config, mode) else { return Ok(ExitCode::SUCCESS) };
    tracing::error!("{}", telemetry::chain(&error));
    Ok(ExitCode::from(if matches!(error, AppError::Config(_)) { CONFIGURATION } else { FAILURE }))
}

/// Runs a subcommand that only asks, on this thread.
fn block_on<T>(question: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| (format!("cannot start: {error}"), FAILURE))?.block_on(question)
}

/// What the arguments after `npm` mean here. Compose files keep passing the commands of the Node image when only the
/// image's name changes.
fn npm(arguments: &[String]) -> Result<Command, Failure> {
    let words = arguments.iter().map(String::as_str).filter(|word| !word.starts_with('-')).collect::<Vec<_>>();
    match *words.as_slice() {
        ["start"] | ["run" | "run-script", "start"] => Ok(Command::Serve),
        ["run" | "run-script", "hocuspocus"] => Err((
            "collaborative editing is not part of this build yet; \
             keep the image loomio/loomio_channel_server for the hocuspocus container, \
             and use this one for the channels container"
                .to_owned(),
            CONFIGURATION,
        )),
        _ => {
            let words = words.join(" ");
            Err((format!("there is no `npm {words}` here; leave the command out to serve live updates"), CONFIGURATION))
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    fn parsed(line: &str) -> Result<Command, clap::Error> {
        let arguments = std::iter::once("loomio-channels").chain(line.split_whitespace());
        Ok(Cli::try_parse_from(arguments)?.command.unwrap_or(Command::Serve))
    }

    fn npm_means(line: &str) -> Result<Command, Failure> {
        npm(&line.split(' ').map(String::from).collect::<Vec<_>>())
    }

    #[test]
    fn commands() {
        assert_eq!(parsed("").unwrap(), Command::Serve);
        assert_eq!(parsed("serve").unwrap(), Command::Serve);
        assert_eq!(parsed("demo").unwrap(), Command::Demo { port: None });
        assert_eq!(parsed("demo --port 5000").unwrap(), Command::Demo { port: Some(5000) });
        assert_eq!(parsed("healthcheck").unwrap(), Command::Healthcheck);
        let (room, file) = ("group-1".to_owned(), PathBuf::from("-"));
        assert_eq!(parsed("publish group-1 -").unwrap(), Command::Publish { room, file, demo: None });
        let arguments = ["run", "start", "--silent"].map(String::from).to_vec();
        assert_eq!(parsed("npm run start --silent").unwrap(), Command::Npm { arguments });
    }

    #[test]
    fn wrong_arguments_are_told_from_help() {
        for line in ["bogus", "serve now", "publish group-1", "demo --port 70000", "--bogus"] {
            let kind = parsed(line).unwrap_err().kind();
            assert!(!matches!(kind, ErrorKind::DisplayHelp | ErrorKind::DisplayVersion), "{line}");
        }
        assert_eq!(parsed("--version").unwrap_err().kind(), ErrorKind::DisplayVersion);
    }

    #[test]
    fn help_teaches() {
        for line in ["-h", "--help", "help"] {
            let help = parsed(line).unwrap_err().to_string();
            for word in ["Socket.IO", "healthcheck", "Examples:", "78"] {
                assert!(help.contains(word), "{line}: {word}");
            }
            assert!(help.contains(&config::help_table()), "{line}");
            assert!(!help.contains("npm"), "{line}");
        }
    }

    #[test]
    fn help_of_publish_has_examples() {
        let help = parsed("publish --help").unwrap_err().to_string();
        for word in ["group-<id>", "notice", "--demo", "REDIS_URL", "Examples:", "fixtures/redis/records/reaction.json"]
        {
            assert!(help.contains(word), "{word}: {help}");
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn npm_start_serves_in_every_spelling() {
        for line in ["start", "run start", "run --silent start", "run-script start"] {
            assert_eq!(npm_means(line), Ok(Command::Serve), "{line}");
        }
    }

    #[test]
    fn npm_hocuspocus_is_named_and_the_way_out_too() {
        let (problem, code) = npm_means("run hocuspocus").unwrap_err();
        assert_eq!(code, CONFIGURATION);
        assert!(problem.contains("not part of this build") && problem.contains("loomio/loomio_channel_server"));
        assert!(npm_means("run bots").unwrap_err().0.contains("`npm run bots`"));
        assert!(npm_means("").is_err());
    }
}
