//! The binary: reads the command line, runs the command, and says in one line what went wrong.

use clap::Parser;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::Path;
use std::process::ExitCode;
use tokenmill::bench::{self, BenchOptions};
use tokenmill::cli::{BenchArgs, Cli, Command, InspectArgs, PullArgs, QuantizeArgs, ServeArgs, SynthArgs};
use tokenmill::completions::{write_completions, write_page, write_pages};
use tokenmill::config::{ByteSize, Config, ConfigError};
use tokenmill::inspect;
use tokenmill::loading::{self, LoadFailure, load_options, resolve};
use tokenmill::quantize::{Progress, QuantizeOptions, quantize};
use tokenmill::startup::{self, StartError};
use tokenmill::synth::{SynthOptions, synth};
use tokenmill::terminal;

/// Bad settings or arguments; the code that clap uses too.
const USAGE: u8 = 2;
/// Everything else that fails.
const FAILURE: u8 = 1;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => serve(&args),
        Command::Pull(args) => pull(&args),
        Command::Synth(args) => write_synthetic(args),
        Command::Bench(args) => measure(&args),
        Command::Quantize(args) => write_quantized(args),
        Command::Inspect(args) => describe(&args),
        Command::Chat(args) => terminal::run(&args).map_err(Into::into),
        Command::Completions { shell } => write_completions(shell, &mut stdout().lock()).map_err(Into::into),
        Command::Man { command, dir } => write_manual(command.as_deref(), dir.as_deref()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be reading, which is no reason to fail differently.
            let _written = writeln!(stderr(), "error: {error}");
            ExitCode::from(if error.is::<ConfigError>() { USAGE } else { FAILURE })
        }
    }
}

fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let config = Config::load(args.config.as_deref(), args.overrides()?)?;
    startup::serve(config).map_err(|error| match error {
        StartError::Config(error) => error.into(),
        error => error.into(),
    })
}

fn pull(args: &PullArgs) -> anyhow::Result<()> {
    let config = Config::load(None, args.overrides()?)?;
    let path = loading::pull(&config, &args.model).map_err(|failure| match failure {
        LoadFailure::Config(error) => anyhow::Error::from(error),
        failure => failure.into(),
    })?;
    writeln!(stdout(), "{}", path.display())?;
    Ok(())
}

fn write_manual(command: Option<&str>, dir: Option<&Path>) -> anyhow::Result<()> {
    let Some(dir) = dir else { return Ok(write_page(command, &mut stdout().lock())?) };
    let num_pages = write_pages(dir).map_err(|error| anyhow::anyhow!("cannot write to {}: {error}", dir.display()))?;
    writeln!(stdout(), "{num_pages} pages in {}", dir.display())?;
    Ok(())
}

fn write_synthetic(args: SynthArgs) -> anyhow::Result<()> {
    let SynthArgs { shape, format, force, seed, out } = args;
    let report = synth(&SynthOptions { shape, format, out: out.clone(), force, seed })?;
    let size = ByteSize::new(report.file_bytes);
    writeln!(stdout(), "{}: {} weights, {size}", out.display(), report.num_params)?;
    Ok(())
}

fn write_quantized(args: QuantizeArgs) -> anyhow::Result<()> {
    let QuantizeArgs { source, out, to, force, threads } = args;
    let num_threads = threads.map_or_else(|| std::thread::available_parallelism().map_or(1, Into::into), usize::from);
    let on_terminal = stderr().is_terminal();
    let mut show = |progress: Progress<'_>| {
        let (done, all) = progress.num_bytes;
        let (percent, number) = (100 * done / all.max(1), progress.tensor_idx + 1);
        if on_terminal {
            let format = progress.format.info().name;
            // The line is cleared to its end, and nobody needs to see it.
            let line =
                format!("\r{percent:3} %  {number}/{} {} as {format}\x1b[K", progress.num_tensors, progress.name);
            let _written = stderr().write_all(line.as_bytes());
        }
    };
    let result = quantize(&QuantizeOptions { source, out: out.clone(), target: to, force, num_threads }, &mut show);
    if on_terminal {
        let _written = stderr().write_all(b"\r\x1b[K");
    }
    let report = result?;
    let (before, size) = (ByteSize::new(report.source_bytes), ByteSize::new(report.file_bytes));
    writeln!(stdout(), "{}: {} tensors, {before} before, {size} now", out.display(), report.num_tensors)?;
    if report.num_fallbacks > 0 {
        let count = report.num_fallbacks;
        writeln!(stdout(), "{count} matrices have rows that are not whole blocks and got a format with more bits")?;
    }
    Ok(())
}

fn measure(args: &BenchArgs) -> anyhow::Result<()> {
    let config = Config::load(None, args.overrides()?)?;
    let options = BenchOptions { load: load_options(&config), json: args.json };
    Ok(bench::run(&resolve(&config)?, &options, &mut stdout().lock())?)
}

fn describe(args: &InspectArgs) -> anyhow::Result<()> {
    let config = Config::load(None, args.overrides())?;
    let quantize = load_options(&config).quantize;
    Ok(inspect::run(&resolve(&config)?, quantize, args.json, &mut stdout().lock())?)
}
