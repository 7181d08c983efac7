//! `/chat` and `/sessions` of the real binary with the demo model, over the embedded store and over a real Redis.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]
#![expect(clippy::print_stderr, reason = "says why a test is skipped")]

#[path = "common/process.rs"]
mod process;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use process::Running;
use serde_json::{Value, json};

/// Longest wait for a Redis that comes or goes.
const PATIENCE: Duration = Duration::from_secs(20);

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn code(&self) -> (u16, Value) {
        (self.status, self.json()["error"]["code"].clone())
    }
}

/// HTTP/1.0: the body ends with the connection.
fn ask(address: &str, method: &str, path: &str, key: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    let len = body.len();
    write!(stream, "{method} {path} HTTP/1.0\r\nhost: x\r\nx-api-key: {key}\r\ncontent-length: {len}\r\n\r\n{body}")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

fn chat(server: &Running, body: &Value) -> Answer {
    let mut body = body.clone();
    for (name, value) in [("temperature", json!(0)), ("max_tokens", json!(40))] {
        body.as_object_mut().unwrap().entry(name).or_insert(value);
    }
    ask(&server.address, "POST", "/chat", "", &body.to_string())
}

fn said(server: &Running, body: &Value) -> Value {
    let answer = chat(server, body);
    assert_eq!(answer.status, 200, "{body}: {}", answer.body);
    answer.json()
}

fn session(server: &Running, id: &Value) -> Value {
    ask(&server.address, "GET", &format!("/sessions/{}", id.as_str().unwrap()), "", "").json()
}

#[test]
fn a_conversation_survives_kill_9() {
    let data = tempfile::tempdir().unwrap();
    let mut server = Running::start_in(data.path(), &[]).ready();
    let first = said(&server, &json!({"query": "My name is Anna."}));
    assert_eq!(
        (&first["saved"], &first["dropped_turns"], &first["finish_reason"]),
        (&json!(true), &json!(0), &json!("stop"))
    );
    for stage in ["session", "prompt", "engine", "store"] {
        assert!(first["timings"]["stages_ms"][stage].is_f64(), "{first}");
    }
    let id = &first["session_id"];
    assert_eq!(id.as_str().unwrap().len(), 32);
    let question = json!({"query": "What is my name?", "session_id": id});
    assert!(said(&server, &question)["reply"].as_str().unwrap().contains("Anna"));

    server.child.kill().unwrap();
    server.child.wait().unwrap();
    drop(server);
    let server = Running::start_in(data.path(), &[]).ready();
    assert!(said(&server, &question)["reply"].as_str().unwrap().contains("Anna"));
    let messages = session(&server, id)["messages"].as_array().unwrap().len();
    assert_eq!(messages, 6);

    // Streamed: the same reply, and stored when the end is told.
    let mut streamed = question.clone();
    streamed["stream"] = json!(true);
    let answer = chat(&server, &streamed);
    let data: Vec<&str> = answer.body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
    assert_eq!(data.last(), Some(&"[DONE]"));
    let events: Vec<Value> = data[..data.len() - 1].iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    let text: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert!(text.contains("Anna"), "{text}");
    let (start, end) = (&events[0], &events[events.len() - 1]);
    assert_eq!((&start["type"], &start["session_id"]), (&json!("start"), id));
    assert_eq!((&end["type"], &end["saved"]), (&json!("end"), &json!(true)));
    assert_eq!(session(&server, id)["messages"][7]["content"], text);

    // A list, and an end.
    let list = ask(&server.address, "GET", "/sessions", "", "").json();
    assert_eq!(list["data"][0]["id"], *id);
    let path = format!("/sessions/{}", id.as_str().unwrap());
    assert_eq!(ask(&server.address, "DELETE", &path, "", "").json()["deleted"], true);
    assert_eq!(ask(&server.address, "DELETE", &path, "", "").code(), (404, json!("session_not_found")));
    assert_eq!(chat(&server, &question).code(), (404, json!("session_not_found")));
}

#[test]
fn parallel_turns_are_whole_and_one_tenant_is_apart_from_the_other() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), "one\ntwo\n").unwrap();
    let server = Running::start_ready(&["--api-key-file", keys.path().to_str().unwrap()]);
    let post = |key: &str, body: Value| ask(&server.address, "POST", "/chat", key, &body.to_string());
    let first = post("one", json!({"query": "Hello!", "max_tokens": 4})).json();
    let id = first["session_id"].as_str().unwrap();
    std::thread::scope(|scope| {
        for number in 0..20 {
            let post = &post;
            scope.spawn(move || {
                let body = json!({"query": format!("turn {number}"), "session_id": id, "max_tokens": 4});
                let answer = post("one", body);
                assert_eq!(answer.status, 200, "{}", answer.body);
            });
        }
    });
    let path = format!("/sessions/{id}");
    let mine = ask(&server.address, "GET", &path, "one", "").json();
    let messages = mine["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 42);
    let mut queries: Vec<_> = messages
        .chunks(2)
        .map(|turn| {
            assert_eq!((&turn[0]["role"], &turn[1]["role"]), (&json!("user"), &json!("assistant")));
            turn[0]["content"].as_str().unwrap()
        })
        .collect();
    queries.sort_unstable();
    queries.dedup();
    assert_eq!(queries.len(), 21);

    // To the other tenant it is as if it had never been.
    let unknown = "0".repeat(32);
    for (method, path, body) in [
        ("GET", "/sessions/{id}", json!({})),
        ("DELETE", "/sessions/{id}", json!({})),
        ("POST", "/chat", json!({"query": "What did I say?", "session_id": "{id}"})),
    ] {
        let answers = [id, &unknown].map(|id| {
            let answer =
                ask(&server.address, method, &path.replace("{id}", id), "two", &body.to_string().replace("{id}", id));
            (answer.status, answer.body)
        });
        assert_eq!(answers[0].0, 404, "{method} {path}");
        assert_eq!(answers[0], answers[1], "{method} {path}");
    }
    assert_eq!(ask(&server.address, "GET", "/sessions", "two", "").json()["data"], json!([]));
    assert_eq!(ask(&server.address, "GET", &path, "one", "").json()["messages"].as_array().unwrap().len(), 42);
}

#[test]
fn bad_requests_are_told_which_field_and_long_histories_lose_whole_turns() {
    let server =
        Running::start_ready(&["--ctx", "256", "--set", "sessions.max_turns=8", "--set", "sessions.max_message=200"]);
    let long = "x".repeat(201);
    for (body, param, code) in [
        (json!({}), "query", "missing_required_parameter"),
        (json!({"query": 7}), "query", "invalid_type"),
        (json!({"query": "  "}), "query", "invalid_value"),
        (json!({"query": long}), "query", "invalid_value"),
        (json!({"query": "a", "history": "b"}), "history", "invalid_type"),
        (json!({"query": "a", "history": [{"role": "user"}]}), "history[0].content", "missing_required_parameter"),
        (json!({"query": "a", "history": [{"role": "user", "content": long}]}), "history[0]", "invalid_value"),
        (json!({"query": "a", "session_id": 1}), "session_id", "invalid_type"),
        (json!({"query": "a", "store": "no"}), "store", "invalid_type"),
        (json!({"query": "a", "temperature": 3}), "temperature", "invalid_value"),
        (json!({"query": "a", "messages": []}), "messages", "unknown_parameter"),
        (json!({"query": "a", "max_tokens": 5000}), "query", "context_length_exceeded"),
    ] {
        let answer = chat(&server, &body);
        let error = &answer.json()["error"];
        assert_eq!((answer.status, &error["param"], &error["code"]), (400, &json!(param), &json!(code)), "{body}");
    }
    for id in ["", "x", &"g".repeat(32), &"0".repeat(32)] {
        let answer = chat(&server, &json!({"query": "a", "session_id": id}));
        assert_eq!(answer.code(), (404, json!("session_not_found")), "{id:?}");
    }

    // Stateless: the client tells the conversation, nothing is kept.
    let told = json!([{"role": "user", "content": "My name is Anna."}, {"role": "assistant", "content": "Nice to meet you, Anna."}]);
    let answer = said(&server, &json!({"query": "What is my name?", "history": told, "store": false}));
    assert!(answer["reply"].as_str().unwrap().contains("Anna"));
    assert_eq!((&answer["session_id"], &answer["saved"]), (&json!(null), &json!(false)));
    assert_eq!(ask(&server.address, "GET", "/sessions", "", "").json()["data"], json!([]));

    let mut history = Vec::new();
    for number in 0..7 {
        history.push(json!({"role": "user", "content": format!("word {number} ").repeat(6)}));
        history.push(json!({"role": "assistant", "content": "yes"}));
    }
    let answer = said(&server, &json!({"query": "Hello!", "history": history}));
    let dropped = answer["dropped_turns"].as_u64().unwrap();
    assert!((1..7).contains(&dropped), "{answer}");
    assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() <= 256 - 40);
    // What was left out of the prompt is still in the session, which is full now.
    let id = &answer["session_id"];
    assert_eq!(session(&server, id)["messages"].as_array().unwrap().len(), 16);
    let full = chat(&server, &json!({"query": "a", "session_id": id}));
    assert_eq!((full.status, &full.json()["error"]["param"]), (400, &json!("session_id")));
}

/// A Redis on a free port; killed when dropped.
struct Redis {
    child: Child,
    port: u16,
}

impl Redis {
    /// `None` where it is not installed.
    fn start(port: Option<u16>) -> Option<Self> {
        let port = port.unwrap_or_else(|| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
        let arguments = ["--port", &port.to_string(), "--save", "", "--bind", "127.0.0.1"];
        let started = Command::new("redis-server").args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let Ok(child) = started else {
            eprintln!("skipped: redis-server is not installed; tests/redis/install installs it");
            return None;
        };
        let redis = Self { child, port };
        until("redis answers", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(redis)
    }

    fn url(&self) -> String {
        format!("sessions.store=redis://127.0.0.1:{}", self.port)
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// What Redis answers to one command, raw.
    fn command(&self, words: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(stream, "{words}\r\nQUIT\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.trim_end_matches("+OK\r\n").trim().to_owned()
    }

    fn ttl(&self, key: &str) -> i64 {
        self.command(&format!("TTL {key}")).trim_start_matches(':').parse().unwrap()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_true() {
        assert!(start.elapsed() < PATIENCE, "{what}: not in time");
        std::thread::yield_now();
    }
}

#[test]
fn two_servers_share_a_session_in_redis() {
    let Some(redis) = Redis::start(None) else { return };
    let servers = [(); 2].map(|()| Running::start_ready(&["--set", &redis.url()]));
    let first = said(&servers[0], &json!({"query": "My name is Anna."}));
    let id = first["session_id"].as_str().unwrap();
    let key = format!("chat_history:{id}");
    assert_eq!(redis.command(&format!("TYPE {key}")), "+list");
    assert_eq!(redis.command(&format!("LLEN {key}")), ":2");
    assert!(redis.command(&format!("LINDEX {key} 0")).contains(r#"{"role":"user","content":"My name is Anna."}"#));
    assert!((1795..=1800).contains(&redis.ttl(&key)));
    redis.command(&format!("EXPIRE {key} 100"));
    assert!(redis.ttl(&key) <= 100);
    let second = said(&servers[1], &json!({"query": "What is my name?", "session_id": id}));
    assert!(second["reply"].as_str().unwrap().contains("Anna"));
    assert!((1795..=1800).contains(&redis.ttl(&key)));
    assert_eq!(session(&servers[0], &json!(id))["messages"].as_array().unwrap().len(), 4);
    assert_eq!(ask(&servers[1].address, "GET", "/sessions", "", "").json()["data"][0]["id"], id);
    assert_eq!(ask(&servers[1].address, "DELETE", &format!("/sessions/{id}"), "", "").status, 200);
    assert_eq!(redis.command(&format!("EXISTS {key}")), ":0");
    assert_eq!(ask(&servers[0].address, "GET", "/sessions", "", "").json()["data"], json!([]));
}

#[test]
fn a_redis_that_is_killed_or_hangs_is_told_and_comes_back() {
    let Some(redis) = Redis::start(None) else { return };
    let server = Running::start_ready(&["--set", &redis.url()]);
    let lenient = Running::start_ready(&["--set", &redis.url(), "--set", "sessions.on_failure=serve"]);
    let turn = json!({"query": "Hello!", "max_tokens": 2});
    let id = said(&server, &turn)["session_id"].clone();
    let away = |redis_state: &str| {
        let refused = chat(&server, &turn);
        assert_eq!(refused.code(), (503, json!("session_store_unavailable")), "{redis_state}");
        assert!(refused.head.contains("retry-after:"), "{}", refused.head);
        assert_eq!(chat(&server, &json!({"query": "Hi", "session_id": id})).status, 503);
        assert_eq!(said(&server, &json!({"query": "Hi", "store": false, "max_tokens": 2}))["saved"], false);
        let completion = json!({"model": "demo", "prompt": "a", "max_tokens": 2}).to_string();
        assert_eq!(ask(&server.address, "POST", "/v1/completions", "", &completion).status, 200);
        let served = said(&lenient, &turn);
        assert_eq!((&served["saved"], &served["session_id"]), (&json!(false), &json!(null)));
    };
    let back = || {
        until("sessions are stored again", || {
            chat(&server, &turn).status == 200 && said(&lenient, &turn)["saved"] == true
        });
    };

    redis.signal("STOP");
    away("hung");
    redis.signal("CONT");
    back();
    assert_eq!(session(&server, &id)["messages"].as_array().unwrap().len(), 2);

    let port = redis.port;
    drop(redis);
    away("killed");
    let redis = Redis::start(Some(port)).unwrap();
    back();
    // It has started empty: the session is gone, and that is said.
    assert_eq!(chat(&server, &json!({"query": "Hi", "session_id": id})).code(), (404, json!("session_not_found")));
    drop(redis);
}
