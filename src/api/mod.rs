//! The endpoints. [`ROUTES`] is the one table they stand in: routing, keys, metrics labels, `Allow` and the README's list all
//! come from it.

mod answer;
pub mod chat;
pub mod completions;
mod conversation;
pub mod dialogue;
mod generation;
pub mod health;
mod logprobs;
pub mod metrics;
pub mod models;
pub mod parameters;
mod plan;
pub mod sessions;
pub mod tokenize;
pub mod types;
pub mod version;

use crate::app::App;
use crate::auth::Tenant;
use crate::body::Response;
use crate::disconnect::Disconnect;
use crate::error::ApiError;
use crate::trace::RequestId;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::{HeaderMap, Method};
use std::sync::Arc;
use std::time::Instant;

/// One request, read to its end and let in.
#[derive(Debug)]
pub struct Request {
    /// GET for a HEAD request too.
    pub method: Method,
    /// The path as sent, not decoded.
    pub path: String,
    /// What follows the `?`, not decoded.
    pub query: Option<String>,
    /// All headers.
    pub headers: HeaderMap,
    /// The values of the route's `{name}`s in order, decoded.
    pub params: Vec<(&'static str, String)>,
    /// The whole body; its size is within the limit.
    pub body: Bytes,
    /// Names the request in the log; also sent back.
    pub id: RequestId,
    /// Whose request it is.
    pub tenant: Tenant,
    /// Turns when the client leaves before the end of the response.
    pub disconnected: Disconnect,
    /// When the request's head had been read.
    pub received_at: Instant,
}

impl Request {
    /// The value of the route's `{name}`.
    pub fn param(&self, name: &str) -> &str {
        self.params.iter().find(|(param, _)| *param == name).map_or("", |(_, value)| value)
    }
}

/// What a handler is: it gets the app and the request and answers, or says what was wrong.
///
/// Its future is dropped when the client leaves. Long work that is not awaited in it must watch `request.disconnected`.
pub type Handler = fn(Arc<App>, Request) -> BoxFuture<'static, Result<Response, ApiError>>;

/// Who may call a route, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everybody, always: health checks.
    Public,
    /// With a key, always, also while loading and draining.
    Info,
    /// With a key, only while the server is ready: it makes the model work.
    Inference,
}

/// One row of [`ROUTES`].
pub struct Route {
    /// `GET` or `POST` …; GET routes answer HEAD too.
    pub method: Method,
    /// The path. `{name}` takes one segment; as the last one it takes the rest, slashes included.
    pub path: &'static str,
    /// Who may call it.
    pub scope: Scope,
    /// Answers it.
    pub handler: Handler,
    /// One line for the README.
    pub summary: &'static str,
}

/// Every endpoint.
pub const ROUTES: &[Route] = &[
    Route {
        method: Method::POST,
        path: "/v1/chat/completions",
        scope: Scope::Inference,
        handler: |app, request| Box::pin(chat::create(app, request)),
        summary: "answers a conversation, whole or streamed",
    },
    Route {
        method: Method::POST,
        path: "/v1/completions",
        scope: Scope::Inference,
        handler: |app, request| Box::pin(completions::create(app, request)),
        summary: "continues texts or token ids, whole or streamed",
    },
    Route {
        method: Method::POST,
        path: "/chat",
        scope: Scope::Inference,
        handler: |app, request| Box::pin(dialogue::create(app, request)),
        summary: "answers one message of a conversation that the server remembers, whole or streamed",
    },
    Route {
        method: Method::GET,
        path: "/sessions",
        scope: Scope::Info,
        handler: |app, request| Box::pin(sessions::list(app, request)),
        summary: "the caller's sessions",
    },
    Route {
        method: Method::GET,
        path: "/sessions/{id}",
        scope: Scope::Info,
        handler: |app, request| Box::pin(sessions::get(app, request)),
        summary: "one session: its messages, when it expires",
    },
    Route {
        method: Method::DELETE,
        path: "/sessions/{id}",
        scope: Scope::Info,
        handler: |app, request| Box::pin(sessions::delete(app, request)),
        summary: "forgets a session",
    },
    Route {
        method: Method::POST,
        path: "/tokenize",
        scope: Scope::Inference,
        handler: |app, request| Box::pin(tokenize::tokenize(app, request)),
        summary: "a text or a conversation to token ids",
    },
    Route {
        method: Method::POST,
        path: "/v1/tokenize",
        scope: Scope::Inference,
        handler: |app, request| Box::pin(tokenize::tokenize(app, request)),
        summary: "the same as /tokenize",
    },
    Route {
        method: Method::POST,
        path: "/detokenize",
        scope: Scope::Inference,
        handler: |app, request| Box::pin(tokenize::detokenize(app, request)),
        summary: "token ids to a text",
    },
    Route {
        method: Method::POST,
        path: "/v1/detokenize",
        scope: Scope::Inference,
        handler: |app, request| Box::pin(tokenize::detokenize(app, request)),
        summary: "the same as /detokenize",
    },
    Route {
        method: Method::GET,
        path: "/v1/models",
        scope: Scope::Info,
        handler: |app, _| answer(models::list(&app)),
        summary: "the models",
    },
    Route {
        method: Method::GET,
        path: "/v1/models/{id}",
        scope: Scope::Info,
        handler: |app, request| answer(models::get(&app, &request)),
        summary: "one model: its context length, size, what it can do",
    },
    Route {
        method: Method::GET,
        path: "/health",
        scope: Scope::Public,
        handler: |app, _| answer(health::health(&app)),
        summary: "200 when the model answers, 503 while loading, draining or broken",
    },
    Route {
        method: Method::GET,
        path: "/livez",
        scope: Scope::Public,
        handler: |app, _| answer(health::livez(&app)),
        summary: "200 while the process is worth keeping",
    },
    Route {
        method: Method::GET,
        path: "/readyz",
        scope: Scope::Public,
        handler: |app, _| answer(health::readyz(&app)),
        summary: "200 while new requests are welcome",
    },
    Route {
        method: Method::GET,
        path: "/metrics",
        scope: Scope::Info,
        handler: |app, _| answer(metrics::metrics(&app)),
        summary: "Prometheus metrics",
    },
    Route {
        method: Method::GET,
        path: "/version",
        scope: Scope::Info,
        handler: |app, _| answer(version::version(&app)),
        summary: "the server's version",
    },
];

/// For handlers that wait for nothing.
fn answer(result: Result<Response, ApiError>) -> BoxFuture<'static, Result<Response, ApiError>> {
    Box::pin(std::future::ready(result))
}
