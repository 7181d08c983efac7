//! Byte-level BPE vocabularies as GGUF files hold them: lists of pieces and merges, and the name of a splitting rule.
//!
//! A `tokenizer.json` says how text is split before merging; a GGUF file only names it (`tokenizer.ggml.pre`).
//! [`SPLITS`] is the one table of these names. Used by `Tokenizer::from_vocabulary`.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, SplitDelimiterBehavior,
    TokenizerImpl,
};
use tokenmill_models::LoadError;
use tokenmill_models::weights::gguf::GgufMetadata;

use super::bpe::SharedBpe;
use super::bpe_file::BpeFile;
pub use super::bpe_file::TextList;
use super::tokenizer::{TokenId, TokenizerError};

/// The `tokenizer.*` metadata of a GGUF file.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary {
    /// `tokenizer.ggml.model`; byte-level BPE is `gpt2`.
    pub model: String,
    /// `tokenizer.ggml.pre`, the splitting rule; `None` reads as `default`.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`, by id.
    pub tokens: TextList,
    /// `tokenizer.ggml.token_type`, by id: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`: two pieces with a space between, first merge first.
    pub merges: TextList,
    /// `tokenizer.ggml.bos_token_id`
    pub bos_token_id: Option<TokenId>,
    /// `tokenizer.ggml.eos_token_id`
    pub eos_token_id: Option<TokenId>,
    /// `tokenizer.ggml.add_bos_token`; without it the splitting rule's habit decides.
    pub add_bos_token: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`
    pub add_eos_token: Option<bool>,
    /// `tokenizer.chat_template` as `default`, `tokenizer.chat_template.NAME` as `NAME`.
    pub chat_templates: BTreeMap<String, String>,
}

impl Vocabulary {
    /// Reads the keys that the fields name.
    ///
    /// # Errors
    /// [`TokenizerError::Invalid`] when a key has another type, or there is no vocabulary.
    pub fn from_gguf(metadata: &GgufMetadata) -> Result<Self, TokenizerError> {
        let invalid = |error: LoadError| TokenizerError::Invalid(error.to_string());
        let text = |key: &str| metadata.str(key).map(|text| text.map(str::to_owned)).map_err(invalid);
        let strings = |key: &str| -> Result<TextList, TokenizerError> {
            let array = metadata.string_array(key).map_err(invalid)?;
            Ok(array.map(|array| array.strings().collect()).unwrap_or_default())
        };
        let mut token_types = Vec::new();
        if let Some(array) = metadata.array("tokenizer.ggml.token_type").map_err(invalid)? {
            token_types.reserve_exact(array.len());
            for value in array.iter() {
                let number = value.as_i64().and_then(|number| i32::try_from(number).ok());
                token_types.push(number.ok_or_else(|| {
                    TokenizerError::Invalid("tokenizer.ggml.token_type holds something else than numbers".to_owned())
                })?);
            }
        }
        let mut chat_templates = BTreeMap::new();
        for (key, value) in metadata.iter() {
            let Some(name) = key.strip_prefix("tokenizer.chat_template") else { continue };
            let name = if name.is_empty() { "default" } else { name.trim_start_matches('.') };
            // `tokenizer.chat_templates` lists the names of the others.
            if let (Some(source), false) = (value.as_str(), name == "s") {
                chat_templates.insert(name.to_owned(), source.to_owned());
            }
        }
        let model = text("tokenizer.ggml.model")?;
        Ok(Self {
            model: model.ok_or_else(|| TokenizerError::Invalid("tokenizer.ggml.model is missing".to_owned()))?,
            pre: text("tokenizer.ggml.pre")?,
            tokens: strings("tokenizer.ggml.tokens")?,
            token_types,
            merges: strings("tokenizer.ggml.merges")?,
            bos_token_id: metadata.u32("tokenizer.ggml.bos_token_id").map_err(invalid)?,
            eos_token_id: metadata.u32("tokenizer.ggml.eos_token_id").map_err(invalid)?,
            add_bos_token: metadata.bool("tokenizer.ggml.add_bos_token").map_err(invalid)?,
            add_eos_token: metadata.bool("tokenizer.ggml.add_eos_token").map_err(invalid)?,
            chat_templates,
        })
    }
}

const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// One step of a splitting rule.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Every match is a piece of its own, and so is what lies between.
    Regex(&'static str),
    /// Every digit is a piece of its own.
    Digits,
}

/// How texts are split before merging, and what else goes with that.
struct SplitRule {
    /// The names in `tokenizer.ggml.pre` that mean this rule.
    names: &'static [&'static str],
    steps: &'static [Step],
    /// Unicode normalization form C comes first.
    nfc: bool,
    /// A piece of the split text that is in the vocabulary is taken whole.
    ignore_merges: bool,
    /// Whether BOS is put in front where the file does not say.
    add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The splitting rules that GGUF files name, with the expressions that the models' own `tokenizer.json` files have.
/// A new name is a new line here.
const SPLITS: &[SplitRule] = &[
    SplitRule {
        names: &["gpt-2", "gpt2", "phi-2", "mpt", "olmo", "gpt-neox", "jina-v2-es", "jina-v2-de"],
        steps: &[Step::Regex(GPT2)],
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    SplitRule {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3"],
        steps: &[Step::Regex(LLAMA3)],
        nfc: false,
        ignore_merges: true,
        add_bos: true,
    },
    SplitRule {
        names: &["smaug-bpe", "dbrx"],
        steps: &[Step::Regex(LLAMA3)],
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    SplitRule {
        names: &["qwen2", "deepseek-r1-qwen", "megrez"],
        steps: &[Step::Regex(QWEN2)],
        nfc: true,
        ignore_merges: false,
        add_bos: false,
    },
    SplitRule { names: &["stablelm2"], steps: &[Step::Regex(QWEN2)], nfc: false, ignore_merges: false, add_bos: false },
    SplitRule {
        names: &["starcoder", "refact", "smollm", "command-r", "codeshell"],
        steps: &[Step::Digits, Step::Regex(GPT2)],
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    SplitRule {
        names: &["deepseek-coder"],
        steps: &[
            Step::Regex("[\r\n]"),
            Step::Regex(r"\s?\p{L}+"),
            Step::Regex(r"\s?\p{P}+"),
            Step::Regex("[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+"),
            Step::Digits,
        ],
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
    // What readers of GGUF files do with a file that names no rule.
    SplitRule {
        names: &["default", ""],
        steps: &[
            Step::Regex(r"[\p{P}\$\+<=>\^~\|]+"),
            Step::Regex(GPT2),
            Step::Regex(r"\p{N}+"),
            Step::Regex("[0-9][0-9][0-9]"),
        ],
        nfc: false,
        ignore_merges: false,
        add_bos: false,
    },
];

type Core = TokenizerImpl<SharedBpe, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// A core that encodes with `vocabulary`.
pub(super) fn build(vocabulary: Vocabulary) -> Result<Core, TokenizerError> {
    let invalid = |error: tokenizers::Error| TokenizerError::Invalid(error.to_string());
    let rule = find_rule(&vocabulary)?;
    let Vocabulary { tokens, token_types, merges, .. } = vocabulary;
    if tokens.is_empty() {
        return Err(TokenizerError::Invalid("tokenizer.ggml.tokens is empty".to_owned()));
    }
    if !token_types.is_empty() && token_types.len() != tokens.len() {
        let (types, pieces) = (token_types.len(), tokens.len());
        return Err(TokenizerError::Invalid(format!("tokenizer.ggml.token_type has {types} entries, not {pieces}")));
    }
    let post_processor = post_processor(
        &tokens,
        vocabulary.bos_token_id.filter(|_| vocabulary.add_bos_token.unwrap_or(rule.add_bos)),
        vocabulary.eos_token_id.filter(|_| vocabulary.add_eos_token.unwrap_or(false)),
    )?;
    let added = tokens.iter().zip(&token_types).filter(|(_, kind)| matches!(**kind, CONTROL | USER_DEFINED));
    let added: Vec<AddedToken> =
        added.map(|(piece, kind)| AddedToken::from(piece, *kind == CONTROL).normalized(false)).collect();
    let file = BpeFile { vocab: tokens, merges, ignore_merges: Some(rule.ignore_merges), ..BpeFile::default() };
    let bpe = SharedBpe::new(file).map_err(|why| TokenizerError::Invalid(format!("tokenizer.ggml.merges: {why}")))?;

    let mut core = Core::new(bpe);
    if rule.nfc {
        core.with_normalizer(Some(NFC)).map_err(invalid)?;
    }
    core.with_pre_tokenizer(Some(pre_tokenizer(rule.steps)?));
    core.with_decoder(Some(ByteLevel::default()));
    core.with_post_processor(post_processor);
    core.add_tokens(added).map_err(invalid)?;
    Ok(core)
}

fn find_rule(vocabulary: &Vocabulary) -> Result<&'static SplitRule, TokenizerError> {
    if vocabulary.model != "gpt2" {
        return Err(TokenizerError::Unsupported(format!(
            "tokenizer.ggml.model is {:?}; only byte-level BPE (\"gpt2\") is read from GGUF files",
            vocabulary.model
        )));
    }
    let pre = vocabulary.pre.as_deref().unwrap_or("default");
    SPLITS.iter().find(|rule| rule.names.contains(&pre)).ok_or_else(|| {
        let known: Vec<&str> =
            SPLITS.iter().flat_map(|rule| rule.names).copied().filter(|name| !name.is_empty()).collect();
        TokenizerError::Unsupported(format!("tokenizer.ggml.pre is {pre:?}; known are {}", known.join(", ")))
    })
}

fn pre_tokenizer(steps: &[Step]) -> Result<Sequence, TokenizerError> {
    let mut list: Vec<PreTokenizerWrapper> = Vec::with_capacity(steps.len() + 1);
    for step in steps {
        list.push(match step {
            Step::Digits => Digits::new(true).into(),
            Step::Regex(regex) => {
                Split::new(SplitPattern::Regex((*regex).to_owned()), SplitDelimiterBehavior::Isolated, false)
                    .map_err(|error| TokenizerError::Invalid(format!("splitting rule: {error}")))?
                    .into()
            }
        });
    }
    list.push(ByteLevel::new(false, true, false).into());
    Ok(Sequence::new(list))
}

/// Puts `bos` before and `eos` after a text that is encoded with special tokens.
fn post_processor(
    tokens: &TextList,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
) -> Result<Option<TemplateProcessing>, TokenizerError> {
    let mut parts = Vec::new();
    let mut names = Vec::new();
    for (id, is_first) in [(bos, true), (eos, false)] {
        if is_first {
            parts.extend(id.map(|_| "__BOS__"));
        } else {
            parts.push("$A");
            parts.extend(id.map(|_| "__EOS__"));
        }
        let Some(id) = id else { continue };
        if id as usize >= tokens.len() {
            return Err(TokenizerError::Invalid(format!("the id {id} of a special token is outside the vocabulary")));
        }
        names.push((if is_first { "__BOS__" } else { "__EOS__" }.to_owned(), id));
    }
    if names.is_empty() {
        return Ok(None);
    }
    let processor = TemplateProcessing::builder()
        .try_single(parts.join(" "))
        .and_then(|builder| builder.special_tokens(names).build().map_err(|error| error.to_string()));
    processor.map(Some).map_err(|error| TokenizerError::Invalid(format!("special tokens: {error}")))
}

/// GPT-2's alphabet: the byte that each character of a byte-level piece stands for. Printable bytes stand for
/// themselves, the other 68 are numbered from U+0100.
static BYTE_OF_CHAR: LazyLock<Vec<Option<u8>>> = LazyLock::new(|| {
    let mut table = vec![None; 0x144];
    for byte in 0..=u8::MAX {
        table[char_of_byte(byte) as usize] = Some(byte);
    }
    table
});

/// The byte that `char` stands for in a byte-level piece.
pub(crate) fn byte_of_char(char: char) -> Option<u8> {
    BYTE_OF_CHAR.get(char as usize).copied().flatten()
}

/// The character that stands for `byte` in a byte-level piece.
pub(crate) fn char_of_byte(byte: u8) -> char {
    let is_printable = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    if is_printable(byte) {
        return char::from(byte);
    }
    let num_before = (0..byte).filter(|&other| !is_printable(other)).count();
    u32::try_from(num_before)
        .ok()
        .and_then(|num| char::from_u32(256 + num))
        .expect("at most 68 bytes are not printable")
}
