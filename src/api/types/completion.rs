//! Answers of `/v1/completions`; streamed and not, they share one shape.

use serde::Serialize;
use serde_json::{Map, Value};

use super::usage::{Timings, Usage};

/// An answer, or one event of a streamed answer.
#[derive(Debug, Serialize)]
pub struct Completion<'a> {
    /// `cmpl-…`
    pub id: &'a str,
    /// `text_completion`
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model's name.
    pub model: &'a str,
    /// Changes when results may change.
    pub system_fingerprint: &'a str,
    /// All choices, the one that a chunk adds to, or none in the chunk with the usage.
    pub choices: Vec<CompletionChoice>,
    /// Absent, null or the counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// At the end, or always with `timings_per_token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
    /// With `include_obfuscation`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub obfuscation: Option<String>,
}

/// One choice.
#[derive(Debug, Serialize)]
pub struct CompletionChoice {
    /// Its number: choice `j` of prompt `i` is `i * n + j`.
    pub index: u32,
    /// The text, or what a chunk adds to it.
    pub text: String,
    /// With `logprobs`, else null.
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop`, `length`, or null before the end.
    pub finish_reason: Option<&'static str>,
    /// The stop string or token id that ended it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<Value>,
    /// With `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// With `return_token_ids`, in the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// With `prompt_logprobs`, in vLLM's shape.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<Value>>,
}

/// Log-probabilities: four lists of the same length.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CompletionLogprobs {
    /// Characters of the text before each token, an echoed prompt included.
    pub text_offset: Vec<u64>,
    /// Natural logarithms; null for the first token of a prompt.
    pub token_logprobs: Vec<Option<f64>>,
    /// Texts; bytes that are no text as `bytes:\xe4`.
    pub tokens: Vec<String>,
    /// The most likely tokens at each place and the token itself; null for the first token of a prompt.
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
}
