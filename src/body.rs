//! Bodies: the one type that responses have, and reading a request's body under a size and two time limits.
//!
//! hyper never times out a body that stops arriving, so [`read`] does. Used by the router (reading) and every handler
//! (answering).

use crate::error::{ApiError, ErrorKind};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::{Body as HttpBody, Frame};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// The body of every response.
pub type Body = BoxBody<Bytes, Infallible>;

/// Every response.
pub type Response = hyper::Response<Body>;

/// A body that is there as a whole.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

/// No body.
pub fn empty() -> Body {
    full(Bytes::new())
}

/// A response of one media type.
pub fn with_type(status: StatusCode, media_type: &'static str, bytes: impl Into<Bytes>) -> Response {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// A JSON response.
pub fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => with_type(status, "application/json", bytes),
        // A map with keys that are no strings, which no wire type of ours has.
        Err(error) => ApiError::server(error).into_response(),
    }
}

/// The request's body as `T`, whatever its `Content-Type` says.
///
/// # Errors
/// [`ErrorKind::InvalidJson`] where it is not JSON at all, [`ErrorKind::InvalidValue`] where it does not fit `T`.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|error| {
        if error.is_data() {
            ApiError::new(ErrorKind::InvalidValue, format!("the request body does not fit: {error}"))
        } else if bytes.is_empty() {
            ApiError::invalid_json("the request body is empty; send a JSON object")
        } else {
            ApiError::invalid_json(format!("the request body is not valid JSON: {error}"))
        }
    })
}

/// How much body is read, and how long that may take.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Bytes at most.
    pub max_bytes: usize,
    /// Longest silence between two pieces.
    pub idle: Duration,
    /// Longest time for the whole.
    pub total: Duration,
}

/// A request's body, and its share of the memory that all bodies may take together; keep the share as long as the bytes.
#[derive(Debug)]
pub struct ReadBody {
    /// The whole body.
    pub bytes: Bytes,
    /// Given back when dropped.
    pub share: Option<OwnedSemaphorePermit>,
}

/// Reads a request's body as a whole; `budget` counts KiB.
///
/// One that announces too many bytes is refused before any is read, unless the client has not been asked for it yet
/// (`Expect: 100-continue`); what it sends nevertheless is thrown away for a short while, since a client that is still
/// writing when the connection closes loses the answer.
///
/// # Errors
/// [`ErrorKind::RequestTooLarge`], [`ErrorKind::RequestTimeout`], [`ErrorKind::ClientClosed`], [`ErrorKind::Overloaded`].
pub async fn read<B>(
    mut body: B,
    headers: &HeaderMap,
    limits: BodyLimits,
    budget: &Arc<Semaphore>,
) -> Result<ReadBody, ApiError>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let deadline = Instant::now() + limits.total;
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > limits.max_bytes {
        if !headers.contains_key(hyper::header::EXPECT) {
            discard(&mut body, limits).await;
        }
        return Err(too_large(limits.max_bytes));
    }
    let mut read = BytesMut::new();
    let mut first = None;
    let mut share = Share { budget, held: None, num_bytes: 0 };
    while let Some(data) = next_data(&mut body, deadline, limits.idle).await? {
        if read.len() + first.as_ref().map_or(0, Bytes::len) + data.len() > limits.max_bytes {
            discard(&mut body, limits).await;
            return Err(too_large(limits.max_bytes));
        }
        share.grow(data.len())?;
        // Most bodies arrive in one piece, which then is the answer without a copy.
        match first.take() {
            None if read.is_empty() => first = Some(data),
            None => read.extend_from_slice(&data),
            Some(head) => {
                read.extend_from_slice(&head);
                read.extend_from_slice(&data);
            }
        }
    }
    Ok(ReadBody { bytes: first.unwrap_or_else(|| read.freeze()), share: share.held })
}

/// What one body has taken of the budget.
struct Share<'a> {
    budget: &'a Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
    num_bytes: usize,
}

impl Share<'_> {
    fn grow(&mut self, num_bytes: usize) -> Result<(), ApiError> {
        self.num_bytes += num_bytes;
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let wanted = self.num_bytes.div_ceil(1024).saturating_sub(held);
        let wanted = u32::try_from(wanted).map_err(|_| ApiError::overloaded(1))?;
        let more = self.budget.clone().try_acquire_many_owned(wanted).map_err(|_| ApiError::overloaded(1))?;
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        Ok(())
    }
}

async fn next_data<B>(body: &mut B, deadline: Instant, idle: Duration) -> Result<Option<Bytes>, ApiError>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    loop {
        let until = deadline.min(Instant::now() + idle);
        match timeout_at(until, body.frame()).await {
            Err(_) => {
                return Err(ApiError::new(
                    ErrorKind::RequestTimeout,
                    "the request body did not arrive in time; send it again",
                ));
            }
            Ok(None) => return Ok(None),
            Ok(Some(Err(_))) => return Err(ApiError::client_closed()),
            Ok(Some(Ok(frame))) => {
                // Trailers are no part of the body.
                if let Ok(data) = Frame::into_data(frame) {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Takes and drops up to eight times the limit, for two seconds at most.
async fn discard<B>(body: &mut B, limits: BodyLimits)
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let deadline = Instant::now() + limits.total.min(Duration::from_secs(2));
    let mut left = limits.max_bytes.saturating_mul(8).max(1 << 20);
    while let Ok(Some(data)) = next_data(body, deadline, limits.idle).await {
        if data.len() > left {
            break;
        }
        left -= data.len();
    }
}

fn too_large(max_bytes: usize) -> ApiError {
    ApiError::new(
        ErrorKind::RequestTooLarge,
        format!("the request body is larger than {max_bytes} bytes (setting server.max_body)"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use http_body_util::StreamBody;

    const LIMITS: BodyLimits =
        BodyLimits { max_bytes: 10, idle: Duration::from_secs(1), total: Duration::from_secs(3) };

    fn pieces(parts: &[&'static str]) -> impl HttpBody<Data = Bytes, Error = Infallible> + Unpin {
        let frames: Vec<_> = parts.iter().map(|part| Ok(Frame::data(Bytes::from_static(part.as_bytes())))).collect();
        StreamBody::new(stream::iter(frames))
    }

    async fn read_with(body: impl HttpBody<Data = Bytes, Error = Infallible> + Unpin) -> Result<Bytes, ApiError> {
        let budget = Arc::new(Semaphore::new(100));
        read(body, &HeaderMap::new(), LIMITS, &budget).await.map(|read| read.bytes)
    }

    #[tokio::test]
    async fn pieces_are_joined_up_to_the_limit() {
        assert_eq!(read_with(pieces(&[])).await.unwrap(), "");
        assert_eq!(read_with(pieces(&["abc"])).await.unwrap(), "abc");
        assert_eq!(read_with(pieces(&["abcde", "fgh", "ij"])).await.unwrap(), "abcdefghij");
        let error = read_with(pieces(&["abcde", "fgh", "ij", "k"])).await.unwrap_err();
        assert_eq!(error.status(), 413);
        let error = read_with(full("01234567890")).await.unwrap_err();
        assert_eq!(error.status(), 413);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_dribbling_both_time_out() {
        let silent = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
        let start = Instant::now();
        let error = read_with(silent).await.unwrap_err();
        assert_eq!((error.status().as_u16(), start.elapsed().as_secs()), (408, 1));

        let dribble = Box::pin(stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(900)).await;
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x"))), ()))
        }));
        let start = Instant::now();
        let error = read_with(StreamBody::new(dribble)).await.unwrap_err();
        assert_eq!((error.status().as_u16(), start.elapsed().as_secs()), (408, 3));
    }

    #[tokio::test]
    async fn bodies_share_a_budget() {
        let budget = Arc::new(Semaphore::new(2));
        let limits = BodyLimits { max_bytes: 4096, ..LIMITS };
        let headers = HeaderMap::new();
        let first = read(full(vec![b'x'; 1500]), &headers, limits, &budget).await.unwrap();
        assert_eq!(budget.available_permits(), 0);
        let error = read(full("y"), &headers, limits, &budget).await.unwrap_err();
        assert_eq!((error.status().as_u16(), first.bytes.len()), (503, 1500));
        drop(first);
        assert!(read(full("y"), &headers, limits, &budget).await.is_ok());
        assert_eq!(budget.available_permits(), 2);
    }

    #[test]
    fn json_errors_tell_syntax_from_shape() {
        assert_eq!(parse_json::<u32>(b"12").unwrap(), 12);
        let truncated = parse_json::<serde_json::Value>(b"{\"a\": 1").unwrap_err();
        assert_eq!(truncated.kind(), ErrorKind::InvalidJson);
        assert_eq!(parse_json::<u32>(b"").unwrap_err().kind(), ErrorKind::InvalidJson);
        assert_eq!(parse_json::<u32>(b"\"x\"").unwrap_err().kind(), ErrorKind::InvalidValue);
        let deep = "[".repeat(100_000);
        assert_eq!(parse_json::<serde_json::Value>(deep.as_bytes()).unwrap_err().kind(), ErrorKind::InvalidJson);
    }
}
