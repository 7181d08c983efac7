//! How far a download is: a bar on a terminal, nothing elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

/// The progress of everything that one model needs.
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar for `total` bytes.
    pub(super) fn new(total: u64) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr_with_hz(8) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let style = ProgressStyle::with_template(
            "{bar:30} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}, {eta} left  {wide_msg}",
        );
        bar.set_style(style.expect("the template is right, a test makes one"));
        Self { bar }
    }

    pub(super) fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Bytes that have to come again.
    pub(super) fn take_back(&self, bytes: u64) {
        self.bar.set_position(self.bar.position().saturating_sub(bytes));
    }

    /// What is being done.
    pub(super) fn note(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_counts_back_no_further_than_to_nothing() {
        let progress = Progress::new(10);
        progress.add(4);
        progress.take_back(6);
        progress.note("x");
        assert_eq!(progress.bar.position(), 0);
    }
}
