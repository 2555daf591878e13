//! The process: arguments and environment in, exit code out. Everything between is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    loomio_channels::cli::run()
}
