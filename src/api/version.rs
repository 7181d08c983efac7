//! `GET /version`.

use crate::app::App;
use crate::body::{self, Response};
use crate::error::ApiError;
use hyper::StatusCode;
use serde_json::json;

/// `{"version": "0.1.0"}`, as vLLM answers it.
///
/// # Errors
/// None.
pub fn version(_app: &App) -> Result<Response, ApiError> {
    Ok(body::json(StatusCode::OK, &json!({ "version": env!("CARGO_PKG_VERSION") })))
}
