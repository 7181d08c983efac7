//! `/v1/completions` on a real server: forms of prompts, echo, log-probabilities, streaming.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "common/model.rs"]
mod common;

use common::TestServer;
use serde_json::{Value, json};

const PATH: &str = "/v1/completions";

fn body(server: &TestServer, extra: &Value) -> Value {
    let mut body = json!({"model": server.model(), "prompt": "hello there", "temperature": 0, "ignore_eos": true});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

async fn whole(server: &TestServer, extra: Value) -> Value {
    let reply = server.post(PATH, &body(server, &extra)).await;
    assert_eq!(reply.status, 200, "{extra}: {}", reply.text());
    reply.json()
}

async fn events(server: &TestServer, extra: Value) -> Vec<Value> {
    let mut body = body(server, &extra);
    body["stream"] = json!(true);
    server.post(PATH, &body).await.events()
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().unwrap()
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("{value} is no list"))
}

#[tokio::test]
async fn a_whole_answer_has_openais_shape() {
    let server = TestServer::start().await;
    let answer = whole(&server, json!({})).await;
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("text_completion"), &json!(server.model())));
    let choice = &answer["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["logprobs"]), (&json!("length"), &json!(null)));
    assert_eq!(answer["usage"]["completion_tokens"], 16, "OpenAI's default");
}

#[tokio::test]
async fn all_forms_of_a_prompt_mean_the_same() {
    let server = TestServer::start().await;
    let by_text = whole(&server, json!({"return_token_ids": true})).await;
    let ids = by_text["choices"][0]["prompt_token_ids"].clone();
    assert_eq!(list(&ids)[0], 420, "the tokenizer puts a token before texts");
    for prompt in [json!(["hello there"]), ids.clone(), json!([ids])] {
        assert_eq!(text(&whole(&server, json!({"prompt": prompt})).await), text(&by_text), "{prompt}");
    }
    let bare = whole(&server, json!({"add_special_tokens": false, "return_token_ids": true})).await;
    assert_eq!(list(&bare["choices"][0]["prompt_token_ids"])[..], list(&ids)[1..]);
}

#[tokio::test]
async fn several_prompts_have_n_choices_each_in_order() {
    let server = TestServer::start().await;
    let sampling = |prompt: Value| json!({"prompt": prompt, "n": 2, "temperature": 1, "seed": 11});
    let both = whole(&server, sampling(json!(["first one", "the second"]))).await;
    let indices: Vec<_> = list(&both["choices"]).iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    let (first, second) =
        (whole(&server, sampling(json!("first one"))).await, whole(&server, sampling(json!("the second"))).await);
    for (index, alone) in [(0, &first), (2, &second)] {
        for offset in 0..2 {
            assert_eq!(both["choices"][index + offset]["text"], alone["choices"][offset]["text"]);
        }
    }
    let usage = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(usage(&both), usage(&first) + usage(&second));
    assert_eq!(both["usage"]["completion_tokens"], 64);
}

#[tokio::test]
async fn a_stream_says_what_the_whole_answer_says() {
    let server = TestServer::start().await;
    let extra = json!({"prompt": ["one", "two"], "logprobs": 2, "echo": true, "return_token_ids": true});
    let answer = whole(&server, extra.clone()).await;
    let mut streamed_extra = extra;
    streamed_extra["stream_options"] = json!({"include_usage": true});
    let events = events(&server, streamed_extra).await;
    let (usage, chunks) = events.split_last().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["total_tokens"]), (&json!([]), &answer["usage"]["total_tokens"]));
    for index in 0..2 {
        let mut joined = json!({"text": "", "tokens": [], "text_offset": [], "token_logprobs": [], "token_ids": []});
        let mut reasons = Vec::new();
        for choice in chunks.iter().flat_map(|chunk| list(&chunk["choices"])).filter(|choice| choice["index"] == index)
        {
            joined["text"] = json!(format!("{}{}", joined["text"].as_str().unwrap(), choice["text"].as_str().unwrap()));
            for key in ["tokens", "text_offset", "token_logprobs"] {
                let more = choice["logprobs"][key].as_array().cloned().unwrap_or_default();
                joined[key].as_array_mut().unwrap().extend(more);
            }
            joined["token_ids"]
                .as_array_mut()
                .unwrap()
                .extend(choice["token_ids"].as_array().cloned().unwrap_or_default());
            reasons.push(choice["finish_reason"].clone());
        }
        let whole = &answer["choices"][index];
        assert_eq!((&joined["text"], &joined["token_ids"]), (&whole["text"], &whole["token_ids"]));
        for key in ["tokens", "text_offset", "token_logprobs"] {
            assert_eq!(joined[key], whole["logprobs"][key], "{key}");
        }
        assert_eq!(reasons.pop(), Some(json!("length")));
        assert!(reasons.iter().all(Value::is_null));
    }
}

#[tokio::test]
async fn logprobs_have_four_lists_of_one_length() {
    let server = TestServer::start().await;
    let answer = whole(&server, json!({"logprobs": 3, "max_tokens": 20})).await;
    let logprobs = &answer["choices"][0]["logprobs"];
    for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(list(&logprobs[key]).len(), 20, "{key}");
    }
    for (token, (logprob, top)) in list(&logprobs["tokens"])
        .iter()
        .zip(list(&logprobs["token_logprobs"]).iter().zip(list(&logprobs["top_logprobs"])))
    {
        let top = top.as_object().unwrap();
        assert!((1..=4).contains(&top.len()));
        assert_eq!(top.get(token.as_str().unwrap()), Some(logprob), "the chosen token is among them");
    }
    let offsets: Vec<u64> = list(&logprobs["text_offset"]).iter().map(|offset| offset.as_u64().unwrap()).collect();
    assert!(offsets[0] == 0 && offsets.is_sorted());
    let zero = whole(&server, json!({"logprobs": 0, "max_tokens": 2})).await;
    assert_eq!(zero["choices"][0]["logprobs"]["top_logprobs"][0].as_object().unwrap().len(), 1);
}

#[tokio::test]
async fn echo_puts_the_prompt_before_the_completion() {
    let server = TestServer::start().await;
    let plain = whole(&server, json!({})).await;
    let echoed = whole(&server, json!({"echo": true})).await;
    assert_eq!(text(&echoed), format!("hello there{}", text(&plain)));
    for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(echoed["usage"][count], plain["usage"][count]);
    }
}

#[tokio::test]
async fn echo_with_no_new_tokens_scores_the_prompt() {
    let server = TestServer::start().await;
    let scored = whole(&server, json!({"echo": true, "max_tokens": 0, "logprobs": 1, "return_token_ids": true})).await;
    let choice = &scored["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("hello there"), &json!("length")));
    assert_eq!(scored["usage"]["completion_tokens"], 0);
    let prompt = list(&choice["prompt_token_ids"]);
    let logprobs = &choice["logprobs"];
    assert_eq!(list(&logprobs["tokens"]).len(), prompt.len());
    assert_eq!((&logprobs["token_logprobs"][0], &logprobs["top_logprobs"][0]), (&json!(null), &json!(null)));
    assert!(list(&logprobs["token_logprobs"])[1..].iter().all(|logprob| logprob.as_f64().unwrap() < 0.0));
    assert_eq!((&logprobs["text_offset"][0], &logprobs["text_offset"][1]), (&json!(0), &json!(0)), "BOS is no text");

    // What the model says of a text does not depend on whether it is prompt or output.
    let generated = whole(&server, json!({"logprobs": 1, "return_token_ids": true})).await;
    let mut all = prompt.clone();
    all.extend(list(&generated["choices"][0]["token_ids"]).clone());
    let rescored = whole(&server, json!({"prompt": all, "echo": true, "max_tokens": 0, "logprobs": 1})).await;
    let tail = &list(&rescored["choices"][0]["logprobs"]["token_logprobs"])[prompt.len()..];
    assert_eq!(tail, &list(&generated["choices"][0]["logprobs"]["token_logprobs"])[..]);

    let nothing = whole(&server, json!({"max_tokens": 0})).await;
    assert_eq!((text(&nothing), &nothing["choices"][0]["finish_reason"]), ("", &json!("length")));
}

#[tokio::test]
async fn prompt_logprobs_have_vllms_shape() {
    let server = TestServer::start().await;
    let answer = whole(&server, json!({"prompt_logprobs": 2, "max_tokens": 1, "return_token_ids": true})).await;
    let choice = &answer["choices"][0];
    let (entries, ids) = (list(&choice["prompt_logprobs"]), list(&choice["prompt_token_ids"]));
    assert_eq!((entries.len(), &entries[0]), (ids.len(), &json!(null)));
    for (entry, id) in entries.iter().zip(ids).skip(1) {
        let of_token = &entry[id.to_string()];
        assert!(of_token["logprob"].as_f64().unwrap() < 0.0 && of_token["decoded_token"].is_string(), "{entry}");
        assert!((2..=3).contains(&entry.as_object().unwrap().len()));
    }
    let scored = whole(&server, json!({"echo": true, "max_tokens": 0, "logprobs": 0})).await;
    let echoed = list(&scored["choices"][0]["logprobs"]["token_logprobs"]);
    for ((entry, id), logprob) in entries.iter().zip(ids).zip(echoed).skip(1) {
        assert_eq!(&entry[id.to_string()]["logprob"], logprob);
    }
}

#[tokio::test]
async fn best_of_is_accepted_where_it_changes_nothing() {
    let server = TestServer::start().await;
    let plain = whole(&server, json!({})).await;
    assert_eq!(text(&whole(&server, json!({"best_of": 1, "suffix": null, "user": "u"})).await), text(&plain));
    let two = whole(&server, json!({"n": 2, "best_of": 2, "temperature": 1})).await;
    assert_eq!(list(&two["choices"]).len(), 2);
}
