//! Streams on raw sockets against the real binary with the demo model: framing, clients that leave, a thousand at once,
//! a full queue, a drain.
#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "common/process.rs"]
mod process;

use process::Running;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// Nothing in these tests takes this long; a hang ends here.
const PATIENCE: Duration = Duration::from_secs(120);
const KV_USED: &str = "tokenmill_kv_blocks_used";

fn body(content: &str, max_tokens: u32) -> Value {
    json!({
        "model": "demo", "stream": true, "temperature": 0, "max_tokens": max_tokens, "ignore_eos": true,
        "messages": [{"role": "user", "content": content}],
    })
}

/// A connection on which a chat request has been sent.
async fn send(address: &str, body: &Value, then: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let body = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body.as_bytes(), then].concat()).await.unwrap();
    stream
}

async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    let work = async {
        while !String::from_utf8_lossy(&bytes).contains(end) {
            let count = stream.read(&mut buffer).await.unwrap();
            assert!(count > 0, "the stream ended before {end:?}: {}", String::from_utf8_lossy(&bytes));
            bytes.extend_from_slice(&buffer[..count]);
        }
    };
    timeout(PATIENCE, work).await.expect("the answer comes in time");
    String::from_utf8(bytes).unwrap()
}

/// The chunks of a chunked body, put together.
fn unchunked(answer: &str) -> String {
    let (_, mut rest) = answer.split_once("\r\n\r\n").unwrap();
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            break;
        }
        body += &after[..size];
        rest = &after[size + 2..];
    }
    body
}

/// The JSON of every event before `[DONE]`, which must be there.
fn events(answer: &str) -> Vec<Value> {
    let body = unchunked(answer);
    let mut events: Vec<&str> = body.split_terminator("\n\n").filter(|event| !event.starts_with(':')).collect();
    assert_eq!(events.pop(), Some("data: [DONE]"), "{body}");
    let data = events.iter().map(|event| event.strip_prefix("data: ").unwrap_or_else(|| panic!("{event:?}")));
    data.map(|data| serde_json::from_str(data).unwrap()).collect()
}

fn text_of(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect()
}

/// Waits until no sequence holds a KV block.
async fn wait_until_free(server: &Running) {
    let since = Instant::now();
    while server.metric(KV_USED) > 0.0 {
        assert!(since.elapsed() < Duration::from_secs(20), "{} KV blocks are still in use", server.metric(KV_USED));
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn framing_is_what_every_client_understands() {
    let server = Running::start_ready(&[]);
    let mut request = body("Hello!", 5);
    request["stream_options"] = json!({"include_usage": true});
    let mut stream = send(&server.address, &request, b"").await;
    let answer = read_until(&mut stream, "0\r\n\r\n").await;
    let head = answer.split("\r\n\r\n").next().unwrap().to_ascii_lowercase();
    for header in ["200 ok", "content-type: text/event-stream", "cache-control: no-cache", "x-accel-buffering: no"] {
        assert!(head.contains(header), "no {header:?} in {head}");
    }
    let events = events(&answer);
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(events[0]["object"], "chat.completion.chunk");
    let last = events.last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(5)));
    let finishes: Vec<&Value> =
        events.iter().map(|event| &event["choices"][0]["finish_reason"]).filter(|reason| !reason.is_null()).collect();
    assert_eq!(finishes, [&json!("length")]);
    // The connection is kept, and serves the next request.
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    read_until(&mut stream, "200 OK").await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_blocks_even_after_a_pipelined_byte() {
    let server = Running::start_ready(&["--ctx", "4096"]);
    for then in [&b""[..], b"G"] {
        for wait_for in ["data:", ""] {
            let mut stream = send(&server.address, &body("Tell a long story", 3900), then).await;
            read_until(&mut stream, wait_for).await;
            drop(stream);
            wait_until_free(&server).await;
        }
    }
    let mut stream = send(&server.address, &body("Hello!", 3), b"").await;
    assert_eq!(events(&read_until(&mut stream, "0\r\n\r\n").await).len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_at_once_lose_nothing() {
    let server = Running::start_ready(&["--ctx", "512"]);
    let answers: Vec<_> = (0..1000)
        .map(|i| {
            let address = server.address.clone();
            tokio::spawn(async move {
                let mut stream = send(&address, &body(&format!("Repeat: number {}", i % 8), 12), b"").await;
                events(&read_until(&mut stream, "0\r\n\r\n").await)
            })
        })
        .collect();
    let mut texts: Vec<Option<String>> = vec![None; 8];
    for (i, answer) in answers.into_iter().enumerate() {
        let events = answer.await.unwrap();
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length");
        let text = text_of(&events);
        let known = texts[i % 8].get_or_insert_with(|| text.clone());
        assert_eq!(*known, text, "equal requests get equal answers");
    }
    wait_until_free(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn past_the_bound_of_the_queue_refusals_are_clean() {
    let server = Running::start_ready(&["--ctx", "1024", "--max-queue", "4", "--max-batch-seqs", "2"]);
    let answers: Vec<_> = (0..40)
        .map(|_| {
            let address = server.address.clone();
            tokio::spawn(async move {
                let mut request = body("Tell a long story", 100);
                request["stream"] = json!(false);
                let mut stream = send(&address, &request, b"").await;
                let head = read_until(&mut stream, "\r\n\r\n").await;
                (head[9..12].to_owned(), head)
            })
        })
        .collect();
    let (mut num_answered, mut num_refused) = (0, 0);
    for answer in answers {
        let (status, head) = answer.await.unwrap();
        match status.as_str() {
            "200" => num_answered += 1,
            "429" | "503" => {
                assert!(head.to_ascii_lowercase().contains("\r\nretry-after: "), "{head}");
                num_refused += 1;
            }
            _ => panic!("{head}"),
        }
    }
    assert!(num_answered >= 6 && num_refused > 0, "{num_answered} answered, {num_refused} refused");
    let mut stream = send(&server.address, &body("Hello!", 3), b"").await;
    events(&read_until(&mut stream, "0\r\n\r\n").await);
}

#[tokio::test]
async fn a_drain_lets_streams_finish_and_takes_nothing_new() {
    let mut server = Running::start_ready(&["--ctx", "4096"]);
    let mut stream = send(&server.address, &body("Tell a long story", 300), b"").await;
    let start = read_until(&mut stream, "data:").await;
    server.signal("TERM");
    let rest = read_until(&mut stream, "0\r\n\r\n").await;
    let events = events(&(start + &rest));
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length");
    let code = tokio::task::spawn_blocking(move || server.child.wait().unwrap().code()).await.unwrap();
    assert_eq!(code, Some(0));
}
