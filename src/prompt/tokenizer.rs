//! Text to token ids and back.
//!
//! Encoding is the `tokenizers` crate's pipeline around models of our own ([`TextModel`]); decoding is our own table of
//! pieces ([`Pieces`]), because a streamed answer needs the bytes of each token. Invariant: `decode` equals that crate's `decode` for every list of ids.
//! Used by the prompt encoder, the detokenizer and `/tokenize`; a [`Tokenizer`] is shared through an `Arc`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokenizers::{AddedToken, DecoderWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl};

use tokenmill_models::weights::gguf::GgufMetadata;

use super::assembly;
use super::model::TextModel;
use super::pieces::{Pieces, TextAssembler};
use super::sentencepiece::TextNormalizer;
use super::special::SpecialTokens;
use super::vocabulary::Vocabulary;

pub use tokenmill_models::runner::TokenId;

/// Longest text that [`Tokenizer::encode`] accepts, in bytes. Encoding costs one to two microseconds a byte, so this
/// bounds a request's share of a core to seconds; a caller with a shorter context checks earlier.
pub const MAX_TEXT_BYTES: usize = 4 << 20;

/// Largest tokenizer file that is read, in bytes; published ones stay below 40 MB.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// What [`Tokenizer::encode`] does with the text of a special token, such as `<|im_end|>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// It becomes that token: for rendered templates.
    Parse,
    /// It is text like any other: for what users write.
    Text,
}

/// Why a tokenizer could not be built, or a text not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file is missing or unreadable.
    #[error("{} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file or vocabulary contradicts itself.
    #[error("the tokenizer is damaged: {0}")]
    Invalid(String),
    /// The tokenizer is of a kind that is not implemented.
    #[error("the tokenizer is not supported: {0}")]
    Unsupported(String),
    /// The text is longer than [`MAX_TEXT_BYTES`].
    #[error("the text has {len} bytes, more than the {max} that one request may have tokenized")]
    TooLong {
        /// Bytes of the text.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The splitting rule gave up on the text.
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
}

/// A model's vocabulary with its rules; see the module.
pub struct Tokenizer {
    parsing: Core,
    /// The same model, with special tokens taken as text.
    literal: Core,
    pieces: Pieces,
    special_tokens: SpecialTokens,
    bos_token: Option<String>,
    eos_token: Option<String>,
    chat_templates: BTreeMap<String, String>,
}

pub(super) type Core =
    TokenizerImpl<TextModel, TextNormalizer, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

impl Tokenizer {
    /// Reads `tokenizer.json` and, for the names of the first and last token and for the chat templates,
    /// `tokenizer_config.json`, `chat_template.jinja` and `additional_chat_templates/` of a Hugging Face folder.
    ///
    /// # Errors
    /// [`TokenizerError::Read`] without a `tokenizer.json`, else as [`Tokenizer::from_json`].
    pub fn from_folder(dir: &Path) -> Result<Self, TokenizerError> {
        let json = read_file(&dir.join("tokenizer.json"))?;
        let mut tokenizer = Self::from_json(&json)?;
        drop(json);
        let config_path = dir.join("tokenizer_config.json");
        if config_path.exists() {
            let config: FolderConfig = serde_json::from_slice(&read_file(&config_path)?)
                .map_err(|error| TokenizerError::Invalid(format!("tokenizer_config.json: {error}")))?;
            tokenizer.bos_token = config.bos_token.and_then(TokenName::into_content);
            tokenizer.eos_token = config.eos_token.and_then(TokenName::into_content);
            tokenizer.chat_templates = config.chat_template.map(TemplateField::into_map).unwrap_or_default();
        }
        let template_path = dir.join("chat_template.jinja");
        if template_path.exists() {
            tokenizer.chat_templates.insert("default".to_owned(), read_text(&template_path)?);
        }
        if let Ok(entries) = std::fs::read_dir(dir.join("additional_chat_templates")) {
            for path in entries.flatten().map(|entry| entry.path()) {
                let name = path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
                if let (Some(name), true) = (name, path.extension().is_some_and(|extension| extension == "jinja")) {
                    tokenizer.chat_templates.insert(name, read_text(&path)?);
                }
            }
        }
        Ok(tokenizer)
    }

    /// Builds a tokenizer from the bytes of a `tokenizer.json`; it knows no chat template and no `bos_token`.
    ///
    /// # Errors
    /// [`TokenizerError::Unsupported`] for unknown models and decoders, [`TokenizerError::Invalid`] for anything that
    /// does not parse.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        let core: Core = serde_json::from_slice(json).map_err(|error| match model_type(json) {
            Some(kind) if !["BPE", "Unigram", "WordPiece", "WordLevel"].contains(&kind.as_str()) => {
                TokenizerError::Unsupported(format!("its model is {kind:?}"))
            }
            _ => TokenizerError::Invalid(format!("tokenizer.json: {error}")),
        })?;
        Self::from_core(core)
    }

    /// Builds a tokenizer from the metadata of a GGUF file.
    ///
    /// # Errors
    /// As [`Tokenizer::from_vocabulary`]; [`TokenizerError::Invalid`] also for keys of the wrong type.
    pub fn from_gguf(metadata: &GgufMetadata) -> Result<Self, TokenizerError> {
        Self::from_vocabulary(Vocabulary::from_gguf(metadata)?)
    }

    /// Builds a tokenizer from a vocabulary as GGUF files hold it.
    ///
    /// # Errors
    /// [`TokenizerError::Unsupported`] for unknown models and splitting rules.
    pub fn from_vocabulary(vocabulary: Vocabulary) -> Result<Self, TokenizerError> {
        let token_name = |id: Option<TokenId>| id.and_then(|id| vocabulary.token(id)).map(str::to_owned);
        let (bos_token, eos_token) = (token_name(vocabulary.bos_token_id), token_name(vocabulary.eos_token_id));
        let chat_templates = vocabulary.chat_templates.clone();
        let mut tokenizer = Self::from_core(assembly::build(vocabulary)?)?;
        tokenizer.bos_token = bos_token;
        tokenizer.eos_token = eos_token;
        tokenizer.chat_templates = chat_templates;
        Ok(tokenizer)
    }

    fn from_core(mut core: Core) -> Result<Self, TokenizerError> {
        let invalid = |error: tokenizers::Error| TokenizerError::Invalid(error.to_string());
        core.with_truncation(None).map_err(invalid)?;
        core.with_padding(None);
        let mut added: Vec<(TokenId, AddedToken)> = core.get_added_tokens_decoder().into_iter().collect();
        added.sort_unstable_by_key(|(id, _)| *id);

        let special: Vec<TokenId> = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        let mut literal = TokenizerImpl::new(core.get_model().without(&special));
        literal.with_normalizer(core.get_normalizer().cloned()).map_err(invalid)?;
        literal.with_pre_tokenizer(core.get_pre_tokenizer().cloned());
        literal.with_post_processor(core.get_post_processor().cloned());
        literal.add_tokens(added.iter().map(|(_, token)| token.clone())).map_err(invalid)?;
        literal.set_encode_special_tokens(true);

        let pieces = Pieces::new(core.get_model(), core.get_decoder(), &added)?;
        let special_tokens = SpecialTokens::new(added.iter().map(|(_, token)| token));
        Ok(Self {
            parsing: core,
            literal,
            pieces,
            special_tokens,
            bos_token: None,
            eos_token: None,
            chat_templates: BTreeMap::new(),
        })
    }

    /// Token ids of `text`; `add_special_tokens` lets the tokenizer put its first token (BOS) before them, if it has
    /// such a rule. Time is linear in the text.
    ///
    /// # Errors
    /// [`TokenizerError::TooLong`] before any work is done, [`TokenizerError::Encode`] when the splitting rule fails.
    pub fn encode(
        &self,
        text: &str,
        special: Special,
        add_special_tokens: bool,
    ) -> Result<Vec<TokenId>, TokenizerError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(TokenizerError::TooLong { len: text.len(), max: MAX_TEXT_BYTES });
        }
        let core = match special {
            Special::Parse => &self.parsing,
            Special::Text => &self.literal,
        };
        let encoding =
            core.encode_fast(text, add_special_tokens).map_err(|error| TokenizerError::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of `ids`; bytes that are not UTF-8 become U+FFFD, ids outside the vocabulary nothing.
    #[must_use]
    pub fn decode(&self, ids: &[TokenId], skip_special: bool) -> String {
        let mut assembler = TextAssembler::new(&self.pieces);
        let mut text = String::new();
        for &id in ids {
            if !(skip_special && self.is_special(id)) {
                assembler.push(&self.pieces, id, &mut text);
            }
        }
        assembler.finish(&self.pieces, &mut text);
        text
    }

    /// The raw bytes that token `id` stands for, which may be part of a character; empty outside the vocabulary.
    #[must_use]
    pub fn token_bytes(&self, id: TokenId) -> Vec<u8> {
        self.pieces.bytes(id).to_vec()
    }

    /// The vocabulary's own spelling of token `id`, such as `Ġhello`.
    #[must_use]
    pub fn token_text(&self, id: TokenId) -> Option<String> {
        self.parsing.id_to_token(id)
    }

    /// Whether `id` is a special token, which a reader of text does not see.
    #[must_use]
    pub fn is_special(&self, id: TokenId) -> bool {
        self.pieces.is_special(id)
    }

    /// One more than the largest id; a model's rows of logits may be longer.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The id of a vocabulary piece, special tokens included.
    #[must_use]
    pub fn token_id(&self, piece: &str) -> Option<TokenId> {
        self.parsing.token_to_id(piece)
    }

    /// The special tokens.
    #[must_use]
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special_tokens
    }

    /// The text of the token that starts a sequence, where the model's files name one.
    #[must_use]
    pub fn bos_token(&self) -> Option<&str> {
        self.bos_token.as_deref()
    }

    /// The text of the token that ends a sequence, where the model's files name one.
    #[must_use]
    pub fn eos_token(&self) -> Option<&str> {
        self.eos_token.as_deref()
    }

    /// Sources of the model's chat templates by name; the usual one is `default`.
    #[must_use]
    pub fn chat_templates(&self) -> &BTreeMap<String, String> {
        &self.chat_templates
    }

    /// What the `tokenizers` crate decodes, for tests.
    #[cfg(test)]
    pub(crate) fn reference_decode(&self, ids: &[TokenId], skip_special: bool) -> String {
        self.parsing.decode(ids, skip_special).unwrap()
    }

    pub(crate) fn pieces(&self) -> &Pieces {
        &self.pieces
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct FolderConfig {
    bos_token: Option<TokenName>,
    eos_token: Option<TokenName>,
    chat_template: Option<TemplateField>,
}

/// A token's name is a string or an object with `content`; old files also have other things here.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenName {
    Name(String),
    Object { content: String },
    Other(serde::de::IgnoredAny),
}

impl TokenName {
    fn into_content(self) -> Option<String> {
        match self {
            Self::Name(content) | Self::Object { content } => Some(content),
            Self::Other(_) => None,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TemplateField {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl TemplateField {
    fn into_map(self) -> BTreeMap<String, String> {
        match self {
            Self::One(template) => BTreeMap::from([("default".to_owned(), template)]),
            Self::Named(list) => list.into_iter().map(|entry| (entry.name, entry.template)).collect(),
        }
    }
}

/// `model.type` of a `tokenizer.json`, for the error message about a model that is not known.
fn model_type(json: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct File {
        model: Kind,
    }
    #[derive(Deserialize)]
    struct Kind {
        r#type: String,
    }
    serde_json::from_slice::<File>(json).ok().map(|file| file.model.r#type)
}

fn read_file(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    let read = |source| TokenizerError::Read { path: path.to_owned(), source };
    let len = std::fs::metadata(path).map_err(read)?.len();
    if len > MAX_FILE_BYTES {
        let file = path.display();
        return Err(TokenizerError::Invalid(format!("{file} has {len} bytes, more than {MAX_FILE_BYTES}")));
    }
    std::fs::read(path).map_err(read)
}

fn read_text(path: &Path) -> Result<String, TokenizerError> {
    String::from_utf8(read_file(path)?).map_err(|_| TokenizerError::Invalid(format!("{} is not UTF-8", path.display())))
}
