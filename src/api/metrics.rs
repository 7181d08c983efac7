//! `GET /metrics`.

use crate::app::App;
use crate::body::{self, Response};
use crate::error::ApiError;
use hyper::StatusCode;

/// The metrics in Prometheus' text format.
///
/// # Errors
/// None.
pub fn metrics(app: &App) -> Result<Response, ApiError> {
    Ok(body::with_type(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", app.metrics.render()))
}
