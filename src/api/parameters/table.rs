//! The table of request fields: one row each, for both endpoints.
//!
//! A row that is `refused` is a field that OpenAI, vLLM or llama.cpp know and this server does not support; a row that only
//! checks has no effect here by its nature (`user`), so accepting it ignores nothing.

use std::time::Duration;

use super::{
    Draft, Endpoint, StreamOptions,
    field::Field,
    messages::read_messages,
    prompts::{read_ids, read_prompts},
};
use crate::error::ApiError;

/// Reads one field into the draft, or refuses it.
pub(super) type Read = fn(&mut Draft, &Field<'_>) -> Result<(), ApiError>;

/// One field that requests may have.
pub struct Parameter {
    /// Its name in the body.
    pub name: &'static str,
    endpoints: &'static [Endpoint],
    pub(super) read: Read,
}

impl Parameter {
    /// Whether `endpoint` knows the field.
    #[must_use]
    pub fn is_on(&self, endpoint: Endpoint) -> bool {
        self.endpoints.contains(&endpoint)
    }
}

/// Most strings in `stop`: OpenAI allows 4, local servers more.
const MAX_STOPS: usize = 16;
/// Longest stop string; every step of a stream looks for it.
const MAX_STOP_CHARS: usize = 512;
/// Most tokens in `logit_bias`, `stop_token_ids` and `bad_words`: the sampler walks them at every token.
const MAX_TOKENS_LISTED: usize = 1024;
/// Most alternatives per token, as for OpenAI's `top_logprobs`.
const MAX_LOGPROBS: u32 = 20;

const BOTH: &[Endpoint] = &[Endpoint::Chat, Endpoint::Completion];
const CHAT: &[Endpoint] = &[Endpoint::Chat];
const COMPLETION: &[Endpoint] = &[Endpoint::Completion];

const fn on(endpoints: &'static [Endpoint], name: &'static str, read: Read) -> Parameter {
    Parameter { name, endpoints, read }
}

/// Every field that either endpoint knows.
pub const PARAMETERS: &[Parameter] = &[
    // what to run
    on(BOTH, "model", |d, f| set(&mut d.model, f.string_of_len(1..=256)?.to_owned())),
    on(CHAT, "messages", |d, f| set(&mut d.messages, read_messages(f)?)),
    on(COMPLETION, "prompt", |d, f| set(&mut d.prompts, read_prompts(f)?)),
    on(BOTH, "n", |d, f| set(&mut d.n, f.count(1..=128)?)),
    on(COMPLETION, "best_of", |d, f| set(&mut d.best_of, f.count(1..=128)?)),
    // sampling
    on(BOTH, "temperature", |d, f| set(&mut d.sampling.temperature, f.number(0.0..=2.0)?)),
    on(BOTH, "top_p", |d, f| set(&mut d.sampling.top_p, f.number(0.0..=1.0)?)),
    on(BOTH, "top_k", read_top_k),
    on(BOTH, "min_p", |d, f| set(&mut d.sampling.min_p, f.number(0.0..=1.0)?)),
    on(BOTH, "frequency_penalty", |d, f| put(&mut d.sampling.frequency_penalty, f.number(-2.0..=2.0)?)),
    on(BOTH, "presence_penalty", |d, f| put(&mut d.sampling.presence_penalty, f.number(-2.0..=2.0)?)),
    on(BOTH, "repetition_penalty", read_repetition_penalty),
    on(BOTH, "repeat_penalty", read_repetition_penalty),
    on(BOTH, "logit_bias", read_logit_bias),
    on(BOTH, "allowed_token_ids", |d, f| put(&mut d.sampling.allowed_token_ids, read_ids(f)?)),
    on(BOTH, "bad_words", read_bad_words),
    on(BOTH, "seed", |d, f| set(&mut d.sampling.seed, f.integer(i64::MIN..=i64::MAX)?)),
    // where it ends
    on(BOTH, "max_tokens", |d, f| set(&mut d.stop.max_tokens, f.count(0..=u32::MAX)?)),
    on(BOTH, "max_completion_tokens", |d, f| set(&mut d.stop.max_completion_tokens, f.count(0..=u32::MAX)?)),
    on(BOTH, "min_tokens", |d, f| put(&mut d.stop.min_tokens, f.count(0..=u32::MAX)?)),
    on(BOTH, "stop", read_stop),
    on(BOTH, "stop_token_ids", read_stop_token_ids),
    on(BOTH, "ignore_eos", |d, f| put(&mut d.stop.ignore_eos, f.flag()?)),
    on(BOTH, "include_stop_str_in_output", |d, f| put(&mut d.stop.include_in_output, f.flag()?)),
    // what the answer holds
    on(CHAT, "logprobs", |d, f| put(&mut d.want_logprobs, f.flag()?)),
    on(CHAT, "top_logprobs", |d, f| set(&mut d.top_logprobs, f.count(0..=MAX_LOGPROBS)?)),
    on(COMPLETION, "logprobs", |d, f| set(&mut d.output.num_logprobs, f.count(0..=MAX_LOGPROBS)?)),
    on(BOTH, "prompt_logprobs", |d, f| set(&mut d.output.num_prompt_logprobs, f.count(0..=MAX_LOGPROBS)?)),
    on(COMPLETION, "echo", |d, f| put(&mut d.output.echo, f.flag()?)),
    on(BOTH, "return_token_ids", |d, f| put(&mut d.output.token_ids, f.flag()?)),
    on(BOTH, "return_tokens_as_token_ids", |d, f| put(&mut d.output.tokens_as_ids, f.flag()?)),
    on(BOTH, "skip_special_tokens", |d, f| put(&mut d.output.show_special_tokens, !f.flag()?)),
    on(BOTH, "spaces_between_special_tokens", only_true),
    on(BOTH, "request_id", |d, f| set(&mut d.request_id, read_id(f)?.to_owned())),
    // streaming
    on(BOTH, "stream", |d, f| put(&mut d.stream, f.flag()?)),
    on(BOTH, "stream_options", read_stream_options),
    on(BOTH, "stream_interval", |d, f| put(&mut d.stream_interval, f.count(1..=1024)?)),
    on(BOTH, "timings_per_token", |d, f| put(&mut d.timings_per_token, f.flag()?)),
    on(BOTH, "sse_ping_interval", read_ping),
    // the prompt
    on(CHAT, "chat_template_kwargs", |d, f| put(&mut d.template.kwargs, f.map()?.clone())),
    on(CHAT, "add_generation_prompt", |d, f| set(&mut d.template.add_generation_prompt, f.flag()?)),
    on(CHAT, "continue_final_message", |d, f| put(&mut d.template.continue_final_message, f.flag()?)),
    on(CHAT, "documents", read_documents),
    on(CHAT, "reasoning_effort", read_reasoning_effort),
    on(CHAT, "add_special_tokens", only_false),
    on(COMPLETION, "add_special_tokens", |d, f| put(&mut d.no_special_tokens, !f.flag()?)),
    on(BOTH, "truncate_prompt_tokens", read_truncation),
    on(BOTH, "truncation_side", |_, f| one_of(f, &["left"])),
    on(BOTH, "cache_salt", |d, f| set(&mut d.cache_salt, f.string_of_len(1..=1024)?.to_owned())),
    on(BOTH, "cache_prompt", |d, f| put(&mut d.skip_cache, !f.flag()?)),
    // no effect here, by their nature or because the value asks for what is done anyway
    on(BOTH, "user", |_, f| string(f, 0..=512)),
    on(CHAT, "safety_identifier", |_, f| string(f, 0..=64)),
    on(CHAT, "prompt_cache_key", |_, f| string(f, 0..=1024)),
    on(CHAT, "prompt_cache_retention", |_, f| one_of(f, &["in_memory", "in-memory"])),
    on(CHAT, "prompt_cache_options", read_prompt_cache_options),
    on(BOTH, "session_id", |_, f| string(f, 0..=256)),
    on(CHAT, "metadata", read_metadata),
    on(CHAT, "store", only_false),
    on(BOTH, "service_tier", |_, f| one_of(f, &["auto", "default"])),
    on(CHAT, "verbosity", |_, f| one_of(f, &["medium"])),
    on(CHAT, "modalities", read_modalities),
    on(CHAT, "parallel_tool_calls", |_, f| f.flag().map(drop)),
    on(CHAT, "tools", only_empty),
    on(CHAT, "functions", only_empty),
    on(CHAT, "tool_choice", only_no_tool),
    on(CHAT, "function_call", only_no_tool),
    on(BOTH, "response_format", read_response_format),
    on(BOTH, "priority", |_, f| only_number(f, 0)),
    on(CHAT, "echo", only_false),
    on(BOTH, "use_beam_search", only_false),
    on(BOTH, "length_penalty", |_, f| only_number(f, 1)),
    // known elsewhere, not supported here
    on(CHAT, "audio", refused),
    on(CHAT, "best_of", refused),
    on(CHAT, "chat_template", refused),
    on(CHAT, "include_reasoning", refused),
    on(CHAT, "mm_processor_kwargs", refused),
    on(CHAT, "moderation", refused),
    on(CHAT, "prediction", refused),
    on(CHAT, "reasoning", refused),
    on(CHAT, "reasoning_format", refused),
    on(CHAT, "thinking_token_budget", refused),
    on(CHAT, "web_search_options", refused),
    on(COMPLETION, "prompt_embeds", refused),
    on(COMPLETION, "suffix", refused),
    on(BOTH, "dry_multiplier", refused),
    on(BOTH, "early_stopping", refused),
    on(BOTH, "ebnf", refused),
    on(BOTH, "grammar", refused),
    on(BOTH, "guided_choice", refused),
    on(BOTH, "guided_decoding_backend", refused),
    on(BOTH, "guided_grammar", refused),
    on(BOTH, "guided_json", refused),
    on(BOTH, "guided_regex", refused),
    on(BOTH, "json_schema", refused),
    on(BOTH, "kv_transfer_params", refused),
    on(BOTH, "logits_processors", refused),
    on(BOTH, "logprob_token_ids", refused),
    on(BOTH, "lora", refused),
    on(BOTH, "mirostat", refused),
    on(BOTH, "regex", refused),
    on(BOTH, "repeat_last_n", refused),
    on(BOTH, "return_progress", refused),
    on(BOTH, "structured_outputs", refused),
    on(BOTH, "t_max_predict_ms", refused),
    on(BOTH, "typical_p", refused),
    on(BOTH, "xtc_probability", refused),
];

fn set<T>(slot: &mut Option<T>, value: T) -> Result<(), ApiError> {
    *slot = Some(value);
    Ok(())
}

fn put<T>(slot: &mut T, value: T) -> Result<(), ApiError> {
    *slot = value;
    Ok(())
}

fn refused(_: &mut Draft, field: &Field<'_>) -> Result<(), ApiError> {
    Err(field.unsupported("is not supported by this server"))
}

fn only_false(_: &mut Draft, field: &Field<'_>) -> Result<(), ApiError> {
    if field.flag()? { Err(field.unsupported("is only supported as false")) } else { Ok(()) }
}

fn only_true(_: &mut Draft, field: &Field<'_>) -> Result<(), ApiError> {
    if field.flag()? { Ok(()) } else { Err(field.unsupported("is only supported as true")) }
}

fn only_number(field: &Field<'_>, number: i64) -> Result<(), ApiError> {
    let Some(given) = field.value.as_f64() else { return field.integer(number..=number).map(drop) };
    #[expect(clippy::cast_precision_loss, reason = "the numbers of the table are tiny")]
    let is_it = given == number as f64;
    if is_it { Ok(()) } else { Err(field.unsupported(format_args!("is only supported as {number}"))) }
}

/// A list that asks for nothing.
fn only_empty(_: &mut Draft, field: &Field<'_>) -> Result<(), ApiError> {
    if field.items()?.len() == 0 { Ok(()) } else { Err(field.unsupported("is not supported by this server")) }
}

/// `none` and `auto`, which without tools both mean a message.
fn only_no_tool(_: &mut Draft, field: &Field<'_>) -> Result<(), ApiError> {
    match field.value.as_str() {
        Some("none" | "auto") => Ok(()),
        Some("required") => Err(field.unsupported("'required' needs tools, which this server does not support")),
        Some(_) => field.one_of(&["none", "auto", "required"]).map(drop),
        None => {
            field.map()?;
            Err(field.unsupported("names a tool, and this server does not support tools"))
        }
    }
}

fn string(field: &Field<'_>, len: std::ops::RangeInclusive<usize>) -> Result<(), ApiError> {
    field.string_of_len(len).map(drop)
}

/// The only values of an enumeration that this server supports.
fn one_of(field: &Field<'_>, supported: &[&str]) -> Result<(), ApiError> {
    let value = field.string()?;
    if supported.contains(&value) {
        return Ok(());
    }
    Err(field.unsupported(format_args!("is only supported as {}, not '{value}'", supported.join(" or "))))
}

/// Something that may stand in a response id and in a log line.
fn read_id<'a>(field: &Field<'a>) -> Result<&'a str, ApiError> {
    let id = field.string_of_len(1..=128)?;
    if id.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(id);
    }
    Err(field.invalid("must have visible ASCII characters only"))
}

/// −1 is off, as 0 is.
fn read_top_k(draft: &mut Draft, field: &Field<'_>) -> Result<(), ApiError> {
    let top_k = field.integer(-1..=i64::from(u32::MAX))?;
    set(&mut draft.sampling.top_k, u32::try_from(top_k).unwrap_or(0))
}

fn read_repetition_penalty(draft: &mut Draft, field: &Field<'_>) -> Result<(), ApiError> {
    let penalty = field.number(0.0..=100.0)?;
    if penalty <= f32::MIN_POSITIVE {
        return Err(field.invalid("must be greater than 0"));
    }
    set(&mut draft.sampling.repetition_penalty, penalty)
}

fn read_logit_bias(draft: &mut Draft, field: &Field<'_>) -> Result<(), ApiError> {
    let num_entries = field.map()?.len();
    if num_entries > MAX_TOKENS_LISTED {
        return Err(field.invalid(format_args!("must have at most {MAX_TOKENS_LISTED} tokens, not {num_entries}")));
    }
    let mut biases = Vec::with_capacity(num_entries);
    for (key, entry) in field.entries()? {
        let is_canonical = key.bytes().all(|byte| byte.is_ascii_digit()) && (key == "0" || !key.starts_with('0'));
        let id = key.parse::<u32>().ok().filter(|_| is_canonical);
        let id = id.ok_or_else(|| field.invalid(format_args!("has a key that is not a token id: '{}'", short(key))))?;
        biases.push((id, entry.number(-100.0..=100.0)?));
    }
    put(&mut draft.sampling.logit_bias, biases)
}

fn short(key: &str) -> String {
    key.chars().filter(|c| !c.is_control()).take(32).collect()
}

fn read_bad_words(draft: &mut Draft, field: &Field<'_>) -> Result<(), ApiError> {
    let words: Result<Vec<String>, ApiError> =
        field.items_up_to(MAX_TOKENS_LISTED)?.map(|word| word.string_of_len(1..=256).map(str::to_owned)).collect();
    put(&mut draft.sampling.bad_words, words?)
}

fn read_stop(draft: &mut Draft, field: &Field<'_>) -> Result<(), ApiError> {
    let stops = if field.value.is_array() {
        let stops: Result<Vec<String>, ApiError> = field
            .items_up_to(MAX_STOPS)?
            .map(|stop| stop.string_of_len(1..=MAX_STOP_CHARS).map(str::to_owned))
            .collect();
        stops?
    } else {
        vec![field.string_of_len(1..=MAX_STOP_CHARS)?.to_owned()]
    };
    put(&mut draft.stop.strings, stops)
}

fn read_stop_token_ids(draft: &mut Draft, field: &Field<'_>) -> Result<(), ApiError> {
    let ids: Result<Vec<u32>, ApiError> =
        field.items_up_to(MAX_TOKENS_LISTED)?.map(|id| id.count(0..=u32::MAX)).collect();
    put(&mut draft.stop.token_ids, ids?)
}

fn read_stream_options(draft: &mut Draft, field: &Field<'_>) -> Result<(), ApiError> {
    let mut options = StreamOptions::default();
    for (key, entry) in field.entries()? {
        match key {
            "include_usage" => options.include_usage = entry.flag()?,
            "continuous_usage_stats" => options.continuous_usage = entry.flag()?,
            "include_obfuscation" => options.obfuscation = entry.flag()?,
            _ => return Err(entry.unknown()),
        }
    }
    set(&mut draft.stream_options, options)
}

/// Seconds; −1 and 0 send no comments.
fn read_ping(draft: &mut Draft, field: &Field<'_>) -> Result<(), ApiError> {
    let seconds = field.integer(-1..=3600)?;
    set(&mut draft.ping, Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// Objects of strings, as in vLLM.
fn read_documents(draft: &mut Draft, field: &Field<'_>) -> Result<(), ApiError> {
    for document in field.items()? {
        for (_, text) in document.entries()? {
            text.string()?;
        }
    }
    set(&mut draft.template.documents, field.value.clone())
}

fn read_reasoning_effort(draft: &mut Draft, field: &Field<'_>) -> Result<(), ApiError> {
    let effort = field.one_of(&["none", "minimal", "low", "medium", "high", "xhigh", "max"])?;
    set(&mut draft.template.reasoning_effort, effort.to_owned())
}

fn read_truncation(draft: &mut Draft, field: &Field<'_>) -> Result<(), ApiError> {
    let num_tokens = field.integer(-1..=i64::from(u32::MAX))?;
    if num_tokens == 0 {
        return Err(field.invalid("must be -1 or at least 1, not 0"));
    }
    set(&mut draft.truncate_prompt_tokens, num_tokens)
}

fn read_prompt_cache_options(_: &mut Draft, field: &Field<'_>) -> Result<(), ApiError> {
    for (key, entry) in field.entries()? {
        match key {
            "mode" => one_of(&entry, &["implicit"])?,
            _ => return Err(entry.unsupported("is not supported by this server")),
        }
    }
    Ok(())
}

/// OpenAI's bounds: 16 pairs, keys to 64 and values to 512 characters.
fn read_metadata(_: &mut Draft, field: &Field<'_>) -> Result<(), ApiError> {
    let num_entries = field.map()?.len();
    if num_entries > 16 {
        return Err(field.invalid(format_args!("must have at most 16 entries, not {num_entries}")));
    }
    for (key, entry) in field.entries()? {
        if key.chars().count() > 64 {
            return Err(field.invalid("must have keys of at most 64 characters"));
        }
        string(&entry, 0..=512)?;
    }
    Ok(())
}

fn read_modalities(_: &mut Draft, field: &Field<'_>) -> Result<(), ApiError> {
    for item in field.items()? {
        one_of(&item, &["text"]).map_err(|error| error.with_param("modalities"))?;
    }
    Ok(())
}

fn read_response_format(_: &mut Draft, field: &Field<'_>) -> Result<(), ApiError> {
    let kind = field.entry("type")?.ok_or_else(|| field.missing("type"))?;
    match kind.one_of(&["text", "json_object", "json_schema", "structural_tag", "grammar", "regex"])? {
        "text" => Ok(()),
        other => Err(field.unsupported(format_args!("of type '{other}' is not supported by this server"))),
    }
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "cases are written in place")]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        api::parameters::{Input, Parameters, Prompt},
        error::ErrorKind,
    };

    fn read(endpoint: Endpoint, extra: &Value) -> Result<Parameters, ApiError> {
        let mut body = match endpoint {
            Endpoint::Chat => json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
            Endpoint::Completion => json!({"model": "m", "prompt": "hi"}),
        };
        for (key, value) in extra.as_object().unwrap() {
            body[key] = value.clone();
        }
        Parameters::from_body(endpoint, body.to_string().as_bytes())
    }

    fn check(endpoint: Endpoint, extra: Value, kind: ErrorKind, param: &str) {
        let error = read(endpoint, &extra).map(drop).expect_err(&extra.to_string());
        assert_eq!((error.kind(), error.param()), (kind, Some(param)), "{extra}");
    }

    #[test]
    fn no_field_has_two_rows_on_one_endpoint_that_both_do_something() {
        for endpoint in [Endpoint::Chat, Endpoint::Completion] {
            let names: Vec<_> = PARAMETERS.iter().filter(|row| row.is_on(endpoint)).map(|row| row.name).collect();
            for name in &names {
                assert_eq!(names.iter().filter(|other| *other == name).count(), 1, "{name}");
            }
        }
    }

    #[test]
    fn null_means_absent_for_every_field() {
        for row in PARAMETERS {
            for &endpoint in row.endpoints {
                let result = read(endpoint, &json!({row.name: null}));
                match row.name {
                    "model" | "messages" | "prompt" => assert_eq!(result.unwrap_err().param(), Some(row.name)),
                    _ => assert!(result.is_ok(), "{}", row.name),
                }
            }
        }
    }

    #[test]
    fn every_field_refuses_a_value_of_the_wrong_type_by_its_name() {
        for row in PARAMETERS {
            for &endpoint in row.endpoints {
                // No field takes a list that holds an object that holds a list.
                let error = read(endpoint, &json!({row.name: [{"x": [1]}]})).map(drop).expect_err(row.name);
                let param = error.param().expect("a 400 names its field");
                assert!(param.starts_with(row.name), "{} is named {param}", row.name);
            }
        }
    }

    #[test]
    fn unknown_and_unsupported_fields_are_told_apart() {
        for endpoint in [Endpoint::Chat, Endpoint::Completion] {
            check(endpoint, json!({"colour": "red"}), ErrorKind::UnknownParameter, "colour");
            check(endpoint, json!({"guided_json": {}}), ErrorKind::UnsupportedParameter, "guided_json");
            check(
                endpoint,
                json!({"response_format": {"type": "json_object"}}),
                ErrorKind::UnsupportedParameter,
                "response_format",
            );
            check(
                endpoint,
                json!({"stream_options": {"colour": 1}}),
                ErrorKind::UnknownParameter,
                "stream_options.colour",
            );
        }
        check(Endpoint::Chat, json!({"prompt": "x"}), ErrorKind::UnknownParameter, "prompt");
        check(Endpoint::Chat, json!({"tools": [{"type": "function"}]}), ErrorKind::UnsupportedParameter, "tools");
        check(Endpoint::Chat, json!({"tool_choice": "required"}), ErrorKind::UnsupportedParameter, "tool_choice");
        check(Endpoint::Completion, json!({"suffix": "x"}), ErrorKind::UnsupportedParameter, "suffix");
        check(Endpoint::Completion, json!({"best_of": 3}), ErrorKind::UnsupportedParameter, "best_of");
    }

    #[test]
    fn ranges_are_kept() {
        for endpoint in [Endpoint::Chat, Endpoint::Completion] {
            for (name, bad) in [
                ("temperature", json!(2.1)),
                ("temperature", json!(-0.1)),
                ("top_p", json!(1.01)),
                ("top_k", json!(-2)),
                ("min_p", json!(-1)),
                ("frequency_penalty", json!(2.5)),
                ("presence_penalty", json!(-2.5)),
                ("repetition_penalty", json!(0)),
                ("n", json!(0)),
                ("n", json!(1_000_000)),
                ("max_tokens", json!(-1)),
                ("stop", json!("")),
                ("stop", json!(vec!["x"; 17])),
                ("truncate_prompt_tokens", json!(0)),
                ("cache_salt", json!("")),
                ("request_id", json!("a b")),
            ] {
                let error = read(endpoint, &json!({name: bad})).map(drop).expect_err(name);
                assert!(error.param().is_some_and(|param| param.starts_with(name)), "{name}");
            }
        }
        check(Endpoint::Chat, json!({"max_tokens": 0}), ErrorKind::InvalidValue, "max_tokens");
        check(Endpoint::Chat, json!({"logit_bias": {"x": 1}}), ErrorKind::InvalidValue, "logit_bias");
        check(Endpoint::Chat, json!({"logit_bias": {"1": 101}}), ErrorKind::InvalidValue, "logit_bias.1");
        check(Endpoint::Chat, json!({"top_logprobs": 3}), ErrorKind::InvalidValue, "top_logprobs");
        check(Endpoint::Chat, json!({"logprobs": true, "top_logprobs": 21}), ErrorKind::InvalidValue, "top_logprobs");
        check(Endpoint::Chat, json!({"stream_options": {}}), ErrorKind::InvalidValue, "stream_options");
        check(Endpoint::Chat, json!({"min_tokens": 5, "max_tokens": 4}), ErrorKind::InvalidValue, "min_tokens");
        check(
            Endpoint::Chat,
            json!({"continue_final_message": true}),
            ErrorKind::InvalidValue,
            "continue_final_message",
        );
    }

    #[test]
    fn aliases_and_precedence() {
        let p = read(
            Endpoint::Chat,
            &json!({"max_tokens": 3, "max_completion_tokens": 5, "repeat_penalty": 1.5,
            "logprobs": true, "top_k": -1, "stop": "x"}),
        )
        .unwrap();
        assert_eq!(p.stop.max_tokens(), Some(5));
        assert_eq!(p.sampling.repetition_penalty, Some(1.5));
        assert_eq!(p.output.num_logprobs, Some(0));
        assert_eq!(p.sampling.top_k, Some(0));
        assert_eq!(p.stop.strings, vec!["x"]);
        let p = read(Endpoint::Completion, &json!({"echo": true, "max_tokens": 0, "logprobs": 2})).unwrap();
        assert_eq!(p.input, Input::Prompts(vec![Prompt::Text("hi".to_owned())]));
        assert!(p.output.echo && p.stop.max_tokens() == Some(0) && p.output.num_logprobs == Some(2));
    }
}
