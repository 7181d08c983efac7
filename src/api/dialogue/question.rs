//! What a client may send to `/chat`.
//!
//! `query`, `history`, `session_id` and `store` are read here; the other fields are those of `/v1/chat/completions` that make
//! sense for one reply, read by the same table. A field that is not listed is refused by its name.

use serde_json::{Map, Value};

use crate::{
    api::parameters::{Endpoint, Parameters, field::Field, read_messages},
    app::App,
    body,
    config::SessionsConfig,
    error::ApiError,
    sessions::Message,
};

/// Fields of `/v1/chat/completions` that `/chat` takes too.
const SHARED_FIELDS: &[&str] = &[
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "repeat_penalty",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "seed",
    "max_tokens",
    "max_completion_tokens",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "include_stop_str_in_output",
    "stream",
    "stream_interval",
    "sse_ping_interval",
    "chat_template_kwargs",
    "reasoning_effort",
    "cache_salt",
    "cache_prompt",
    "user",
];

/// A request of `/chat`, checked as far as it can be alone.
pub(super) struct Question {
    pub(super) query: String,
    /// The conversation so far as the client tells it.
    pub(super) history: Option<Vec<Message>>,
    pub(super) session_id: Option<String>,
    /// Whether the turn goes into a session.
    pub(super) store: bool,
    /// Their input is empty yet.
    pub(super) params: Parameters,
}

impl Question {
    pub(super) fn read(app: &App, bytes: &[u8]) -> Result<Self, ApiError> {
        let Value::Object(fields) = body::parse_json(bytes)? else {
            return Err(ApiError::invalid_json("the request body must be a JSON object"));
        };
        let settings = &app.config.sessions;
        let (mut query, mut history, mut session_id, mut store) = (None, None, None, true);
        let mut shared = Map::new();
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            let field = Field::new(name, value);
            match name.as_str() {
                "query" => query = Some(read_query(&field, settings)?),
                "history" => history = Some(read_history(&field, settings)?),
                "session_id" => session_id = Some(field.string()?.to_owned()),
                "store" => store = field.flag()?,
                name if SHARED_FIELDS.contains(&name) => {
                    shared.insert(name.to_owned(), value.clone());
                }
                _ => return Err(field.unknown()),
            }
        }
        let query = query.ok_or_else(|| ApiError::missing("query"))?;
        if !shared.contains_key("model") {
            let only = app.models.only().ok_or_else(|| ApiError::missing("model"))?;
            shared.insert("model".to_owned(), only.name().into());
        }
        // The conversation comes later, when the session is known.
        shared.insert("messages".to_owned(), serde_json::json!([{"role": "user", "content": ""}]));
        let params = Parameters::from_fields(Endpoint::Chat, &shared)?;
        Ok(Self { query, history, session_id, store, params })
    }
}

fn read_query(field: &Field<'_>, settings: &SessionsConfig) -> Result<String, ApiError> {
    let query = field.string()?;
    if query.trim().is_empty() {
        return Err(field.invalid("must not be empty"));
    }
    check_len(field, query, settings)?;
    Ok(query.to_owned())
}

fn read_history(field: &Field<'_>, settings: &SessionsConfig) -> Result<Vec<Message>, ApiError> {
    // A conversation that has not begun.
    if field.value.as_array().is_some_and(Vec::is_empty) {
        return Ok(Vec::new());
    }
    let max_messages = (settings.max_turns as usize).saturating_mul(2);
    let items = field.items_up_to(max_messages)?;
    let messages = read_messages(field)?;
    items.zip(messages).map(|(item, message)| read_message(&item, &message, settings)).collect()
}

/// A message of the forms that a session can hold.
fn read_message(item: &Field<'_>, message: &Value, settings: &SessionsConfig) -> Result<Message, ApiError> {
    let text = |key: &str| message[key].as_str().unwrap_or_default();
    let role = text("role");
    if !["system", "user", "assistant"].contains(&role) {
        return Err(item.unsupported(format_args!("has the role '{role}'; use system, user or assistant")));
    }
    let further =
        message.as_object().and_then(|message| message.keys().find(|key| !["role", "content"].contains(&key.as_str())));
    if let Some(key) = further {
        return Err(item.unsupported(format_args!("has '{key}'; only role and content are supported here")));
    }
    check_len(item, text("content"), settings)?;
    Ok(Message::new(role, text("content")))
}

fn check_len(field: &Field<'_>, text: &str, settings: &SessionsConfig) -> Result<(), ApiError> {
    let max = settings.max_message.get();
    if text.len() as u64 <= max {
        return Ok(());
    }
    Err(field.invalid(format_args!("must have at most {max} bytes (setting sessions.max_message), not {}", text.len())))
}
