//! A folder's tokenizer as GGUF holds it.
//!
//! GGUF has no place for a splitting rule, only for its name. The name is found by trying: the vocabulary is read back
//! under each known name, and the one under which a text full of corner cases gives the folder's own tokens is written.
//! So what is written has been read, and a tokenizer that no name describes is refused.

use std::path::Path;

use serde_json::Value;
use tokenmill_models::runner::TokenId;
use tokenmill_models::weights::gguf_writer::GgufHeader;

use super::QuantizeError;
use crate::prompt::{Special, Tokenizer, Vocabulary};

/// Names of splitting rules, the common ones first.
const RULES: &[&str] =
    &["llama-bpe", "qwen2", "gpt-2", "smollm", "smaug-bpe", "stablelm2", "deepseek-coder", "default"];
/// Contractions, digits, spaces, letters with marks, other scripts, symbols: what splitting rules differ in.
const PROBE: &str = "Hello, it's we'LL they'Ve I'm  two   spaces\tTab\n\n new\r\nline 1 12 123 1234567 3.14159 x=42; \
                     caf\u{e9} cafe\u{301} \u{df}\u{e5}\u{f1} \u{4f60}\u{597d}\u{4e16}\u{754c} \u{3053}\u{3093} \u{410}\u{431}\u{432} \
                     \u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{e2a}\u{e27}\u{e31}\u{e2a} \u{1f600}\u{1f3fd} a_b-c/d\\e <tag> &amp; $100 50% \
                     #!@ ... --- '' \"\" ''s f(x)[i]{j} \u{2014}\u{2026}\u{a0}\u{3000} end \n  \n ";

/// What the model's configuration says of tokens.
pub(super) struct Ids<'a> {
    /// Tokens after which generation ends.
    pub(super) eos: &'a [TokenId],
    /// Rows of the embedding.
    pub(super) vocab_size: usize,
}

/// Token types of GGUF.
mod kind {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const UNUSED: i32 = 5;
}

/// Vocabulary, merges and types of a tokenizer.json.
struct Lists {
    tokens: Vec<String>,
    types: Vec<i32>,
    merges: Vec<String>,
}

/// Writes the tokenizer and the chat templates of the folder at `dir`.
///
/// # Errors
/// [`QuantizeError::Tokenizer`] when it cannot be read, [`QuantizeError::Translate`] when GGUF cannot say it.
pub(super) fn put_into(dir: &Path, header: &mut GgufHeader, ids: &Ids<'_>) -> Result<(), QuantizeError> {
    let path = dir.join("tokenizer.json");
    let refuse = |reason: &str| QuantizeError::Translate { path: path.clone(), reason: reason.to_owned() };
    let folder = Tokenizer::from_folder(dir)?;
    let lists = Lists::read(&path, ids.vocab_size)?;
    let bos = folder.bos_token().and_then(|token| folder.token_id(token));
    // The model's configuration says where generation ends; the tokenizer, which of these tokens is the usual one.
    let named = folder.eos_token().and_then(|token| folder.token_id(token));
    let usual = named.filter(|id| ids.eos.is_empty() || ids.eos.contains(id)).or(ids.eos.first().copied());
    let others = ids.eos.iter().copied().filter(|id| Some(*id) != usual);
    let ends: Vec<TokenId> = usual.into_iter().chain(others).collect();
    let eos = ends.first().copied();
    let adds_bos = bos.is_some() && folder.encode("a", Special::Text, true)?.first().copied() == bos;
    let vocabulary = |rule: &str| Vocabulary {
        model: "gpt2".to_owned(),
        pre: Some(rule.to_owned()),
        tokens: lists.tokens.iter().collect(),
        token_types: lists.types.clone(),
        merges: lists.merges.iter().collect(),
        bos_token_id: bos,
        eos_token_id: eos,
        add_bos_token: Some(adds_bos),
        ..Vocabulary::default()
    };
    let expected = folder.encode(PROBE, Special::Parse, true)?;
    let found = RULES.iter().find(|rule| {
        let read = Tokenizer::from_vocabulary(vocabulary(rule));
        read.is_ok_and(|read| read.encode(PROBE, Special::Parse, true).is_ok_and(|ids| ids == expected))
    });
    let rule = found.ok_or_else(|| refuse("no splitting rule that GGUF has a name for splits texts as it does"))?;
    header.put_str("tokenizer.ggml.model", "gpt2");
    header.put_str("tokenizer.ggml.pre", rule);
    header.put_strs("tokenizer.ggml.tokens", &lists.tokens);
    header.put_i32s("tokenizer.ggml.token_type", &lists.types);
    header.put_strs("tokenizer.ggml.merges", &lists.merges);
    // GGUF has three keys for tokens that end something; readers stop at each.
    let ends = ["eos", "eot", "eom"].into_iter().zip(ends);
    for (key, id) in bos.map(|id| ("bos", id)).into_iter().chain(ends) {
        header.put_u32(&format!("tokenizer.ggml.{key}_token_id"), id);
    }
    header.put_bool("tokenizer.ggml.add_bos_token", adds_bos);
    for (name, source) in folder.chat_templates() {
        match name.as_str() {
            "default" => header.put_str("tokenizer.chat_template", source),
            name => header.put_str(&format!("tokenizer.chat_template.{name}"), source),
        }
    }
    Ok(())
}

impl Lists {
    fn read(path: &Path, vocab_size: usize) -> Result<Self, QuantizeError> {
        let refuse = |reason: String| QuantizeError::Translate { path: path.to_owned(), reason };
        // `Tokenizer::from_folder` has read the file before and checked its size.
        let text = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
        let root: Value = serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
        drop(text);
        let model = &root["model"];
        let is_byte_level =
            [&root["decoder"], &root["pre_tokenizer"]].into_iter().any(|part| mentions(part, "ByteLevel"));
        if model["type"].as_str().is_some_and(|kind| kind != "BPE") || !is_byte_level {
            return Err(refuse("only byte-level BPE is translated; use a GGUF file of this model".to_owned()));
        }
        let mut lists = Self { tokens: Vec::new(), types: Vec::new(), merges: Vec::new() };
        for (piece, id) in model["vocab"].as_object().into_iter().flatten() {
            lists.put(id, piece, kind::NORMAL, vocab_size).map_err(refuse)?;
        }
        for token in root["added_tokens"].as_array().into_iter().flatten() {
            let kind = if token["special"] == true { kind::CONTROL } else { kind::USER_DEFINED };
            let content = token["content"].as_str().unwrap_or_default();
            lists.put(&token["id"], content, kind, vocab_size).map_err(refuse)?;
        }
        // Rows of the embedding that no token has.
        for id in lists.tokens.len()..vocab_size {
            lists.fill(id);
        }
        for merge in model["merges"].as_array().into_iter().flatten() {
            let text = match merge {
                Value::String(text) => text.clone(),
                Value::Array(pair) => pair.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
                other => return Err(refuse(format!("{other} is no merge"))),
            };
            lists.merges.push(text);
        }
        Ok(lists)
    }

    fn put(&mut self, id: &Value, piece: &str, kind: i32, vocab_size: usize) -> Result<(), String> {
        let found = id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|id| *id < vocab_size);
        let id =
            found.ok_or_else(|| format!("token '{piece}' has the id {id}, but the embedding has {vocab_size} rows"))?;
        while self.tokens.len() <= id {
            self.fill(self.tokens.len());
        }
        piece.clone_into(&mut self.tokens[id]);
        self.types[id] = kind;
        Ok(())
    }

    fn fill(&mut self, id: usize) {
        self.tokens.push(format!("[PAD{id}]"));
        self.types.push(kind::UNUSED);
    }
}

/// Whether some `type` in it is `kind`.
fn mentions(part: &Value, kind: &str) -> bool {
    match part {
        Value::Object(fields) => {
            fields.get("type").is_some_and(|value| value == kind) || fields.values().any(|value| mentions(value, kind))
        }
        Value::Array(parts) => parts.iter().any(|part| mentions(part, kind)),
        _ => false,
    }
}
