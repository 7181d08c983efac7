//! `/tokenize` and `/detokenize`, also under `/v1`, in both shapes that clients use.

#[path = "common/model.rs"]
mod common;

use common::TestServer;
use serde_json::{Value, json};

async fn post(server: &TestServer, path: &str, body: Value) -> Value {
    let reply = server.post(path, &body).await;
    assert_eq!(reply.status, 200, "{path} {body}: {}", reply.text());
    reply.json()
}

#[tokio::test]
async fn a_text_goes_there_and_back() {
    let server = TestServer::start().await;
    let text = "hello, 你好 <|im_end|> 🦀";
    for (tokenize, detokenize) in [("/tokenize", "/detokenize"), ("/v1/tokenize", "/v1/detokenize")] {
        let bare = json!({"model": server.model(), "prompt": text, "add_special_tokens": false});
        let tokenized = post(&server, tokenize, bare).await;
        assert_eq!(tokenized["count"], tokenized["tokens"].as_array().unwrap().len());
        assert_eq!(tokenized["max_model_len"], server.max_model_len());
        let tokens = tokenized["tokens"].clone();
        let back = post(&server, detokenize, json!({"tokens": tokens})).await;
        assert_eq!((&back["prompt"], &back["content"]), (&json!(text), &json!(text)));
    }
}

#[tokio::test]
async fn vllms_form_adds_special_tokens_and_llama_cpps_does_not() {
    let server = TestServer::start().await;
    let vllm = post(&server, "/tokenize", json!({"prompt": "hello", "return_token_strs": true})).await;
    let llama = post(&server, "/tokenize", json!({"content": "hello"})).await;
    let tokens = vllm["tokens"].as_array().unwrap();
    assert_eq!(tokens[0], 420);
    assert_eq!(tokens[1..], llama["tokens"].as_array().unwrap()[..]);
    assert_eq!(vllm["token_strs"][0], "<|endoftext|>");
    assert_eq!(vllm["token_strs"].as_array().unwrap().len(), tokens.len());
    let with = post(&server, "/tokenize", json!({"content": "hello", "add_special": true})).await;
    assert_eq!(with["tokens"], vllm["tokens"]);
}

#[tokio::test]
async fn pieces_are_text_or_bytes() {
    let server = TestServer::start().await;
    let answer = post(&server, "/tokenize", json!({"content": "a🦀", "with_pieces": true})).await;
    let pieces = answer["tokens"].as_array().unwrap();
    assert_eq!(pieces[0]["piece"], "a");
    let bytes: Vec<u8> = pieces[1..]
        .iter()
        .flat_map(|piece| piece["piece"].as_array().expect("a part of a character").iter())
        .map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap())
        .collect();
    assert_eq!(bytes, "🦀".as_bytes());
}

#[tokio::test]
async fn special_tokens_are_parsed_unless_told_otherwise() {
    let server = TestServer::start().await;
    let parsed = post(&server, "/tokenize", json!({"content": "<|im_end|>"})).await;
    assert_eq!(parsed["tokens"], json!([422]));
    let literal = post(&server, "/tokenize", json!({"content": "<|im_end|>", "parse_special": false})).await;
    assert!(literal["count"].as_u64().unwrap() > 1);
}

#[tokio::test]
async fn messages_are_counted_as_a_chat_counts_them() {
    let server = TestServer::start().await;
    let messages = json!([{"role": "user", "content": "how long is this?"}]);
    let tokenized = post(&server, "/tokenize", json!({"messages": messages})).await;
    let chat = json!({"model": server.model(), "messages": messages, "max_tokens": 1, "return_token_ids": true});
    let answer = post(&server, "/v1/chat/completions", chat).await;
    assert_eq!(answer["prompt_token_ids"], tokenized["tokens"]);
    assert_eq!(answer["usage"]["prompt_tokens"], tokenized["count"]);
}
