//! The server at the other end: its models, and an answer as it streams.
//!
//! An answer is given up by dropping its future; the server notices the closed connection.

use super::ChatError;
use super::screen::Screen;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, Uri, header};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use std::time::{Duration, Instant};

/// Time to connect, and for the list of models.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer that is not a stream, and of one event, at most.
const MAX_BODY_BYTES: usize = 4 << 20;

/// A server.
pub(super) struct Remote {
    http: Client<HttpConnector, Full<Bytes>>,
    base: String,
    key: Option<String>,
}

/// An answer so far.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) text: String,
    first_text: Option<Duration>,
    last_text: Duration,
    num_events: u64,
    num_tokens: Option<u64>,
    finish_reason: Option<String>,
    is_done: bool,
}

impl Reply {
    /// Whether the limit of tokens ended it.
    pub(super) fn was_cut(&self) -> bool {
        self.finish_reason.as_deref() == Some("length")
    }

    /// How fast it came, in words.
    pub(super) fn stats(&self) -> String {
        let first = self.first_text.unwrap_or_default();
        let num_tokens = self.num_tokens.unwrap_or(self.num_events);
        let seconds = (self.last_text - first).as_secs_f64();
        let unit = if self.num_tokens.is_some() { "tokens" } else { "chunks" };
        let rate = if num_tokens > 1 && seconds > 0.0 {
            format!(" · {:.1} {unit}/s", (num_tokens - 1) as f64 / seconds)
        } else {
            String::new()
        };
        format!("first token after {} ms · {num_tokens} {unit}{rate}", first.as_millis())
    }
}

impl Remote {
    /// # Errors
    /// When `url` is not an `http://` address.
    pub(super) fn new(url: &str, key: Option<String>) -> Result<Self, ChatError> {
        let error = |hint| ChatError::Address { url: url.to_owned(), hint };
        let uri: Uri = url.parse().map_err(|_| error(""))?;
        match uri.scheme_str() {
            Some("http") if uri.host().is_some() => {}
            Some("https") => return Err(error("; for TLS put a proxy in between")),
            _ => return Err(error("")),
        }
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let http = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { http, base: url.trim_end_matches('/').trim_end_matches("/v1").to_owned(), key })
    }

    /// Where it is.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// Names of all models.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub(super) async fn models(&self) -> Result<Vec<String>, ChatError> {
        let listed = async {
            let response = self.send(Method::GET, "/v1/models", Bytes::new()).await?;
            let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await;
            let body = body.map_err(|error| ChatError::Broken(error.to_string()))?.to_bytes();
            let list: Value = serde_json::from_slice(&body).map_err(|error| ChatError::Broken(error.to_string()))?;
            let models = list["data"].as_array().map(Vec::as_slice).unwrap_or_default();
            Ok(models.iter().filter_map(|model| Some(model["id"].as_str()?.to_owned())).collect())
        };
        let late = |_| self.no_server(format!("nothing within {} s", CONNECT_TIMEOUT.as_secs()));
        tokio::time::timeout(CONNECT_TIMEOUT, listed).await.map_err(late)?
    }

    /// The model that the server lists first.
    ///
    /// # Errors
    /// When the server cannot be reached, refuses or lists none.
    pub(super) async fn first_model(&self) -> Result<String, ChatError> {
        let models = self.models().await?;
        models.into_iter().next().ok_or_else(|| ChatError::Broken("the server lists no model; name one".to_owned()))
    }

    /// Sends `body` and shows the answer as it comes.
    ///
    /// # Errors
    /// When the server cannot be reached, refuses or breaks off; `reply` holds what came until then.
    pub(super) async fn stream(&self, body: &Value, reply: &mut Reply, screen: &mut Screen) -> Result<(), ChatError> {
        let sent = Instant::now();
        let response = self.send(Method::POST, "/v1/chat/completions", body.to_string().into()).await?;
        let mut body = response.into_body();
        let mut buffer = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| ChatError::Broken(chain(&error)))?;
            let Ok(data) = frame.into_data() else { continue };
            buffer.extend_from_slice(&data);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(end + 1);
                take_line(line.trim_ascii(), sent, reply, screen)?;
            }
            if buffer.len() > MAX_BODY_BYTES {
                return Err(ChatError::Broken(format!("an event exceeds {MAX_BODY_BYTES} bytes")));
            }
        }
        if reply.is_done { Ok(()) } else { Err(ChatError::Broken("the stream ended too early".to_owned())) }
    }

    /// Sends a request; an answer other than 2xx is an error.
    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, ChatError> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        request = request.header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Full::new(body)).map_err(|error| self.no_server(error.to_string()))?;
        let response = self.http.request(request).await.map_err(|error| self.no_server(chain(&error)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        let message = json["error"]["message"].as_str().or(status.canonical_reason()).unwrap_or("no reason given");
        Err(ChatError::Refused { status: status.as_u16(), message: message.to_owned() })
    }

    fn no_server(&self, cause: String) -> ChatError {
        ChatError::NoServer { url: self.base.clone(), cause }
    }
}

/// One line of the stream.
fn take_line(line: &[u8], sent: Instant, reply: &mut Reply, screen: &mut Screen) -> Result<(), ChatError> {
    // Comments, event names and blank lines carry no data.
    let Some(data) = line.strip_prefix(b"data:") else { return Ok(()) };
    let data = data.trim_ascii();
    if data == b"[DONE]" {
        reply.is_done = true;
        return Ok(());
    }
    let chunk: Value = serde_json::from_slice(data).map_err(|error| ChatError::Broken(error.to_string()))?;
    if let Some(error) = chunk.get("error").filter(|error| !error.is_null()) {
        return Err(ChatError::Broken(error["message"].as_str().unwrap_or("an error without a message").to_owned()));
    }
    if let Some(num_tokens) = chunk["usage"]["completion_tokens"].as_u64() {
        reply.num_tokens = Some(num_tokens);
    }
    let choice = &chunk["choices"][0];
    if let Some(reason) = choice["finish_reason"].as_str() {
        reply.finish_reason = Some(reason.to_owned());
    }
    let delta = &choice["delta"];
    let thought = delta["reasoning_content"].as_str().or(delta["reasoning"].as_str()).unwrap_or("");
    let text = delta["content"].as_str().unwrap_or("");
    if thought.is_empty() && text.is_empty() {
        return Ok(());
    }
    reply.last_text = sent.elapsed();
    reply.first_text.get_or_insert(reply.last_text);
    reply.num_events += 1;
    if !thought.is_empty() {
        screen.thought(thought)?;
    }
    if !text.is_empty() {
        reply.text += text;
        screen.text(text)?;
    }
    Ok(())
}

/// The innermost cause, which says most.
fn chain(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        assert_eq!(
            Remote::new("http://h:1/v1/", None).map_err(|error| error.to_string()).ok().unwrap().base(),
            "http://h:1"
        );
        for (url, part) in
            [("https://h", "proxy"), ("h:1", "no address"), ("", "no address"), ("ftp://h", "no address")]
        {
            let error = Remote::new(url, None).err().unwrap().to_string();
            assert!(error.contains(part), "{url}: {error}");
        }
    }

    #[test]
    fn figures_leave_the_first_token_out_of_the_rate() {
        let reply = Reply {
            first_text: Some(Duration::from_millis(120)),
            last_text: Duration::from_millis(1120),
            num_tokens: Some(41),
            ..Reply::default()
        };
        assert_eq!(reply.stats(), "first token after 120 ms · 41 tokens · 40.0 tokens/s");
        assert_eq!(Reply::default().stats(), "first token after 0 ms · 0 chunks");
    }
}
