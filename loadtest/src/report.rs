//! The figures of all runs, as a table and as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::load::{Arrivals, Outcome};
use crate::workload::Workload;

/// Everything that was measured.
#[derive(Serialize)]
pub(crate) struct Report<'a> {
    url: &'a str,
    model: &'a str,
    workload: &'a Workload,
    runs: Vec<Run>,
}

/// One run's figures. Latencies in milliseconds.
#[derive(Serialize)]
struct Run {
    arrivals: Arrivals,
    seconds: f64,
    num_answered: usize,
    num_failed: u64,
    errors: Vec<ErrorCount>,
    requests_per_second: f64,
    output_tokens_per_second: f64,
    total_tokens_per_second: f64,
    mean_prompt_tokens: f64,
    mean_output_tokens: f64,
    ttft_ms: Percentiles,
    inter_token_ms: Percentiles,
    end_to_end_ms: Percentiles,
}

#[derive(Serialize)]
struct ErrorCount {
    error: String,
    count: u64,
}

#[derive(Serialize)]
struct Percentiles {
    mean: f64,
    p50: f64,
    p90: f64,
    p95: f64,
    p99: f64,
    max: f64,
}

impl Percentiles {
    fn of(durations: impl Iterator<Item = Duration>) -> Self {
        // Microseconds up to an hour, three digits.
        let mut histogram: Histogram<u64> = Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("bounds are valid");
        for duration in durations {
            histogram.saturating_record(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
        }
        let ms = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            mean: histogram.mean() / 1000.0,
            p50: ms(0.5),
            p90: ms(0.9),
            p95: ms(0.95),
            p99: ms(0.99),
            max: histogram.max() as f64 / 1000.0,
        }
    }
}

impl Run {
    fn of(outcome: &Outcome) -> Self {
        let answered = &outcome.answered;
        let seconds = outcome.wall.as_secs_f64();
        let output: u64 = answered.iter().map(|timing| timing.output_tokens).sum();
        let prompt: u64 = answered.iter().map(|timing| timing.prompt_tokens).sum();
        let per_answer = |sum: u64| if answered.is_empty() { 0.0 } else { sum as f64 / answered.len() as f64 };
        let errors =
            outcome.failed.iter().map(|(failure, count)| ErrorCount { error: failure.0.clone(), count: *count });
        Self {
            arrivals: outcome.arrivals,
            seconds,
            num_answered: answered.len(),
            num_failed: outcome.failed.values().sum(),
            errors: errors.collect(),
            requests_per_second: answered.len() as f64 / seconds,
            output_tokens_per_second: output as f64 / seconds,
            total_tokens_per_second: (prompt + output) as f64 / seconds,
            mean_prompt_tokens: per_answer(prompt),
            mean_output_tokens: per_answer(output),
            ttft_ms: Percentiles::of(answered.iter().map(|timing| timing.first_token)),
            inter_token_ms: Percentiles::of(answered.iter().flat_map(|timing| timing.gaps.iter().copied())),
            end_to_end_ms: Percentiles::of(answered.iter().map(|timing| timing.total)),
        }
    }

    fn row(&self) -> String {
        let load = match self.arrivals {
            Arrivals::Closed { clients } => format!("{clients} clients"),
            Arrivals::Poisson { per_second } => format!("{per_second} req/s"),
        };
        format!(
            "{load:>12} {:>6} {:>6} {:>7.2} {:>8.1} {:>9.1} {:>9.1} {:>9.1} {:>8.1} {:>8.1} {:>10.1} {:>10.1}",
            self.num_answered,
            self.num_failed,
            self.requests_per_second,
            self.output_tokens_per_second,
            self.ttft_ms.p50,
            self.ttft_ms.p95,
            self.ttft_ms.p99,
            self.inter_token_ms.p50,
            self.inter_token_ms.p99,
            self.end_to_end_ms.p50,
            self.end_to_end_ms.p99,
        )
    }
}

/// Two lines: the groups of figures, then the figures.
const HEAD: &str = "                                               |  time to first token, ms  | between tokens |    end to end, ms\
\n        load     ok failed   req/s out tok/s     p50       p95       p99      p50      p99        p50        p99";

impl<'a> Report<'a> {
    pub(crate) fn new(url: &'a str, model: &'a str, workload: &'a Workload) -> Self {
        Self { url, model, workload, runs: Vec::new() }
    }

    pub(crate) fn add(&mut self, outcome: &Outcome) {
        self.runs.push(Run::of(outcome));
    }

    /// The last run's row, with the head before the first, and its errors.
    pub(crate) fn last_lines(&self) -> String {
        let mut lines = String::new();
        let Some(run) = self.runs.last() else { return lines };
        if self.runs.len() == 1 {
            lines = format!("{} model {}\n{HEAD}\n", self.url, self.model);
        }
        lines += &run.row();
        for error in &run.errors {
            write!(lines, "\n{:>19} x {}", error.count, error.error).expect("a String takes all");
        }
        lines
    }

    /// Whether any request of any run was answered.
    pub(crate) fn has_answers(&self) -> bool {
        self.runs.iter().any(|run| run.num_answered > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Failure, Timing};
    use std::collections::BTreeMap;

    #[test]
    fn figures_follow_from_the_timings() {
        let timing = |ms: u64| Timing {
            first_token: Duration::from_millis(ms),
            gaps: vec![Duration::from_millis(10); 3],
            total: Duration::from_millis(ms + 30),
            prompt_tokens: 6,
            output_tokens: 4,
        };
        let outcome = Outcome {
            arrivals: Arrivals::Closed { clients: 2 },
            wall: Duration::from_secs(2),
            answered: (1..=100).map(timing).collect(),
            failed: BTreeMap::from([(Failure("status 503".to_owned()), 3)]),
        };
        let run = Run::of(&outcome);
        assert_eq!((run.num_answered, run.num_failed), (100, 3));
        assert!((run.output_tokens_per_second - 200.0).abs() < 1e-9);
        assert!((run.total_tokens_per_second - 500.0).abs() < 1e-9);
        assert!((run.ttft_ms.p50 - 50.0).abs() < 0.1, "{}", run.ttft_ms.p50);
        assert!((run.ttft_ms.p99 - 99.0).abs() < 0.1);
        assert!((run.inter_token_ms.p50 - 10.0).abs() < 0.02);
        assert!(run.row().contains("2 clients"));
    }
}
