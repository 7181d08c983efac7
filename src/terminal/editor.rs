//! The line editor: keys, history, lines that go on, completion of commands.
//!
//! The history is a file with one JSON text per line, for its owner alone; without a place for it there is none.

use super::ChatError;
use super::command::{COMMANDS, is_unfinished};
use super::screen::{prompt, wants_colours};
use crate::config::{Config, Overrides};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::MemHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{ColorMode, Context, Helper};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// Lines that are remembered.
const MAX_HISTORY: usize = 1000;
/// Name of the history in the data folder.
const HISTORY_FILE: &str = "chat_history";

/// What the user did.
pub(super) enum Input {
    Line(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D.
    End,
}

/// The editor.
pub(super) struct Editor {
    lines: rustyline::Editor<Rules, MemHistory>,
    history: Option<PathBuf>,
    prompt: (String, String),
}

/// What is special about our lines.
struct Rules;

impl Editor {
    /// # Errors
    /// When the terminal cannot be used.
    pub(super) fn new() -> Result<Self, ChatError> {
        let colours = if wants_colours() { ColorMode::Enabled } else { ColorMode::Disabled };
        let config = rustyline::Config::builder().max_history_size(MAX_HISTORY).map_err(io_error)?;
        let config = config.history_ignore_space(true).color_mode(colours).build();
        let history = MemHistory::with_config(&config);
        let mut lines = rustyline::Editor::with_history(config, history).map_err(io_error)?;
        lines.set_helper(Some(Rules));
        let history = Config::load(None, Overrides::new()).and_then(|config| config.data_dir());
        let history = history.ok().map(|folder| folder.join(HISTORY_FILE));
        for line in history.as_deref().map(remembered).unwrap_or_default() {
            lines.add_history_entry(line).map_err(io_error)?;
        }
        Ok(Self { lines, history, prompt: prompt() })
    }

    /// Waits for a line.
    ///
    /// # Errors
    /// When the terminal fails.
    pub(super) fn read(&mut self) -> Result<Input, ChatError> {
        match self.lines.readline(&self.prompt) {
            Ok(line) => {
                let is_new = self.lines.add_history_entry(&line).map_err(io_error)?;
                if let (true, Some(path)) = (is_new && !line.trim().is_empty(), &self.history) {
                    // A history that cannot be kept is no reason to stop the chat.
                    drop(remember(path, &line));
                }
                Ok(Input::Line(line))
            }
            Err(ReadlineError::Interrupted) => Ok(Input::Interrupted),
            Err(ReadlineError::Eof) => Ok(Input::End),
            Err(error) => Err(io_error(error)),
        }
    }
}

fn io_error(error: ReadlineError) -> ChatError {
    match error {
        ReadlineError::Io(error) => ChatError::Io(error),
        error => ChatError::Io(std::io::Error::other(error.to_string())),
    }
}

/// The last lines of the file, oldest first; what cannot be read is left out.
fn remembered(path: &Path) -> Vec<String> {
    let Ok(file) = File::open(path) else { return Vec::new() };
    let lines = BufReader::new(file).lines().map_while(Result::ok);
    let mut lines: Vec<String> = lines.filter_map(|line| serde_json::from_str(&line).ok()).collect();
    let num_old = lines.len().saturating_sub(MAX_HISTORY);
    lines.drain(..num_old);
    if num_old > MAX_HISTORY {
        // The file has grown to twice what is remembered: begin it anew.
        let text: String = lines.iter().map(|line| format!("{}\n", serde_json::Value::from(line.as_str()))).collect();
        drop(std::fs::write(path, text));
    }
    lines
}

fn remember(path: &Path, line: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    writeln!(options.open(path)?, "{}", serde_json::Value::from(line))
}

impl Helper for Rules {}

impl Highlighter for Rules {}

impl Hinter for Rules {
    type Hint = String;
}

impl Validator for Rules {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let goes_on = is_unfinished(context.input());
        Ok(if goes_on { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Completer for Rules {
    type Candidate = String;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = &line[..pos];
        let matching = COMMANDS.iter().map(|row| row.name).filter(|name| !typed.is_empty() && name.starts_with(typed));
        Ok((0, matching.map(str::to_owned).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_survives_line_ends_and_damage_and_stays_short() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/chat_history");
        assert!(remembered(&path).is_empty());
        remember(&path, "one\ntwo").unwrap();
        writeln!(OpenOptions::new().append(true).open(&path).unwrap(), "damage").unwrap();
        remember(&path, "three \"3\"").unwrap();
        assert_eq!(remembered(&path), ["one\ntwo", "three \"3\""]);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        std::fs::write(&path, (0..2500).map(|i| format!("\"{i}\"\n")).collect::<String>()).unwrap();
        assert_eq!(remembered(&path).first().unwrap(), "1500");
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), MAX_HISTORY);
    }
}
