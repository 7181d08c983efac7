//! Special tokens that users write stay text.
//!
//! A conversation may contain the text of a special token, such as `<|im_end|>`. Rendered and encoded like the
//! template's own, it would end a message and let its writer speak as somebody else. So before rendering each such
//! text becomes a word that occurs nowhere else ([`Disguise`]), and the pieces of the prompt that hold such words are
//! encoded as plain text. A conversation without such text takes the ordinary path, with exactly the reference's ids.

use serde_json::{Map, Value};

use super::special::SpecialTokens;
use super::tokenizer::{Special, TokenId, Tokenizer, TokenizerError};

/// Words that stand for the text of special tokens while a template renders.
#[derive(Debug)]
pub(super) struct Disguise<'a> {
    tokens: &'a SpecialTokens,
    /// Letters and digits only, so that no filter of a template changes it.
    word: String,
}

/// Digits after the word: the place of the token in the list.
const NUM_DIGITS: usize = 6;

impl<'a> Disguise<'a> {
    /// A disguise for the conversation `parts`, or `None` where no part holds the text of a special token.
    pub(super) fn for_parts(tokens: &'a SpecialTokens, parts: &[&Value]) -> Option<Self> {
        if !parts.iter().any(|part| holds_any(part, tokens)) {
            return None;
        }
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(part.to_string().as_bytes());
        }
        // No text holds a hash of itself.
        let word = format!("literal{}", &hasher.finalize().to_hex()[..32]);
        Some(Self { tokens, word })
    }

    /// `value` with every special token in its strings and keys disguised.
    pub(super) fn apply(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.apply_text(text)),
            Value::Array(items) => Value::Array(items.iter().map(|item| self.apply(item)).collect()),
            Value::Object(map) => Value::Object(self.apply_map(map)),
            other => other.clone(),
        }
    }

    /// See [`Disguise::apply`].
    pub(super) fn apply_map(&self, map: &Map<String, Value>) -> Map<String, Value> {
        map.iter().map(|(key, value)| (self.apply_text(key), self.apply(value))).collect()
    }

    fn apply_text(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((start, idx)) = self.tokens.find(rest) {
            out.push_str(&rest[..start]);
            out.push_str(&format!("{}{idx:0NUM_DIGITS$}", self.word));
            rest = &rest[start + self.tokens.tokens()[idx].content.len()..];
        }
        out.push_str(rest);
        out
    }

    /// `text` with the special tokens in their own spelling again.
    pub(super) fn remove(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find(&self.word) {
            out.push_str(&rest[..start]);
            rest = &rest[start + self.word.len()..];
            let token = rest.get(..NUM_DIGITS).and_then(|digits| digits.parse::<usize>().ok());
            if let Some(token) = token.and_then(|idx| self.tokens.tokens().get(idx)) {
                out.push_str(&token.content);
                rest = &rest[NUM_DIGITS..];
            }
        }
        out.push_str(rest);
        out
    }

    /// Token ids of a rendered prompt: its own special tokens are tokens, disguised ones are text.
    ///
    /// The prompt is cut at its special tokens, where an encoder cuts it as well; so a piece encoded alone has the ids
    /// that it has in the whole.
    pub(super) fn encode(&self, tokenizer: &Tokenizer, rendered: &str) -> Result<Vec<TokenId>, TokenizerError> {
        let mut ids = Vec::new();
        // `rendered[parsed..piece]` waits to be encoded with its special tokens; the piece is what follows the last.
        let (mut parsed, mut piece) = (0, 0);
        loop {
            let next = self.tokens.find(&rendered[piece..]).map(|(start, idx)| (piece + start, idx));
            let (mut end, mut next_piece) = (rendered.len(), rendered.len());
            if let Some((start, idx)) = next {
                let token = &self.tokens.tokens()[idx];
                next_piece = start + token.content.len();
                end = start;
                if token.takes_left_space {
                    end = piece + rendered[piece..end].trim_end().len();
                }
                if token.takes_right_space {
                    next_piece = rendered.len() - rendered[next_piece..].trim_start().len();
                }
            }
            if rendered[piece..end].contains(&self.word) {
                if parsed < piece {
                    ids.extend(tokenizer.encode(&rendered[parsed..piece], Special::Parse, false)?);
                }
                ids.extend(tokenizer.encode(&self.remove(&rendered[piece..end]), Special::Text, false)?);
                parsed = end;
            }
            if next.is_none() {
                if parsed < end {
                    ids.extend(tokenizer.encode(&rendered[parsed..end], Special::Parse, false)?);
                }
                return Ok(ids);
            }
            piece = next_piece;
        }
    }
}

fn holds_any(value: &Value, tokens: &SpecialTokens) -> bool {
    match value {
        Value::String(text) => tokens.find(text).is_some(),
        Value::Array(items) => items.iter().any(|item| holds_any(item, tokens)),
        Value::Object(map) => map.iter().any(|(key, item)| tokens.find(key).is_some() || holds_any(item, tokens)),
        _ => false,
    }
}
