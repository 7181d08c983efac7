//! The live line: which run goes on, how far it is and what it sees. Only on a terminal.
//!
//! It goes to standard error, so that figures on standard output stay clean. Used by `campaign`.

use std::io::{IsTerminal as _, Write as _, stderr};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::live::{Counts, Live};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_millis(250);

/// A line that is kept up to date until this is dropped.
pub(crate) struct Progress(Option<JoinHandle<()>>);

impl Progress {
    /// Shows a run of about `length`, if somebody is looking.
    pub(crate) fn start(label: String, length: Duration, live: &Arc<Live>, is_quiet: bool) -> Self {
        if is_quiet || !stderr().is_terminal() {
            return Self(None);
        }
        let live = Arc::clone(live);
        Self(Some(tokio::spawn(async move {
            loop {
                let line = line_of(&label, length, &live.counts());
                // Who closed the terminal does not look.
                drop(write!(stderr(), "\r\x1b[K{line}"));
                drop(stderr().flush());
                tokio::time::sleep(INTERVAL).await;
            }
        })))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
            drop(write!(stderr(), "\r\x1b[K"));
        }
    }
}

fn line_of(label: &str, length: Duration, counts: &Counts) -> String {
    let elapsed = counts.elapsed();
    let rate = counts.output_tokens as f64 / elapsed.as_secs_f64().max(0.1);
    let Counts { answered, failed, in_flight, .. } = counts;
    format!(
        "{label}  {:.0}/{:.0} s  ok {answered}  failed {failed}  in flight {in_flight}  {rate:.0} tok/s",
        elapsed.as_secs_f64(),
        length.as_secs_f64(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_line_tells_what_goes_on() {
        let live = Live::new(None);
        live.start(tokio::time::Instant::now());
        drop(live.begin(tokio::time::Instant::now()));
        drop(live.begin(tokio::time::Instant::now()));
        live.end(Some(50));
        tokio::time::advance(Duration::from_secs(5)).await;
        let line = line_of("[1/2] a, 4 clients", Duration::from_secs(20), &live.counts());
        assert_eq!(line, "[1/2] a, 4 clients  5/20 s  ok 1  failed 0  in flight 1  10 tok/s");
    }
}
