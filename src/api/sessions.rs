//! `GET /sessions`, `GET /sessions/{id}`, `DELETE /sessions/{id}`.

use std::sync::Arc;

use hyper::StatusCode;

use super::{
    Request,
    dialogue::{lock_session, session_error},
    types::dialogue::{SessionDeleted, SessionLine, SessionList, SessionView},
};
use crate::{
    app::App,
    body::{self, Response},
    error::ApiError,
    sessions::{Owner, Purpose, SessionId, SessionKey},
};

/// Sessions in a list at most.
const MAX_LISTED: usize = 1000;

/// The caller's sessions.
///
/// # Errors
/// 503 when the store is away.
pub async fn list(app: Arc<App>, request: Request) -> Result<Response, ApiError> {
    let owner = Owner::from(request.tenant);
    let mut entries = app.sessions.store.list(&owner, MAX_LISTED + 1).await.map_err(session_error)?;
    let has_more = entries.len() > MAX_LISTED;
    entries.truncate(MAX_LISTED);
    let lines = entries
        .iter()
        .map(|entry| SessionLine { id: entry.id.as_str().to_owned(), expires_in: entry.expires_in.as_secs() });
    Ok(body::json(StatusCode::OK, &SessionList { object: "list", data: lines.collect(), has_more }))
}

/// One session. Looking at it does not make it live longer.
///
/// # Errors
/// 404 for one that is not there or not the caller's, 503 when the store is away.
pub async fn get(app: Arc<App>, request: Request) -> Result<Response, ApiError> {
    let key = key_of(&request)?;
    let session = app.sessions.store.load(&key, Purpose::Show).await.map_err(session_error)?;
    let view = SessionView {
        id: key.id.as_str().to_owned(),
        object: "session",
        expires_in: session.expires_in.as_secs(),
        messages: session.messages,
    };
    Ok(body::json(StatusCode::OK, &view))
}

/// Forgets a session, after the turns that run or wait.
///
/// # Errors
/// As for [`get`].
pub async fn delete(app: Arc<App>, request: Request) -> Result<Response, ApiError> {
    let key = key_of(&request)?;
    // Before waiting: who may not delete it must not learn that it is busy.
    app.sessions.store.load(&key, Purpose::Show).await.map_err(session_error)?;
    let _turn = lock_session(&app, &key.id).await?;
    app.sessions.store.delete(&key).await.map_err(session_error)?;
    let deleted = SessionDeleted { id: key.id.as_str().to_owned(), object: "session.deleted", deleted: true };
    Ok(body::json(StatusCode::OK, &deleted))
}

/// What cannot be an id names no session.
fn key_of(request: &Request) -> Result<SessionKey, ApiError> {
    let id = SessionId::parse(request.param("id")).ok_or_else(ApiError::session_not_found)?;
    Ok(SessionKey { id, owner: Owner::from(request.tenant) })
}
