//! The API on real models: the demo model against transformers' greedy text, many requests at once against each alone, and
//! the golden models of the project where they are at hand.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "common/model.rs"]
mod common;

use std::path::{Path, PathBuf};

use common::TestServer;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Room for everything.
const PLENTY: u32 = u32::MAX;
/// 14 blocks of 64 tokens: a few of the requests below.
const TIGHT: u32 = 14;

async fn demo(num_blocks: u32) -> TestServer {
    TestServer::load(&root().join("demo/model"), num_blocks).await
}

async fn post(server: &TestServer, path: &str, body: &Value) -> Value {
    let reply = server.post(path, body).await;
    assert_eq!(reply.status, 200, "{body}: {}", reply.text());
    reply.json()
}

#[tokio::test]
async fn the_demo_model_says_what_transformers_says() {
    let server = demo(PLENTY).await;
    let golden = read_json(&root().join("demo/golden.json"));
    let mut num_cases = 0;
    for case in golden["cases"].as_array().unwrap().iter().filter(|case| case["tools"].is_null()) {
        let body = json!({"model": server.model(), "messages": case["messages"], "temperature": 0, "max_tokens": 300,
            "return_token_ids": true});
        let answer = post(&server, CHAT, &body).await;
        let choice = &answer["choices"][0];
        assert_eq!(answer["prompt_token_ids"], case["input_ids"], "{}", case["name"]);
        assert_eq!((&choice["message"]["content"], &choice["token_ids"]), (&case["text"], &case["output_ids"]));
        let mut streamed = body.clone();
        streamed["stream"] = json!(true);
        let events = server.post(CHAT, &streamed).await.events();
        let text: String = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(case["text"], text);
        num_cases += 1;
    }
    assert!(num_cases >= 5, "{num_cases} cases");
}

/// Requests of very different lengths, some with a common beginning.
fn mixed_requests(server: &TestServer, temperature: u32) -> Vec<Value> {
    let words = ["river", "lamp", "seven", "copper", "window", "你好", "Tokenmill", "blue"];
    (0..32_usize)
        .map(|index| {
            let shared = "Please repeat after me. ".repeat(index % 5 * 8);
            let own: Vec<&str> = (0..3 + index * 7 % 40).map(|offset| words[(index + offset) % words.len()]).collect();
            json!({"model": server.model(), "temperature": temperature, "seed": 100 + index, "logprobs": true,
                "top_logprobs": 2, "max_tokens": 24 + index * 5 % 60, "ignore_eos": index % 2 == 0,
                "messages": [{"role": "user", "content": format!("{shared}{}", own.join(" "))}]})
        })
        .collect()
}

#[tokio::test]
async fn requests_at_once_say_what_each_says_alone() {
    // The first has room for all, the second must put sequences back again and again.
    for num_blocks in [PLENTY, TIGHT] {
        let server = demo(num_blocks).await;
        for temperature in [0, 1] {
            let requests = mixed_requests(&server, temperature);
            let together =
                futures_util::future::join_all(requests.iter().map(|request| server.post(CHAT, request))).await;
            for (request, reply) in requests.iter().zip(together) {
                assert_eq!(reply.status, 200, "{}", reply.text());
                let alone = post(&server, CHAT, request).await;
                assert_eq!(reply.json()["choices"].to_string(), alone["choices"].to_string(), "{request}");
            }
        }
        if num_blocks == TIGHT {
            assert!(server.num_preemptions() > 0, "the test is meant to force preemption");
        }
    }
}

#[tokio::test]
async fn a_second_turn_finds_the_first_in_the_cache() {
    let server = demo(PLENTY).await;
    let mut messages = vec![json!({"role": "user", "content": "Remember the word copper. ".repeat(60)})];
    let body =
        |messages: &[Value]| json!({"model": server.model(), "messages": messages, "temperature": 0, "max_tokens": 20});
    let first = post(&server, CHAT, &body(&messages)).await;
    messages.push(first["choices"][0]["message"].clone());
    messages.push(json!({"role": "user", "content": "Which word?"}));
    let second = post(&server, CHAT, &body(&messages)).await;
    let cached = second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached >= first["usage"]["prompt_tokens"].as_u64().unwrap() - 1, "{cached} of {}", first["usage"]);
}

/// Folders and GGUF files with what transformers says of them, or none where the project is alone.
fn golden_models() -> Vec<(PathBuf, PathBuf)> {
    let models = root().join("../shared/golden/models");
    let mut found = Vec::new();
    for name in ["llama3-tied", "llama3-untied", "qwen2-tied", "qwen3"] {
        let folder = models.join(name);
        if folder.join("expected.json").exists() {
            found.push((folder.clone(), folder.join("expected.json")));
        }
    }
    if found.is_empty() {
        #[expect(clippy::print_stdout, reason = "says why a test checks nothing")]
        {
            println!("skipped: {} is not there", models.display());
        }
    }
    found
}

#[tokio::test]
async fn golden_models_answer_as_in_transformers() {
    for (model, expected) in golden_models() {
        let server = TestServer::load(&model, PLENTY).await;
        let expected = read_json(&expected);
        for prompt in expected["prompts"].as_array().unwrap() {
            let num_tokens = prompt["greedy_ids"].as_array().unwrap().len();
            let base = json!({"model": server.model(), "temperature": 0, "max_tokens": num_tokens, "logprobs": 1,
                "return_token_ids": true, "ignore_eos": true});
            for input in [&prompt["input_ids"], &prompt["text"]] {
                let mut body = base.clone();
                body["prompt"] = input.clone();
                let choice = &post(&server, COMPLETIONS, &body).await["choices"][0];
                assert_eq!(choice["prompt_token_ids"], prompt["input_ids"], "{}", model.display());
                assert_eq!((&choice["token_ids"], &choice["text"]), (&prompt["greedy_ids"], &prompt["greedy_text"]));
                check_close(&choice["logprobs"]["token_logprobs"], &prompt["greedy_logprobs"]);
            }
        }
        for chat in expected["chat"].as_array().unwrap() {
            let num_tokens = chat["greedy_ids"].as_array().unwrap().len();
            let body = json!({"model": server.model(), "messages": chat["messages"], "temperature": 0, "ignore_eos": true,
                "max_tokens": num_tokens, "return_token_ids": true, "logprobs": true});
            let answer = post(&server, CHAT, &body).await;
            assert_eq!(answer["prompt_token_ids"], chat["input_ids"], "{}", model.display());
            assert_eq!(answer["choices"][0]["token_ids"], chat["greedy_ids"]);
            assert_eq!(answer["choices"][0]["message"]["content"], chat["greedy_text"]);
        }
    }
}

fn check_close(got: &Value, expected: &Value) {
    let (got, expected) = (got.as_array().unwrap(), expected.as_array().unwrap());
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        let difference = (got.as_f64().unwrap() - expected.as_f64().unwrap()).abs();
        assert!(difference < 1e-3, "{got} and {expected}");
    }
}
