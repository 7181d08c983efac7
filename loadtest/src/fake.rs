//! A server that answers as its script says, for tests: hyper on a free port of the loopback.
//!
//! Ends when dropped. Used by the tests of `client` and of the binary.
#![allow(dead_code, reason = "each test crate uses a part of it")]

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

type Body = BoxBody<Bytes, std::io::Error>;

/// How every chat request is answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Script {
    pub(crate) status: u16,
    /// Before the first text.
    pub(crate) first: Duration,
    /// Before each further text.
    pub(crate) gap: Duration,
    pub(crate) text: &'static str,
    pub(crate) has_usage: bool,
    /// Events after which the stream ends as if it were whole.
    pub(crate) cut_after: Option<usize>,
    /// Events after which the connection breaks.
    pub(crate) drop_after: Option<usize>,
    /// Events after which an error event comes.
    pub(crate) error_after: Option<usize>,
    /// Something that is no chunk, first.
    pub(crate) garbage: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            status: 200,
            first: Duration::ZERO,
            gap: Duration::ZERO,
            text: "x ",
            has_usage: true,
            cut_after: None,
            drop_after: None,
            error_after: None,
            garbage: false,
        }
    }
}

/// A running fake.
pub(crate) struct FakeServer {
    pub(crate) url: String,
    accepting: JoinHandle<()>,
}

impl FakeServer {
    pub(crate) async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let accept = async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, script));
            }
        };
        Self { url, accepting: tokio::spawn(accept) }
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(socket: TcpStream, script: Script) {
    let service = service_fn(move |request| answer(request, script));
    let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
    // A broken connection is what some scripts ask for.
    drop(served);
}

async fn answer(request: Request<Incoming>, script: Script) -> Result<Response<Body>, Infallible> {
    let is_list = request.uri().path() == "/v1/models";
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    if is_list {
        return Ok(Response::new(whole(r#"{"data": [{"id": "fake"}]}"#)));
    }
    if script.status != 200 {
        let mut response = Response::new(whole(r#"{"error": {"message": "fake trouble"}}"#));
        *response.status_mut() = script.status.try_into().expect("a status");
        return Ok(response);
    }
    let request: serde_json::Value = serde_json::from_slice(&body).expect("the client sends JSON");
    let steps = steps(&request, script);
    let events = stream::iter(steps);
    let events = futures_util::StreamExt::then(events, |(delay, event)| async move {
        tokio::time::sleep(delay).await;
        event.map(|text| Frame::data(Bytes::from(text)))
    });
    Ok(Response::new(StreamBody::new(events).boxed()))
}

fn whole(text: &'static str) -> Body {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed()
}

type Step = (Duration, std::io::Result<String>);

/// The events of one answer, each with the time before it.
fn steps(request: &serde_json::Value, script: Script) -> Vec<Step> {
    let num_tokens = request["max_tokens"].as_u64().expect("a number") as usize;
    let messages = request["messages"].as_array().expect("messages");
    let words = messages.iter().filter_map(|message| message["content"].as_str());
    let num_words: usize = words.map(|text| text.split_whitespace().count()).sum();
    let now = |text: String| (Duration::ZERO, Ok(format!("{text}\n\n")));
    let mut steps: Vec<Step> = vec![now(": comment".to_owned())];
    if script.garbage {
        steps.push(now("data: {garbage".to_owned()));
    }
    for idx in 0..num_tokens {
        if script.cut_after == Some(idx) {
            return steps;
        }
        if script.drop_after == Some(idx) {
            steps.push((Duration::ZERO, Err(std::io::Error::other("dropped"))));
            return steps;
        }
        if script.error_after == Some(idx) {
            steps.push(now(r#"data: {"error": {"message": "planted"}}"#.to_owned()));
        }
        let delay = if idx == 0 { script.first } else { script.gap };
        let event = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n", script.text);
        steps.push((delay, Ok(event)));
    }
    if script.has_usage {
        let usage = format!(r#"{{"prompt_tokens":{num_words},"completion_tokens":{num_tokens}}}"#);
        steps.push(now(format!(r#"data: {{"choices":[],"usage":{usage}}}"#)));
    }
    steps.push(now("data: [DONE]".to_owned()));
    steps
}
