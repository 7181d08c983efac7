//! What `/metrics` shows.
//!
//! [`METRICS`] is the list: name, kind, unit, help, buckets. Labels come from closed sets only (routes, statuses, error codes,
//! served models), so the number of series does not grow with traffic. A server has a recorder of its own, no global one, so
//! that several can live in one process. Recording is a few atomic operations.

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use std::sync::Arc;
use std::time::Duration;
use tokenmill_scheduler::stats::{StepStats, StepTimes};

/// Requests answered, by route, method and status.
pub const HTTP_REQUESTS: &str = "tokenmill_http_requests_total";
/// From the request's head to the response's last byte.
pub const HTTP_REQUEST_DURATION: &str = "tokenmill_http_request_duration_seconds";
/// Requests whose response has not been written to its end.
pub const HTTP_IN_FLIGHT: &str = "tokenmill_http_requests_in_flight";
/// Open connections.
pub const CONNECTIONS: &str = "tokenmill_connections";
/// Connections closed by one of our limits, by reason.
pub const CONNECTIONS_CLOSED: &str = "tokenmill_connections_closed_total";
/// Errors sent to clients, by code.
pub const ERRORS: &str = "tokenmill_errors_total";
/// From the request's head to its first output token.
pub const TIME_TO_FIRST_TOKEN: &str = "tokenmill_time_to_first_token_seconds";
/// Between two output tokens of a sequence.
pub const INTER_TOKEN: &str = "tokenmill_inter_token_latency_seconds";
/// From admission to the first step.
pub const QUEUE_TIME: &str = "tokenmill_queue_time_seconds";
/// From the request's head to the last token.
pub const REQUEST_LATENCY: &str = "tokenmill_request_latency_seconds";
/// Prompt tokens per request.
pub const REQUEST_PROMPT_TOKENS: &str = "tokenmill_request_prompt_tokens";
/// Output tokens per request.
pub const REQUEST_GENERATED_TOKENS: &str = "tokenmill_request_generated_tokens";
/// Prompt tokens of admitted requests.
pub const PROMPT_TOKENS: &str = "tokenmill_prompt_tokens_total";
/// Tokens looked up in the prefix cache.
pub const PREFIX_QUERY_TOKENS: &str = "tokenmill_prefix_query_tokens_total";
/// The part of them that it had.
pub const PREFIX_HIT_TOKENS: &str = "tokenmill_prefix_hit_tokens_total";
/// Output tokens.
pub const GENERATED_TOKENS: &str = "tokenmill_generated_tokens_total";
/// Sequences finished, by reason.
pub const FINISHED: &str = "tokenmill_sequences_finished_total";
/// Requests refused because the queue was full.
pub const REJECTED: &str = "tokenmill_requests_rejected_total";
/// One engine step.
pub const STEP_DURATION: &str = "tokenmill_step_duration_seconds";
/// Time of engine steps by phase.
pub const STEP_PHASE: &str = "tokenmill_step_phase_seconds";
/// Sequences in a step.
pub const BATCH_SEQS: &str = "tokenmill_batch_sequences";
/// Tokens computed in a step.
pub const BATCH_TOKENS: &str = "tokenmill_batch_tokens";
/// Sequences in the running set.
pub const RUNNING: &str = "tokenmill_sequences_running";
/// Sequences that wait.
pub const WAITING: &str = "tokenmill_sequences_waiting";
/// KV blocks held by sequences.
pub const KV_BLOCKS_USED: &str = "tokenmill_kv_blocks_used";
/// KV blocks that hold a reusable prefix and belong to nobody.
pub const KV_BLOCKS_CACHED: &str = "tokenmill_kv_blocks_cached";
/// KV blocks in all.
pub const KV_BLOCKS_TOTAL: &str = "tokenmill_kv_blocks";
/// Sequences that had to give their blocks back.
pub const PREEMPTIONS: &str = "tokenmill_preemptions_total";
/// Sequences that failed.
pub const FAILED: &str = "tokenmill_sequences_failed_total";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Counter,
    Gauge,
    Histogram(&'static [f64]),
}

struct Row {
    name: &'static str,
    kind: Kind,
    unit: Unit,
    help: &'static str,
}

const fn row(name: &'static str, kind: Kind, unit: Unit, help: &'static str) -> Row {
    Row { name, kind, unit, help }
}

/// From a cache hit on a tiny model to minutes of waiting.
const LATENCY: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0];
/// From 1,000 tokens per second to one in two seconds.
const TOKEN_GAP: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0];
const POWERS_OF_TWO: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0];
const LENGTHS: &[f64] = &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 32768.0];

const METRICS: &[Row] = &[
    row(HTTP_REQUESTS, Kind::Counter, Unit::Count, "Requests answered, by route, method and status"),
    row(
        HTTP_REQUEST_DURATION,
        Kind::Histogram(LATENCY),
        Unit::Seconds,
        "From the request's head to the response's last byte, by route",
    ),
    row(HTTP_IN_FLIGHT, Kind::Gauge, Unit::Count, "Requests whose response has not been written to its end"),
    row(CONNECTIONS, Kind::Gauge, Unit::Count, "Open connections"),
    row(CONNECTIONS_CLOSED, Kind::Counter, Unit::Count, "Connections closed by a limit, by reason"),
    row(ERRORS, Kind::Counter, Unit::Count, "Errors sent to clients, by code"),
    row(
        TIME_TO_FIRST_TOKEN,
        Kind::Histogram(LATENCY),
        Unit::Seconds,
        "From the request's head to its first output token",
    ),
    row(INTER_TOKEN, Kind::Histogram(TOKEN_GAP), Unit::Seconds, "Between two output tokens of a sequence"),
    row(QUEUE_TIME, Kind::Histogram(LATENCY), Unit::Seconds, "From admission to the first step"),
    row(REQUEST_LATENCY, Kind::Histogram(LATENCY), Unit::Seconds, "From the request's head to its last output token"),
    row(REQUEST_PROMPT_TOKENS, Kind::Histogram(LENGTHS), Unit::Count, "Prompt tokens of a request"),
    row(REQUEST_GENERATED_TOKENS, Kind::Histogram(LENGTHS), Unit::Count, "Output tokens of a request"),
    row(PROMPT_TOKENS, Kind::Counter, Unit::Count, "Prompt tokens of admitted requests"),
    row(PREFIX_QUERY_TOKENS, Kind::Counter, Unit::Count, "Tokens looked up in the prefix cache"),
    row(PREFIX_HIT_TOKENS, Kind::Counter, Unit::Count, "Tokens found in the prefix cache"),
    row(GENERATED_TOKENS, Kind::Counter, Unit::Count, "Output tokens"),
    row(FINISHED, Kind::Counter, Unit::Count, "Sequences finished, by reason"),
    row(REJECTED, Kind::Counter, Unit::Count, "Requests refused because the queue was full"),
    row(STEP_DURATION, Kind::Histogram(TOKEN_GAP), Unit::Seconds, "One engine step"),
    row(STEP_PHASE, Kind::Histogram(TOKEN_GAP), Unit::Seconds, "Time of engine steps by phase"),
    row(BATCH_SEQS, Kind::Histogram(POWERS_OF_TWO), Unit::Count, "Sequences in a step"),
    row(BATCH_TOKENS, Kind::Histogram(POWERS_OF_TWO), Unit::Count, "Tokens computed in a step"),
    row(RUNNING, Kind::Gauge, Unit::Count, "Sequences in the running set"),
    row(WAITING, Kind::Gauge, Unit::Count, "Sequences that wait"),
    row(KV_BLOCKS_USED, Kind::Gauge, Unit::Count, "KV blocks held by sequences"),
    row(KV_BLOCKS_CACHED, Kind::Gauge, Unit::Count, "KV blocks that hold a reusable prefix and belong to nobody"),
    row(KV_BLOCKS_TOTAL, Kind::Gauge, Unit::Count, "KV blocks in all"),
    row(PREEMPTIONS, Kind::Counter, Unit::Count, "Sequences that had to give their blocks back"),
    row(FAILED, Kind::Counter, Unit::Count, "Sequences that failed in the engine"),
];

/// The metrics of one server. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    /// Open connections.
    pub connections: Gauge,
    /// Requests in flight.
    pub in_flight: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// An empty recorder with every metric described.
    pub fn new() -> Self {
        let mut builder = PrometheusBuilder::new();
        for row in METRICS {
            if let Kind::Histogram(buckets) = row.kind {
                builder = builder
                    .set_buckets_for_metric(Matcher::Full(row.name.to_owned()), buckets)
                    .expect("every list of buckets has entries, a test records them all");
            }
        }
        let recorder = builder.build_recorder();
        for row in METRICS {
            let (name, help) = (KeyName::from_const_str(row.name), row.help.into());
            match row.kind {
                Kind::Counter => recorder.describe_counter(name, Some(row.unit), help),
                Kind::Gauge => recorder.describe_gauge(name, Some(row.unit), help),
                Kind::Histogram(_) => recorder.describe_histogram(name, Some(row.unit), help),
            }
        }
        let handle = recorder.handle();
        let recorder = Arc::new(recorder);
        let connections = gauge(&recorder, CONNECTIONS, &[]);
        let in_flight = gauge(&recorder, HTTP_IN_FLIGHT, &[]);
        Self { recorder, handle, connections, in_flight }
    }

    /// Prometheus' text format.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds recorded samples into their buckets. To be called every few seconds, or samples pile up until the next scrape.
    pub fn run_upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// Counts an answered request. `route` is the path of its row in the table, or `unmatched`.
    pub fn count_request(&self, route: &'static str, method: &'static str, status: u16, duration: Duration) {
        let labels = [
            Label::from_static_parts("route", route),
            Label::from_static_parts("method", method),
            Label::new("status", status.to_string()),
        ];
        counter(&self.recorder, HTTP_REQUESTS, &labels).increment(1);
        histogram(&self.recorder, HTTP_REQUEST_DURATION, &labels[..1]).record(duration);
    }

    /// Counts an error by its code, a row of the table of errors.
    pub fn count_error(&self, code: &'static str) {
        counter(&self.recorder, ERRORS, &[Label::from_static_parts("code", code)]).increment(1);
    }

    /// Counts a connection closed by a limit.
    pub fn count_closed(&self, reason: &'static str) {
        counter(&self.recorder, CONNECTIONS_CLOSED, &[Label::from_static_parts("reason", reason)]).increment(1);
    }

    /// The metrics of one served model.
    pub fn model(&self, model: &str) -> ModelMetrics {
        ModelMetrics::new(&self.recorder, model)
    }
}

/// The metrics of one served model, registered once. Cheap to clone.
#[derive(Clone)]
pub struct ModelMetrics {
    recorder: Arc<PrometheusRecorder>,
    model: Label,
    /// Seconds.
    pub time_to_first_token: Histogram,
    /// Seconds.
    pub inter_token: Histogram,
    /// Seconds.
    pub queue_time: Histogram,
    /// Seconds.
    pub request_latency: Histogram,
    /// Per request.
    pub request_prompt_tokens: Histogram,
    /// Per request.
    pub request_generated_tokens: Histogram,
    /// Of all admitted requests.
    pub prompt_tokens: Counter,
    /// Of all sequences that entered the running set, each time they did.
    pub prefix_query_tokens: Counter,
    /// The part of them that the cache had.
    pub prefix_hit_tokens: Counter,
    /// Of all sequences.
    pub generated_tokens: Counter,
    /// Queue full.
    pub rejected: Counter,
    /// Seconds.
    pub step_duration: Histogram,
    /// Per step.
    pub batch_seqs: Histogram,
    /// Per step.
    pub batch_tokens: Histogram,
    /// Now.
    pub running: Gauge,
    /// Now.
    pub waiting: Gauge,
    /// Now.
    pub kv_blocks_used: Gauge,
    /// Now.
    pub kv_blocks_cached: Gauge,
    /// Fixed at load.
    pub kv_blocks_total: Gauge,
    /// Of all sequences.
    pub preemptions: Counter,
    /// Of all sequences.
    pub failed: Counter,
    step_schedule: Histogram,
    step_forward: Histogram,
    step_sample: Histogram,
}

impl ModelMetrics {
    fn new(recorder: &Arc<PrometheusRecorder>, model: &str) -> Self {
        let model = Label::new("model", model.to_owned());
        let labels = std::slice::from_ref(&model);
        let histogram = |name| histogram(recorder, name, labels);
        let counter = |name| counter(recorder, name, labels);
        let gauge = |name| gauge(recorder, name, labels);
        let phase = |phase| {
            let labels = [model.clone(), Label::from_static_parts("phase", phase)];
            self::histogram(recorder, STEP_PHASE, &labels)
        };
        Self {
            time_to_first_token: histogram(TIME_TO_FIRST_TOKEN),
            inter_token: histogram(INTER_TOKEN),
            queue_time: histogram(QUEUE_TIME),
            request_latency: histogram(REQUEST_LATENCY),
            request_prompt_tokens: histogram(REQUEST_PROMPT_TOKENS),
            request_generated_tokens: histogram(REQUEST_GENERATED_TOKENS),
            prompt_tokens: counter(PROMPT_TOKENS),
            prefix_query_tokens: counter(PREFIX_QUERY_TOKENS),
            prefix_hit_tokens: counter(PREFIX_HIT_TOKENS),
            generated_tokens: counter(GENERATED_TOKENS),
            rejected: counter(REJECTED),
            step_duration: histogram(STEP_DURATION),
            batch_seqs: histogram(BATCH_SEQS),
            batch_tokens: histogram(BATCH_TOKENS),
            running: gauge(RUNNING),
            waiting: gauge(WAITING),
            kv_blocks_used: gauge(KV_BLOCKS_USED),
            kv_blocks_cached: gauge(KV_BLOCKS_CACHED),
            kv_blocks_total: gauge(KV_BLOCKS_TOTAL),
            preemptions: counter(PREEMPTIONS),
            failed: counter(FAILED),
            step_schedule: phase("schedule"),
            step_forward: phase("forward"),
            step_sample: phase("sample"),
            recorder: recorder.clone(),
            model,
        }
    }

    /// Records what one engine step did; the engine's observer.
    pub fn observe_step(&self, stats: &StepStats, times: StepTimes) {
        self.running.set(f64::from(stats.num_running));
        self.waiting.set(f64::from(stats.num_waiting));
        self.kv_blocks_used.set(f64::from(stats.kv_blocks_used));
        self.kv_blocks_cached.set(f64::from(stats.kv_blocks_cached));
        self.kv_blocks_total.set(f64::from(stats.kv_blocks_used + stats.kv_blocks_cached + stats.kv_blocks_free));
        self.generated_tokens.increment(u64::from(stats.num_sampled_tokens));
        self.prefix_query_tokens.increment(u64::from(stats.num_prefix_query_tokens));
        self.prefix_hit_tokens.increment(u64::from(stats.num_prefix_hit_tokens));
        self.preemptions.increment(u64::from(stats.num_preemptions));
        self.failed.increment(u64::from(stats.num_failed));
        // Commands are taken in steps that compute nothing, which say nothing about the load.
        if stats.num_seqs > 0 {
            self.batch_seqs.record(f64::from(stats.num_seqs));
            self.batch_tokens.record(f64::from(stats.num_prefill_tokens + stats.num_decode_tokens));
            self.step_duration.record(times.schedule + times.forward + times.sample);
            self.step_schedule.record(times.schedule);
            self.step_forward.record(times.forward);
            self.step_sample.record(times.sample);
        }
    }

    /// Counts a finished sequence by OpenAI's reason (`stop`, `length`), or `abort`, `error`.
    pub fn count_finished(&self, reason: &'static str) {
        let labels = [self.model.clone(), Label::from_static_parts("reason", reason)];
        counter(&self.recorder, FINISHED, &labels).increment(1);
    }
}

const METADATA: Metadata<'static> = Metadata::new("tokenmill", Level::INFO, None);

fn key(name: &'static str, labels: &[Label]) -> Key {
    Key::from_parts(name, labels.to_vec())
}

fn counter(recorder: &PrometheusRecorder, name: &'static str, labels: &[Label]) -> Counter {
    recorder.register_counter(&key(name, labels), &METADATA)
}

fn gauge(recorder: &PrometheusRecorder, name: &'static str, labels: &[Label]) -> Gauge {
    recorder.register_gauge(&key(name, labels), &METADATA)
}

fn histogram(recorder: &PrometheusRecorder, name: &'static str, labels: &[Label]) -> Histogram {
    recorder.register_histogram(&key(name, labels), &METADATA)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_described_and_histograms_have_buckets() {
        let metrics = Metrics::new();
        let model = metrics.model("demo");
        for histogram in [
            &model.time_to_first_token,
            &model.inter_token,
            &model.queue_time,
            &model.request_latency,
            &model.request_prompt_tokens,
            &model.request_generated_tokens,
            &model.step_duration,
            &model.batch_seqs,
            &model.batch_tokens,
        ] {
            histogram.record(1.0);
        }
        model.count_finished("stop");
        metrics.count_request("/health", "GET", 200, Duration::from_millis(3));
        metrics.count_error("invalid_value");
        metrics.count_closed("header_timeout");
        let stats = StepStats { num_seqs: 3, num_prefill_tokens: 9, kv_blocks_used: 2, ..StepStats::default() };
        model.observe_step(&stats, StepTimes { forward: Duration::from_millis(7), ..StepTimes::default() });
        let text = metrics.render();
        for row in METRICS {
            assert!(text.contains(&format!("# HELP {} {}", row.name, row.help)), "{} has no help\n{text}", row.name);
            if matches!(row.kind, Kind::Histogram(_)) {
                assert!(text.contains(&format!("{}_bucket{{", row.name)), "{} has no buckets\n{text}", row.name);
            }
        }
        assert!(
            text.contains("tokenmill_http_requests_total{route=\"/health\",method=\"GET\",status=\"200\"} 1"),
            "{text}"
        );
    }

    #[test]
    fn names_follow_prometheus() {
        for row in METRICS {
            let total = row.name.ends_with("_total");
            assert_eq!(total, row.kind == Kind::Counter, "{}", row.name);
            if row.unit == Unit::Seconds {
                assert!(row.name.contains("_seconds"), "{}", row.name);
            }
            assert_eq!(METRICS.iter().filter(|other| other.name == row.name).count(), 1);
        }
    }

    #[test]
    fn two_servers_do_not_share_numbers() {
        let (first, second) = (Metrics::new(), Metrics::new());
        first.count_error("invalid_value");
        assert!(first.render().contains("invalid_value"));
        assert!(!second.render().contains("invalid_value"));
    }
}
