//! Server-sent events: a bounded channel of frames that becomes a response body.
//!
//! A handler keeps the [`SseSender`] and returns the response at once. Each [`SseSender::flush`] is one frame, so that all
//! events of a step leave in one write. The invariant: a stream ends with `data: [DONE]` or not at all. A sender that is
//! dropped early (a bug, a panic) and a drain limit that runs out both end the stream with an error event and `[DONE]`.
//!
//! Lines `id:`, `retry:` and `event:` are never sent: SDKs dispatch an empty event at the next blank line after one.

use crate::body::Response;
use crate::error::ApiError;
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Frames that may wait for the client. A frame holds the events of one step, so this is far below 256 KiB.
const CAPACITY_FRAMES: usize = 32;

/// How a stream behaves.
#[derive(Clone, Debug)]
pub struct SseOptions {
    /// A client that takes no frame for this long is given up (setting `server.stall_timeout`).
    pub stall: Duration,
    /// After this much silence a comment is sent, so that proxies keep the connection; zero sends none.
    pub keep_alive: Duration,
    /// Cancelled when a drain has run out of time.
    pub cut: CancellationToken,
}

/// Why nothing more can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseClosed {
    /// The body was dropped: the client has left, or a drain has ended the stream.
    #[error("the client has left")]
    Gone,
    /// The client is there but has not read for the stall time.
    #[error("the client stopped reading")]
    Stalled,
}

/// The writing end of a stream.
pub struct SseSender {
    frames: mpsc::Sender<Message>,
    buffer: BytesMut,
    stall: Duration,
}

enum Message {
    Events(Bytes),
    /// The last events; nothing follows.
    End(Bytes),
}

/// A stream: the sender, and the response (status 200) to return from the handler.
///
/// Call it only when validation and admission are settled: afterwards an error can only travel in the stream.
pub fn channel(options: SseOptions) -> (SseSender, Response) {
    let (frames, receiver) = mpsc::channel(CAPACITY_FRAMES);
    let sender = SseSender { frames, buffer: BytesMut::new(), stall: options.stall };
    let body = SseBody {
        frames: receiver,
        keep_alive: (!options.keep_alive.is_zero())
            .then(|| KeepAlive { every: options.keep_alive, sleep: Box::pin(sleep(options.keep_alive)) }),
        cut: Box::pin(options.cut.cancelled_owned()),
        ended: false,
    };
    let mut response = Response::new(body.boxed());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    (sender, response)
}

impl SseSender {
    /// Appends one event to the frame being made; nothing is sent before [`SseSender::flush`].
    pub fn push(&mut self, value: &impl Serialize) {
        push_data(&mut self.buffer, value);
    }

    /// Sends the frame; waits while the client is slow, at most the stall time. Cancel-safe: what was pushed stays.
    ///
    /// # Errors
    /// [`SseClosed`]: stop generating.
    pub async fn flush(&mut self) -> Result<(), SseClosed> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let permit = reserve(&self.frames, self.stall).await?;
        permit.send(Message::Events(self.buffer.split().freeze()));
        Ok(())
    }

    /// One event in a frame of its own (with what was pushed before).
    ///
    /// # Errors
    /// [`SseClosed`]: stop generating.
    pub async fn data(&mut self, value: &impl Serialize) -> Result<(), SseClosed> {
        self.push(value);
        self.flush().await
    }

    /// A comment line; clients skip it.
    ///
    /// # Errors
    /// [`SseClosed`]: stop generating.
    pub async fn comment(&mut self, text: &str) -> Result<(), SseClosed> {
        // A line break would start a new line of the protocol.
        for line in text.lines() {
            self.buffer.put_slice(b": ");
            self.buffer.put_slice(line.as_bytes());
            self.buffer.put_u8(b'\n');
        }
        self.buffer.put_u8(b'\n');
        self.flush().await
    }

    /// Ends the stream as it should end: what was pushed, then `[DONE]`.
    ///
    /// # Errors
    /// [`SseClosed`]: nobody will read the end.
    pub async fn done(mut self) -> Result<(), SseClosed> {
        self.buffer.put_slice(b"data: [DONE]\n\n");
        let permit = reserve(&self.frames, self.stall).await?;
        permit.send(Message::End(self.buffer.split().freeze()));
        Ok(())
    }

    /// Ends the stream with an error event, then `[DONE]`.
    ///
    /// # Errors
    /// [`SseClosed`]: nobody will read the end.
    pub async fn fail(mut self, error: &ApiError) -> Result<(), SseClosed> {
        self.push(&error.to_json());
        self.done().await
    }

    /// Resolves when the client has left (or the drain has cut the stream): to be selected on while waiting for tokens.
    pub async fn closed(&self) {
        self.frames.closed().await;
    }

    /// Whether the client has left.
    pub fn is_closed(&self) -> bool {
        self.frames.is_closed()
    }
}

async fn reserve(frames: &mpsc::Sender<Message>, stall: Duration) -> Result<mpsc::Permit<'_, Message>, SseClosed> {
    match timeout(stall, frames.reserve()).await {
        Ok(Ok(permit)) => Ok(permit),
        Ok(Err(_)) => Err(SseClosed::Gone),
        Err(_) => Err(SseClosed::Stalled),
    }
}

fn push_data(buffer: &mut BytesMut, value: &impl Serialize) {
    buffer.put_slice(b"data: ");
    let start = buffer.len();
    if serde_json::to_writer(buffer.writer(), value).is_err() {
        // A map with keys that are no strings, which no wire type of ours has.
        buffer.truncate(start);
        buffer.put_slice(ApiError::server("unserializable event").to_json().to_string().as_bytes());
    }
    buffer.put_slice(b"\n\n");
}

/// The reading end: the body that hyper polls. Dropping it is how the sender learns that the client has left.
struct SseBody {
    frames: mpsc::Receiver<Message>,
    keep_alive: Option<KeepAlive>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    ended: bool,
}

struct KeepAlive {
    every: Duration,
    sleep: Pin<Box<Sleep>>,
}

impl SseBody {
    /// The last frame of a stream that cannot go on.
    fn end_with(&mut self, error: &ApiError) -> Bytes {
        self.ended = true;
        self.frames.close();
        let mut buffer = BytesMut::new();
        push_data(&mut buffer, &error.to_json());
        buffer.put_slice(b"data: [DONE]\n\n");
        buffer.freeze()
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match self.frames.poll_recv(cx) {
            Poll::Ready(Some(Message::Events(bytes))) => {
                if let Some(keep_alive) = &mut self.keep_alive {
                    keep_alive.sleep.as_mut().reset(Instant::now() + keep_alive.every);
                }
                return Poll::Ready(Some(bytes));
            }
            Poll::Ready(Some(Message::End(bytes))) => {
                self.ended = true;
                return Poll::Ready(Some(bytes));
            }
            Poll::Ready(None) => {
                let end = self.end_with(&ApiError::server("a stream's sender was dropped before its end"));
                return Poll::Ready(Some(end));
            }
            Poll::Pending => {}
        }
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(self.end_with(&ApiError::shutting_down())));
        }
        if let Some(keep_alive) = &mut self.keep_alive
            && keep_alive.sleep.as_mut().poll(cx).is_ready()
        {
            keep_alive.sleep.as_mut().reset(Instant::now() + keep_alive.every);
            // The new deadline must be registered with this task.
            cx.waker().wake_by_ref();
            return Poll::Ready(Some(Bytes::from_static(b": keep-alive\n\n")));
        }
        Poll::Pending
    }
}

impl HttpBody for SseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.poll_bytes(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn options() -> SseOptions {
        SseOptions {
            stall: Duration::from_secs(30),
            keep_alive: Duration::from_secs(10),
            cut: CancellationToken::new(),
        }
    }

    async fn collect(response: Response) -> String {
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn events_of_a_step_leave_in_one_frame() {
        let (mut sender, response) = channel(options());
        sender.push(&json!({"a": 1}));
        sender.push(&json!({"b": "x\ny"}));
        sender.flush().await.unwrap();
        sender.flush().await.unwrap();
        let mut body = response.into_body();
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(frame, "data: {\"a\":1}\n\ndata: {\"b\":\"x\\ny\"}\n\n");
        sender.done().await.unwrap();
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(frame, "data: [DONE]\n\n");
        assert!(body.is_end_stream());
    }

    #[tokio::test]
    async fn headers_keep_proxies_from_buffering() {
        let (_sender, response) = channel(options());
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-cache, no-transform");
        assert_eq!(response.headers()["x-accel-buffering"], "no");
    }

    #[tokio::test]
    async fn a_dropped_sender_ends_in_an_error_event() {
        let (mut sender, response) = channel(options());
        sender.data(&json!(1)).await.unwrap();
        drop(sender);
        let text = collect(response).await;
        assert!(text.starts_with("data: 1\n\ndata: {\"error\":"), "{text}");
        assert!(text.contains("\"internal_error\"") && text.ends_with("\n\ndata: [DONE]\n\n"), "{text}");
    }

    #[tokio::test]
    async fn a_cut_ends_in_an_error_event_and_tells_the_sender() {
        let options = options();
        let cut = options.cut.clone();
        let (mut sender, response) = channel(options);
        sender.data(&json!(1)).await.unwrap();
        cut.cancel();
        let text = collect(response).await;
        assert!(text.contains("server_shutting_down") && text.ends_with("data: [DONE]\n\n"), "{text}");
        sender.closed().await;
        assert_eq!(sender.data(&json!(2)).await, Err(SseClosed::Gone));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_given_up() {
        let (mut sender, _response) = channel(options());
        for _ in 0..CAPACITY_FRAMES {
            sender.data(&json!(1)).await.unwrap();
        }
        let start = Instant::now();
        assert_eq!(sender.data(&json!(1)).await, Err(SseClosed::Stalled));
        assert_eq!(start.elapsed().as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_filled_with_comments() {
        let (mut sender, response) = channel(options());
        let mut body = response.into_body();
        for _ in 0..3 {
            let start = Instant::now();
            let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(frame, ": keep-alive\n\n");
            assert_eq!(start.elapsed().as_secs(), 10);
        }
        sender.comment("a\nb").await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), ": a\n: b\n\n");
        drop(body);
        assert_eq!(sender.data(&json!(1)).await, Err(SseClosed::Gone));
    }
}
