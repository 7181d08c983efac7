//! The table on standard output: one row per run, in a fixed width.

use std::fmt::Write as _;

use super::Run;

/// Widest name of a server in the table.
const NAME_WIDTH: usize = 14;

/// The two lines above the rows.
pub(crate) fn head(has_names: bool) -> String {
    let (gap, name) = if has_names {
        (" ".repeat(NAME_WIDTH + 1), format!("{:<NAME_WIDTH$} ", "server"))
    } else {
        Default::default()
    };
    format!(
        "{gap}                                                          |  time to first token, ms  | between tokens |    end to end, ms\n\
         {name}        load     ok failed   req/s   good out tok/s      p50       p95       p99      p50      p99        p50        p99"
    )
}

/// A run's row, then its errors, then what makes it doubtful.
pub(crate) fn row(run: &Run, has_names: bool) -> String {
    let name: String = run.target.chars().take(NAME_WIDTH).collect();
    let name = if has_names { format!("{name:<NAME_WIDTH$} ") } else { String::new() };
    let good = run.goodput.map_or_else(|| "–".to_owned(), |goodput| format!("{:.0} %", goodput.share * 100.0));
    let mut text = format!(
        "{name}{:>12} {:>6} {:>6} {:>7.2} {good:>6} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>8.1} {:>8.1} {:>10.1} {:>10.1}",
        run.label,
        run.num_answered,
        run.num_failed,
        run.requests_per_second,
        run.output_tokens_per_second,
        run.ttft_ms.p50,
        run.ttft_ms.p95,
        run.ttft_ms.p99,
        run.inter_token_ms.p50,
        run.inter_token_ms.p99,
        run.end_to_end_ms.p50,
        run.end_to_end_ms.p99,
    );
    for error in &run.errors {
        write!(text, "\n{:>19} x {}", error.count, error.detail).expect("a String takes all");
    }
    for note in notes(run) {
        write!(text, "\n{:>19}   {note}", "").expect("a String takes all");
    }
    text
}

/// What a reader of the figures must know.
pub(super) fn notes(run: &Run) -> Vec<String> {
    let mut notes = Vec::new();
    if run.was_given_up {
        notes.push("ended early: it could not pass any more".to_owned());
    }
    if run.num_answered > 0 && run.token_counts != super::TokenCounts::Usage {
        notes.push("output tokens are events with text: the server sent no usage".to_owned());
    }
    if run.client.lag_ms.p99 > LATE_MS {
        notes.push(format!("the load test itself was late: p99 {:.0} ms", run.client.lag_ms.p99));
    }
    notes
}

/// Lag of the event loop that is worth a note.
const LATE_MS: f64 = 10.0;
