//! `GET /v1/models` and `/v1/models/{id}`: OpenAI's shape and what a client wants to know besides.

use crate::api::Request;
use crate::app::App;
use crate::body::{self, Response};
use crate::error::ApiError;
use crate::serving::handle::ModelHandle;
use hyper::StatusCode;
use serde_json::{Value, json};

/// All models.
///
/// # Errors
/// None.
pub fn list(app: &App) -> Result<Response, ApiError> {
    let models: Vec<Value> = app.models.list().iter().map(|model| describe(model)).collect();
    Ok(body::json(StatusCode::OK, &json!({ "object": "list", "data": models })))
}

/// One model.
///
/// # Errors
/// 404 `model_not_found`.
pub fn get(app: &App, request: &Request) -> Result<Response, ApiError> {
    let model = app.models.get(request.param("id"))?;
    Ok(body::json(StatusCode::OK, &describe(&model)))
}

fn describe(model: &ModelHandle) -> Value {
    let info = model.info();
    json!({
        "id": model.name(),
        "object": "model",
        "created": model.created(),
        "owned_by": "tokenmill",
        // As vLLM names it.
        "max_model_len": model.max_model_len(),
        // As llama-server names the rest.
        "meta": {
            "family": info.family,
            "architecture": info.architecture,
            "n_params": info.num_params,
            "n_vocab": model.vocab_size(),
            "n_ctx_train": info.max_position_embeddings,
            "size": info.weights_bytes,
            "layout": info.layout,
        },
        "capabilities": { "completion": true, "chat": model.template().is_some() },
    })
}
