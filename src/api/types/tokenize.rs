//! Answers of `/tokenize` and `/detokenize`, fit for clients of vLLM and of llama.cpp.

use serde::Serialize;
use serde_json::Value;

/// Answer of `/tokenize`.
#[derive(Debug, Serialize)]
pub struct Tokenized {
    /// How many tokens.
    pub count: usize,
    /// Tokens that prompt and answer may have together.
    pub max_model_len: u32,
    /// Ids, or `{id, piece}` objects with `with_pieces`.
    pub tokens: Value,
    /// With `return_token_strs`.
    pub token_strs: Option<Vec<String>>,
}

/// Answer of `/detokenize`.
#[derive(Debug, Serialize)]
pub struct Detokenized {
    /// The text, by vLLM's name.
    pub prompt: String,
    /// The text, by llama.cpp's name.
    pub content: String,
}
