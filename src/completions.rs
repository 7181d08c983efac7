//! `tokenmill completions` and `tokenmill man`: what a shell and a manual know of the command line.
//!
//! Both are made from the same definition that parses it. Started by `main`.

use crate::cli::Cli;
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use std::io::{Error, ErrorKind, Result, Write};
use std::path::Path;

/// Writes the completions of `shell`.
///
/// # Errors
/// When `out` fails.
pub fn write_completions(shell: Shell, out: &mut impl Write) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tokenmill", &mut text);
    out.write_all(&text)
}

/// The command line with its subcommands named as their pages are: `tokenmill-serve`.
fn built() -> Command {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    command
}

/// Writes the manual page of `tokenmill`, or of one subcommand.
///
/// # Errors
/// When there is no such subcommand, or `out` fails.
pub fn write_page(subcommand: Option<&str>, out: &mut impl Write) -> Result<()> {
    let command = built();
    let Some(name) = subcommand else { return clap_mangen::Man::new(command).render(out) };
    let found = command.find_subcommand(name).cloned();
    let found = found.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no command {name}")))?;
    clap_mangen::Man::new(found).render(out)
}

/// Writes all pages into `folder`, as `man` wants them named. Returns how many.
///
/// # Errors
/// When a page cannot be written.
pub fn write_pages(folder: &Path) -> Result<usize> {
    std::fs::create_dir_all(folder)?;
    let command = built();
    let names = command.get_subcommands().map(|subcommand| Some(subcommand.get_name()));
    let mut num_pages = 0;
    for name in std::iter::once(None).chain(names) {
        let mut page = Vec::new();
        write_page(name, &mut page)?;
        let file = name.map_or_else(|| "tokenmill.1".to_owned(), |name| format!("tokenmill-{name}.1"));
        std::fs::write(folder.join(file), page)?;
        num_pages += 1;
    }
    Ok(num_pages)
}
