//! Answers of `/v1/chat/completions`.

use serde::Serialize;
use serde_json::Value;

use super::usage::{Timings, Usage};

/// An answer that is sent as a whole.
#[derive(Debug, Serialize)]
pub struct ChatCompletion {
    /// `chatcmpl-…`
    pub id: String,
    /// `chat.completion`
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// One per `n`.
    pub choices: Vec<ChatChoice>,
    /// Counts.
    pub usage: Usage,
    /// The tier that was used; there is one.
    pub service_tier: &'static str,
    /// Changes when results may change.
    pub system_fingerprint: String,
    /// With `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// With `prompt_logprobs`, in vLLM's shape.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<Value>>,
    /// Times.
    pub timings: Timings,
}

/// One choice of a [`ChatCompletion`].
#[derive(Debug, Serialize)]
pub struct ChatChoice {
    /// Its number.
    pub index: u32,
    /// What the model says.
    pub message: ChatMessage,
    /// With `logprobs`, else null.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop` or `length`.
    pub finish_reason: &'static str,
    /// The stop string or token id that ended it, as in vLLM.
    pub stop_reason: Option<Value>,
    /// With `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// The message of a [`ChatChoice`].
#[derive(Debug, Serialize)]
pub struct ChatMessage {
    /// `assistant`
    pub role: &'static str,
    /// The text.
    pub content: String,
    /// Always null.
    pub refusal: Option<String>,
    /// Always empty.
    pub annotations: [Value; 0],
}

/// Log-probabilities of a choice or of a chunk.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatLogprobs {
    /// One per token.
    pub content: Vec<ChatTokenLogprob>,
    /// Always null.
    pub refusal: Option<Vec<ChatTokenLogprob>>,
}

/// One token of [`ChatLogprobs`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatTokenLogprob {
    /// Its text; bytes that are no text as `\xe4`.
    pub token: String,
    /// Natural logarithm; −9999 for a token that cannot be.
    pub logprob: f64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The most likely tokens at its place, best first.
    pub top_logprobs: Vec<ChatTopLogprob>,
}

/// One alternative of a [`ChatTokenLogprob`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatTopLogprob {
    /// Its text.
    pub token: String,
    /// Natural logarithm.
    pub logprob: f64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// One event of a streamed answer.
#[derive(Debug, Serialize)]
pub struct ChatChunk<'a> {
    /// The same in all chunks.
    pub id: &'a str,
    /// `chat.completion.chunk`
    pub object: &'static str,
    /// The same in all chunks.
    pub created: u64,
    /// The model's name.
    pub model: &'a str,
    /// The tier that was used; there is one.
    pub service_tier: &'static str,
    /// Changes when results may change.
    pub system_fingerprint: &'a str,
    /// One, or none in the chunk with the usage.
    pub choices: Vec<ChatChunkChoice>,
    /// Absent, null or the counts, by `stream_options`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// In the first chunk, with `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<&'a [u32]>,
    /// In the last chunk, or all with `timings_per_token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
    /// With `include_obfuscation`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub obfuscation: Option<String>,
}

/// The choice of a [`ChatChunk`].
#[derive(Debug, Serialize)]
pub struct ChatChunkChoice {
    /// Its number.
    pub index: u32,
    /// What is new.
    pub delta: ChatDelta,
    /// With `logprobs`, else null.
    pub logprobs: Option<ChatLogprobs>,
    /// Null but in the last chunk.
    pub finish_reason: Option<&'static str>,
    /// The stop string or token id that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<Value>,
    /// With `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// What a chunk adds to the message.
#[derive(Debug, Default, Serialize)]
pub struct ChatDelta {
    /// In the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Text to append.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}
