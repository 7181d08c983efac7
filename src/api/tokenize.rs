//! `POST /tokenize` and `POST /detokenize`, in the shapes of vLLM (`prompt`, `messages`) and of llama.cpp (`content`).

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Map, Value, json};
use tokenmill_models::runner::TokenId;

use super::{
    Request,
    parameters::{TemplateOptions, field::Field, read_messages},
    plan,
    types::tokenize::{Detokenized, Tokenized},
};
use crate::{
    app::App,
    body::{self, Response},
    error::ApiError,
    prompt::{Special, Tokenizer},
    serving::handle::ModelHandle,
};

/// Most ids in one request to `/detokenize`.
const MAX_IDS: usize = 1 << 20;

/// Text or messages to ids.
///
/// # Errors
/// 400 that names the field, 404 for an unknown model.
pub async fn tokenize(app: Arc<App>, request: Request) -> Result<Response, ApiError> {
    let TokenizeRequest { model, source, add_special, parse_special, with_pieces, token_strs } =
        TokenizeRequest::from_body(&request.body)?;
    let handle = find_model(&app, model.as_deref())?;
    let input = match source {
        Source::Text(param, text) => {
            plan::check_text_len(text.len(), param, &handle)?;
            Err(text)
        }
        Source::Messages(messages, options) => Ok(plan::template_input(&options, &handle, messages)?),
    };
    let special = if parse_special { Special::Parse } else { Special::Text };
    let answer = plan::run_text_task(&handle, move |handle| {
        let ids = match input {
            Ok(input) => plan::encode_messages(handle, &input)?.ids,
            Err(text) => handle.tokenizer().encode(&text, special, add_special).map_err(ApiError::server)?,
        };
        Ok(tokenized(handle, &ids, with_pieces, token_strs))
    });
    Ok(body::json(StatusCode::OK, &answer.await?))
}

/// Ids to text; special tokens show.
///
/// # Errors
/// 400 that names the field, 404 for an unknown model.
pub async fn detokenize(app: Arc<App>, request: Request) -> Result<Response, ApiError> {
    let body = object(&request.body)?;
    let (mut model, mut ids) = (None, None);
    for (name, value) in present(&body) {
        let field = Field::new(name, value);
        match name {
            "model" => model = Some(field.string_of_len(1..=256)?),
            "tokens" => {
                let read: Result<Vec<TokenId>, ApiError> =
                    field.items_up_to(MAX_IDS)?.map(|id| id.count(0..=u32::MAX)).collect();
                ids = Some(read?);
            }
            _ => return Err(field.unknown()),
        }
    }
    let ids = ids.ok_or_else(|| ApiError::missing("tokens"))?;
    let handle = find_model(&app, model)?;
    if let Some((index, id)) = ids.iter().enumerate().find(|(_, id)| **id >= handle.vocab_size()) {
        let param = format!("tokens[{index}]");
        let message = format!("'{param}' is {id}, but this model's ids are below {}", handle.vocab_size());
        return Err(ApiError::invalid(param, message));
    }
    let text = plan::run_text_task(&handle, move |handle| Ok(handle.tokenizer().decode(&ids, false))).await?;
    Ok(body::json(StatusCode::OK, &Detokenized { prompt: text.clone(), content: text }))
}

/// What to tokenize.
enum Source {
    /// The field's name, and the text.
    Text(&'static str, String),
    Messages(Vec<Value>, TemplateOptions),
}

struct TokenizeRequest {
    model: Option<String>,
    source: Source,
    add_special: bool,
    parse_special: bool,
    with_pieces: bool,
    token_strs: bool,
}

impl TokenizeRequest {
    fn from_body(bytes: &[u8]) -> Result<Self, ApiError> {
        let body = object(bytes)?;
        let (mut model, mut prompt, mut content, mut messages) = (None, None, None, None);
        let (mut add_special, mut parse_special, mut with_pieces, mut token_strs) = (None, true, false, false);
        let mut options = TemplateOptions::default();
        for (name, value) in present(&body) {
            let field = Field::new(name, value);
            match name {
                "model" => model = Some(field.string_of_len(1..=256)?.to_owned()),
                "prompt" => prompt = Some(field.string()?.to_owned()),
                "content" => content = Some(field.string()?.to_owned()),
                "messages" => messages = Some(read_messages(&field)?),
                "add_special_tokens" | "add_special" => add_special = Some(field.flag()?),
                "parse_special" => parse_special = field.flag()?,
                "with_pieces" => with_pieces = field.flag()?,
                "return_token_strs" => token_strs = field.flag()?,
                "add_generation_prompt" => options.add_generation_prompt = Some(field.flag()?),
                "continue_final_message" => options.continue_final_message = field.flag()?,
                "chat_template_kwargs" => options.kwargs = field.map()?.clone(),
                "tools" if field.items()?.len() == 0 => {}
                "tools" | "chat_template" => return Err(field.unsupported("is not supported by this server")),
                _ => return Err(field.unknown()),
            }
        }
        // llama.cpp's form adds nothing by default, vLLM's what the tokenizer adds.
        let (source, adds_by_default) = match (prompt, content, messages) {
            (Some(text), None, None) => (Source::Text("prompt", text), true),
            (None, Some(text), None) => (Source::Text("content", text), false),
            (None, None, Some(messages)) => (Source::Messages(messages, options), false),
            (None, None, None) => return Err(ApiError::missing("prompt")),
            _ => {
                return Err(ApiError::invalid("prompt", "send one of 'prompt', 'content' and 'messages', not several"));
            }
        };
        let add_special = add_special.unwrap_or(adds_by_default);
        if add_special && matches!(source, Source::Messages(..)) {
            return Err(ApiError::unsupported_value(
                "add_special_tokens",
                "'add_special_tokens' is not supported with 'messages': the chat template adds what is needed",
            ));
        }
        Ok(Self { model, source, add_special, parse_special, with_pieces, token_strs })
    }
}

fn object(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    match body::parse_json(bytes)? {
        Value::Object(fields) => Ok(fields),
        _ => Err(ApiError::invalid_json("the request body must be a JSON object")),
    }
}

/// Null is absent.
fn present(fields: &Map<String, Value>) -> impl Iterator<Item = (&str, &Value)> {
    fields.iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.as_str(), value))
}

/// The model of that name; without a name, the only one.
fn find_model(app: &App, name: Option<&str>) -> Result<Arc<ModelHandle>, ApiError> {
    match name {
        Some(name) => app.models.get(name),
        None => app.models.only().ok_or_else(|| ApiError::missing("model")),
    }
}

fn tokenized(handle: &ModelHandle, ids: &[TokenId], with_pieces: bool, token_strs: bool) -> Tokenized {
    let tokenizer = handle.tokenizer();
    let tokens = ids.iter().map(|&id| if with_pieces { piece(tokenizer, id) } else { id.into() });
    Tokenized {
        count: ids.len(),
        max_model_len: handle.max_model_len(),
        tokens: Value::Array(tokens.collect()),
        token_strs: token_strs.then(|| ids.iter().map(|&id| tokenizer.token_text(id).unwrap_or_default()).collect()),
    }
}

/// llama.cpp's form: the text of a token, or its bytes where they are no text.
fn piece(tokenizer: &Tokenizer, id: TokenId) -> Value {
    let bytes = tokenizer.token_bytes(id);
    match std::str::from_utf8(&bytes) {
        Ok(text) => json!({"id": id, "piece": text}),
        Err(_) => json!({"id": id, "piece": bytes}),
    }
}
