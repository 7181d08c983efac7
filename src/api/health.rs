//! `GET /health`, `/livez`, `/readyz`: health is not readiness.
//!
//! `/livez` is bad only when the process should be replaced (the engine is dead or hangs); `/readyz` says whether new requests are
//! welcome, so it alone looks at the load; `/health` is what existing tools ask first and means "the model answers".

use crate::app::{App, Stage};
use crate::body::{self, Response};
use crate::error::{ApiError, ErrorKind};
use hyper::StatusCode;
use serde_json::json;
use std::time::Duration;

/// A model that has turned every request away for this long is not ready.
const CLOSED_AFTER: Duration = Duration::from_secs(5);

/// 200 when the model answers.
///
/// # Errors
/// 503 while loading, draining, or when the engine is dead.
pub fn health(app: &App) -> Result<Response, ApiError> {
    check_ready(app)?;
    Ok(body::json(StatusCode::OK, &json!({ "status": "ok" })))
}

/// 200 while new requests are welcome.
///
/// # Errors
/// 503 while loading, draining, when the engine is dead, or when every model's queue has been full for five seconds.
pub fn readyz(app: &App) -> Result<Response, ApiError> {
    check_ready(app)?;
    let models = app.models.list();
    if !models.is_empty() && models.iter().all(|model| model.closed_for() > CLOSED_AFTER) {
        return Err(ApiError::overloaded(1));
    }
    Ok(body::json(StatusCode::OK, &json!({ "status": "ready" })))
}

/// 200 while the process is worth keeping.
///
/// # Errors
/// 503 when the engine is dead.
pub fn livez(app: &App) -> Result<Response, ApiError> {
    check_alive(app)?;
    Ok(body::json(StatusCode::OK, &json!({ "status": "alive" })))
}

/// Whether requests for the model can be taken now; the router asks it for every inference route.
///
/// # Errors
/// 503 with the reason.
pub fn check_ready(app: &App) -> Result<(), ApiError> {
    check_alive(app)?;
    match app.lifecycle.stage() {
        Stage::Loading => Err(ApiError::loading()),
        Stage::Ready => Ok(()),
        Stage::Draining => Err(ApiError::shutting_down()),
    }
}

fn check_alive(app: &App) -> Result<(), ApiError> {
    if app.lifecycle.is_engine_dead() {
        return Err(ApiError::new(ErrorKind::Unavailable, "the engine has stopped; the server must be restarted"));
    }
    let has_work = app.models.list().iter().any(|model| model.num_seqs() > 0);
    if app.lifecycle.is_engine_stuck(has_work) {
        return Err(ApiError::new(ErrorKind::Unavailable, "the engine hangs; the server must be restarted"));
    }
    Ok(())
}
