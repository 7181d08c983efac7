//! Log-probabilities in the three shapes that clients know: OpenAI's for chats, OpenAI's for completions, and vLLM's
//! `prompt_logprobs`.

use serde_json::{Map, Value, json};
use tokenmill_models::runner::TokenId;
use tokenmill_scheduler::request::TokenLogprobs;

use super::{
    generation::{Generation, PromptState},
    types::{
        chat::{ChatLogprobs, ChatTokenLogprob, ChatTopLogprob},
        completion::CompletionLogprobs,
    },
};
use crate::{
    prompt::Tokenizer,
    stream::{choice::OutputToken, detokenizer::Detokenizer},
};

/// What OpenAI's API shows for a token that cannot be; JSON has no −∞.
const MIN_LOGPROB: f32 = -9999.0;

/// Log-probabilities of output tokens in the shape of chats, if the client wants them.
pub(super) fn chat_logprobs(generation: &Generation, tokens: &[OutputToken]) -> Option<ChatLogprobs> {
    generation.params.output.num_logprobs?;
    let naming = Naming::of(generation);
    let mut content = Vec::with_capacity(tokens.len());
    for token in tokens {
        let Some(logprobs) = &token.logprobs else { continue };
        let (name, bytes) = naming.chat(token.id);
        let top_logprobs = logprobs.top.iter().map(|&(id, logprob)| {
            let (token, bytes) = naming.chat(id);
            ChatTopLogprob { token, logprob: finite(logprob), bytes }
        });
        content.push(ChatTokenLogprob {
            token: name,
            logprob: finite(logprobs.logprob),
            bytes,
            top_logprobs: top_logprobs.collect(),
        });
    }
    Some(ChatLogprobs { content, refusal: None })
}

/// Log-probabilities of output tokens in the shape of completions, if the client wants them. `base_offset` is the number
/// of characters before the generated text.
pub(super) fn completion_logprobs(
    generation: &Generation,
    tokens: &[OutputToken],
    base_offset: u64,
) -> Option<CompletionLogprobs> {
    generation.params.output.num_logprobs?;
    let naming = Naming::of(generation);
    let mut out = CompletionLogprobs::default();
    for token in tokens {
        let Some(logprobs) = &token.logprobs else { continue };
        naming.push(&mut out, token.id, Some(logprobs), base_offset + token.text_offset);
    }
    Some(out)
}

/// Log-probabilities of an echoed prompt in the shape of completions, if the client wants them.
pub(super) fn echoed_logprobs(generation: &Generation, prompt: &PromptState) -> Option<CompletionLogprobs> {
    let num_top = generation.params.output.num_logprobs?;
    let naming = Naming::of(generation);
    let tokenizer = generation.handle.tokenizer();
    let mut detokenizer = Detokenizer::new(tokenizer.clone(), false);
    let mut out = CompletionLogprobs::default();
    let mut offset = 0;
    for (idx, &id) in prompt.ids.iter().enumerate() {
        let logprobs = idx.checked_sub(1).and_then(|previous| prompt.logprobs.get(previous)).cloned();
        let logprobs = logprobs.map(|mut logprobs| {
            logprobs.top.truncate(num_top as usize);
            logprobs
        });
        naming.push(&mut out, id, logprobs.as_ref(), offset);
        let text = detokenizer.push(id);
        // A token that the tokenizer put before the text is no part of it.
        if idx > 0 || prompt.text.starts_with(&text) {
            offset += text.chars().count() as u64;
        }
    }
    Some(out)
}

/// vLLM's `prompt_logprobs`: null, then an object per token that maps ids to log-probabilities.
pub(super) fn prompt_logprobs(generation: &Generation, prompt: &PromptState) -> Option<Vec<Value>> {
    let num_top = generation.params.output.num_prompt_logprobs?;
    let tokenizer = generation.handle.tokenizer();
    let mut out = vec![Value::Null];
    for (id, logprobs) in prompt.ids.iter().skip(1).zip(&prompt.logprobs) {
        let mut entry = Map::new();
        for (rank, &(top_id, logprob)) in logprobs.top.iter().enumerate().take(num_top as usize) {
            let text = tokenizer.decode(&[top_id], false);
            entry.insert(
                top_id.to_string(),
                json!({"logprob": finite(logprob), "rank": rank + 1, "decoded_token": text}),
            );
        }
        let text = tokenizer.decode(&[*id], false);
        entry
            .entry(id.to_string())
            .or_insert_with(|| json!({"logprob": finite(logprobs.logprob), "rank": null, "decoded_token": text}));
        out.push(Value::Object(entry));
    }
    Some(out)
}

/// The number that clients see: the shortest decimal that stands for the same f32, wherever in the answer it is.
fn finite(logprob: f32) -> f64 {
    // `max` would also turn NaN into the bound, but the engine fails a sequence before it comes to that.
    let logprob = logprob.max(MIN_LOGPROB);
    logprob.to_string().parse().unwrap_or_else(|_| f64::from(logprob))
}

/// How tokens are named to this client.
struct Naming<'a> {
    tokenizer: &'a Tokenizer,
    as_ids: bool,
}

impl<'a> Naming<'a> {
    fn of(generation: &'a Generation) -> Self {
        Self { tokenizer: generation.handle.tokenizer(), as_ids: generation.params.output.tokens_as_ids }
    }

    fn chat(&self, id: TokenId) -> (String, Vec<u8>) {
        let bytes = self.tokenizer.token_bytes(id);
        if self.as_ids {
            return (format!("token_id:{id}"), bytes);
        }
        let name = std::str::from_utf8(&bytes).map_or_else(|_| escaped(&bytes), str::to_owned);
        (name, bytes)
    }

    fn completion(&self, id: TokenId) -> String {
        if self.as_ids {
            return format!("token_id:{id}");
        }
        let bytes = self.tokenizer.token_bytes(id);
        std::str::from_utf8(&bytes).map_or_else(|_| format!("bytes:{}", escaped(&bytes)), str::to_owned)
    }

    fn push(&self, out: &mut CompletionLogprobs, id: TokenId, logprobs: Option<&TokenLogprobs>, offset: u64) {
        let name = self.completion(id);
        let top = logprobs.map(|logprobs| {
            let mut top = Map::new();
            for &(top_id, logprob) in &logprobs.top {
                // Different tokens may have the same text: the likeliest keeps it.
                top.entry(self.completion(top_id)).or_insert_with(|| finite(logprob).into());
            }
            top.entry(name.clone()).or_insert_with(|| finite(logprobs.logprob).into());
            top
        });
        out.text_offset.push(offset);
        out.token_logprobs.push(logprobs.map(|logprobs| finite(logprobs.logprob)));
        out.tokens.push(name);
        out.top_logprobs.push(top);
    }
}

/// Bytes that are no text, as OpenAI writes them: `\xe4\xbd`.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 4);
    for byte in bytes {
        text.push_str(&format!("\\x{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_escaped() {
        assert_eq!(escaped(&[0xe4, 0x0a]), "\\xe4\\x0a");
    }

    #[test]
    fn impossible_tokens_have_a_number() {
        assert_eq!(finite(f32::NEG_INFINITY), -9999.0);
        assert_eq!(finite(-0.1), -0.1);
    }
}
