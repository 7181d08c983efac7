//! The binary against a fake server: what it writes, and how it ends when something is wrong.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "../src/fake.rs"]
mod fake;

use std::process::{Command, Output};
use std::time::Duration;

use fake::{FakeServer, Script};
use serde_json::Value;

async fn loadtest(arguments: Vec<String>) -> Output {
    let run = move || Command::new(env!("CARGO_BIN_EXE_tokenmill-loadtest")).args(arguments).env_clear().output();
    tokio::task::spawn_blocking(run).await.unwrap().unwrap()
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_are_compared_in_json_and_in_one_page() {
    let (fast, slow) = (Duration::from_millis(5), Duration::from_millis(60));
    let good = FakeServer::start(Script { first: fast, ..Script::default() }).await;
    let bad = FakeServer::start(Script { first: slow, has_usage: false, ..Script::default() }).await;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let text = format!(
        "closed --clients 1,2 --output 3 --seconds 0.4 --warmup 0.1 --turns 2 --rounds 2 --ttft-limit 40ms --seed 1 \
         --target good={} --target bad={} --json {} --html {}",
        good.url,
        bad.url,
        path("a.json"),
        path("a.html")
    );
    let output = loadtest(words(&text)).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "no live line where nobody looks");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("2 clients") && table.contains("the server sent no usage"), "{table}");

    let report: Value = serde_json::from_slice(&std::fs::read(path("a.json")).unwrap()).unwrap();
    assert_eq!((&report["schema"], &report["settings"]["seed"]), (&"tokenmill-loadtest/1".into(), &1.into()));
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 4);
    for run in runs {
        let is_good = run["target"] == "good";
        assert!(run["num_answered"].as_u64().unwrap() > 2 && run["num_failed"] == 0, "{run}");
        assert_eq!(run["token_counts"], if is_good { "usage" } else { "chunks" });
        assert_eq!(run["mean_output_tokens"], 3.0);
        assert!(run["ttft_ms"]["p50"].as_f64().unwrap() >= if is_good { 5.0 } else { 60.0 });
        let turns = run["ttft_ms_by_turn"].as_array().unwrap().len();
        assert!(turns == 2 && run["rounds"].as_array().unwrap().len() == 2);
        assert!(is_good || run["goodput"]["share"] == 0.0);
    }
    let page = std::fs::read_to_string(path("a.html")).unwrap();
    assert!(page.contains("Load test of good and bad") && page.ends_with("</html>\n"));
    assert!(!page.contains("src=") && !page.contains("url("));

    let text = format!("report {0} {0} --html {1}", path("a.json"), path("b.html"));
    assert!(loadtest(words(&text)).await.status.success());
    assert!(std::fs::read_to_string(path("b.html")).unwrap().contains("bad (2)"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_is_replayed_and_a_search_ends() {
    let server = FakeServer::start(Script { first: Duration::from_millis(1), ..Script::default() }).await;
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace.jsonl");
    let line = |ms: u64| format!("{{\"timestamp\": {ms}, \"input_length\": 30, \"output_length\": 2}}\n");
    std::fs::write(&trace, [0, 1000, 4000].map(line).concat()).unwrap();
    let url = &server.url;
    let text = format!("trace {} --speed 20 --url {url} --json -", trace.display());
    let output = loadtest(words(&text)).await;
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let run = &report["runs"][0];
    assert_eq!((&run["num_answered"], &run["mean_prompt_tokens"]), (&3.into(), &30.0.into()), "{run}");
    let last = run["course"][2]["at_s"].as_f64().unwrap();
    assert!((0.2..0.3).contains(&last), "4 s at 20 times the speed are not {last} s");

    let text = format!(
        "search --from 20 --to 40 --ttft-limit 10s --seconds 0.3 --warmup 0 --output 2 --arrivals even --url {url} --json -"
    );
    let output = loadtest(words(&text)).await;
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["searches"][0]["highest_rate"], &report["searches"][0]["is_bounded"]),
        (&40.0.into(), &true.into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_said() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let failing = FakeServer::start(Script { status: 503, ..Script::default() }).await;
    for (arguments, part) in [
        (format!("closed --url {gone}"), "cannot list models"),
        (format!("closed --url {}", failing.url), "status 503: fake trouble"),
        ("report /no/such.json --html /tmp/x".to_owned(), "/no/such.json"),
        ("search".to_owned(), "--ttft-limit"),
    ] {
        let output = loadtest(words(&arguments)).await;
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && stderr.contains(part), "{arguments}: {stderr}");
    }
}
