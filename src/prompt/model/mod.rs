//! What turns a piece of split text into ids: BPE, unigram, word pieces.
//!
//! These are models of our own behind the `tokenizers` crate's `Model`, because that crate keeps every piece in several
//! hash maps. The rest of that crate (normalizers, splitting, added tokens, templates) is used as it is.

mod bpe;
mod file;
mod piece_table;
mod text_list;
mod unigram;
mod words;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{Model, Token};

pub(crate) use bpe::Bpe;
pub(crate) use file::ModelFile;
pub(crate) use piece_table::PieceTable;
pub(crate) use text_list::Merges;
pub use text_list::TextList;
pub(crate) use unigram::Unigram;

use words::{Parts, Words};

/// A model of any kind.
#[derive(Clone)]
pub(crate) enum TextModel {
    /// Pairs of neighbours merge.
    Bpe(Bpe),
    /// The best-scored sequence of pieces.
    Unigram(Unigram),
    /// Words and their parts.
    Words(Words),
}

impl TextModel {
    /// A model from its description in a `tokenizer.json`.
    ///
    /// # Errors
    /// What contradicts what, or is not supported.
    pub(super) fn new(file: ModelFile) -> Result<Self, String> {
        let kind = match file.r#type.as_deref() {
            Some(kind) => kind,
            // As old files are read: by what they hold.
            None if file.merges.is_some() => "BPE",
            None if !file.vocab.scores.is_empty() => "Unigram",
            None if file.continuing_subword_prefix.is_some() => "WordPiece",
            None => "WordLevel",
        };
        match kind {
            "BPE" => Bpe::new(file).map(Self::Bpe),
            "Unigram" => {
                let worst = file.vocab.scores.iter().copied().fold(f64::INFINITY, f64::min);
                let table = PieceTable::new(file.vocab.pieces);
                let byte_fallback = file.byte_fallback.unwrap_or(false);
                Unigram::new(table, file.vocab.scores, worst, file.unk_id, byte_fallback, |_| true).map(Self::Unigram)
            }
            "WordPiece" => {
                let prefix = file.continuing_subword_prefix.unwrap_or_else(|| "##".to_owned());
                let unknown = file.unk_token.unwrap_or_else(|| "[UNK]".to_owned());
                let max_chars = file.max_input_chars_per_word.unwrap_or(100).min(MAX_WORD_CHARS);
                Ok(Self::word_piece(file.vocab.pieces, &unknown, prefix, max_chars))
            }
            "WordLevel" => {
                let unknown = file.unk_token.unwrap_or_else(|| "<unk>".to_owned());
                Ok(Self::Words(Words::new(PieceTable::new(file.vocab.pieces), &unknown, None)))
            }
            other => Err(format!("models of type {other:?} are not supported")),
        }
    }

    /// BERT's model: words are cut into `pieces`, whose later ones start with `prefix`.
    pub(super) fn word_piece(pieces: TextList, unknown: &str, prefix: String, max_chars: usize) -> Self {
        Self::Words(Words::new(PieceTable::new(pieces), unknown, Some(Parts { prefix, max_chars })))
    }

    /// The same model, that never yields the ids `special` (ascending) for what a text says, where it can help it.
    pub(super) fn without(&self, special: &[u32]) -> Self {
        match self {
            Self::Bpe(bpe) => Self::Bpe(bpe.without(special)),
            Self::Unigram(unigram) => Self::Unigram(unigram.without(special)),
            // Words that are special tokens have been split at their brackets by now.
            Self::Words(words) => Self::Words(words.clone()),
        }
    }

    fn table(&self) -> &PieceTable {
        match self {
            Self::Bpe(bpe) => bpe.table(),
            Self::Unigram(unigram) => unigram.table(),
            Self::Words(words) => words.table(),
        }
    }

    /// The pieces by id; an empty one is an id without a piece.
    pub(super) fn pieces(&self) -> &TextList {
        self.table().pieces()
    }
}

/// Cutting a word takes time quadratic in its length; published files say 100 or 200.
const MAX_WORD_CHARS: usize = 1000;

impl<'de> Deserialize<'de> for TextModel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(ModelFile::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Model for TextModel {
    type Trainer = BpeTrainer;

    fn tokenize(&self, sequence: &str) -> tokenizers::Result<Vec<Token>> {
        match self {
            Self::Bpe(bpe) => Ok(bpe.tokenize(sequence)),
            Self::Unigram(unigram) => unigram.tokenize(sequence).map_err(Into::into),
            Self::Words(words) => words.tokenize(sequence).map_err(Into::into),
        }
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.table().find(token)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.table().piece(id).map(str::to_owned)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        (0..).zip(self.pieces().iter()).map(|(id, piece)| (piece.to_owned(), id)).collect()
    }

    fn get_vocab_size(&self) -> usize {
        self.table().num_pieces()
    }

    fn save(&self, _folder: &Path, _prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err("this model is only read".into())
    }

    fn get_trainer(&self) -> BpeTrainer {
        BpeTrainer::default()
    }
}
