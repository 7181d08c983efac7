//! Counts and times that both generating endpoints report.

use serde::Serialize;

/// OpenAI's `CompletionUsage`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Tokens of all prompts, each prompt once however many choices it has.
    pub prompt_tokens: u64,
    /// Tokens of all choices, those that ended them included.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
    /// About the prompts.
    pub prompt_tokens_details: PromptTokensDetails,
    /// About the choices.
    pub completion_tokens_details: CompletionTokensDetails,
}

/// Part of [`Usage`].
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PromptTokensDetails {
    /// Found in the prefix cache.
    pub cached_tokens: u64,
    /// Always 0.
    pub audio_tokens: u64,
}

/// Part of [`Usage`].
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CompletionTokensDetails {
    /// Always 0: reasoning is not told apart.
    pub reasoning_tokens: u64,
    /// Always 0.
    pub audio_tokens: u64,
    /// Always 0: predictions are not supported.
    pub accepted_prediction_tokens: u64,
    /// Always 0.
    pub rejected_prediction_tokens: u64,
}

/// Times in llama.cpp's shape.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Timings {
    /// Prompt tokens found in the prefix cache.
    pub cache_n: u64,
    /// Prompt tokens computed.
    pub prompt_n: u64,
    /// From the first step to the first token.
    pub prompt_ms: f64,
    /// Per computed prompt token.
    pub prompt_per_token_ms: f64,
    /// Computed prompt tokens per second.
    pub prompt_per_second: f64,
    /// Output tokens.
    pub predicted_n: u64,
    /// From the first token to the last.
    pub predicted_ms: f64,
    /// Per output token after the first.
    pub predicted_per_token_ms: f64,
    /// Output tokens after the first per second.
    pub predicted_per_second: f64,
    /// Waiting for the first step. Not in llama.cpp's shape.
    pub queue_ms: f64,
}
