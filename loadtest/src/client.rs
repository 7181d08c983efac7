//! One streamed chat completion over HTTP, timed: what a user of an SDK would see.
//!
//! Every request ends in an [`Answer`] or a [`Failure`], within the time limit. Used by `campaign`, and by `load` as [`Ask`].

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, Response, Uri, body::Incoming, header};
use hyper_util::client::legacy::{Client as HttpClient, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::answer::{Answer, Ask, Failure, FailureKind, Prompt};
use crate::live::Waiting;

/// Bytes of an answer that is not a stream, at most.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Bytes of one event, at most.
const MAX_EVENT_BYTES: usize = 1 << 20;
/// Time for the list of models.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);

/// A server under test.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// For the report.
    pub(crate) name: String,
    /// Without `/v1`.
    pub(crate) base: String,
}

impl Target {
    /// # Errors
    /// When `url` is not an `http://` address.
    pub(crate) fn new(name: Option<&str>, url: &str) -> Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url} is not an address"))?;
        ensure!(uri.scheme_str() == Some("http"), "{url} must start with http:// (TLS would be measured too)");
        let base = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let name = name.map_or_else(|| base.trim_start_matches("http://").to_owned(), str::to_owned);
        Ok(Self { name, base })
    }
}

/// How requests are made, the same for every target.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    pub(crate) api_key: Option<String>,
    /// From sending to the end.
    pub(crate) timeout: Duration,
    /// Fields of the body that replace ours; null removes one.
    pub(crate) extra: Map<String, Value>,
}

/// A client of the server under test; cheap to share.
pub(crate) struct Client {
    http: HttpClient<HttpConnector, Full<Bytes>>,
    pub(crate) target: Target,
    manner: Manner,
    pub(crate) model: String,
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
}

#[derive(Deserialize, Default)]
struct Delta {
    content: Option<String>,
    #[serde(alias = "reasoning_content")]
    reasoning: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl Client {
    pub(crate) fn new(target: Target, manner: Manner) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let http = HttpClient::builder(TokioExecutor::new()).build(connector);
        Self { http, target, manner, model: String::new() }
    }

    /// Settles the model: the given one, or the first that the server lists.
    ///
    /// # Errors
    /// When the server cannot be reached or lists none.
    pub(crate) async fn with_model(mut self, model: Option<&str>) -> Result<Self> {
        self.model = match model {
            Some(model) => model.to_owned(),
            None => self.first_model().await.with_context(|| format!("cannot list models of {}", self.target.base))?,
        };
        Ok(self)
    }

    async fn first_model(&self) -> Result<String> {
        let request = self.request(Method::GET, "/v1/models", Bytes::new())?;
        let response = tokio::time::timeout(LIST_TIMEOUT, self.http.request(request)).await.context("no answer")??;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await;
        let body = body.map_err(|error| anyhow!("{error}"))?.to_bytes();
        ensure!(status.is_success(), "status {status}: {}", String::from_utf8_lossy(&body));
        let models: Models = serde_json::from_slice(&body).context("the answer is no list of models")?;
        Ok(models.data.into_iter().next().context("the server lists no model")?.id)
    }

    fn body(&self, prompt: &Prompt) -> Bytes {
        let mut body = json!({
            "model": self.model,
            "max_tokens": prompt.output_tokens,
            "ignore_eos": true,
            "temperature": 0,
            "stream": true,
            "stream_options": {"include_usage": true},
            "messages": prompt.messages,
        });
        let fields = body.as_object_mut().expect("it was made as an object");
        for (name, value) in &self.manner.extra {
            if value.is_null() {
                fields.remove(name);
            } else {
                fields.insert(name.clone(), value.clone());
            }
        }
        body.to_string().into()
    }

    async fn stream(&self, prompt: &Prompt, waiting: Waiting) -> Result<Answer, Failure> {
        let body = self.body(prompt);
        let sent = Instant::now();
        let broken = |error: &dyn std::error::Error| Failure::new(FailureKind::Connection, chain(error));
        let request = self.request(Method::POST, "/v1/chat/completions", body);
        let request = request.map_err(|error| Failure::new(FailureKind::Connection, format!("{error:#}")))?;
        let response = self.http.request(request).await.map_err(|error| broken(&error))?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        let mut reader = Reader::new(sent, waiting, prompt.keep_text);
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Failure::new(FailureKind::Cut, format!("cut: {}", chain(&error))))?;
            if let Ok(data) = frame.into_data() {
                reader.take(&data)?;
            }
        }
        reader.finish()
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.target.base));
        request = request.header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.manner.api_key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        request.body(Full::new(body)).context("the request cannot be built")
    }
}

impl Ask for Client {
    async fn ask(&self, prompt: &Prompt, waiting: Waiting) -> Result<Answer, Failure> {
        let limit = self.manner.timeout;
        let late = |_| Failure::new(FailureKind::Timeout, format!("no end within {limit:?}"));
        tokio::time::timeout(limit, self.stream(prompt, waiting)).await.map_err(late)?
    }
}

/// An error with its causes: hyper's own say little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What a server says that answers with something else than 2xx.
async fn refusal(response: Response<Incoming>) -> Failure {
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await;
    let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let message = serde_json::from_slice::<Value>(&body).ok();
    let message = message.as_ref().and_then(|body| body["error"]["message"].as_str().or(body["message"].as_str()));
    match message {
        Some(message) => Failure::new(FailureKind::Status, format!("status {status}: {message}")),
        None => Failure::new(FailureKind::Status, format!("status {status}")),
    }
}

/// Reads a stream of events as it arrives.
struct Reader {
    sent: Instant,
    waiting: Option<Waiting>,
    keep_text: bool,
    buffer: BytesMut,
    last_text: Duration,
    num_text_events: u64,
    usage: Option<Usage>,
    is_done: bool,
    answer: Answer,
}

impl Reader {
    fn new(sent: Instant, waiting: Waiting, keep_text: bool) -> Self {
        Self {
            sent,
            waiting: Some(waiting),
            keep_text,
            buffer: BytesMut::new(),
            last_text: Duration::ZERO,
            num_text_events: 0,
            usage: None,
            is_done: false,
            answer: Answer::default(),
        }
    }

    fn take(&mut self, data: &[u8]) -> Result<(), Failure> {
        let now = self.sent.elapsed();
        self.buffer.extend_from_slice(data);
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line = self.buffer.split_to(end + 1);
            self.take_line(line.trim_ascii(), now)?;
        }
        if self.buffer.len() > MAX_EVENT_BYTES {
            return Err(Failure::new(FailureKind::Malformed, format!("an event exceeds {MAX_EVENT_BYTES} bytes")));
        }
        Ok(())
    }

    fn take_line(&mut self, line: &[u8], now: Duration) -> Result<(), Failure> {
        // Comments, event names and blank lines carry no data.
        let Some(data) = line.strip_prefix(b"data:") else { return Ok(()) };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.is_done = true;
            return Ok(());
        }
        let chunk: Result<Chunk, _> = serde_json::from_slice(data);
        let chunk = chunk.map_err(|_| Failure::new(FailureKind::Malformed, "an event is not a chunk"))?;
        if let Some(error) = chunk.error {
            let message = error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned);
            return Err(Failure::new(FailureKind::ErrorEvent, format!("error in the stream: {message}")));
        }
        let mut has_text = false;
        for delta in chunk.choices.into_iter().map(|choice| choice.delta) {
            has_text |= [&delta.content, &delta.reasoning].into_iter().flatten().any(|text| !text.is_empty());
            if let Some(text) = delta.content.filter(|_| self.keep_text) {
                self.answer.text += &text;
            }
        }
        if has_text {
            self.take_text(now);
        }
        self.usage = chunk.usage.or(self.usage.take());
        Ok(())
    }

    fn take_text(&mut self, now: Duration) {
        self.num_text_events += 1;
        if self.num_text_events == 1 {
            self.answer.first_token = now;
            self.waiting = None;
        } else {
            let gap = now.saturating_sub(self.last_text).as_micros();
            self.answer.gaps_us.push(u32::try_from(gap).unwrap_or(u32::MAX));
        }
        self.last_text = now;
    }

    fn finish(mut self) -> Result<Answer, Failure> {
        if !self.is_done {
            return Err(Failure::new(FailureKind::Cut, "cut: the stream ended without [DONE]"));
        }
        if self.num_text_events == 0 {
            return Err(Failure::new(FailureKind::Empty, "the stream carried no text"));
        }
        self.answer.total = self.sent.elapsed();
        self.answer.prompt_tokens = self.usage.as_ref().map(|usage| usage.prompt_tokens);
        self.answer.is_counted_by_server = self.usage.is_some();
        self.answer.output_tokens = self.usage.map_or(self.num_text_events, |usage| usage.completion_tokens);
        Ok(self.answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeServer, Script};
    use crate::live::Live;

    fn manner(timeout: Duration) -> Manner {
        Manner { api_key: Some("key".to_owned()), timeout, extra: Map::new() }
    }

    async fn ask(script: Script, timeout: Duration) -> Result<Answer, Failure> {
        let server = FakeServer::start(script).await;
        let client = Client::new(Target::new(None, &server.url).unwrap(), manner(timeout));
        let client = client.with_model(None).await.unwrap();
        assert_eq!(client.model, "fake");
        let messages = vec![json!({"role": "user", "content": "one two three"})];
        let prompt = Prompt { messages, output_tokens: 4, keep_text: true };
        client.ask(&prompt, Live::new(None).begin(Instant::now())).await
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn known_delays_are_measured() {
        let (first, gap) = (Duration::from_millis(80), Duration::from_millis(30));
        let answer = ask(Script { first, gap, ..Script::default() }, LONG).await.unwrap();
        // Never shorter than it was made; how much longer is up to the machine.
        assert!(answer.first_token >= first && answer.first_token < first * 5, "{:?}", answer.first_token);
        assert_eq!(answer.gaps_us.len(), 3);
        let sum: u32 = answer.gaps_us.iter().sum();
        assert!(sum >= 85_000, "three gaps of 30 ms each: {sum} µs");
        assert!(answer.total >= first + gap * 3 && answer.total >= answer.first_token);
        assert_eq!((answer.prompt_tokens, answer.output_tokens), (Some(3), 4));
        assert!(answer.is_counted_by_server && answer.text == "x x x x ");
        assert_eq!(answer.per_token_us(), Some(u64::from(sum) / 3));
    }

    #[tokio::test]
    async fn without_usage_events_are_counted() {
        let answer = ask(Script { has_usage: false, ..Script::default() }, LONG).await.unwrap();
        assert_eq!((answer.prompt_tokens, answer.output_tokens, answer.is_counted_by_server), (None, 4, false));
    }

    #[tokio::test]
    async fn failures_are_told_apart() {
        let slow = Script { first: Duration::from_secs(60), ..Script::default() };
        for (script, timeout, kind, part) in [
            (Script { status: 503, ..Script::default() }, LONG, FailureKind::Status, "status 503: fake"),
            (Script { cut_after: Some(2), ..Script::default() }, LONG, FailureKind::Cut, "[DONE]"),
            (Script { drop_after: Some(2), ..Script::default() }, LONG, FailureKind::Cut, "cut"),
            (Script { error_after: Some(1), ..Script::default() }, LONG, FailureKind::ErrorEvent, "planted"),
            (Script { text: "", ..Script::default() }, LONG, FailureKind::Empty, "no text"),
            (Script { garbage: true, ..Script::default() }, LONG, FailureKind::Malformed, "chunk"),
            (slow, Duration::from_millis(50), FailureKind::Timeout, "50ms"),
        ] {
            let failure = ask(script, timeout).await.unwrap_err();
            assert_eq!(failure.kind, kind, "{failure}");
            assert!(failure.detail.contains(part), "{failure}");
        }
    }

    #[tokio::test]
    async fn nobody_listening_is_a_failed_connection() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let client = Client::new(Target::new(None, &url).unwrap(), manner(LONG));
        let prompt = Prompt { messages: Vec::new(), output_tokens: 1, keep_text: false };
        let failure = client.ask(&prompt, Live::new(None).begin(Instant::now())).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Connection);
        assert!(client.with_model(None).await.is_err());
    }

    #[test]
    fn extra_fields_replace_and_remove() {
        let extra = json!({"temperature": 1.5, "ignore_eos": null, "top_k": 3}).as_object().unwrap().clone();
        let target = Target::new(Some("a"), "http://127.0.0.1:8000/v1/").unwrap();
        assert_eq!((target.name.as_str(), target.base.as_str()), ("a", "http://127.0.0.1:8000"));
        let client = Client::new(target, Manner { extra, ..manner(LONG) });
        let body = client.body(&Prompt { messages: Vec::new(), output_tokens: 9, keep_text: false });
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&body["temperature"], &body["top_k"], &body["max_tokens"]), (&json!(1.5), &json!(3), &json!(9)));
        assert!(body.get("ignore_eos").is_none());
        assert!(Target::new(None, "https://127.0.0.1").is_err());
    }
}
