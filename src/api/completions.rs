//! `POST /v1/completions`.

use std::sync::Arc;

use hyper::StatusCode;

use super::{
    Request,
    answer::{Shape, answer, obfuscation},
    chat::{running_usage, stop_reason},
    generation::{Generation, Update},
    logprobs::{completion_logprobs, echoed_logprobs, prompt_logprobs},
    parameters::Endpoint,
    types::completion::{Completion, CompletionChoice, CompletionLogprobs},
};
use crate::{
    app::App,
    body::{self, Response},
    error::ApiError,
    sse::SseSender,
    stream::choice::Delta,
};

/// Continues prompts.
///
/// # Errors
/// 400 that names the field, 404 for an unknown model, 503 when the queue is full; see [`ApiError`].
pub async fn create(app: Arc<App>, request: Request) -> Result<Response, ApiError> {
    answer::<Completions>(app, request).await
}

struct Completions;

impl Shape for Completions {
    const ENDPOINT: Endpoint = Endpoint::Completion;

    fn push_update(generation: &Generation, update: Update, sender: &mut SseSender) {
        let Update { choice: index, opens, delta } = update;
        let output = &generation.params.output;
        if opens && (output.echo || output.token_ids) {
            sender.push(&completion(generation, vec![opening(generation, index)]));
        }
        let Some(delta) = delta else { return };
        let is_last = delta.finish.is_some();
        let mut last = completion(generation, vec![choice(generation, index, delta)]);
        let usage_follows = generation.params.stream.as_ref().is_some_and(|stream| stream.include_usage);
        if is_last && generation.is_complete() && !usage_follows {
            last.timings = Some(generation.timings());
        }
        sender.push(&last);
    }

    fn push_usage(generation: &Generation, sender: &mut SseSender) {
        let mut last = completion(generation, Vec::new());
        last.usage = Some(Some(generation.usage()));
        last.timings = Some(generation.timings());
        sender.push(&last);
    }

    fn whole(generation: &Generation, choices: Vec<Delta>) -> Response {
        let choices = (0..).zip(choices).map(|(index, delta)| {
            let mut whole = opening(generation, index);
            let rest = choice(generation, index, delta);
            whole.text.push_str(&rest.text);
            whole.logprobs = joined(whole.logprobs, rest.logprobs);
            whole.prompt_logprobs = prompt_logprobs(generation, generation.prompt_of(index));
            CompletionChoice {
                finish_reason: rest.finish_reason,
                stop_reason: rest.stop_reason,
                token_ids: rest.token_ids,
                ..whole
            }
        });
        let mut whole = completion(generation, choices.collect());
        whole.usage = Some(Some(generation.usage()));
        whole.timings = Some(generation.timings());
        body::json(StatusCode::OK, &whole)
    }
}

/// What stands before the generated text: the prompt, if it is echoed, and its ids, if they are wanted.
fn opening(generation: &Generation, index: u32) -> CompletionChoice {
    let prompt = generation.prompt_of(index);
    let output = &generation.params.output;
    CompletionChoice {
        index,
        text: if output.echo { prompt.text.clone() } else { String::new() },
        logprobs: if output.echo { echoed_logprobs(generation, prompt) } else { None },
        finish_reason: None,
        stop_reason: None,
        token_ids: None,
        prompt_token_ids: output.token_ids.then(|| prompt.ids.clone()),
        prompt_logprobs: None,
    }
}

fn choice(generation: &Generation, index: u32, delta: Delta) -> CompletionChoice {
    let output = &generation.params.output;
    let num_echoed = if output.echo { generation.prompt_of(index).text.chars().count() } else { 0 };
    CompletionChoice {
        index,
        logprobs: completion_logprobs(generation, &delta.tokens, num_echoed as u64),
        text: delta.text,
        finish_reason: delta.finish.as_ref().map(|finish| finish.reason()),
        stop_reason: delta.finish.as_ref().and_then(stop_reason),
        token_ids: output.token_ids.then(|| delta.tokens.iter().map(|token| token.id).collect()),
        prompt_token_ids: None,
        prompt_logprobs: None,
    }
}

fn joined(first: Option<CompletionLogprobs>, second: Option<CompletionLogprobs>) -> Option<CompletionLogprobs> {
    let Some(mut all) = first else { return second };
    let Some(second) = second else { return Some(all) };
    all.text_offset.extend(second.text_offset);
    all.token_logprobs.extend(second.token_logprobs);
    all.tokens.extend(second.tokens);
    all.top_logprobs.extend(second.top_logprobs);
    Some(all)
}

fn completion(generation: &Generation, choices: Vec<CompletionChoice>) -> Completion<'_> {
    let options = generation.params.stream.as_ref();
    let text_len = choices.first().map(|choice| choice.text.len());
    Completion {
        id: &generation.id,
        object: "text_completion",
        created: generation.created,
        model: generation.handle.name(),
        system_fingerprint: generation.handle.fingerprint(),
        choices,
        usage: running_usage(generation),
        timings: options.is_some_and(|options| options.timings_per_token).then(|| generation.timings()),
        obfuscation: text_len.filter(|_| options.is_some_and(|options| options.obfuscation)).map(obfuscation),
    }
}
