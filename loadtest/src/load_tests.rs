//! Runs against a model of a server in paused time: no socket, no waiting, exact figures.

use super::*;
use crate::arrivals::{Spread, schedule};
use crate::live::Waiting;
use crate::model::ModelServer;
use crate::workload::{Scale, Shape, Source};

fn workload(turns: &str) -> Workload {
    let shape = Shape {
        prompt: "20".parse().unwrap(),
        output: "5".parse().unwrap(),
        turns: turns.parse().unwrap(),
        turn_prompt: "10".parse().unwrap(),
        think: Duration::from_millis(500),
        prefix_groups: 0,
        prefix: "1".parse().unwrap(),
    };
    let scale = Scale { overhead_tokens: 0.0, tokens_per_word: 1.0 };
    Workload { source: Arc::new(Source::Drawn(Box::new(shape))), scale, seed: 1, salt: 0 }
}

fn load(arrivals: Arrivals) -> Load {
    let (warmup, counted) = (Duration::from_secs(2), Duration::from_secs(60));
    let schedule = match arrivals {
        Arrivals::Open { per_second, spread } => schedule(per_second, spread, warmup + counted, 1),
        _ => Vec::new(),
    };
    Load { arrivals, schedule, warmup, counted, limits: Limits::default(), give_up_at: None }
}

fn open(per_second: f64, spread: Spread) -> Load {
    load(Arrivals::Open { per_second, spread })
}

async fn run(load: &Load, server: ModelServer, workload: &Workload) -> Outcome {
    load.run(&Arc::new(server), workload, &Live::new(load.limits.ttft)).await
}

fn ttft(outcome: &Outcome) -> crate::figures::Percentiles {
    Durations::of(outcome.samples.iter().map(|sample| sample.first_token)).percentiles()
}

#[tokio::test(start_paused = true)]
async fn a_closed_loop_sends_the_next_request_after_the_answer() {
    // 100 ms to the first token, then 4 gaps of 25 ms: 5 requests per second and client.
    let server = ModelServer::parallel(Duration::from_millis(100), Duration::from_millis(25));
    let outcome = run(&load(Arrivals::Closed { clients: 3 }), server, &workload("1")).await;
    assert!((890..=900).contains(&outcome.finished.requests), "{}", outcome.finished.requests);
    assert_eq!(outcome.finished.output_tokens, 5 * outcome.finished.requests);
    assert!((ttft(&outcome).p50 - 100.0).abs() < 1.5 && (ttft(&outcome).max - 100.0).abs() < 3.0);
    assert!((outcome.gaps.percentiles().p99 - 25.0).abs() < 2.5);
    assert!(outcome.failed.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_open_loop_keeps_its_rate_whatever_the_server_does() {
    for spread in [Spread::Poisson, Spread::Even, Spread::Gamma(0.5)] {
        // Each answer takes ten times as long as the gap between two requests.
        let server = ModelServer::parallel(Duration::from_secs(1), Duration::ZERO);
        let load = open(10.0, spread);
        let due = load.schedule.iter().filter(|due| **due >= load.warmup).count();
        let outcome = run(&load, server, &workload("1")).await;
        assert_eq!(outcome.samples.len(), due, "{spread}");
        assert!((450..=750).contains(&due), "{spread}: {due} of 600");
        assert!((ttft(&outcome).max - 1000.0).abs() < 3.0);
    }
}

/// A server that stands still for ten seconds looks slow for every request that was due then, not only for one.
#[tokio::test(start_paused = true)]
async fn a_pause_of_the_server_is_seen_by_all_that_were_due() {
    let pause = Instant::now() + Duration::from_secs(20)..Instant::now() + Duration::from_secs(30);
    let server = ModelServer { pause: Some(pause), ..ModelServer::parallel(Duration::from_millis(10), Duration::ZERO) };
    let outcome = run(&open(10.0, Spread::Even), server, &workload("1")).await;
    let slow = outcome.samples.iter().filter(|sample| sample.first_token > Duration::from_secs(1)).count();
    assert!((88..=92).contains(&slow), "{slow} requests were due more than a second before the pause ended");
    let at = |sample: &&Sample| sample.first_token > Duration::from_secs(9);
    assert!((outcome.samples.iter().find(at).unwrap().at_s - 18.0).abs() < 0.2, "the axis is the counted part's");
}

/// One worker, 50 ms per answer: twice its rate doubles the queue, and every second more counts.
#[tokio::test(start_paused = true)]
async fn beyond_the_knee_throughput_stays_and_latency_grows() {
    let outcome = run(&open(40.0, Spread::Even), ModelServer::serial(Duration::from_millis(50)), &workload("1")).await;
    let rate = outcome.finished.requests as f64 / outcome.seconds;
    assert!((rate - 20.0).abs() < 1.0, "{rate}");
    assert!(ttft(&outcome).max > 29_000.0, "{:?}", ttft(&outcome));
}

#[tokio::test(start_paused = true)]
async fn a_hopeless_run_is_given_up_early() {
    let limits = Limits { ttft: Some(Duration::from_millis(500)), itl: None };
    let load = Load { limits, give_up_at: Some(30), ..open(40.0, Spread::Even) };
    let begun = Instant::now();
    let outcome = run(&load, ModelServer::serial(Duration::from_millis(50)), &workload("1")).await;
    assert!(outcome.was_given_up && begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let rate = outcome.finished.requests as f64 / outcome.seconds;
    assert!((rate - 20.0).abs() < 2.0, "throughput is of the time that was run: {rate}");
    let fast = ModelServer::serial(Duration::from_millis(5));
    assert!(!run(&load, fast, &workload("1")).await.was_given_up);
    let failing = ModelServer { fail_every: 7, ..ModelServer::serial(Duration::from_millis(5)) };
    assert!(run(&load, failing, &workload("1")).await.was_given_up);
}

#[tokio::test(start_paused = true)]
async fn failures_count_and_do_not_end_the_run() {
    let server = ModelServer { fail_every: 4, ..ModelServer::parallel(Duration::from_millis(10), Duration::ZERO) };
    let outcome = run(&load(Arrivals::Closed { clients: 2 }), server, &workload("1")).await;
    let share = outcome.num_failed() as f64 / (outcome.num_failed() + outcome.samples.len() as u64) as f64;
    assert!((share - 0.25).abs() < 0.01, "{share}");
    assert_eq!(outcome.failed.keys().next().unwrap().kind, FailureKind::Status);
}

#[tokio::test(start_paused = true)]
async fn later_turns_carry_the_history_and_wait_for_the_user() {
    let server = Arc::new(ModelServer::parallel(Duration::from_millis(100), Duration::ZERO));
    let load = load(Arrivals::Closed { clients: 1 });
    let outcome = load.run(&server, &workload("3"), &Live::new(None)).await;
    let turns: Vec<usize> = outcome.samples.iter().map(|sample| sample.turn).collect();
    assert!(turns.windows(2).all(|pair| pair[1] == (pair[0] + 1) % 3), "{turns:?}");
    // 20 words, 5 of the answer, 10, 5, 10: what the third turn sends.
    let prompts: Vec<u64> = outcome.samples.iter().map(|sample| sample.prompt_tokens).collect();
    assert!(outcome.samples.iter().all(|sample| sample.prompt_tokens == [20, 35, 50][sample.turn]), "{prompts:?}");
    // Three answers of 100 ms and two pauses of 500 ms.
    assert!((outcome.samples.len() as f64 / 60.0 - 3.0 / 1.3).abs() < 0.1, "{}", outcome.samples.len());
}

#[tokio::test(start_paused = true)]
async fn a_trace_is_sent_at_its_times_and_waited_for() {
    let schedule = [0, 1000, 1000, 5000].map(Duration::from_millis).to_vec();
    let counted = Duration::from_millis(5001);
    let arrivals = Arrivals::Trace { speed: 1.0 };
    let load = Load { schedule, counted, warmup: Duration::ZERO, ..load(arrivals) };
    let outcome = run(&load, ModelServer::parallel(Duration::from_secs(3), Duration::ZERO), &workload("1")).await;
    let at: Vec<f64> = outcome.samples.iter().map(|sample| (sample.at_s * 100.0).round() / 100.0).collect();
    assert_eq!(at, [0.0, 1.0, 1.0, 5.0]);
    assert!((outcome.seconds - 8.0).abs() < 0.02 && outcome.finished.requests == 4, "{}", outcome.seconds);
}

#[tokio::test(start_paused = true)]
async fn goodput_counts_answers_within_every_limit() {
    let limits = Limits { ttft: Some(Duration::from_millis(110)), itl: Some(Duration::from_millis(30)) };
    for (first, gap, is_good) in [(100, 25, true), (120, 25, false), (100, 40, false)] {
        let load = Load { limits, ..load(Arrivals::Closed { clients: 1 }) };
        let server = ModelServer::parallel(Duration::from_millis(first), Duration::from_millis(gap));
        let outcome = run(&load, server, &workload("1")).await;
        assert!(outcome.samples.iter().all(|sample| sample.is_good == is_good), "{first} {gap}");
        assert_eq!(outcome.finished.good, if is_good { outcome.finished.requests } else { 0 });
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_too_long_is_late_before_it_ends() {
    let live = Live::new(Some(Duration::from_secs(1)));
    live.start(Instant::now());
    let [first, second]: [Waiting; 2] = [live.begin(Instant::now()), live.begin(Instant::now())];
    drop(first);
    assert_eq!(live.num_late(), 0);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(live.num_late(), 1);
    drop(second);
    assert_eq!(live.num_late(), 1);
}
