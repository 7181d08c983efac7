//! The report's figures, and the page: every section, well formed, nothing from outside.

use super::*;
use crate::answer::Failure;
use crate::arrivals::Spread;
use crate::load::{Finished, Sample};
use std::time::Duration;

fn outcome(first_ms: u64, num_turns: usize) -> Outcome {
    let sample = |i: u64| Sample {
        at_s: i as f64 / 10.0,
        turn: i as usize % num_turns,
        first_token: Duration::from_millis(first_ms + i),
        total: Duration::from_millis(first_ms + i + 30),
        prompt_tokens: 6,
        output_tokens: 4,
        is_counted_by_server: true,
        per_token_us: Some(10_000),
        is_good: i < 50,
    };
    let samples: Vec<Sample> = (1..=100).map(sample).collect();
    let mut gaps = Durations::new();
    (0..300).for_each(|_| gaps.add_us(10_000));
    let failure = Failure::new(FailureKind::Status, "status 503: <b>\"no\" & no</b>");
    Outcome {
        seconds: 10.0,
        samples,
        gaps,
        failed: BTreeMap::from([(failure, 25)]),
        finished: Finished { requests: 100, good: 49, prompt_tokens: 600, output_tokens: 400 },
        send_delays: Durations::new(),
        was_given_up: false,
    }
}

fn gathered(first_ms: u64, num_turns: usize) -> Gathered {
    let lag = Lag { delays: Durations::of([Duration::from_millis(25)]), cpu_share: Some(0.125) };
    Gathered::new(outcome(first_ms, num_turns), lag)
}

fn report() -> Report {
    let target = |name: &str| TargetInfo {
        name: name.to_owned(),
        url: "http://127.0.0.1:1".to_owned(),
        model: "m".to_owned(),
        template_tokens: 7.0,
        tokens_per_word: 1.0,
    };
    let settings = serde_json::json!({"seed": 1, "extra": null}).as_object().unwrap().clone();
    let mut report = Report::new(settings, vec![target("one <script>"), target("two")]);
    for clients in [1, 4, 16] {
        for (name, ms) in [("one <script>", 100), ("two", 200)] {
            report.runs.push(gathered(ms, 3).run(name, Arrivals::Closed { clients }, true));
        }
    }
    let mut both = gathered(5, 1);
    both.absorb(gathered(5, 1));
    report.runs.push(both.run("two", Arrivals::Open { per_second: 2.5, spread: Spread::Gamma(0.5) }, true));
    report.searches.push(SearchResult {
        target: "two".to_owned(),
        criterion: "p95 TTFT ≤ 500 ms and no error".to_owned(),
        highest_rate: Some(12.5),
        is_bounded: false,
        probes: vec![Probe { rate: 25.0, has_passed: false, finding: "too late".to_owned() }],
    });
    report
}

#[test]
fn figures_follow_from_what_happened() {
    let run = gathered(0, 4).run("a", Arrivals::Closed { clients: 2 }, true);
    assert_eq!((run.num_answered, run.num_failed), (100, 25));
    assert_eq!((run.output_tokens_per_second, run.total_tokens_per_second), (40.0, 100.0));
    let goodput = run.goodput.unwrap();
    assert_eq!((goodput.requests_per_second, goodput.share), (4.9, 49.0_f64 / 125.0));
    assert!((run.ttft_ms.p50 - 50.0).abs() < 0.1 && (run.inter_token_ms.p50 - 10.0).abs() < 0.02);
    assert_eq!(run.ttft_ms_by_turn.iter().map(|turn| turn.turn).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(run.ttft_ms_by_turn.iter().all(|turn| turn.ttft_ms.count == 25));
    assert_eq!(run.token_counts, TokenCounts::Usage);
    let text = row(&run, false);
    for part in ["2 clients", "39 %", "25 x status 503", "the load test itself was late"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[test]
fn rounds_are_one_run_and_stay_apart_too() {
    let mut both = gathered(0, 1);
    both.absorb(gathered(100, 1));
    let run = both.run("a", Arrivals::Closed { clients: 2 }, false);
    assert_eq!((run.num_answered, run.seconds, run.output_tokens_per_second), (200, 20.0, 40.0));
    assert!((run.rounds[0].ttft_p50_ms - 50.0).abs() < 0.1 && (run.rounds[1].ttft_p50_ms - 150.0).abs() < 0.2);
    assert!((run.ttft_ms.p50 - 100.0).abs() < 0.2 && run.goodput.is_none());
    assert_eq!(run.client.cpu_share, Some(0.125));
}

#[test]
fn json_comes_back_as_it_went_and_names_its_schema() {
    let report = report();
    let json = serde_json::to_value(&report).unwrap();
    let back: Report = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(serde_json::to_value(&back).unwrap(), json);
    assert_eq!(json["schema"], "tokenmill-loadtest/1");
    assert_eq!(json["runs"][6]["load"], serde_json::json!({"kind": "open", "per_second": 2.5, "spread": "gamma:0.5"}));
    assert_eq!(json["runs"][0]["errors"][0]["kind"], "status");
    assert_eq!(json["runs"][0]["curves_ms"]["ttft"].as_array().unwrap().len(), 101);
}

#[test]
fn reports_are_put_together_under_names_of_their_own() {
    let mut all = report();
    all.absorb(report());
    let names: Vec<&str> = all.targets.iter().map(|target| target.name.as_str()).collect();
    assert_eq!(names, ["one <script>", "two", "one <script> (2)", "two (2)"]);
    assert!(all.runs.iter().any(|run| run.target == "two (2)") && all.searches[1].target == "two (2)");
    assert_eq!(all.settings["seed"], 1);
}

#[test]
fn a_long_course_is_thinned_and_keeps_the_slowest() {
    let mut long = outcome(10, 1);
    long.samples = (0..4000).map(|i| Sample { at_s: f64::from(i), ..long.samples[0].clone() }).collect();
    long.samples[1234].first_token = Duration::from_secs(9);
    let course = course_of(&long);
    assert!(course.len() <= MAX_COURSE_POINTS);
    assert!(course.iter().any(|point| point.ttft_ms == 9000.0));
}

/// Names of elements that have no end tag.
const VOID: &[&str] = &["meta", "path", "circle", "rect"];

/// Fails where a tag is not closed in its place.
fn check_nesting(html: &str) {
    let mut open: Vec<&str> = Vec::new();
    for part in html.split('<').skip(1) {
        let (tag, _) = part.split_once('>').unwrap_or_else(|| panic!("a tag without end: {part}"));
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        if tag.starts_with('!') || tag.ends_with('/') || VOID.contains(&name) {
            continue;
        }
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "</{name}> closes something else");
        } else {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
}

#[test]
fn the_page_is_whole_and_needs_nothing_from_outside() {
    let html = page_of(&report());
    let script = html.split("<script>").nth(1).unwrap().split("</script>").next().unwrap();
    let style = html.split("<style>").nth(1).unwrap().split("</style>").next().unwrap();
    check_nesting(&html.replace(script, ""));
    for id in [
        "search",
        "percentiles",
        "throughput",
        "distributions",
        "course",
        "turns",
        "rounds",
        "errors",
        "client",
        "settings",
    ] {
        assert!(html.contains(&format!("<section id=\"{id}\"")), "no section {id}");
        assert!(html.contains(&format!("href=\"#{id}\"")), "no link to {id}");
    }
    for outside in ["src=", "@import", "url(", "<link", "<iframe", "fetch(", "XMLHttpRequest", "import("] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert!(html.split("href=\"").skip(1).all(|target| target.starts_with('#')));
    assert!(style.contains("prefers-color-scheme: dark") && html.contains("name=\"viewport\""));
    assert!(!html.contains("<script>\"") && html.contains("one &lt;script&gt;") && !html.contains("<b>"));
    assert!(!html.contains("NaN") && !html.contains("inf\""));
    let (num_charts, num_tables) = (html.matches("<svg class=\"chart\"").count(), html.matches("<details>").count());
    assert!(num_charts >= 20 && num_tables >= num_charts, "{num_charts} charts, {num_tables} tables");
    assert_eq!(html.matches("role=\"img\" aria-labelledby=").count(), num_charts);
    let mut ids: Vec<&str> = html.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let num_ids = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), num_ids, "an id is there twice");
}

#[test]
fn a_report_without_an_answer_is_a_page_too() {
    let mut empty = report();
    empty.searches.clear();
    let nothing = Outcome { samples: Vec::new(), gaps: Durations::new(), ..outcome(0, 1) };
    let lag = Lag { delays: Durations::new(), cpu_share: None };
    empty.runs = vec![Gathered::new(nothing, lag).run("two", Arrivals::Closed { clients: 1 }, false)];
    let html = page_of(&empty);
    check_nesting(&html.replace(include_str!("page.js"), ""));
    assert!(!html.contains("NaN") && !empty.has_answers());
}

#[test]
fn dates_are_right() {
    for (seconds, date) in
        [(0, "1970-01-01T00:00:00Z"), (951_825_600, "2000-02-29T12:00:00Z"), (1_735_689_599, "2024-12-31T23:59:59Z")]
    {
        assert_eq!(date_of(seconds), date);
    }
}
