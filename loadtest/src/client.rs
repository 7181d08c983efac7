//! One streamed chat completion, timed: what a user of an SDK would see.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, Response, Uri, body::Incoming, header};
use hyper_util::client::legacy::{Client as HttpClient, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use serde_json::json;

/// Bytes of an answer that is not a stream, at most.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Bytes of one event, at most.
const MAX_EVENT_BYTES: usize = 1 << 20;

/// The server under test.
pub(crate) struct Target {
    base: String,
    api_key: Option<String>,
    timeout: Duration,
}

impl Target {
    /// # Errors
    /// When `url` is not an `http://` address.
    pub(crate) fn new(url: &str, api_key: Option<String>, timeout: Duration) -> Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("--url {url} is not an address"))?;
        ensure!(uri.scheme_str() == Some("http"), "--url {url} must start with http:// (TLS would be measured too)");
        let base = url.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        Ok(Self { base, api_key, timeout })
    }
}

/// A client of the server under test; cheap to share.
pub(crate) struct Client {
    http: HttpClient<HttpConnector, Full<Bytes>>,
    target: Target,
    model: String,
}

/// What one answered request took.
pub(crate) struct Timing {
    /// From sending to the first event with text.
    pub(crate) first_token: Duration,
    /// Gaps between successive events with text.
    pub(crate) gaps: Vec<Duration>,
    /// From sending to the end of the stream.
    pub(crate) total: Duration,
    /// Prompt tokens by the server's count.
    pub(crate) prompt_tokens: u64,
    /// Output tokens by the server's count; without one, events with text.
    pub(crate) output_tokens: u64,
}

/// Why a request failed, in few words, so that equal failures count together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Failure(pub(crate) String);

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
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Delta,
}

#[derive(Deserialize)]
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
    pub(crate) fn new(target: Target) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self { http: HttpClient::builder(TokioExecutor::new()).build(connector), target, model: String::new() }
    }

    /// Settles the model: the given one, or the first that the server lists.
    ///
    /// # Errors
    /// When the server cannot be reached or lists none.
    pub(crate) async fn with_model(mut self, model: Option<String>) -> Result<Self> {
        self.model = match model {
            Some(model) => model,
            None => self.first_model().await.with_context(|| format!("cannot list models of {}", self.target.base))?,
        };
        Ok(self)
    }

    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    async fn first_model(&self) -> Result<String> {
        let response = self.http.request(self.request(Method::GET, "/v1/models", Bytes::new())?).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await;
        let body = body.map_err(|error| anyhow!("{error}"))?.to_bytes();
        ensure!(status.is_success(), "status {status}: {}", String::from_utf8_lossy(&body));
        let models: Models = serde_json::from_slice(&body)?;
        Ok(models.data.into_iter().next().context("the server lists no model")?.id)
    }

    /// Asks for exactly `output_tokens` tokens after `prompt` and reads the stream to its end.
    ///
    /// # Errors
    /// A [`Failure`] when the server cannot be reached, refuses, breaks off or takes longer than the time limit.
    pub(crate) async fn complete(&self, prompt: &str, output_tokens: u64) -> Result<Timing, Failure> {
        let body = json!({
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": output_tokens,
            "ignore_eos": true,
            "temperature": 0,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        match tokio::time::timeout(self.target.timeout, self.stream(body.to_string().into())).await {
            Err(_) => Err(Failure(format!("no end within {:?}", self.target.timeout))),
            Ok(Ok(timing)) => Ok(timing),
            Ok(Err(error)) => Err(Failure(format!("{error:#}"))),
        }
    }

    async fn stream(&self, body: Bytes) -> Result<Timing> {
        let sent = Instant::now();
        let request = self.request(Method::POST, "/v1/chat/completions", body)?;
        let response = self.http.request(request).await.context("the connection failed")?;
        ensure!(response.status().is_success(), "status {}", response.status().as_u16());
        read_stream(response, sent).await
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.target.base));
        request = request.header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.target.api_key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        request.body(Full::new(body)).context("the request cannot be built")
    }
}

async fn read_stream(response: Response<Incoming>, sent: Instant) -> Result<Timing> {
    let mut body = response.into_body();
    let mut buffer = BytesMut::new();
    let mut stream = StreamState::default();
    while let Some(frame) = body.frame().await {
        let frame = frame.context("the stream broke off")?;
        let Ok(data) = frame.into_data() else { continue };
        let now = sent.elapsed();
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            stream.take_line(line.trim_ascii(), now)?;
        }
        ensure!(buffer.len() <= MAX_EVENT_BYTES, "an event exceeds {MAX_EVENT_BYTES} bytes");
    }
    stream.finish(sent.elapsed())
}

#[derive(Default)]
struct StreamState {
    first_token: Option<Duration>,
    last_token: Duration,
    gaps: Vec<Duration>,
    num_text_events: u64,
    usage: Option<Usage>,
    done: bool,
}

impl StreamState {
    fn take_line(&mut self, line: &[u8], now: Duration) -> Result<()> {
        // Comments, event names and blank lines carry no data.
        let Some(data) = line.strip_prefix(b"data:") else { return Ok(()) };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_slice(data).context("an event is not a chunk")?;
        if let Some(error) = chunk.error {
            bail!("error in the stream: {error}");
        }
        let has_text = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        if chunk.choices.iter().any(|choice| has_text(&choice.delta.content) || has_text(&choice.delta.reasoning)) {
            match self.first_token {
                None => self.first_token = Some(now),
                Some(_) => self.gaps.push(now.saturating_sub(self.last_token)),
            }
            self.last_token = now;
            self.num_text_events += 1;
        }
        self.usage = chunk.usage.or(self.usage.take());
        Ok(())
    }

    fn finish(self, total: Duration) -> Result<Timing> {
        ensure!(self.done, "the stream ended without [DONE]");
        let usage = self.usage.unwrap_or(Usage { prompt_tokens: 0, completion_tokens: self.num_text_events });
        Ok(Timing {
            first_token: self.first_token.context("the stream carried no text")?,
            gaps: self.gaps,
            total,
            prompt_tokens: usage.prompt_tokens,
            output_tokens: usage.completion_tokens,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Result<Timing> {
        let mut stream = StreamState::default();
        for (i, line) in lines.iter().enumerate() {
            stream.take_line(line.as_bytes(), Duration::from_millis(10 * (i as u64 + 1)))?;
        }
        stream.finish(Duration::from_millis(100))
    }

    #[test]
    fn times_text_events_and_takes_usage() {
        let timing = read(&[
            r#"data: {"choices":[{"delta":{"role":"assistant","content":""}}]}"#,
            r#"data: {"choices":[{"delta":{"content":"a"}}]}"#,
            ": keep-alive",
            r#"data:{"choices":[{"delta":{"content":"b"}}]}"#,
            r#"data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}"#,
            "data: [DONE]",
        ])
        .unwrap();
        assert_eq!(timing.first_token, Duration::from_millis(20));
        assert_eq!(timing.gaps, [Duration::from_millis(20)]);
        assert_eq!((timing.prompt_tokens, timing.output_tokens), (7, 3));
    }

    #[test]
    fn a_cut_stream_and_an_error_event_are_failures() {
        let text = r#"data: {"choices":[{"delta":{"content":"a"}}]}"#;
        assert!(read(&[text]).is_err());
        assert!(read(&[text, r#"data: {"error":{"message":"x"}}"#, "data: [DONE]"]).is_err());
        assert!(read(&["data: [DONE]"]).is_err());
        assert_eq!(read(&[text, "data: [DONE]"]).unwrap().output_tokens, 1);
    }

    #[test]
    fn a_base_address_may_end_in_v1() {
        let target = Target::new("http://127.0.0.1:8000/v1/", None, Duration::from_secs(1)).unwrap();
        assert_eq!(target.base, "http://127.0.0.1:8000");
        assert!(Target::new("https://127.0.0.1", None, Duration::from_secs(1)).is_err());
    }
}
