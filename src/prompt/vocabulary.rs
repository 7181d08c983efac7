//! Vocabularies as GGUF files hold them: pieces with scores and types, merges, and flags instead of rules.
//!
//! Used by `Tokenizer::from_vocabulary`, which has `super::assembly` build a tokenizer from them.

use std::collections::BTreeMap;

use tokenmill_models::LoadError;
use tokenmill_models::weights::gguf::GgufMetadata;

pub use super::model::TextList;
use super::tokenizer::{TokenId, TokenizerError};

/// The `tokenizer.*` metadata of a GGUF file.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary {
    /// `tokenizer.ggml.model`: `gpt2` is byte-level BPE, `llama` SentencePiece's BPE, `t5` unigram, `bert` word pieces.
    pub model: String,
    /// `tokenizer.ggml.pre`, the splitting rule; `None` reads as `default`.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`, by id.
    pub tokens: TextList,
    /// `tokenizer.ggml.token_type`, by id: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.scores`, by id.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.merges`: two pieces with a space between, first merge first.
    pub merges: TextList,
    /// `tokenizer.ggml.precompiled_charsmap`: characters that are replaced first, in SentencePiece's compiled form.
    pub charsmap: Vec<u8>,
    /// `tokenizer.ggml.bos_token_id`
    pub bos_token_id: Option<TokenId>,
    /// `tokenizer.ggml.eos_token_id`
    pub eos_token_id: Option<TokenId>,
    /// `tokenizer.ggml.unknown_token_id`
    pub unknown_token_id: Option<TokenId>,
    /// `tokenizer.ggml.cls_token_id`: BERT's first token.
    pub cls_token_id: Option<TokenId>,
    /// `tokenizer.ggml.seperator_token_id` (sic): BERT's last token.
    pub sep_token_id: Option<TokenId>,
    /// `tokenizer.ggml.add_bos_token`; without it the model's habit decides.
    pub add_bos_token: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`
    pub add_eos_token: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.ggml.remove_extra_whitespaces`
    pub remove_extra_whitespaces: Option<bool>,
    /// `tokenizer.ggml.normalizer.lowercase`: of word pieces.
    pub lowercase: Option<bool>,
    /// `tokenizer.ggml.normalizer.strip_accents`: of word pieces.
    pub strip_accents: Option<bool>,
    /// `general.name`: one family's special tokens take the white space after them, which no key says.
    pub model_name: Option<String>,
    /// `tokenizer.chat_template` as `default`, `tokenizer.chat_template.NAME` as `NAME`.
    pub chat_templates: BTreeMap<String, String>,
}

/// Kinds of tokens.
pub(super) mod token_type {
    pub(in super::super) const NORMAL: i32 = 1;
    pub(in super::super) const UNKNOWN: i32 = 2;
    pub(in super::super) const CONTROL: i32 = 3;
    pub(in super::super) const USER_DEFINED: i32 = 4;
    pub(in super::super) const UNUSED: i32 = 5;
}

impl Vocabulary {
    /// Reads the keys that the fields name.
    ///
    /// # Errors
    /// [`TokenizerError::Invalid`] when a key has another type, or there is no vocabulary.
    pub fn from_gguf(metadata: &GgufMetadata) -> Result<Self, TokenizerError> {
        let keys = Keys(metadata);
        let mut chat_templates = BTreeMap::new();
        for (key, value) in metadata.iter() {
            let Some(name) = key.strip_prefix("tokenizer.chat_template") else { continue };
            let name = if name.is_empty() { "default" } else { name.trim_start_matches('.') };
            // `tokenizer.chat_templates` lists the names of the others.
            if let (Some(source), false) = (value.as_str(), name == "s") {
                chat_templates.insert(name.to_owned(), source.to_owned());
            }
        }
        let model = keys.text("tokenizer.ggml.model")?;
        let sep_token_id = match keys.id("seperator_token_id")? {
            Some(id) => Some(id),
            None => keys.id("separator_token_id")?,
        };
        Ok(Self {
            model: model.ok_or_else(|| TokenizerError::Invalid("tokenizer.ggml.model is missing".to_owned()))?,
            pre: keys.text("tokenizer.ggml.pre")?,
            tokens: keys.strings("tokens")?,
            token_types: keys.integers("token_type")?,
            scores: keys.numbers("scores")?,
            merges: keys.strings("merges")?,
            charsmap: keys.bytes("precompiled_charsmap")?,
            bos_token_id: keys.id("bos_token_id")?,
            eos_token_id: keys.id("eos_token_id")?,
            unknown_token_id: keys.id("unknown_token_id")?,
            cls_token_id: keys.id("cls_token_id")?,
            sep_token_id,
            add_bos_token: keys.flag("add_bos_token")?,
            add_eos_token: keys.flag("add_eos_token")?,
            add_space_prefix: keys.flag("add_space_prefix")?,
            remove_extra_whitespaces: keys.flag("remove_extra_whitespaces")?,
            lowercase: keys.flag("normalizer.lowercase")?,
            strip_accents: keys.flag("normalizer.strip_accents")?,
            model_name: keys.text("general.name")?,
            chat_templates,
        })
    }

    /// The type of token `id`; files without types have only normal ones.
    pub(super) fn token_type(&self, id: TokenId) -> i32 {
        self.token_types.get(id as usize).copied().unwrap_or(token_type::NORMAL)
    }

    /// The token `id`, where it is in the vocabulary.
    pub(super) fn token(&self, id: TokenId) -> Option<&str> {
        let id = usize::try_from(id).ok().filter(|&id| id < self.tokens.len())?;
        Some(self.tokens.get(id))
    }
}

/// Typed reading of `tokenizer.ggml.*`.
struct Keys<'a>(&'a GgufMetadata);

impl Keys<'_> {
    fn full(name: &str) -> String {
        format!("tokenizer.ggml.{name}")
    }

    fn text(&self, key: &str) -> Result<Option<String>, TokenizerError> {
        self.0.str(key).map(|text| text.map(str::to_owned)).map_err(invalid)
    }

    fn id(&self, name: &str) -> Result<Option<TokenId>, TokenizerError> {
        self.0.u32(&Self::full(name)).map_err(invalid)
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, TokenizerError> {
        self.0.bool(&Self::full(name)).map_err(invalid)
    }

    fn strings(&self, name: &str) -> Result<TextList, TokenizerError> {
        let array = self.0.string_array(&Self::full(name)).map_err(invalid)?;
        Ok(array.map(|array| array.strings().collect()).unwrap_or_default())
    }

    fn integers(&self, name: &str) -> Result<Vec<i32>, TokenizerError> {
        let Some(array) = self.0.array(&Self::full(name)).map_err(invalid)? else { return Ok(Vec::new()) };
        let numbers = array.iter().map(|value| value.as_i64().and_then(|number| i32::try_from(number).ok()));
        numbers.collect::<Option<_>>().ok_or_else(|| Self::not_numbers(name))
    }

    fn numbers(&self, name: &str) -> Result<Vec<f32>, TokenizerError> {
        let Some(array) = self.0.array(&Self::full(name)).map_err(invalid)? else { return Ok(Vec::new()) };
        // Some files hold scores as integers; none comes near the limit of exactness.
        #[expect(clippy::cast_precision_loss, reason = "scores are small")]
        let numbers = array.iter().map(|value| value.as_f32().or_else(|| value.as_i64().map(|number| number as f32)));
        numbers.collect::<Option<_>>().ok_or_else(|| Self::not_numbers(name))
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>, TokenizerError> {
        let Some(array) = self.0.array(&Self::full(name)).map_err(invalid)? else { return Ok(Vec::new()) };
        // Bytes may be written signed or unsigned.
        let byte = |number: i64| u8::try_from(number).ok().or_else(|| i8::try_from(number).ok().map(i8::cast_unsigned));
        let bytes = array.iter().map(|value| value.as_i64().and_then(byte));
        bytes.collect::<Option<_>>().ok_or_else(|| Self::not_numbers(name))
    }

    fn not_numbers(name: &str) -> TokenizerError {
        TokenizerError::Invalid(format!("tokenizer.ggml.{name} holds something else than numbers"))
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn invalid(error: LoadError) -> TokenizerError {
    TokenizerError::Invalid(error.to_string())
}
