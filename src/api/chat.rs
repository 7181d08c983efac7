//! `POST /v1/chat/completions`.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::Value;

use super::{
    Request,
    answer::{Shape, answer, obfuscation},
    generation::{Generation, Update},
    logprobs::{chat_logprobs, prompt_logprobs},
    parameters::Endpoint,
    types::{
        chat::{ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta, ChatMessage},
        usage::Usage,
    },
};
use crate::{
    app::App,
    body::{self, Response},
    error::ApiError,
    sse::SseSender,
    stream::choice::{Delta, Finish},
};

/// The only role that answers have.
const ROLE: &str = "assistant";
/// The only tier.
const SERVICE_TIER: &str = "default";

/// Answers a conversation.
///
/// # Errors
/// 400 that names the field, 404 for an unknown model, 503 when the queue is full; see [`ApiError`].
pub async fn create(app: Arc<App>, request: Request) -> Result<Response, ApiError> {
    answer::<Chat>(app, request).await
}

struct Chat;

impl Shape for Chat {
    const ENDPOINT: Endpoint = Endpoint::Chat;

    fn push_update(generation: &Generation, update: Update, sender: &mut SseSender) {
        let Update { choice: index, opens, delta } = update;
        if opens {
            let role = ChatDelta { role: Some(ROLE), content: Some(String::new()) };
            let mut opening = chunk(generation, Some(ChatChunkChoice { delta: role, ..chunk_choice(index) }));
            if generation.params.output.token_ids {
                opening.prompt_token_ids = Some(&generation.prompt_of(index).ids);
            }
            sender.push(&opening);
        }
        let Some(Delta { text, tokens, finish }) = delta else { return };
        let mut choice = chunk_choice(index);
        choice.logprobs = chat_logprobs(generation, &tokens).filter(|logprobs| !logprobs.content.is_empty());
        if generation.params.output.token_ids {
            choice.token_ids = Some(tokens.iter().map(|token| token.id).collect());
        }
        let Some(finish) = finish else {
            choice.delta.content = Some(text);
            return sender.push(&chunk(generation, Some(choice)));
        };
        // The last text travels before the chunk with the reason, whose delta is empty.
        if !text.is_empty() || choice.logprobs.is_some() {
            choice.delta.content = Some(text);
            sender.push(&chunk(generation, Some(std::mem::replace(&mut choice, chunk_choice(index)))));
        }
        choice.finish_reason = Some(finish.reason());
        choice.stop_reason = stop_reason(&finish);
        let mut last = chunk(generation, Some(choice));
        let usage_follows = generation.params.stream.as_ref().is_some_and(|stream| stream.include_usage);
        if generation.is_complete() && !usage_follows {
            last.timings = Some(generation.timings());
        }
        sender.push(&last);
    }

    fn push_usage(generation: &Generation, sender: &mut SseSender) {
        let mut last = chunk(generation, None);
        last.usage = Some(Some(generation.usage()));
        last.timings = Some(generation.timings());
        sender.push(&last);
    }

    fn whole(generation: &Generation, choices: Vec<Delta>) -> Response {
        let prompt = generation.prompt_of(0);
        let choices = (0..).zip(choices).map(|(index, delta)| chat_choice(generation, index, delta)).collect();
        let completion = ChatCompletion {
            id: generation.id.clone(),
            object: "chat.completion",
            created: generation.created,
            model: generation.handle.name().to_owned(),
            choices,
            usage: generation.usage(),
            service_tier: SERVICE_TIER,
            system_fingerprint: generation.handle.fingerprint().to_owned(),
            prompt_token_ids: generation.params.output.token_ids.then(|| prompt.ids.clone()),
            prompt_logprobs: prompt_logprobs(generation, prompt),
            timings: generation.timings(),
        };
        body::json(StatusCode::OK, &completion)
    }
}

fn chat_choice(generation: &Generation, index: u32, delta: Delta) -> ChatChoice {
    let finish = delta.finish.unwrap_or(Finish::Length);
    ChatChoice {
        index,
        logprobs: chat_logprobs(generation, &delta.tokens),
        message: ChatMessage { role: ROLE, content: delta.text, refusal: None, annotations: [] },
        finish_reason: finish.reason(),
        stop_reason: stop_reason(&finish),
        token_ids: generation.params.output.token_ids.then(|| delta.tokens.iter().map(|token| token.id).collect()),
    }
}

/// What ended a choice, where the client named it.
pub(super) fn stop_reason(finish: &Finish) -> Option<Value> {
    match finish {
        Finish::StopText(text) => Some(text.as_str().into()),
        Finish::StopToken(id) => id.map(Value::from),
        Finish::Length => None,
    }
}

/// The `usage` of a chunk that is not the last: absent, null, or the counts so far.
pub(super) fn running_usage(generation: &Generation) -> Option<Option<Usage>> {
    let options = generation.params.stream.as_ref()?;
    if options.continuous_usage {
        return Some(Some(generation.usage()));
    }
    options.include_usage.then_some(None)
}

fn chunk_choice(index: u32) -> ChatChunkChoice {
    ChatChunkChoice {
        index,
        delta: ChatDelta::default(),
        logprobs: None,
        finish_reason: None,
        stop_reason: None,
        token_ids: None,
    }
}

fn chunk(generation: &Generation, choice: Option<ChatChunkChoice>) -> ChatChunk<'_> {
    let options = generation.params.stream.as_ref();
    let text_len = choice.as_ref().and_then(|choice| choice.delta.content.as_ref()).map(String::len);
    ChatChunk {
        id: &generation.id,
        object: "chat.completion.chunk",
        created: generation.created,
        model: generation.handle.name(),
        service_tier: SERVICE_TIER,
        system_fingerprint: generation.handle.fingerprint(),
        choices: choice.into_iter().collect(),
        usage: running_usage(generation),
        prompt_token_ids: None,
        timings: options.is_some_and(|options| options.timings_per_token).then(|| generation.timings()),
        obfuscation: text_len.filter(|_| options.is_some_and(|options| options.obfuscation)).map(obfuscation),
    }
}
