//! What a client may ask of `/v1/chat/completions` and `/v1/completions`, read from the body and checked.
//!
//! [`table::PARAMETERS`] has one row per field: which endpoints know it and how it is read. A field without a row is refused
//! by its name, one that is known but not supported too; nothing is ignored silently, and `null` is the same as absent.
//! Only what the body alone can tell is checked here; what depends on the model (token ids, lengths) is checked by
//! [`crate::api::generation`].

pub mod field;
mod messages;
mod prompts;
mod table;

use std::time::Duration;

use serde_json::{Map, Value};

use self::field::Field;
use super::conversation::Conversation;
use crate::{body, error::ApiError};

pub(super) use self::messages::read_messages;
pub use self::{
    prompts::Prompt,
    table::{PARAMETERS, Parameter},
};

/// The endpoints that share this table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
}

/// What to continue.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A conversation, messages in the form that templates read.
    Messages(Vec<Value>),
    /// One or more texts or lists of token ids.
    Prompts(Vec<Prompt>),
    /// Turns of which the oldest may be left out.
    Conversation(Conversation),
}

/// How the chat template is rendered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TemplateOptions {
    /// Further variables of the template.
    pub kwargs: Map<String, Value>,
    /// Ends the prompt with the assistant's opening; default true, unless the last message is continued.
    pub add_generation_prompt: Option<bool>,
    /// Leaves the last message open, so that the answer continues it.
    pub continue_final_message: bool,
    /// Texts to answer from, for templates that take them.
    pub documents: Option<Value>,
    /// OpenAI's `reasoning_effort`, for templates that can reason.
    pub reasoning_effort: Option<String>,
}

/// Sampling as the client asked for it; what is absent comes from the model's generation config, then OpenAI's defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingOptions {
    /// 0 to 2.
    pub temperature: Option<f32>,
    /// 0 to 1; 0 keeps the most likely token only.
    pub top_p: Option<f32>,
    /// 0 keeps all.
    pub top_k: Option<u32>,
    /// 0 to 1.
    pub min_p: Option<f32>,
    /// −2 to 2.
    pub frequency_penalty: f32,
    /// −2 to 2.
    pub presence_penalty: f32,
    /// Above 0; 1 is off.
    pub repetition_penalty: Option<f32>,
    /// Bias per token id, each id once.
    pub logit_bias: Vec<(u32, f32)>,
    /// If not empty, nothing else may be chosen.
    pub allowed_token_ids: Vec<u32>,
    /// Words that may not be produced.
    pub bad_words: Vec<String>,
    /// Random if absent.
    pub seed: Option<i64>,
}

/// Where the output ends.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StopOptions {
    /// Texts that end the output.
    pub strings: Vec<String>,
    /// Tokens that end the output.
    pub token_ids: Vec<u32>,
    /// The text that ended the output stays in it.
    pub include_in_output: bool,
    /// The model's own end-of-sequence tokens do not end the output.
    pub ignore_eos: bool,
    /// Older name of the next.
    pub max_tokens: Option<u32>,
    /// Output tokens at most.
    pub max_completion_tokens: Option<u32>,
    /// No stop token or string ends the output before this many tokens.
    pub min_tokens: u32,
}

impl StopOptions {
    /// The bound on output tokens that holds: the newer name wins.
    #[must_use]
    pub fn max_tokens(&self) -> Option<u32> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    /// The name under which the client gave [`StopOptions::max_tokens`].
    #[must_use]
    pub fn max_tokens_param(&self) -> &'static str {
        if self.max_completion_tokens.is_some() { "max_completion_tokens" } else { "max_tokens" }
    }
}

/// What the answer holds besides text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OutputOptions {
    /// Log-probabilities: how many of the most likely tokens beside the chosen one.
    pub num_logprobs: Option<u32>,
    /// The same for the prompt, as vLLM's `prompt_logprobs`.
    pub num_prompt_logprobs: Option<u32>,
    /// The prompt stands before the completion.
    pub echo: bool,
    /// Ids of prompt and output are returned.
    pub token_ids: bool,
    /// Tokens are named `token_id:17` instead of by their text.
    pub tokens_as_ids: bool,
    /// Special tokens show in the text.
    pub show_special_tokens: bool,
}

/// How the answer is streamed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StreamOptions {
    /// A last chunk with the usage.
    pub include_usage: bool,
    /// The usage so far in every chunk.
    pub continuous_usage: bool,
    /// Padding that hides the length of the text.
    pub obfuscation: bool,
    /// Timings so far in every chunk.
    pub timings_per_token: bool,
    /// Tokens per chunk at least; 0 and 1 are the same.
    pub interval: u32,
    /// Silence before a comment keeps the connection alive, zero for none; absent is the server's setting.
    pub ping: Option<Duration>,
}

/// Everything that one request asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    /// Name of the model.
    pub model: String,
    /// What to continue.
    pub input: Input,
    /// Choices per prompt.
    pub n: u32,
    /// Sampling.
    pub sampling: SamplingOptions,
    /// Ends.
    pub stop: StopOptions,
    /// Contents of the answer.
    pub output: OutputOptions,
    /// The streaming of the answer, if it is streamed.
    pub stream: Option<StreamOptions>,
    /// Rendering of messages.
    pub template: TemplateOptions,
    /// Part of the key under which prompts are shared in the prefix cache.
    pub cache_salt: Option<String>,
    /// The prompt is computed anew whatever the prefix cache has.
    pub skip_cache: bool,
    /// What the tokenizer puts around texts (usually a BOS token) is added to prompts; templates do so themselves.
    pub add_special_tokens: bool,
    /// Keeps this many of the prompt's last tokens; −1 as many as the context takes.
    pub truncate_prompt_tokens: Option<i64>,
    /// Becomes part of the answer's id.
    pub request_id: Option<String>,
}

/// The parameters while the fields are read one by one, in the body's order.
#[derive(Default)]
struct Draft {
    model: Option<String>,
    messages: Option<Vec<Value>>,
    prompts: Option<Vec<Prompt>>,
    n: Option<u32>,
    best_of: Option<u32>,
    sampling: SamplingOptions,
    stop: StopOptions,
    output: OutputOptions,
    want_logprobs: bool,
    top_logprobs: Option<u32>,
    stream: bool,
    stream_options: Option<StreamOptions>,
    timings_per_token: bool,
    stream_interval: u32,
    ping: Option<Duration>,
    template: TemplateOptions,
    cache_salt: Option<String>,
    skip_cache: bool,
    no_special_tokens: bool,
    truncate_prompt_tokens: Option<i64>,
    request_id: Option<String>,
}

impl Parameters {
    /// Reads a request's body.
    ///
    /// # Errors
    /// A 400 that names the first field that is unknown, unsupported, of the wrong type or out of range.
    pub fn from_body(endpoint: Endpoint, bytes: &[u8]) -> Result<Self, ApiError> {
        let value: Value = body::parse_json(bytes)?;
        let Value::Object(fields) = value else {
            return Err(ApiError::invalid_json("the request body must be a JSON object"));
        };
        Self::from_fields(endpoint, &fields)
    }

    /// The same for a body that has been parsed.
    ///
    /// # Errors
    /// As [`Parameters::from_body`].
    pub(super) fn from_fields(endpoint: Endpoint, fields: &Map<String, Value>) -> Result<Self, ApiError> {
        let mut draft = Draft::default();
        for (name, value) in fields {
            if value.is_null() {
                continue;
            }
            let field = Field::new(name, value);
            let row = PARAMETERS.iter().find(|row| row.name == name && row.is_on(endpoint));
            let Some(row) = row else { return Err(field.unknown()) };
            (row.read)(&mut draft, &field)?;
        }
        draft.finish(endpoint)
    }
}

impl Draft {
    /// Checks what concerns several fields at once.
    fn finish(self, endpoint: Endpoint) -> Result<Parameters, ApiError> {
        let model = self.model.clone().ok_or_else(|| ApiError::missing("model"))?;
        self.check_output()?;
        self.check_stop(endpoint)?;
        self.check_template()?;
        let n = self.n.unwrap_or(1);
        if self.best_of.is_some_and(|best_of| best_of != n) {
            return Err(ApiError::unsupported_value(
                "best_of",
                format!("'best_of' is supported only if it equals 'n', which is {n}"),
            ));
        }
        if self.stream_options.is_some() && !self.stream {
            return Err(ApiError::invalid(
                "stream_options",
                "'stream_options' is only allowed together with 'stream': true",
            ));
        }
        let input = match endpoint {
            Endpoint::Chat => Input::Messages(self.messages.ok_or_else(|| ApiError::missing("messages"))?),
            Endpoint::Completion => Input::Prompts(self.prompts.ok_or_else(|| ApiError::missing("prompt"))?),
        };
        let mut output = self.output;
        if self.want_logprobs {
            output.num_logprobs = Some(self.top_logprobs.unwrap_or(0));
        }
        let stream = self.stream.then(|| StreamOptions {
            timings_per_token: self.timings_per_token,
            interval: self.stream_interval,
            ping: self.ping,
            ..self.stream_options.unwrap_or_default()
        });
        Ok(Parameters {
            model,
            input,
            n,
            sampling: self.sampling,
            stop: self.stop,
            output,
            stream,
            template: self.template,
            cache_salt: self.cache_salt,
            skip_cache: self.skip_cache,
            add_special_tokens: !self.no_special_tokens,
            truncate_prompt_tokens: self.truncate_prompt_tokens,
            request_id: self.request_id,
        })
    }

    fn check_output(&self) -> Result<(), ApiError> {
        if self.top_logprobs.is_some_and(|top| top > 0) && !self.want_logprobs {
            return Err(ApiError::invalid("top_logprobs", "'top_logprobs' needs 'logprobs': true"));
        }
        if self.stream && self.output.num_prompt_logprobs.is_some() {
            return Err(ApiError::unsupported_value(
                "prompt_logprobs",
                "'prompt_logprobs' is not supported together with 'stream': true",
            ));
        }
        Ok(())
    }

    fn check_stop(&self, endpoint: Endpoint) -> Result<(), ApiError> {
        let param = self.stop.max_tokens_param();
        let max_tokens = self.stop.max_tokens();
        // A completion of no tokens is OpenAI's way to score a prompt (`echo` with `logprobs`).
        if max_tokens == Some(0) && endpoint == Endpoint::Chat {
            return Err(ApiError::invalid(param, format!("'{param}' must be at least 1, not 0")));
        }
        if max_tokens.is_some_and(|max| self.stop.min_tokens > max) {
            return Err(ApiError::invalid(
                "min_tokens",
                format!("'min_tokens' must be at most '{param}', not {}", self.stop.min_tokens),
            ));
        }
        Ok(())
    }

    fn check_template(&self) -> Result<(), ApiError> {
        if !self.template.continue_final_message {
            return Ok(());
        }
        if self.template.add_generation_prompt == Some(true) {
            return Err(ApiError::invalid(
                "continue_final_message",
                "'continue_final_message' and 'add_generation_prompt' cannot both be true",
            ));
        }
        let last_role = self.messages.as_ref().and_then(|messages| messages.last()).and_then(|last| last.get("role"));
        if last_role.is_some_and(|role| role != "assistant") {
            return Err(ApiError::invalid(
                "continue_final_message",
                "'continue_final_message' needs a last message of role 'assistant'",
            ));
        }
        Ok(())
    }
}
