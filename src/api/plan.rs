//! A request's parameters against the model that shall serve it: encoded prompts, lengths, sampling.
//!
//! Everything that could never run is refused here with a 400, before it is queued. Encoding goes to the blocking pool, few
//! texts at a time; texts that are too long whatever their tokens are refused unread.

use std::sync::Arc;

use serde_json::{Map, Value};
use tokenmill_models::runner::TokenId;
use tokenmill_scheduler::request::SamplingParams;

use super::parameters::{Endpoint, Input, Parameters, Prompt, SamplingOptions, TemplateOptions};
use crate::{
    config::{Auto, LimitsConfig},
    error::ApiError,
    prompt::{PromptError, Special, TemplateError, TemplateInput, encode_chat},
    serving::{handle::ModelHandle, stream::PromptTokens},
    stream::choice::ChoiceRules,
};

/// OpenAI's default for `max_tokens` of completions.
const COMPLETION_MAX_TOKENS: u32 = 16;

/// Texts up to this length are encoded at once: at 1 to 2 µs per byte that is shorter than waking another thread twice.
const MAX_INLINE_BYTES: usize = 512;

/// A prompt as the model reads it.
#[derive(Clone, Debug, Default)]
pub(super) struct Encoded {
    /// For echoing.
    pub(super) text: String,
    pub(super) ids: Vec<TokenId>,
    /// Oldest turns of the conversation that did not fit.
    pub(super) num_dropped_turns: u32,
}

/// Checks what needs no text: choices, prompts and token ids against the model and the settings.
pub(super) fn check(params: &Parameters, handle: &ModelHandle, limits: &LimitsConfig) -> Result<(), ApiError> {
    if params.n > limits.max_n {
        return Err(ApiError::invalid(
            "n",
            format!("'n' must be at most {} on this server, not {}", limits.max_n, params.n),
        ));
    }
    let num_prompts = num_prompts(params);
    if num_prompts > limits.max_prompts {
        let max = limits.max_prompts;
        return Err(ApiError::invalid(
            "prompt",
            format!("'prompt' must have at most {max} prompts, not {num_prompts}"),
        ));
    }
    let max_seqs = handle.admission_limits().max_seqs;
    if num_prompts.saturating_mul(params.n) > max_seqs {
        let param = if params.n > 1 { "n" } else { "prompt" };
        return Err(ApiError::invalid(
            param,
            format!(
                "{num_prompts} prompts with {} choices each are more than this server takes at once ({max_seqs})",
                params.n
            ),
        ));
    }
    let vocab_size = handle.vocab_size();
    check_ids("logit_bias", params.sampling.logit_bias.iter().map(|(id, _)| *id), vocab_size)?;
    check_ids("allowed_token_ids", params.sampling.allowed_token_ids.iter().copied(), vocab_size)?;
    check_ids("stop_token_ids", params.stop.token_ids.iter().copied(), vocab_size)?;
    if let Input::Prompts(prompts) = &params.input {
        for prompt in prompts {
            if let Prompt::Tokens(ids) = prompt {
                check_ids("prompt", ids.iter().copied(), vocab_size)?;
            }
        }
    }
    Ok(())
}

fn check_ids(param: &str, mut ids: impl Iterator<Item = TokenId>, vocab_size: u32) -> Result<(), ApiError> {
    let Some(id) = ids.find(|id| *id >= vocab_size) else { return Ok(()) };
    Err(ApiError::invalid(param, format!("'{param}' has token id {id}, but this model's ids are below {vocab_size}")))
}

/// Prompts that the request has.
pub(super) fn num_prompts(params: &Parameters) -> u32 {
    match &params.input {
        Input::Messages(_) | Input::Conversation(_) => 1,
        Input::Prompts(prompts) => u32::try_from(prompts.len()).unwrap_or(u32::MAX),
    }
}

/// Encodes the input; takes it out of `params`.
pub(super) async fn encode(
    params: &mut Parameters,
    handle: &Arc<ModelHandle>,
    default_max_tokens: Auto<u32>,
) -> Result<Vec<Encoded>, ApiError> {
    match std::mem::replace(&mut params.input, Input::Prompts(Vec::new())) {
        Input::Messages(messages) => {
            let input = template_input(&params.template, handle, messages)?;
            let encoded = run_text_task(handle, move |handle| encode_messages(handle, &input)).await?;
            Ok(vec![encoded])
        }
        Input::Conversation(conversation) => {
            let room_for_output = params.stop.max_tokens().or(default_max_tokens.value());
            Ok(vec![conversation.encode(&params.template, handle, room_for_output).await?])
        }
        Input::Prompts(prompts) => encode_prompts(prompts, handle, params.add_special_tokens, params.output.echo).await,
    }
}

/// Messages and options as the template takes them.
pub(super) fn template_input(
    options: &TemplateOptions,
    handle: &ModelHandle,
    messages: Vec<Value>,
) -> Result<TemplateInput, ApiError> {
    let text_bytes = messages.iter().filter_map(|message| message["content"].as_str()).map(str::len).sum();
    check_text_len(text_bytes, "messages", handle)?;
    let mut kwargs = options.kwargs.clone();
    add_template_variables(&mut kwargs, options, handle)?;
    let mut input = TemplateInput::new(Value::Array(messages));
    input.kwargs = kwargs;
    input.add_generation_prompt = options.add_generation_prompt.unwrap_or(!options.continue_final_message);
    input.continue_final_message = options.continue_final_message;
    Ok(input)
}

/// Adds the variables behind fields of their own, where the template reads them; what it does not read is refused.
fn add_template_variables(
    kwargs: &mut Map<String, Value>,
    options: &TemplateOptions,
    handle: &ModelHandle,
) -> Result<(), ApiError> {
    let template = handle.tokenizer().chat_templates().get("default").map_or("", String::as_str);
    let unread = |param: &str| {
        let message =
            format!("'{param}' is not supported by the model '{}': its chat template does not read it", handle.name());
        Err(ApiError::unsupported_value(param, message))
    };
    if let Some(documents) = &options.documents {
        if !template.contains("documents") {
            return unread("documents");
        }
        kwargs.entry("documents").or_insert_with(|| documents.clone());
    }
    if let Some(effort) = &options.reasoning_effort {
        let (reads_effort, reads_thinking) =
            (template.contains("reasoning_effort"), template.contains("enable_thinking"));
        // A model that cannot reason does what `none` asks for.
        if !reads_effort && !reads_thinking && effort != "none" {
            return unread("reasoning_effort");
        }
        if reads_effort {
            kwargs.entry("reasoning_effort").or_insert_with(|| effort.as_str().into());
        }
        if reads_thinking {
            kwargs.entry("enable_thinking").or_insert_with(|| (effort != "none").into());
        }
    }
    Ok(())
}

/// Renders and encodes a conversation; slow.
pub(super) fn encode_messages(handle: &ModelHandle, input: &TemplateInput) -> Result<Encoded, ApiError> {
    let template =
        handle.template().ok_or_else(|| ApiError::invalid("messages", TemplateError::Missing.to_string()))?;
    match encode_chat(handle.tokenizer(), template, input) {
        Ok(encoded) => Ok(Encoded { text: encoded.text, ids: encoded.ids, num_dropped_turns: 0 }),
        Err(PromptError::Template(error)) => Err(ApiError::invalid("messages", error.to_string())),
        Err(PromptError::Tokenizer(error)) => Err(ApiError::server(error)),
    }
}

async fn encode_prompts(
    prompts: Vec<Prompt>,
    handle: &Arc<ModelHandle>,
    add_special_tokens: bool,
    with_text: bool,
) -> Result<Vec<Encoded>, ApiError> {
    let texts = prompts.iter().map(|prompt| if let Prompt::Text(text) = prompt { text.len() } else { 0 });
    let text_bytes: usize = texts.clone().sum();
    check_text_len(texts.max().unwrap_or(0), "prompt", handle)?;
    let encode_all = move |handle: &ModelHandle| -> Result<Vec<Encoded>, ApiError> {
        let tokenizer = handle.tokenizer();
        let encode_one = |prompt| match prompt {
            Prompt::Text(text) => {
                let ids = tokenizer.encode(&text, Special::Parse, add_special_tokens).map_err(ApiError::server)?;
                Ok(Encoded { text, ids, num_dropped_turns: 0 })
            }
            Prompt::Tokens(ids) => {
                let text = if with_text { tokenizer.decode(&ids, false) } else { String::new() };
                Ok(Encoded { text, ids, num_dropped_turns: 0 })
            }
        };
        prompts.into_iter().map(encode_one).collect()
    };
    if text_bytes <= MAX_INLINE_BYTES && !with_text {
        return encode_all(handle);
    }
    run_text_task(handle, encode_all).await
}

/// Runs CPU work on texts in the blocking pool, a few at a time per model.
pub(super) async fn run_text_task<T: Send + 'static>(
    handle: &Arc<ModelHandle>,
    task: impl FnOnce(&ModelHandle) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let turn = Arc::clone(&handle.text_tasks).acquire_owned().await.map_err(ApiError::server)?;
    let handle = Arc::clone(handle);
    let result = tokio::task::spawn_blocking(move || {
        let result = task(&handle);
        drop(turn);
        result
    });
    // An error is a panic of the task, which must not take more than this request with it.
    result.await.map_err(ApiError::server)?
}

/// Refuses a text that has more tokens than fit whatever its tokens are.
pub(super) fn check_text_len(text_bytes: usize, param: &str, handle: &ModelHandle) -> Result<(), ApiError> {
    let max_bytes = handle.max_text_bytes();
    if text_bytes <= max_bytes {
        return Ok(());
    }
    let at_least = text_bytes.div_ceil((max_bytes / handle.max_model_len().max(1) as usize).max(1));
    Err(ApiError::context_length(param, at_least as u64, None, u64::from(handle.max_model_len())))
}

/// Cuts and checks a prompt's length; decides how much may follow.
pub(super) fn fit(
    mut ids: Vec<TokenId>,
    params: &Parameters,
    endpoint: Endpoint,
    default_max_tokens: Auto<u32>,
    max_len: u32,
) -> Result<PromptTokens, ApiError> {
    let param = if endpoint == Endpoint::Chat { "messages" } else { "prompt" };
    let wanted = params.stop.max_tokens();
    truncate(&mut ids, params.truncate_prompt_tokens, wanted, max_len)?;
    if ids.is_empty() {
        return Err(ApiError::invalid(param, format!("'{param}' has no tokens; it must have at least one")));
    }
    let num_tokens = u32::try_from(ids.len()).unwrap_or(u32::MAX);
    let room = max_len.saturating_sub(num_tokens);
    let too_long = || ApiError::context_length(param, ids.len() as u64, wanted.map(u64::from), u64::from(max_len));
    if room == 0 {
        return Err(too_long());
    }
    let max_tokens = match (wanted, endpoint, default_max_tokens) {
        (Some(wanted), _, _) if wanted > room => return Err(too_long()),
        (Some(wanted), _, _) => wanted,
        (None, Endpoint::Completion, _) => COMPLETION_MAX_TOKENS.min(room),
        (None, Endpoint::Chat, Auto::Value(default)) => default.min(room),
        (None, Endpoint::Chat, Auto::Auto) => room,
    };
    if params.stop.min_tokens > max_tokens {
        let min = params.stop.min_tokens;
        return Err(ApiError::invalid(
            "min_tokens",
            format!("'min_tokens' must be at most the {max_tokens} tokens that may be generated, not {min}"),
        ));
    }
    Ok(PromptTokens { ids, max_tokens })
}

/// Keeps the last tokens of a prompt, as many as the client says.
fn truncate(ids: &mut Vec<TokenId>, keep: Option<i64>, wanted: Option<u32>, max_len: u32) -> Result<(), ApiError> {
    let Some(keep) = keep else { return Ok(()) };
    let keep = match u32::try_from(keep) {
        Ok(keep) if keep >= max_len => {
            return Err(ApiError::invalid(
                "truncate_prompt_tokens",
                format!("'truncate_prompt_tokens' must be below the model's {max_len} tokens, not {keep}"),
            ));
        }
        Ok(keep) => keep,
        Err(_) => max_len.saturating_sub(wanted.unwrap_or(COMPLETION_MAX_TOKENS).max(1)),
    };
    let num_dropped = ids.len().saturating_sub(keep as usize);
    ids.drain(..num_dropped);
    Ok(())
}

/// The engine's sampling parameters; `max_tokens` and `seed` are filled in per sequence.
pub(super) fn sampling(params: &Parameters, handle: &ModelHandle) -> Result<SamplingParams, ApiError> {
    let options = &params.sampling;
    let defaults = &handle.info().generation;
    let openai = SamplingParams::default();
    let (top_p, top_k) = match options.top_p.or(defaults.top_p).unwrap_or(openai.top_p) {
        // A nucleus of no size is the most likely token.
        top_p if top_p <= 0.0 => (1.0, 1),
        top_p => (top_p, options.top_k.or(defaults.top_k).unwrap_or(openai.top_k)),
    };
    let mut logit_bias = options.logit_bias.clone();
    for id in banned_ids(options, handle)? {
        logit_bias.retain(|(other, _)| *other != id);
        logit_bias.push((id, f32::NEG_INFINITY));
    }
    let mut allowed_token_ids = options.allowed_token_ids.clone();
    allowed_token_ids.sort_unstable();
    allowed_token_ids.dedup();
    let num_prompt_logprobs = match (params.output.num_prompt_logprobs, params.output.echo) {
        (Some(num), true) => Some(num.max(params.output.num_logprobs.unwrap_or(0))),
        (None, true) => params.output.num_logprobs,
        (num, false) => num,
    };
    Ok(SamplingParams {
        temperature: options.temperature.or(defaults.temperature).unwrap_or(openai.temperature),
        top_p,
        top_k,
        min_p: options.min_p.or(defaults.min_p).unwrap_or(openai.min_p),
        frequency_penalty: options.frequency_penalty,
        presence_penalty: options.presence_penalty,
        repetition_penalty: options
            .repetition_penalty
            .or(defaults.repetition_penalty)
            .unwrap_or(openai.repetition_penalty),
        logit_bias,
        allowed_token_ids,
        min_tokens: params.stop.min_tokens,
        stop_token_ids: stop_token_ids(params, handle),
        num_logprobs: params.output.num_logprobs,
        num_prompt_logprobs,
        ..openai
    })
}

/// The client's stop tokens and the model's, each once.
fn stop_token_ids(params: &Parameters, handle: &ModelHandle) -> Vec<TokenId> {
    let mut ids = params.stop.token_ids.clone();
    if !params.stop.ignore_eos {
        ids.extend(handle.info().eos_token_ids.iter().filter(|id| **id < handle.vocab_size()));
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The tokens that spell the bad words, at the start of a text and after a space.
fn banned_ids(options: &SamplingOptions, handle: &ModelHandle) -> Result<Vec<TokenId>, ApiError> {
    let mut banned = Vec::new();
    for (index, word) in options.bad_words.iter().enumerate() {
        let mut is_one_token = false;
        for text in [word.clone(), format!(" {}", word.trim_start())] {
            let ids = handle.tokenizer().encode(&text, Special::Text, false).map_err(ApiError::server)?;
            if let [id] = ids[..] {
                is_one_token = true;
                banned.push(id);
            }
        }
        if !is_one_token {
            return Err(ApiError::unsupported_value(
                format!("bad_words[{index}]"),
                format!(
                    "'bad_words[{index}]' is more than one token of this model; only single tokens can be forbidden"
                ),
            ));
        }
    }
    banned.sort_unstable();
    banned.dedup();
    Ok(banned)
}

/// How the choices' text is cut.
pub(super) fn rules(params: &Parameters, handle: &ModelHandle) -> ChoiceRules {
    ChoiceRules {
        stops: params.stop.strings.clone(),
        stop_token_ids: stop_token_ids(params, handle),
        named_stop_token_ids: params.stop.token_ids.clone(),
        include_stop: params.stop.include_in_output,
        min_tokens: params.stop.min_tokens,
        show_special_tokens: params.output.show_special_tokens,
        interval: params.stream.as_ref().map_or(0, |stream| stream.interval),
    }
}
