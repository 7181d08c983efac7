//! The binary: reads the command line, runs the command, and says in one line what went wrong.

use clap::Parser;
use std::io::Write;
use std::process::ExitCode;
use tokenmill::cli::{Cli, Command, ServeArgs};
use tokenmill::config::{Config, ConfigError};
use tokenmill::startup::{self, StartError};

/// Bad settings or arguments; the code that clap uses too.
const USAGE: u8 = 2;
/// Everything else that fails.
const FAILURE: u8 = 1;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => serve(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be reading, which is no reason to fail differently.
            let _written = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(if matches!(error, StartError::Config(_)) { USAGE } else { FAILURE })
        }
    }
}

fn serve(args: &ServeArgs) -> Result<(), StartError> {
    startup::serve(settings(args)?)
}

fn settings(args: &ServeArgs) -> Result<Config, ConfigError> {
    Config::load(args.config.as_deref(), args.overrides()?)
}
