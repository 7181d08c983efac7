//! What can go wrong with a request, and how the client is told.
//!
//! One table, [`ERRORS`], decides status, type and code of every kind; handlers pick a kind through a constructor and never
//! write a status themselves. The shape is OpenAI's: `{"error": {"message", "type", "param", "code"}}`, `code` a string or
//! null. Messages of 5xx errors never carry a cause: it goes to the log, under the request's id.

use crate::body::{self, Response};
use hyper::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::fmt;

/// The kinds of error, one row of [`ERRORS`] each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The body is not JSON.
    InvalidJson,
    /// A field has the wrong type.
    InvalidType,
    /// A field has a value that is out of range or makes no sense.
    InvalidValue,
    /// A required field is absent.
    MissingParameter,
    /// A field that exists nowhere.
    UnknownParameter,
    /// A field or value that OpenAI knows and this server does not support.
    UnsupportedParameter,
    /// Prompt and output together do not fit the model's context.
    ContextLengthExceeded,
    /// No key, or one that is not known.
    InvalidApiKey,
    /// The key may not do this.
    Permission,
    /// No such route.
    UnknownUrl,
    /// No such model.
    ModelNotFound,
    /// No such session, or another tenant's.
    SessionNotFound,
    /// The route exists, the method does not.
    MethodNotAllowed,
    /// The body did not arrive in time.
    RequestTimeout,
    /// The body is larger than the setting allows.
    RequestTooLarge,
    /// This client sends too much.
    RateLimited,
    /// The client left; for the log and the metrics only.
    ClientClosed,
    /// A fault of ours.
    Internal,
    /// The model cannot do what is asked.
    NotSupported,
    /// The queue is full.
    Overloaded,
    /// The model is still loading.
    Loading,
    /// The server is shutting down.
    ShuttingDown,
    /// The engine has died.
    Unavailable,
    /// Sessions cannot be read or stored.
    SessionStoreUnavailable,
    /// The request waited longer than its deadline.
    DeadlineExceeded,
}

/// One row of the table of errors.
#[derive(Clone, Copy, Debug)]
pub struct ErrorRow {
    /// Which kind.
    pub kind: ErrorKind,
    /// HTTP status.
    pub status: u16,
    /// OpenAI's `type`.
    pub error_type: &'static str,
    /// OpenAI's `code`; also the metrics' label.
    pub code: &'static str,
    /// Sent as `Retry-After` unless the error names another, seconds.
    pub retry_after_s: Option<u32>,
}

const fn row(kind: ErrorKind, status: u16, error_type: &'static str, code: &'static str) -> ErrorRow {
    ErrorRow { kind, status, error_type, code, retry_after_s: None }
}

const fn retry(mut row: ErrorRow, seconds: u32) -> ErrorRow {
    row.retry_after_s = Some(seconds);
    row
}

const INVALID: &str = "invalid_request_error";
const UNAVAILABLE: &str = "service_unavailable_error";

/// Every kind of error: status, type, code.
pub const ERRORS: &[ErrorRow] = &[
    row(ErrorKind::InvalidJson, 400, INVALID, "invalid_json"),
    row(ErrorKind::InvalidType, 400, INVALID, "invalid_type"),
    row(ErrorKind::InvalidValue, 400, INVALID, "invalid_value"),
    row(ErrorKind::MissingParameter, 400, INVALID, "missing_required_parameter"),
    row(ErrorKind::UnknownParameter, 400, INVALID, "unknown_parameter"),
    row(ErrorKind::UnsupportedParameter, 400, INVALID, "unsupported_parameter"),
    row(ErrorKind::ContextLengthExceeded, 400, INVALID, "context_length_exceeded"),
    row(ErrorKind::InvalidApiKey, 401, INVALID, "invalid_api_key"),
    row(ErrorKind::Permission, 403, "permission_error", "permission_denied"),
    row(ErrorKind::UnknownUrl, 404, INVALID, "unknown_url"),
    row(ErrorKind::ModelNotFound, 404, INVALID, "model_not_found"),
    row(ErrorKind::SessionNotFound, 404, INVALID, "session_not_found"),
    row(ErrorKind::MethodNotAllowed, 405, INVALID, "method_not_allowed"),
    row(ErrorKind::RequestTimeout, 408, INVALID, "request_timeout"),
    row(ErrorKind::RequestTooLarge, 413, INVALID, "request_too_large"),
    retry(row(ErrorKind::RateLimited, 429, "rate_limit_error", "rate_limit_exceeded"), 1),
    row(ErrorKind::ClientClosed, 499, INVALID, "client_closed_request"),
    row(ErrorKind::Internal, 500, "server_error", "internal_error"),
    row(ErrorKind::NotSupported, 501, "not_supported_error", "not_supported"),
    retry(row(ErrorKind::Overloaded, 503, UNAVAILABLE, "server_is_overloaded"), 1),
    retry(row(ErrorKind::Loading, 503, UNAVAILABLE, "model_loading"), 2),
    retry(row(ErrorKind::ShuttingDown, 503, UNAVAILABLE, "server_shutting_down"), 5),
    retry(row(ErrorKind::Unavailable, 503, UNAVAILABLE, "engine_unavailable"), 10),
    retry(row(ErrorKind::SessionStoreUnavailable, 503, UNAVAILABLE, "session_store_unavailable"), 1),
    retry(row(ErrorKind::DeadlineExceeded, 504, UNAVAILABLE, "deadline_exceeded"), 1),
];

impl ErrorKind {
    /// The kind's row in [`ERRORS`].
    pub fn row(self) -> &'static ErrorRow {
        ERRORS.iter().find(|row| row.kind == self).expect("every kind has a row, a test counts them")
    }
}

/// An error on its way to the client. Small: the details are boxed.
#[derive(Debug)]
pub struct ApiError(Box<Details>);

#[derive(Debug)]
struct Details {
    kind: ErrorKind,
    message: Cow<'static, str>,
    param: Option<String>,
    retry_after_s: Option<u32>,
    /// Further members of the error object, after the four of OpenAI.
    extra: Map<String, Value>,
    /// For the log only.
    cause: Option<String>,
    /// Sent as `Allow` with a 405.
    allow: Option<String>,
}

impl ApiError {
    /// An error of `kind`; prefer the named constructors.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Details {
            kind,
            message: message.into(),
            param: None,
            retry_after_s: kind.row().retry_after_s,
            extra: Map::new(),
            cause: None,
            allow: None,
        }))
    }

    /// The body is not JSON; `message` says where it goes wrong.
    pub fn invalid_json(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidJson, message)
    }

    /// `param` (a path such as `messages[0].content`) has a bad value; `message` names the value and what is allowed.
    pub fn invalid(param: impl Into<String>, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidValue, message).with_param(param)
    }

    /// `param` has the wrong type; `expected` reads like "a number", `got` like "a string".
    pub fn invalid_type(param: impl Into<String>, expected: &str, got: &str) -> Self {
        let param = param.into();
        Self::new(ErrorKind::InvalidType, format!("invalid type for '{param}': expected {expected}, got {got}"))
            .with_param(param)
    }

    /// The required `param` is absent.
    pub fn missing(param: impl Into<String>) -> Self {
        let param = param.into();
        Self::new(ErrorKind::MissingParameter, format!("missing required parameter: '{param}'")).with_param(param)
    }

    /// `param` is not known at all.
    pub fn unknown(param: impl Into<String>) -> Self {
        let param = param.into();
        Self::new(ErrorKind::UnknownParameter, format!("unknown parameter: '{param}'")).with_param(param)
    }

    /// `param` exists in OpenAI's API but is not supported here (yet): refused, never ignored.
    pub fn unsupported(param: impl Into<String>) -> Self {
        let param = param.into();
        Self::new(ErrorKind::UnsupportedParameter, format!("'{param}' is not supported by this server"))
            .with_param(param)
    }

    /// Like [`ApiError::unsupported`] where it is the value that is not supported, or where there is more to say.
    pub fn unsupported_value(param: impl Into<String>, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::UnsupportedParameter, message).with_param(param)
    }

    /// Prompt and output together are longer than `max_model_len` tokens.
    pub fn context_length(
        param: impl Into<String>,
        num_prompt_tokens: u64,
        max_tokens: Option<u64>,
        max_model_len: u64,
    ) -> Self {
        let asked = match max_tokens {
            Some(max) => format!(
                "you asked for {} tokens ({num_prompt_tokens} in the prompt, {max} for the completion)",
                num_prompt_tokens.saturating_add(max)
            ),
            None => format!("the prompt has {num_prompt_tokens} tokens, which leaves no room for a completion"),
        };
        Self::new(
            ErrorKind::ContextLengthExceeded,
            format!(
                "this model's maximum context length is {max_model_len} tokens, but {asked}; shorten the prompt or the completion"
            ),
        )
        .with_param(param)
        .with_extra("n_prompt_tokens", num_prompt_tokens)
        .with_extra("n_ctx", max_model_len)
    }

    /// No key or a wrong one.
    pub fn invalid_api_key(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidApiKey, message)
    }

    /// No model of that name is served.
    pub fn model_not_found(name: &str) -> Self {
        Self::new(
            ErrorKind::ModelNotFound,
            format!("the model '{}' does not exist; GET /v1/models lists those that do", shorten(name)),
        )
        .with_param("model")
    }

    /// No session of this tenant has that id.
    pub fn session_not_found() -> Self {
        Self::new(
            ErrorKind::SessionNotFound,
            "there is no such session: it has expired, was deleted, or never was; leave 'session_id' out to begin one",
        )
        .with_param("session_id")
    }

    /// Sessions cannot be read or stored; `cause` goes to the log.
    pub fn session_store_unavailable(cause: impl fmt::Display) -> Self {
        let mut error = Self::new(
            ErrorKind::SessionStoreUnavailable,
            "sessions cannot be stored at the moment; try again later, or send 'store': false",
        );
        error.0.cause = Some(cause.to_string());
        error
    }

    /// The method is not one of `allow` (comma-separated).
    pub fn method_not_allowed(method: &str, path: &str, allow: String) -> Self {
        let mut error = Self::new(
            ErrorKind::MethodNotAllowed,
            format!("{} is not allowed on {}; use {allow}", shorten(method), shorten(path)),
        );
        error.0.allow = Some(allow);
        error
    }

    /// This client sends too much; try again after `retry_after_s`.
    pub fn rate_limited(message: impl Into<Cow<'static, str>>, retry_after_s: u32) -> Self {
        Self::new(ErrorKind::RateLimited, message).with_retry_after(retry_after_s)
    }

    /// The queue is full; try again after `retry_after_s`.
    pub fn overloaded(retry_after_s: u32) -> Self {
        Self::new(ErrorKind::Overloaded, "the server is overloaded: its queue is full; try again later")
            .with_retry_after(retry_after_s)
    }

    /// The model is still loading.
    pub fn loading() -> Self {
        Self::new(ErrorKind::Loading, "the model is still loading; try again in a moment")
    }

    /// The server is shutting down and takes nothing new, or had to cut this request short.
    pub fn shutting_down() -> Self {
        Self::new(ErrorKind::ShuttingDown, "the server is shutting down; try again later")
    }

    /// The request waited longer than it may.
    pub fn deadline_exceeded() -> Self {
        Self::new(ErrorKind::DeadlineExceeded, "the request waited longer than its deadline and was dropped unexecuted")
    }

    /// The client has left: nobody will read this, the log and the metrics count it as 499.
    pub fn client_closed() -> Self {
        Self::new(ErrorKind::ClientClosed, "the client closed the connection")
    }

    /// A fault of ours. `cause` goes to the log, the client gets the request's id.
    pub fn server(cause: impl fmt::Display) -> Self {
        let mut error = Self::new(
            ErrorKind::Internal,
            "the server had an error while processing the request; its id is in x-request-id",
        );
        error.0.cause = Some(cause.to_string());
        error
    }

    /// Names the offending field.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.0.param = Some(param.into());
        self
    }

    /// Sets `Retry-After`.
    #[must_use]
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.0.retry_after_s = Some(seconds.max(1));
        self
    }

    /// Adds a member to the error object.
    #[must_use]
    pub fn with_extra(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.extra.insert(name.to_owned(), value.into());
        self
    }

    /// Which kind.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// HTTP status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.0.kind.row().status).expect("the table holds valid statuses")
    }

    /// The offending field.
    pub fn param(&self) -> Option<&str> {
        self.0.param.as_deref()
    }

    /// What the log should say beyond the message.
    pub fn cause(&self) -> Option<&str> {
        self.0.cause.as_deref()
    }

    /// `{"error": {…}}`, also the payload of an error inside a stream.
    pub fn to_json(&self) -> Value {
        let row = self.0.kind.row();
        let mut error = json!({
            "message": self.0.message,
            "type": row.error_type,
            "param": self.0.param,
            "code": row.code,
        });
        if let Value::Object(members) = &mut error {
            members.extend(self.0.extra.clone());
        }
        json!({ "error": error })
    }

    /// The whole response.
    pub fn into_response(self) -> Response {
        let mut response = body::json(self.status(), &self.to_json());
        self.add_headers(response.headers_mut());
        response
    }

    fn add_headers(&self, headers: &mut HeaderMap) {
        if let Some(seconds) = self.0.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
            headers.insert("retry-after-ms", HeaderValue::from(u64::from(seconds) * 1000));
            headers.insert("x-should-retry", HeaderValue::from_static("true"));
        } else if matches!(self.0.kind, ErrorKind::Internal) {
            // SDKs retry every 5xx twice on their own; a fault that one request triggers would only be triggered again.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if self.0.kind == ErrorKind::InvalidApiKey {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tokenmill\""));
        }
        if let Some(allow) = self.0.allow.as_deref().and_then(|allow| HeaderValue::from_str(allow).ok()) {
            headers.insert(hyper::header::ALLOW, allow);
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for ApiError {}

/// Text of the client's that is repeated in a message: control characters out, 128 characters at most.
fn shorten(text: &str) -> String {
    let mut short: String = text.chars().filter(|c| !c.is_control()).take(128).collect();
    if short.len() < text.len() && short.chars().count() == 128 {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_one_row_and_every_code_is_its_own() {
        for (idx, row) in ERRORS.iter().enumerate() {
            assert_eq!(row.kind as usize, idx, "the table is in the order of the enum");
            assert!(StatusCode::from_u16(row.status).is_ok());
            assert_eq!(ERRORS.iter().filter(|other| other.code == row.code).count(), 1, "{}", row.code);
        }
        assert_eq!(ERRORS.len(), ErrorKind::DeadlineExceeded as usize + 1);
    }

    #[test]
    fn the_object_has_the_four_members_and_no_cause() {
        let error = ApiError::invalid("temperature", "temperature must be between 0 and 2, not 3");
        assert_eq!(
            error.to_json(),
            json!({"error": {"message": "temperature must be between 0 and 2, not 3", "type": "invalid_request_error",
                             "param": "temperature", "code": "invalid_value"}})
        );
        let error = ApiError::server("/etc/secret could not be read");
        assert!(!error.to_json().to_string().contains("secret"));
        assert_eq!(error.cause(), Some("/etc/secret could not be read"));
        assert_eq!(error.to_json()["error"]["param"], Value::Null);
    }

    #[test]
    fn headers_follow_the_kind() {
        let response = ApiError::overloaded(0).into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(response.headers()["x-should-retry"], "true");
        let response = ApiError::invalid_api_key("no key").into_response();
        assert!(response.headers()["www-authenticate"].to_str().unwrap().starts_with("Bearer"));
        let response = ApiError::method_not_allowed("PUT", "/health", "GET, HEAD".to_owned()).into_response();
        assert_eq!(response.headers()["allow"], "GET, HEAD");
        assert_eq!(ApiError::server("x").into_response().headers()["x-should-retry"], "false");
    }

    #[test]
    fn context_length_tells_both_numbers() {
        let json = ApiError::context_length("messages", 900, Some(200), 1024).to_json();
        assert_eq!(json["error"]["n_prompt_tokens"], 900);
        assert_eq!(json["error"]["n_ctx"], 1024);
        assert!(json["error"]["message"].as_str().unwrap().contains("1100 tokens"));
    }

    #[test]
    fn what_the_client_sent_is_repeated_in_short() {
        let long = "x".repeat(10_000) + "\u{1b}[31m";
        let json = ApiError::model_not_found(&long).to_json().to_string();
        assert!(json.len() < 400 && !json.contains("\\u001b"));
    }
}
