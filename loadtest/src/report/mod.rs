//! The report of a whole test: what `--json` writes, `--html` draws and `report` reads again.
//!
//! The fields are a stable schema, described in docs/LOADTEST.md: they may be added to, not renamed. Used by `campaign`.

mod chart;
mod html;
mod page;
mod table;

pub(crate) use html::page_of;
pub(crate) use table::{head, row};

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::answer::FailureKind;
use crate::arrivals::Arrivals;
use crate::figures::{Durations, Percentiles, rounded};
use crate::lag::Lag;
use crate::load::Outcome;

/// Name of the JSON's schema; the number rises when a field changes its meaning.
pub(crate) const SCHEMA: &str = "tokenmill-loadtest/1";
/// Points of a run's course that are kept.
const MAX_COURSE_POINTS: usize = 400;

/// Everything that was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) schema: String,
    pub(crate) version: String,
    /// UTC, as in `2025-01-31T12:00:00Z`.
    pub(crate) started_at: String,
    pub(crate) settings: Map<String, Value>,
    pub(crate) targets: Vec<TargetInfo>,
    pub(crate) runs: Vec<Run>,
    pub(crate) searches: Vec<SearchResult>,
}

/// A server under test.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TargetInfo {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) model: String,
    /// Of the prompts' calibration.
    pub(crate) template_tokens: f64,
    pub(crate) tokens_per_word: f64,
}

/// Where output-token counts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TokenCounts {
    /// The server's `usage`.
    Usage,
    /// Events with text: the server sent no `usage`.
    Chunks,
    /// Some of each.
    Mixed,
}

/// The figures of one load on one server, all rounds together. Latencies in milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) target: String,
    pub(crate) load: Arrivals,
    /// The load in words.
    pub(crate) label: String,
    pub(crate) seconds: f64,
    pub(crate) was_given_up: bool,
    /// Requests that count for latency.
    pub(crate) num_answered: u64,
    pub(crate) num_failed: u64,
    pub(crate) errors: Vec<ErrorCount>,
    pub(crate) requests_per_second: f64,
    pub(crate) output_tokens_per_second: f64,
    pub(crate) total_tokens_per_second: f64,
    pub(crate) goodput: Option<Goodput>,
    pub(crate) mean_prompt_tokens: f64,
    pub(crate) mean_output_tokens: f64,
    pub(crate) token_counts: TokenCounts,
    pub(crate) ttft_ms: Percentiles,
    /// Gaps between events with text.
    pub(crate) inter_token_ms: Percentiles,
    /// Mean time per token after the first, per request.
    pub(crate) per_token_ms: Percentiles,
    pub(crate) end_to_end_ms: Percentiles,
    pub(crate) ttft_ms_by_turn: Vec<TurnFigures>,
    pub(crate) client: ClientFigures,
    pub(crate) rounds: Vec<RoundFigures>,
    pub(crate) curves_ms: Curves,
    pub(crate) course: Vec<CoursePoint>,
}

/// Equal failures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ErrorCount {
    pub(crate) kind: FailureKind,
    pub(crate) detail: String,
    pub(crate) count: u64,
}

/// Answers within the limits.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Goodput {
    pub(crate) requests_per_second: f64,
    /// Of all that count, failures among them.
    pub(crate) share: f64,
}

/// One turn of sessions, counted from 1.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TurnFigures {
    pub(crate) turn: usize,
    pub(crate) ttft_ms: Percentiles,
}

/// How far the load test itself can be trusted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ClientFigures {
    /// Lateness of its event loop.
    pub(crate) lag_ms: Percentiles,
    /// Between due and sent; contained in the latencies.
    pub(crate) send_delay_ms: Percentiles,
    /// 1 is one core.
    pub(crate) cpu_share: Option<f64>,
}

/// One round alone, to tell differences from noise.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct RoundFigures {
    pub(crate) requests_per_second: f64,
    pub(crate) output_tokens_per_second: f64,
    pub(crate) ttft_p50_ms: f64,
    pub(crate) ttft_p95_ms: f64,
}

/// Quantiles 0 to 1 in steps of 0.01.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Curves {
    pub(crate) ttft: Vec<f64>,
    pub(crate) inter_token: Vec<f64>,
    pub(crate) end_to_end: Vec<f64>,
}

/// One request of a run's course.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct CoursePoint {
    /// When it was due, after the counted part's start.
    pub(crate) at_s: f64,
    pub(crate) ttft_ms: f64,
    pub(crate) end_to_end_ms: f64,
}

/// What a search for the highest rate found on one server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SearchResult {
    pub(crate) target: String,
    /// What a rate must keep, in words.
    pub(crate) criterion: String,
    /// Requests per second; none if not even the lowest passed.
    pub(crate) highest_rate: Option<f64>,
    /// Whether the highest rate that may be probed passed.
    pub(crate) is_bounded: bool,
    pub(crate) probes: Vec<Probe>,
}

/// One rate that was tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Probe {
    pub(crate) rate: f64,
    pub(crate) has_passed: bool,
    /// In words.
    pub(crate) finding: String,
}

/// All rounds of one load on one server.
pub(crate) struct Gathered {
    outcome: Outcome,
    lag: Lag,
    rounds: Vec<RoundFigures>,
}

impl Gathered {
    pub(crate) fn new(outcome: Outcome, lag: Lag) -> Self {
        let rounds = vec![RoundFigures::of(&outcome)];
        Self { outcome, lag, rounds }
    }

    /// Adds another round.
    pub(crate) fn absorb(&mut self, other: Self) {
        let weight = |seconds: f64, share: Option<f64>| share.map(|share| share * seconds);
        let (mine, theirs) = (self.outcome.seconds, other.outcome.seconds);
        let cpu = weight(mine, self.lag.cpu_share).zip(weight(theirs, other.lag.cpu_share));
        self.lag.cpu_share = cpu.map(|(a, b)| (a + b) / (mine + theirs).max(1e-9));
        self.lag.delays.absorb(&other.lag.delays);
        self.outcome.absorb(other.outcome);
        self.rounds.extend(other.rounds);
    }

    /// The figures; `has_limits` says whether there is a goodput.
    pub(crate) fn run(&self, target: &str, load: Arrivals, has_limits: bool) -> Run {
        let outcome = &self.outcome;
        let samples = &outcome.samples;
        let per_second = |count: u64| rounded(count as f64 / outcome.seconds.max(1e-9));
        let mean = |sum: u64| if samples.is_empty() { 0.0 } else { rounded(sum as f64 / samples.len() as f64) };
        let ttft = Durations::of(samples.iter().map(|sample| sample.first_token));
        let end_to_end = Durations::of(samples.iter().map(|sample| sample.total));
        let mut per_token = Durations::new();
        samples.iter().filter_map(|sample| sample.per_token_us).for_each(|us| per_token.add_us(us));
        let finished = outcome.finished;
        let num_failed = outcome.num_failed();
        let num_good = samples.iter().filter(|sample| sample.is_good).count() as f64;
        let num_all = (samples.len() as u64 + num_failed).max(1) as f64;
        let goodput = Goodput { requests_per_second: per_second(finished.good), share: rounded(num_good / num_all) };
        Run {
            target: target.to_owned(),
            load,
            label: load.to_string(),
            seconds: rounded(outcome.seconds),
            was_given_up: outcome.was_given_up,
            num_answered: samples.len() as u64,
            num_failed,
            errors: errors_of(outcome),
            requests_per_second: per_second(finished.requests),
            output_tokens_per_second: per_second(finished.output_tokens),
            total_tokens_per_second: per_second(finished.output_tokens + finished.prompt_tokens),
            goodput: has_limits.then_some(goodput),
            mean_prompt_tokens: mean(samples.iter().map(|sample| sample.prompt_tokens).sum()),
            mean_output_tokens: mean(samples.iter().map(|sample| sample.output_tokens).sum()),
            token_counts: token_counts_of(outcome),
            ttft_ms: ttft.percentiles(),
            inter_token_ms: outcome.gaps.percentiles(),
            per_token_ms: per_token.percentiles(),
            end_to_end_ms: end_to_end.percentiles(),
            ttft_ms_by_turn: by_turn(outcome),
            client: ClientFigures {
                lag_ms: self.lag.delays.percentiles(),
                send_delay_ms: outcome.send_delays.percentiles(),
                cpu_share: self.lag.cpu_share.map(rounded),
            },
            rounds: self.rounds.clone(),
            curves_ms: Curves { ttft: ttft.curve(), inter_token: outcome.gaps.curve(), end_to_end: end_to_end.curve() },
            course: course_of(outcome),
        }
    }
}

impl RoundFigures {
    fn of(outcome: &Outcome) -> Self {
        let ttft = Durations::of(outcome.samples.iter().map(|sample| sample.first_token));
        let per_second = |count: u64| rounded(count as f64 / outcome.seconds.max(1e-9));
        Self {
            requests_per_second: per_second(outcome.finished.requests),
            output_tokens_per_second: per_second(outcome.finished.output_tokens),
            ttft_p50_ms: ttft.quantile_ms(0.5),
            ttft_p95_ms: ttft.quantile_ms(0.95),
        }
    }
}

fn errors_of(outcome: &Outcome) -> Vec<ErrorCount> {
    let error = |(failure, count): (&crate::answer::Failure, &u64)| ErrorCount {
        kind: failure.kind,
        detail: failure.detail.clone(),
        count: *count,
    };
    outcome.failed.iter().map(error).collect()
}

fn token_counts_of(outcome: &Outcome) -> TokenCounts {
    let num_counted = outcome.samples.iter().filter(|sample| sample.is_counted_by_server).count();
    match num_counted {
        all if all == outcome.samples.len() => TokenCounts::Usage,
        0 => TokenCounts::Chunks,
        _ => TokenCounts::Mixed,
    }
}

fn by_turn(outcome: &Outcome) -> Vec<TurnFigures> {
    let mut turns: BTreeMap<usize, Durations> = BTreeMap::new();
    for sample in &outcome.samples {
        turns.entry(sample.turn + 1).or_insert_with(Durations::new).add(sample.first_token);
    }
    turns.into_iter().map(|(turn, ttft)| TurnFigures { turn, ttft_ms: ttft.percentiles() }).collect()
}

/// Evenly thinned, but the slowest request of each step is the one that stays.
fn course_of(outcome: &Outcome) -> Vec<CoursePoint> {
    let mut points: Vec<CoursePoint> = outcome
        .samples
        .iter()
        .map(|sample| CoursePoint {
            at_s: rounded(sample.at_s),
            ttft_ms: rounded(sample.first_token.as_secs_f64() * 1000.0),
            end_to_end_ms: rounded(sample.total.as_secs_f64() * 1000.0),
        })
        .collect();
    points.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
    let step = points.len().div_ceil(MAX_COURSE_POINTS).max(1);
    let slowest = |part: &[CoursePoint]| part.iter().copied().max_by(|a, b| a.ttft_ms.total_cmp(&b.ttft_ms));
    points.chunks(step).filter_map(slowest).collect()
}

impl Report {
    /// A report without results.
    pub(crate) fn new(settings: Map<String, Value>, targets: Vec<TargetInfo>) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            schema: SCHEMA.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: date_of(since.as_secs()),
            settings,
            targets,
            runs: Vec::new(),
            searches: Vec::new(),
        }
    }

    /// Whether any request of any run was answered.
    pub(crate) fn has_answers(&self) -> bool {
        self.runs.iter().any(|run| run.num_answered > 0)
    }

    /// Adds the servers and runs of another report; a name that is taken gets a number.
    pub(crate) fn absorb(&mut self, other: Self) {
        let taken: Vec<String> = self.targets.iter().map(|target| target.name.clone()).collect();
        let free = |name: &str| {
            let numbered = (2..).map(|number| format!("{name} ({number})"));
            let mut names = std::iter::once(name.to_owned()).chain(numbered);
            names.find(|name| !taken.contains(name)).expect("there is always another number")
        };
        for mut target in other.targets {
            target.name = free(&target.name);
            self.targets.push(target);
        }
        self.runs.extend(other.runs.into_iter().map(|run| Run { target: free(&run.target), ..run }));
        let searches = other.searches.into_iter();
        self.searches.extend(searches.map(|search| SearchResult { target: free(&search.target), ..search }));
        for (name, value) in other.settings {
            let mine = self.settings.entry(name).or_insert(Value::Null);
            if *mine != value {
                *mine = Value::from(format!("{} | {}", plain(mine), plain(&value)));
            }
        }
    }
}

/// A setting as text.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "–".to_owned(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// UTC date and time of seconds since 1970.
fn date_of(seconds: u64) -> String {
    let (days, second) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Civil from days, with years that begin in March.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
