//! From an HTTP request to its handler and back: matching the table of routes, keys, the body, and the headers every answer has.
//!
//! The order is: match the path, check the key (of unknown paths too, so that nothing can be probed without one), the method,
//! readiness, then read the body, then the handler. A panic below becomes a 500; the process and all other requests go on.
//! Used by src/server.rs, one call of [`handle`] per request.

use crate::api::{Request, Route, Scope, health};
use crate::app::{App, Stage};
use crate::auth::Tenant;
use crate::body::{self, Body, BodyLimits, Response};
use crate::connection::Busy;
use crate::disconnect::Disconnect;
use crate::error::{ApiError, ErrorKind};
use crate::trace::{REQUEST_ID_HEADER, RequestId};
use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, StatusCode, Version};
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio_util::sync::DropGuard;

/// Label of requests that match no route.
const UNMATCHED: &str = "unmatched";

/// Answers one request. `disconnected` is the request's own flag; it turns with the connection's. `busy` is kept until the
/// response is out.
pub async fn handle<B>(
    app: Arc<App>,
    request: hyper::Request<B>,
    disconnected: Disconnect,
    busy: Option<Busy>,
) -> Response
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let (parts, body) = request.into_parts();
    let id = RequestId::from_headers(&parts.headers);
    let matched = find_path(app.routes, parts.uri.path());
    let mut record = Record::new(app.clone(), &parts, matched.label(), id.clone(), &disconnected, busy);
    let is_head = parts.method == Method::HEAD;
    let draining_before = app.lifecycle.stage() == Stage::Draining;

    let work = answer(&app, &parts, body, &matched, id.clone(), disconnected);
    let result = AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|panic| {
        // The hook has logged where; the payload is for us, not for the client.
        Err(ApiError::server(format!("panic: {}", panic_text(panic.as_ref()))))
    });

    let mut response = match result {
        Ok(response) => response,
        Err(error) => {
            record.note_error(&error);
            error.into_response()
        }
    };
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID_HEADER, id.header_value());
    let millis = u64::try_from(record.started.elapsed().as_millis()).unwrap_or(u64::MAX);
    headers.insert("openai-processing-ms", HeaderValue::from(millis));
    add_cors(&app, &parts.headers, headers);
    // Connection-specific headers do not exist in HTTP/2, which says GOAWAY instead.
    let draining = draining_before || app.lifecycle.stage() == Stage::Draining;
    let body_unread = matches!(response.status().as_u16(), 408 | 413);
    if parts.version < Version::HTTP_2 && (draining || body_unread) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if is_head {
        response = without_body(response);
    }
    record.status = response.status();
    response.map(|body| Recorded { body, record }.boxed())
}

/// What a path matches: the routes that have it, one per method.
struct Matched {
    routes: Vec<&'static Route>,
    params: Vec<(&'static str, String)>,
}

impl Matched {
    fn label(&self) -> &'static str {
        self.routes.first().map_or(UNMATCHED, |route| route.path)
    }

    /// Whether health checks may pass without a key.
    fn is_public(&self) -> bool {
        !self.routes.is_empty() && self.routes.iter().all(|route| route.scope == Scope::Public)
    }

    fn find(&self, method: &Method) -> Option<&'static Route> {
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        self.routes.iter().find(|route| route.method == *method).copied()
    }

    fn allow(&self) -> String {
        let mut methods = Vec::new();
        for route in &self.routes {
            methods.push(route.method.as_str());
            if route.method == Method::GET {
                methods.push("HEAD");
            }
        }
        methods.push("OPTIONS");
        methods.join(", ")
    }
}

async fn answer<B>(
    app: &Arc<App>,
    parts: &Parts,
    body: B,
    matched: &Matched,
    id: RequestId,
    disconnected: Disconnect,
) -> Result<Response, ApiError>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    // Browsers send no key with the question what they may send.
    if parts.method == Method::OPTIONS && !matched.routes.is_empty() {
        return Ok(options(matched));
    }
    let tenant = if matched.is_public() { Tenant::ANONYMOUS } else { app.keys.authenticate(&parts.headers)? };
    if matched.routes.is_empty() {
        return Err(unknown_url(parts));
    }
    let Some(route) = matched.find(&parts.method) else {
        return Err(ApiError::method_not_allowed(parts.method.as_str(), parts.uri.path(), matched.allow()));
    };
    if route.scope == Scope::Inference {
        health::check_ready(app)?;
    }
    let server = &app.config.server;
    let limits = BodyLimits {
        max_bytes: usize::try_from(server.max_body.get()).unwrap_or(usize::MAX),
        idle: server.body_idle_timeout.get(),
        total: server.body_timeout.get(),
    };
    let body = body::read(body, &parts.headers, limits, &app.body_budget).await?;
    let _share = body.share;
    let request = Request {
        method: route.method.clone(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().map(str::to_owned),
        headers: parts.headers.clone(),
        params: matched.params.clone(),
        body: body.bytes,
        id,
        tenant,
        disconnected,
        received_at: Instant::now(),
    };
    let handler = (route.handler)(app.clone(), request);
    // A drain that has run out of time ends streams through their bodies; what has no body yet ends here.
    tokio::select! {
        result = handler => result,
        () = app.lifecycle.cut() => Err(ApiError::shutting_down()),
    }
}

fn unknown_url(parts: &Parts) -> ApiError {
    let path: String = parts.uri.path().chars().take(128).collect();
    ApiError::new(ErrorKind::UnknownUrl, format!("unknown request URL: {} {path}", parts.method))
}

fn options(matched: &Matched) -> Response {
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if let Ok(allow) = HeaderValue::from_str(&matched.allow()) {
        response.headers_mut().insert(header::ALLOW, allow.clone());
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_METHODS, allow);
    }
    response
}

/// The routes whose path is `path`; exact segments win over a parameter that takes the rest.
fn find_path(table: &'static [Route], path: &str) -> Matched {
    for takes_rest in [false, true] {
        let mut params = Vec::new();
        let mut routes = Vec::new();
        for route in table {
            if let Some(found) = match_path(route.path, path, takes_rest) {
                params = found;
                routes.push(route);
            }
        }
        if !routes.is_empty() {
            return Matched { routes, params };
        }
    }
    Matched { routes: Vec::new(), params: Vec::new() }
}

/// The decoded parameters if `path` matches `pattern`. With `takes_rest` a parameter at the end takes several segments.
fn match_path(pattern: &'static str, path: &str, takes_rest: bool) -> Option<Vec<(&'static str, String)>> {
    let mut params = Vec::new();
    let mut rest = path.strip_prefix('/')?;
    let mut patterns = pattern.strip_prefix('/')?.split('/').peekable();
    while let Some(segment) = patterns.next() {
        let is_last = patterns.peek().is_none();
        let name = segment.strip_prefix('{').and_then(|segment| segment.strip_suffix('}'));
        let (value, after) = match rest.split_once('/') {
            Some(_) if is_last && takes_rest && name.is_some() => (rest, None),
            Some((value, after)) => (value, Some(after)),
            None => (rest, None),
        };
        match name {
            Some(name) => params.push((name, percent_decode(value).filter(|value| !value.is_empty())?)),
            None if segment != value => return None,
            None => {}
        }
        match (after, is_last) {
            (None, true) => return Some(params),
            (Some(after), false) => rest = after,
            _ => return None,
        }
    }
    None
}

/// `None` for a broken escape, or if the result is not UTF-8.
fn percent_decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            decoded.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

fn add_cors(app: &App, request: &HeaderMap, response: &mut HeaderMap) {
    let origins = &app.config.server.cors_origins;
    let Some(origin) = request.get(header::ORIGIN) else { return };
    if !origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes()) {
        return;
    }
    response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    response.insert(header::VARY, HeaderValue::from_static("origin"));
    response.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("x-request-id, retry-after"));
    if let Some(wanted) = request.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        // SDKs send a dozen x-stainless-* headers; none of them means anything here, so all are welcome.
        response.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
        response.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
}

/// HEAD: the headers of GET, its length among them.
fn without_body(mut response: Response) -> Response {
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    response.map(|_| body::empty())
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

/// One request's entry in log and metrics, written when it is dropped: with the last byte of the body, or when hyper drops
/// the future or the body because the client has left.
struct Record {
    app: Arc<App>,
    id: RequestId,
    route: &'static str,
    method: &'static str,
    path: String,
    started: Instant,
    status: StatusCode,
    /// The response is out to its last byte.
    complete: bool,
    error_code: Option<&'static str>,
    disconnect: Option<DropGuard>,
    _busy: Option<Busy>,
}

impl Record {
    fn new(
        app: Arc<App>,
        parts: &Parts,
        route: &'static str,
        id: RequestId,
        disconnected: &Disconnect,
        busy: Option<Busy>,
    ) -> Self {
        app.lifecycle.enter();
        app.metrics.in_flight.increment(1.0);
        Self {
            app,
            id,
            route,
            method: method_label(&parts.method),
            path: parts.uri.path().chars().take(256).collect(),
            started: Instant::now(),
            status: StatusCode::OK,
            complete: false,
            error_code: None,
            disconnect: Some(disconnected.guard()),
            _busy: busy,
        }
    }

    fn note_error(&mut self, error: &ApiError) {
        let row = error.kind().row();
        self.error_code = Some(row.code);
        self.app.metrics.count_error(row.code);
        if row.status >= 500 && row.retry_after_s.is_none() {
            let cause = error.cause().unwrap_or_default();
            tracing::error!(id = %self.id, route = self.route, code = row.code, cause, "request failed");
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        // 499 is nginx's number for a client that has left; nobody is sent it.
        let status = if self.complete { self.status.as_u16() } else { 499 };
        if self.complete
            && let Some(guard) = self.disconnect.take()
        {
            drop(guard.disarm());
        }
        let duration = self.started.elapsed();
        self.app.metrics.count_request(self.route, self.method, status, duration);
        self.app.metrics.in_flight.decrement(1.0);
        self.app.lifecycle.leave();
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(
            id = %self.id, method = self.method, path = self.path, status, ms, code = self.error_code, "request"
        );
    }
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "other",
    }
}

/// A response body that knows whether it was sent to its end.
struct Recorded {
    body: Body,
    record: Record,
}

impl HttpBody for Recorded {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.record.complete = true;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // An empty body is never polled.
        self.record.complete |= self.body.is_end_stream();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ROUTES;

    fn params(pattern: &'static str, path: &str, takes_rest: bool) -> Option<Vec<String>> {
        match_path(pattern, path, takes_rest).map(|found| found.into_iter().map(|(_, value)| value).collect())
    }

    #[test]
    fn paths_match_by_segments() {
        let one = |value: &str| Some(vec![value.to_owned()]);
        assert_eq!(params("/health", "/health", false), Some(Vec::new()));
        assert_eq!(params("/health", "/health/", false), None);
        assert_eq!(params("/health", "/Health", false), None);
        assert_eq!(params("/health", "//health", false), None);
        assert_eq!(params("/v1/models", "/v1/models/x", false), None);
        assert_eq!(params("/v1/models/{id}", "/v1/models/", false), None);
        assert_eq!(params("/v1/models/{id}", "/v1/models/x", false), one("x"));
        assert_eq!(params("/v1/models/{id}", "/v1/models/a%2Fb%20c", false), one("a/b c"));
        assert_eq!(params("/v1/models/{id}", "/v1/models/a/b", false), None);
        assert_eq!(params("/v1/models/{id}", "/v1/models/a/b", true), one("a/b"));
        assert_eq!(params("/v1/x/{id}/cancel", "/v1/x/7/cancel", false), one("7"));
        assert_eq!(params("/v1/x/{id}/cancel", "/v1/x/7", false), None);
        for broken in ["/v1/models/%", "/v1/models/%2", "/v1/models/%zz", "/v1/models/%ff"] {
            assert_eq!(params("/v1/models/{id}", broken, false), None, "{broken}");
        }
    }

    #[test]
    fn a_path_has_its_methods() {
        let matched = find_path(ROUTES, "/health");
        assert_eq!(matched.allow(), "GET, HEAD, OPTIONS");
        assert!(matched.find(&Method::HEAD).is_some() && matched.find(&Method::POST).is_none());
        assert!(matched.is_public());
        assert!(!find_path(ROUTES, "/metrics").is_public() && !find_path(ROUTES, "/nothing").is_public());
    }
}
