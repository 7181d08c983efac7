//! Tokenizers put together from GGUF vocabularies, one way for each `tokenizer.ggml.model`.
//!
//! Invariant: the result encodes as the model's own `tokenizer.json` does; where a file does not say enough for that, it
//! is refused. Used by `Tokenizer::from_vocabulary`.

use std::sync::Arc;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::metaspace::{Metaspace, PrependScheme};
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::decoders::wordpiece::WordPiece;
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::{BertNormalizer, NFC, Prepend, Sequence as NormalizerSequence};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper};

use super::model::{Bpe, Merges, ModelFile, PieceTable, TextList, TextModel, Unigram};
use super::sentencepiece::{SPACE, SentencePiece, TextNormalizer};
use super::split_rule::SplitRule;
use super::tokenizer::{Core, TokenId, TokenizerError};
use super::vocabulary::{Vocabulary, token_type};

/// What BERT's vocabularies put before a piece that continues a word.
const CONTINUES: &str = "##";
/// A longer word is unknown to BERT.
const MAX_WORD_CHARS: usize = 100;

/// A core that encodes with `vocabulary`.
pub(super) fn build(mut vocabulary: Vocabulary) -> Result<Core, TokenizerError> {
    let num_tokens = vocabulary.tokens.len();
    if num_tokens == 0 {
        return Err(TokenizerError::Invalid("tokenizer.ggml.tokens is empty".to_owned()));
    }
    for (name, len) in [("token_type", vocabulary.token_types.len()), ("scores", vocabulary.scores.len())] {
        if len != 0 && len != num_tokens {
            return Err(TokenizerError::Invalid(format!("tokenizer.ggml.{name} has {len} entries, not {num_tokens}")));
        }
    }
    let mut core = match vocabulary.model.as_str() {
        "gpt2" => byte_level(&mut vocabulary)?,
        "gemma4" => raw_pairs(&mut vocabulary)?,
        "llama" => scored_pairs(&mut vocabulary)?,
        "t5" => unigram(&mut vocabulary)?,
        "bert" => word_pieces(&mut vocabulary)?,
        other => {
            return Err(TokenizerError::Unsupported(format!(
                "tokenizer.ggml.model is {other:?}; known are \"gpt2\", \"llama\", \"t5\", \"bert\" and \"gemma4\""
            )));
        }
    };
    let added = added_tokens(&vocabulary, &core);
    core.add_tokens(added).map_err(invalid)?;
    Ok(core)
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn invalid(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Invalid(error.to_string())
}

/// Tokens that are found in a text before anything else happens to it. Their text is the model's, since some vocabularies
/// spell them otherwise.
fn added_tokens(vocabulary: &Vocabulary, core: &Core) -> Vec<AddedToken> {
    use tokenizers::Model;
    let name = vocabulary.model_name.as_deref().unwrap_or_default().to_lowercase();
    let is_phi3 = ["phi-3", "phi3"].iter().any(|part| name.contains(part));
    let ids = (0..).take(vocabulary.token_types.len());
    ids.filter_map(|id: TokenId| {
        let is_special = match vocabulary.token_type(id) {
            token_type::CONTROL => true,
            token_type::UNKNOWN => vocabulary.model != "gpt2",
            token_type::USER_DEFINED => false,
            _ => return None,
        };
        let piece = core.get_model().id_to_token(id)?;
        let mark = piece.strip_prefix("<|").and_then(|rest| rest.strip_suffix("|>"));
        let takes_space = is_phi3 && mark.is_some_and(|mark| mark != "endoftext");
        Some(AddedToken::from(piece, is_special).normalized(false).rstrip(takes_space))
    })
    .filter(|token| !token.content.is_empty())
    .collect()
}

/// `gpt2`: bytes as characters, a splitting rule by its name, merges.
fn byte_level(vocabulary: &mut Vocabulary) -> Result<Core, TokenizerError> {
    let rule = SplitRule::find(vocabulary.pre.as_deref())?;
    let post_processor = ends(vocabulary, vocabulary.bos_token_id, rule.add_bos, vocabulary.eos_token_id, false)?;
    let mut file = pairs_file(vocabulary)?;
    file.ignore_merges = Some(rule.ignore_merges);
    let mut core = Core::new(pairs(file)?);
    if rule.nfc {
        core.with_normalizer(Some(TextNormalizer::Crate(Box::new(NFC.into())))).map_err(invalid)?;
    }
    core.with_pre_tokenizer(Some(rule.pre_tokenizer()?));
    core.with_decoder(Some(ByteLevel::default()));
    core.with_post_processor(post_processor);
    Ok(core)
}

/// `gemma4`: merges over the text itself, spaces as `▁`, bytes for unknown characters.
fn raw_pairs(vocabulary: &mut Vocabulary) -> Result<Core, TokenizerError> {
    let post_processor = ends(vocabulary, vocabulary.bos_token_id, true, vocabulary.eos_token_id, false)?;
    let mut file = pairs_file(vocabulary)?;
    file.byte_fallback = Some(true);
    file.fuse_unk = Some(true);
    let mut core = Core::new(pairs(file)?);
    core.with_normalizer(Some(spaces(false)?)).map_err(invalid)?;
    core.with_decoder(Some(text_decoder(false)?));
    core.with_post_processor(post_processor);
    Ok(core)
}

/// `llama`: SentencePiece's BPE, which merges by score.
fn scored_pairs(vocabulary: &mut Vocabulary) -> Result<Core, TokenizerError> {
    if vocabulary.scores.is_empty() {
        return Err(TokenizerError::Invalid("tokenizer.ggml.scores is missing".to_owned()));
    }
    let has_prefix = vocabulary.add_space_prefix.unwrap_or(true);
    let post_processor =
        ends(vocabulary, vocabulary.bos_token_id.or(Some(1)), true, vocabulary.eos_token_id.or(Some(2)), false)?;
    let unknown_id = unknown_id(vocabulary);
    let tokens = std::mem::take(&mut vocabulary.tokens);
    let may_merge = |id| !matches!(vocabulary.token_type(id), token_type::UNKNOWN | token_type::CONTROL);
    let bpe = Bpe::from_scores(tokens, &vocabulary.scores, unknown_id, may_merge);
    let mut core = Core::new(TextModel::Bpe(bpe));
    core.with_normalizer(Some(spaces(has_prefix)?)).map_err(invalid)?;
    core.with_decoder(Some(text_decoder(has_prefix)?));
    core.with_post_processor(post_processor);
    Ok(core)
}

/// `t5`: SentencePiece's unigram model.
fn unigram(vocabulary: &mut Vocabulary) -> Result<Core, TokenizerError> {
    let has_prefix = vocabulary.add_space_prefix.unwrap_or(true);
    let removes_extra = vocabulary.remove_extra_whitespaces.unwrap_or(true);
    let rules = SentencePiece::new(&vocabulary.charsmap, has_prefix, removes_extra);
    let rules = rules.map_err(TokenizerError::Invalid)?;
    let post_processor = ends(vocabulary, vocabulary.bos_token_id, false, vocabulary.eos_token_id.or(Some(1)), true)?;
    let unknown_id = unknown_id(vocabulary);
    let tokens = std::mem::take(&mut vocabulary.tokens);
    if vocabulary.scores.is_empty() {
        return Err(TokenizerError::Invalid("tokenizer.ggml.scores is missing".to_owned()));
    }
    let is_normal = |id| vocabulary.token_type(id) == token_type::NORMAL;
    let scored = (0..).zip(&vocabulary.scores);
    let worst = scored.filter(|(id, _)| is_normal(*id)).map(|(_, score)| f64::from(*score));
    let worst = worst.fold(f64::INFINITY, f64::min);
    let scores = vocabulary.scores.iter().map(|score| f64::from(*score)).collect();
    let may_occur = |id| is_normal(id) || vocabulary.token_type(id) == token_type::UNUSED;
    let model = Unigram::new(PieceTable::new(tokens), scores, worst, unknown_id, false, may_occur);
    let model = model.map_err(|why| TokenizerError::Invalid(format!("tokenizer.ggml.scores: {why}")))?;
    let mut core = Core::new(TextModel::Unigram(model));
    core.with_normalizer(Some(TextNormalizer::SentencePiece(Arc::new(rules)))).map_err(invalid)?;
    let scheme = if has_prefix { PrependScheme::Always } else { PrependScheme::Never };
    core.with_decoder(Some(Metaspace::new(SPACE, scheme, true)));
    core.with_post_processor(post_processor);
    Ok(core)
}

/// `bert`: words cut into the longest pieces from the left.
fn word_pieces(vocabulary: &mut Vocabulary) -> Result<Core, TokenizerError> {
    let find = |name: &str| (0..).zip(vocabulary.tokens.iter()).find(|(_, piece)| *piece == name).map(|(id, _)| id);
    let first = vocabulary.cls_token_id.or(vocabulary.bos_token_id).or_else(|| find("[CLS]"));
    let last = vocabulary.sep_token_id.or(vocabulary.eos_token_id).or_else(|| find("[SEP]"));
    let post_processor = ends(vocabulary, first, true, last, true)?;
    let unknown = vocabulary.unknown_token_id.and_then(|id| vocabulary.token(id)).unwrap_or("[UNK]").to_owned();
    // The files turn BERT's spelling around: `▁word` starts a word, `ing` continues one.
    let pieces: TextList = (0..)
        .zip(vocabulary.tokens.iter())
        .map(|(id, piece)| match piece.strip_prefix(SPACE) {
            _ if vocabulary.token_type(id) != token_type::NORMAL => piece.to_owned(),
            Some(word) => word.to_owned(),
            None if piece.starts_with('[') && piece.ends_with(']') && piece.len() > 2 => piece.to_owned(),
            None => format!("{CONTINUES}{piece}"),
        })
        .collect();
    let lowercase = vocabulary.lowercase.unwrap_or(true);
    let strip_accents = vocabulary.strip_accents.unwrap_or(lowercase);
    let mut core = Core::new(TextModel::word_piece(pieces, &unknown, CONTINUES.to_owned(), MAX_WORD_CHARS));
    let normalizer = BertNormalizer::new(true, true, Some(strip_accents), lowercase);
    core.with_normalizer(Some(TextNormalizer::Crate(Box::new(normalizer.into())))).map_err(invalid)?;
    core.with_pre_tokenizer(Some(BertPreTokenizer));
    core.with_decoder(Some(WordPiece::new(CONTINUES.to_owned(), true)));
    core.with_post_processor(post_processor);
    Ok(core)
}

fn pairs_file(vocabulary: &mut Vocabulary) -> Result<ModelFile, TokenizerError> {
    let mut merges = Merges::default();
    for line in vocabulary.merges.iter() {
        let done = merges.push_line(line);
        done.map_err(|why| TokenizerError::Invalid(format!("tokenizer.ggml.merges: {why}")))?;
    }
    vocabulary.merges = TextList::default();
    let mut file = ModelFile { merges: Some(merges), ..ModelFile::default() };
    file.vocab.pieces = std::mem::take(&mut vocabulary.tokens);
    Ok(file)
}

fn pairs(file: ModelFile) -> Result<TextModel, TokenizerError> {
    let bpe = Bpe::new(file).map_err(|why| TokenizerError::Invalid(format!("tokenizer.ggml.merges: {why}")))?;
    Ok(TextModel::Bpe(bpe))
}

fn unknown_id(vocabulary: &Vocabulary) -> Option<TokenId> {
    let of_type = || (0..).zip(&vocabulary.token_types).find(|(_, kind)| **kind == token_type::UNKNOWN);
    let id = vocabulary.unknown_token_id.or_else(|| of_type().map(|(id, _)| id)).unwrap_or(0);
    vocabulary.token(id).map(|_| id)
}

/// Spaces as `▁`, one more before the text if `has_prefix`.
fn spaces(has_prefix: bool) -> Result<TextNormalizer, TokenizerError> {
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if has_prefix {
        steps.push(Prepend::new(SPACE.to_string()).into());
    }
    steps.push(Replace::new(ReplacePattern::String(" ".to_owned()), SPACE.to_string()).map_err(invalid)?.into());
    Ok(TextNormalizer::Crate(Box::new(NormalizerSequence::new(steps).into())))
}

/// The way back from [`spaces`], with bytes put together.
fn text_decoder(has_prefix: bool) -> Result<DecoderSequence, TokenizerError> {
    let replace = Replace::new(ReplacePattern::String(SPACE.to_string()), " ".to_owned()).map_err(invalid)?;
    let mut steps: Vec<DecoderWrapper> = vec![replace.into(), ByteFallback::default().into(), Fuse::default().into()];
    if has_prefix {
        steps.push(Strip::new(' ', 1, 0).into());
    }
    Ok(DecoderSequence::new(steps))
}

/// Puts `first` before and `last` after a text that is encoded with special tokens, where the file or, if it does not
/// say, the habit of its kind wants it.
fn ends(
    vocabulary: &Vocabulary,
    first: Option<TokenId>,
    wants_first: bool,
    last: Option<TokenId>,
    wants_last: bool,
) -> Result<Option<TemplateProcessing>, TokenizerError> {
    let first = first.filter(|_| vocabulary.add_bos_token.unwrap_or(wants_first));
    let last = last.filter(|_| vocabulary.add_eos_token.unwrap_or(wants_last));
    let mut parts = vec!["$A"];
    let mut names = Vec::new();
    for (id, name) in [(first, "__FIRST__"), (last, "__LAST__")] {
        let Some(id) = id else { continue };
        if vocabulary.token(id).is_none() {
            return Err(TokenizerError::Invalid(format!("the id {id} of a special token is outside the vocabulary")));
        }
        names.push((name.to_owned(), id));
        if name == "__FIRST__" { parts.insert(0, name) } else { parts.push(name) }
    }
    if names.is_empty() {
        return Ok(None);
    }
    let processor = TemplateProcessing::builder()
        .try_single(parts.join(" "))
        .and_then(|builder| builder.special_tokens(names).build().map_err(|error| error.to_string()));
    processor.map(Some).map_err(|error| TokenizerError::Invalid(format!("special tokens: {error}")))
}
