//! What is shown and how: answers on standard output, everything about them dimly beside.
//!
//! Colours only on a terminal, and none where `NO_COLOR` is set. On a terminal nothing that a server sends is a control
//! character.

use std::io::{IsTerminal, Result, Write, stderr, stdout};

const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const BOLD: &str = "\x1b[1m";
const PLAIN: &str = "\x1b[0m";

/// The terminal or pipe.
pub(super) struct Screen {
    is_terminal: bool,
    has_colours: bool,
    /// Whether dim text is open, as for thoughts.
    is_dim: bool,
    /// Whether the last character began a new line.
    is_at_line_start: bool,
}

/// Whether colours are wanted on a terminal: <https://no-color.org>.
pub(super) fn wants_colours() -> bool {
    let is_off = |name: &std::ffi::OsStr, value: &std::ffi::OsStr| {
        (name == "NO_COLOR" && !value.is_empty()) || (name == "TERM" && value == "dumb")
    };
    !std::env::vars_os().any(|(name, value)| is_off(&name, &value))
}

impl Screen {
    pub(super) fn new() -> Self {
        let is_terminal = stdout().is_terminal();
        Self { is_terminal, has_colours: is_terminal && wants_colours(), is_dim: false, is_at_line_start: true }
    }

    /// Part of an answer.
    pub(super) fn text(&mut self, text: &str) -> Result<()> {
        if self.is_dim {
            self.is_dim = false;
            write!(stdout(), "{PLAIN}\n\n")?;
        }
        self.put(text)
    }

    /// Part of what the model thinks before it answers; shown on a terminal only.
    pub(super) fn thought(&mut self, text: &str) -> Result<()> {
        if !self.is_terminal {
            return Ok(());
        }
        if self.has_colours && !self.is_dim {
            self.is_dim = true;
            write!(stdout(), "{DIM}")?;
        }
        self.put(text)
    }

    fn put(&mut self, text: &str) -> Result<()> {
        self.is_at_line_start = text.chars().next_back().map_or(self.is_at_line_start, |last| last == '\n');
        let text = if self.is_terminal { harmless(text) } else { text.to_owned() };
        stdout().write_all(text.as_bytes())?;
        stdout().flush()
    }

    /// Ends the line of an answer, if need be.
    pub(super) fn end_of_answer(&mut self) -> Result<()> {
        if self.is_dim {
            self.is_dim = false;
            write!(stdout(), "{PLAIN}")?;
        }
        if !self.is_at_line_start {
            writeln!(stdout())?;
            self.is_at_line_start = true;
        }
        stdout().flush()
    }

    /// A remark, on standard error where the answer goes into a pipe.
    pub(super) fn hint(&self, text: &str) -> Result<()> {
        self.remark(DIM, &harmless(text))
    }

    /// What went wrong.
    pub(super) fn trouble(&self, text: &str) -> Result<()> {
        self.remark(RED, &harmless(text))
    }

    fn remark(&self, colour: &str, text: &str) -> Result<()> {
        if !self.is_terminal {
            return writeln!(stderr(), "{text}");
        }
        let (colour, plain) = if self.has_colours { (colour, PLAIN) } else { ("", "") };
        writeln!(stdout(), "{colour}{text}{plain}")
    }
}

/// The prompt of the line editor: plain, and styled if colours are wanted.
pub(super) fn prompt() -> (String, String) {
    let plain = "> ".to_owned();
    let styled = if wants_colours() { format!("{BOLD}{plain}{PLAIN}") } else { plain.clone() };
    (plain, styled)
}

/// Text without control characters other than line ends and tabs.
fn harmless(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(harmless("a\x1b[2Jb\r\x07\u{9b}c\n\td"), "a[2Jbc\n\td");
    }
}
