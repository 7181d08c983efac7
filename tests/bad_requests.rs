//! Bad requests: each gets its status, `param` and `code`, on both endpoints, and the next good request is answered.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "common/model.rs"]
mod common;

use common::TestServer;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn good(server: &TestServer, path: &str) -> Value {
    let mut body = json!({"model": server.model(), "max_tokens": 2, "temperature": 0});
    match path {
        CHAT => body["messages"] = json!([{"role": "user", "content": "hello"}]),
        _ => body["prompt"] = json!("hello"),
    }
    body
}

/// A good body with some fields replaced, or removed where the value is the string `"<remove>"`.
fn patched(server: &TestServer, path: &str, patch: &Value) -> Value {
    let mut body = good(server, path);
    for (key, value) in patch.as_object().unwrap() {
        if value == "<remove>" {
            body.as_object_mut().unwrap().remove(key);
        } else {
            body[key] = value.clone();
        }
    }
    body
}

/// Patches that are bad on both endpoints: patch, status, param, code.
fn both(server: &TestServer) -> Vec<(Value, u16, &'static str, &'static str)> {
    let vocab_size = server.vocab_size();
    vec![
        (json!({"model": "<remove>"}), 400, "model", "missing_required_parameter"),
        (json!({"model": null}), 400, "model", "missing_required_parameter"),
        (json!({"model": 7}), 400, "model", "invalid_type"),
        (json!({"model": ""}), 400, "model", "invalid_value"),
        (json!({"model": "no-such-model"}), 404, "model", "model_not_found"),
        (json!({"temperature": "hot"}), 400, "temperature", "invalid_type"),
        (json!({"temperature": true}), 400, "temperature", "invalid_type"),
        (json!({"temperature": 2.01}), 400, "temperature", "invalid_value"),
        (json!({"temperature": -0.5}), 400, "temperature", "invalid_value"),
        (json!({"top_p": 1.5}), 400, "top_p", "invalid_value"),
        (json!({"top_p": [0.5]}), 400, "top_p", "invalid_type"),
        (json!({"top_k": -2}), 400, "top_k", "invalid_value"),
        (json!({"top_k": 1.5}), 400, "top_k", "invalid_type"),
        (json!({"min_p": 1.1}), 400, "min_p", "invalid_value"),
        (json!({"frequency_penalty": 2.5}), 400, "frequency_penalty", "invalid_value"),
        (json!({"presence_penalty": -2.5}), 400, "presence_penalty", "invalid_value"),
        (json!({"repetition_penalty": 0}), 400, "repetition_penalty", "invalid_value"),
        (json!({"n": 0}), 400, "n", "invalid_value"),
        (json!({"n": -1}), 400, "n", "invalid_value"),
        (json!({"n": 129}), 400, "n", "invalid_value"),
        (json!({"n": 1_000_000_000_000_u64}), 400, "n", "invalid_value"),
        (json!({"n": "2"}), 400, "n", "invalid_type"),
        (json!({"max_tokens": -1}), 400, "max_tokens", "invalid_value"),
        (json!({"max_tokens": "many"}), 400, "max_tokens", "invalid_type"),
        (json!({"max_tokens": 2.5}), 400, "max_tokens", "invalid_type"),
        (json!({"max_completion_tokens": -3}), 400, "max_completion_tokens", "invalid_value"),
        (json!({"min_tokens": 3}), 400, "min_tokens", "invalid_value"),
        (json!({"stop": 5}), 400, "stop", "invalid_type"),
        (json!({"stop": ""}), 400, "stop", "invalid_value"),
        (json!({"stop": ["a", ""]}), 400, "stop[1]", "invalid_value"),
        (json!({"stop": ["a", 1]}), 400, "stop[1]", "invalid_type"),
        (json!({"stop": vec!["x"; 17]}), 400, "stop", "invalid_value"),
        (json!({"stop_token_ids": [-1]}), 400, "stop_token_ids[0]", "invalid_value"),
        (json!({"stop_token_ids": [vocab_size]}), 400, "stop_token_ids", "invalid_value"),
        (json!({"allowed_token_ids": []}), 400, "allowed_token_ids", "invalid_value"),
        (json!({"allowed_token_ids": [vocab_size]}), 400, "allowed_token_ids", "invalid_value"),
        (json!({"logit_bias": {"a": 1}}), 400, "logit_bias", "invalid_value"),
        (json!({"logit_bias": {"-1": 1}}), 400, "logit_bias", "invalid_value"),
        (json!({"logit_bias": {"1": 101}}), 400, "logit_bias.1", "invalid_value"),
        (json!({"logit_bias": {"1": "x"}}), 400, "logit_bias.1", "invalid_type"),
        (json!({"logit_bias": [1]}), 400, "logit_bias", "invalid_type"),
        (json!({"logit_bias": {vocab_size.to_string(): 1}}), 400, "logit_bias", "invalid_value"),
        (json!({"seed": "x"}), 400, "seed", "invalid_type"),
        (json!({"seed": 1e300}), 400, "seed", "invalid_value"),
        (json!({"stream": "yes"}), 400, "stream", "invalid_type"),
        (json!({"stream_options": {"include_usage": true}}), 400, "stream_options", "invalid_value"),
        (json!({"stream": true, "stream_options": {"usage": true}}), 400, "stream_options.usage", "unknown_parameter"),
        (json!({"stream": true, "stream_options": []}), 400, "stream_options", "invalid_type"),
        (json!({"ignore_eos": 1}), 400, "ignore_eos", "invalid_type"),
        (json!({"cache_salt": ""}), 400, "cache_salt", "invalid_value"),
        (json!({"cache_salt": "x".repeat(1025)}), 400, "cache_salt", "invalid_value"),
        (json!({"request_id": "a\nb"}), 400, "request_id", "invalid_value"),
        (json!({"user": 5}), 400, "user", "invalid_type"),
        (json!({"bad_words": "x"}), 400, "bad_words", "invalid_type"),
        (json!({"truncate_prompt_tokens": 0}), 400, "truncate_prompt_tokens", "invalid_value"),
        (json!({"colour": "red"}), 400, "colour", "unknown_parameter"),
        (json!({"Temperature": 1}), 400, "Temperature", "unknown_parameter"),
        (json!({"response_format": {"type": "json_object"}}), 400, "response_format", "unsupported_parameter"),
        (json!({"response_format": {"type": "poem"}}), 400, "response_format.type", "invalid_value"),
        (json!({"guided_json": {}}), 400, "guided_json", "unsupported_parameter"),
        (json!({"structured_outputs": {}}), 400, "structured_outputs", "unsupported_parameter"),
        (json!({"use_beam_search": true}), 400, "use_beam_search", "unsupported_parameter"),
        (json!({"priority": 3}), 400, "priority", "unsupported_parameter"),
        (json!({"service_tier": "flex"}), 400, "service_tier", "unsupported_parameter"),
    ]
}

fn chat_only() -> Vec<(Value, u16, &'static str, &'static str)> {
    let messages = |messages: Value| json!({ "messages": messages });
    vec![
        (json!({"messages": "<remove>"}), 400, "messages", "missing_required_parameter"),
        (json!({"messages": "hi"}), 400, "messages", "invalid_type"),
        (messages(json!([])), 400, "messages", "invalid_value"),
        (messages(json!([7])), 400, "messages[0]", "invalid_type"),
        (messages(json!([{"content": "x"}])), 400, "messages[0].role", "missing_required_parameter"),
        (messages(json!([{"role": "robot", "content": "x"}])), 400, "messages[0].role", "invalid_value"),
        (
            messages(json!([{"role": "user", "content": "a"}, {"role": "user", "content": 5}])),
            400,
            "messages[1].content",
            "invalid_type",
        ),
        (messages(json!([{"role": "user"}])), 400, "messages[0].content", "missing_required_parameter"),
        (messages(json!([{"role": "user", "content": "a", "x": 1}])), 400, "messages[0].x", "unknown_parameter"),
        (
            messages(json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])),
            400,
            "messages[0].content[0].type",
            "unsupported_parameter",
        ),
        (
            messages(json!([{"role": "user", "content": [{"type": "text", "text": 1}]}])),
            400,
            "messages[0].content[0].text",
            "invalid_type",
        ),
        (
            messages(json!([{"role": "tool", "content": "x"}])),
            400,
            "messages[0].tool_call_id",
            "missing_required_parameter",
        ),
        (json!({"max_tokens": 0}), 400, "max_tokens", "invalid_value"),
        (json!({"logprobs": 3}), 400, "logprobs", "invalid_type"),
        (json!({"top_logprobs": 2}), 400, "top_logprobs", "invalid_value"),
        (json!({"logprobs": true, "top_logprobs": 21}), 400, "top_logprobs", "invalid_value"),
        (json!({"logprobs": true, "top_logprobs": -1}), 400, "top_logprobs", "invalid_value"),
        (json!({"tools": [{"type": "function", "function": {"name": "f"}}]}), 400, "tools", "unsupported_parameter"),
        (json!({"tool_choice": "required"}), 400, "tool_choice", "unsupported_parameter"),
        (json!({"functions": [{"name": "f"}]}), 400, "functions", "unsupported_parameter"),
        (json!({"modalities": ["audio"]}), 400, "modalities", "unsupported_parameter"),
        (json!({"audio": {"voice": "x"}}), 400, "audio", "unsupported_parameter"),
        (json!({"prediction": {"type": "content", "content": "x"}}), 400, "prediction", "unsupported_parameter"),
        (json!({"web_search_options": {}}), 400, "web_search_options", "unsupported_parameter"),
        (json!({"chat_template": "{{ x }}"}), 400, "chat_template", "unsupported_parameter"),
        (json!({"chat_template_kwargs": 1}), 400, "chat_template_kwargs", "invalid_type"),
        (json!({"store": true}), 400, "store", "unsupported_parameter"),
        (json!({"metadata": {"a": 1}}), 400, "metadata.a", "invalid_type"),
        (json!({"continue_final_message": true}), 400, "continue_final_message", "invalid_value"),
        (json!({"prompt": "x"}), 400, "prompt", "unknown_parameter"),
    ]
}

fn completions_only(server: &TestServer) -> Vec<(Value, u16, &'static str, &'static str)> {
    let vocab_size = server.vocab_size();
    vec![
        (json!({"prompt": "<remove>"}), 400, "prompt", "missing_required_parameter"),
        (json!({"prompt": 5}), 400, "prompt", "invalid_type"),
        (json!({"prompt": []}), 400, "prompt", "invalid_value"),
        (json!({"prompt": [1, "a"]}), 400, "prompt[1]", "invalid_type"),
        (json!({"prompt": [-1]}), 400, "prompt[0]", "invalid_value"),
        (json!({"prompt": [vocab_size]}), 400, "prompt", "invalid_value"),
        (json!({"prompt": [[1], []]}), 400, "prompt[1]", "invalid_value"),
        (json!({"prompt": vec!["x"; 100_000]}), 400, "prompt", "invalid_value"),
        (json!({"logprobs": true}), 400, "logprobs", "invalid_type"),
        (json!({"logprobs": 21}), 400, "logprobs", "invalid_value"),
        (json!({"echo": "yes"}), 400, "echo", "invalid_type"),
        (json!({"best_of": 5}), 400, "best_of", "unsupported_parameter"),
        (json!({"suffix": "x"}), 400, "suffix", "unsupported_parameter"),
        (json!({"messages": []}), 400, "messages", "unknown_parameter"),
    ]
}

async fn check(server: &TestServer, path: &str, body: &[u8], expected: (u16, Option<&str>, &str), what: &str) {
    let reply = server.post_bytes(path, body).await;
    let error = &reply.json()["error"];
    assert_eq!(reply.status, expected.0, "{path} {what}: {error}");
    assert_eq!(error["param"].as_str(), expected.1, "{path} {what}: {error}");
    assert_eq!(error["code"].as_str(), Some(expected.2), "{path} {what}: {error}");
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{path} {what}: {error}");
    assert!(error["type"].is_string(), "{path} {what}: {error}");
}

async fn check_good(server: &TestServer, path: &str) -> Value {
    let reply = server.post(path, &good(server, path)).await;
    assert_eq!(reply.status, 200, "{path}: {}", reply.text());
    reply.json()["choices"][0].clone()
}

#[tokio::test]
async fn each_bad_request_is_told_apart_and_harms_nobody() {
    let server = TestServer::start().await;
    let mut num_kinds = 0;
    for path in [CHAT, COMPLETIONS] {
        let before = check_good(&server, path).await;
        let own = if path == CHAT { chat_only() } else { completions_only(&server) };
        for (patch, status, param, code) in both(&server).into_iter().chain(own) {
            let body = patched(&server, path, &patch).to_string();
            let what: String = patch.to_string().chars().take(80).collect();
            check(&server, path, body.as_bytes(), (status, Some(param), code), &what).await;
            num_kinds += 1;
        }
        assert_eq!(check_good(&server, path).await, before, "{path} answers as before");
    }
    assert!(num_kinds >= 2 * 40, "{num_kinds}");
}

#[tokio::test]
async fn bodies_that_are_no_json_object_are_refused() {
    let server = TestServer::start().await;
    let deep = "[".repeat(100_000);
    for path in [CHAT, COMPLETIONS] {
        for body in ["", "{", "[]", "7", "\"x\"", "null", "{\"model\": }", "{} x", "\u{0}", deep.as_str()] {
            let what: String = body.chars().take(20).collect();
            check(&server, path, body.as_bytes(), (400, None, "invalid_json"), &what).await;
        }
        check(&server, path, b"{\"model\": \"\xff\"}", (400, None, "invalid_json"), "not UTF-8").await;
        check_good(&server, path).await;
    }
}

#[tokio::test]
async fn what_does_not_fit_the_context_is_refused_with_the_numbers() {
    let server = TestServer::start().await;
    let max_len = server.max_model_len();
    let ids = vec![1; max_len as usize];
    let cases = [
        (CHAT, json!({"max_tokens": max_len}), "messages"),
        (CHAT, json!({"max_tokens": 4_000_000_000_u64}), "messages"),
        (CHAT, json!({"messages": [{"role": "user", "content": "word ".repeat(4 * max_len as usize)}]}), "messages"),
        (COMPLETIONS, json!({"max_tokens": max_len}), "prompt"),
        (COMPLETIONS, json!({"prompt": ids}), "prompt"),
        (COMPLETIONS, json!({"prompt": "word ".repeat(4 * max_len as usize)}), "prompt"),
        (COMPLETIONS, json!({"prompt": "x".repeat(4 << 20)}), "prompt"),
    ];
    for (path, patch, param) in cases {
        let reply = server.post(path, &patched(&server, path, &patch)).await;
        let error = &reply.json()["error"];
        assert_eq!((reply.status, error["code"].as_str()), (400, Some("context_length_exceeded")), "{error}");
        assert_eq!(error["param"], param);
        assert_eq!(error["n_ctx"], max_len);
        assert!(error["n_prompt_tokens"].as_u64().is_some_and(|num| num > 0), "{error}");
        check_good(&server, path).await;
    }
}

#[tokio::test]
async fn a_request_that_forbids_every_token_fails_alone() {
    let server = TestServer::start().await;
    for path in [CHAT, COMPLETIONS] {
        let patch = json!({"allowed_token_ids": [3], "stop_token_ids": [3], "min_tokens": 1});
        let reply = server.post(path, &patched(&server, path, &patch)).await;
        assert_eq!(
            (reply.status, reply.json()["error"]["code"].as_str()),
            (400, Some("invalid_value")),
            "{}",
            reply.text()
        );
        check_good(&server, path).await;
    }
}

#[tokio::test]
async fn tokenize_and_detokenize_refuse_by_name() {
    let server = TestServer::start().await;
    let vocab_size = server.vocab_size();
    for prefix in ["", "/v1"] {
        let tokenize = format!("{prefix}/tokenize");
        let detokenize = format!("{prefix}/detokenize");
        for (path, body, status, param) in [
            (&tokenize, json!({}), 400, "prompt"),
            (&tokenize, json!({"prompt": 5}), 400, "prompt"),
            (&tokenize, json!({"prompt": "a", "content": "b"}), 400, "prompt"),
            (&tokenize, json!({"prompt": "a", "colour": 1}), 400, "colour"),
            (&tokenize, json!({"prompt": "a", "model": "none"}), 404, "model"),
            (&tokenize, json!({"messages": [{"role": "user"}]}), 400, "messages[0].content"),
            (&detokenize, json!({}), 400, "tokens"),
            (&detokenize, json!({"tokens": "a"}), 400, "tokens"),
            (&detokenize, json!({"tokens": [1, -1]}), 400, "tokens[1]"),
            (&detokenize, json!({"tokens": [1, vocab_size]}), 400, "tokens[1]"),
        ] {
            let reply = server.post(path, &body).await;
            assert_eq!(reply.status, status, "{path} {body}: {}", reply.text());
            assert_eq!(reply.json()["error"]["param"], param, "{path} {body}");
        }
    }
}
