//! The `model` of a `tokenizer.json`, read without a string per piece.
//!
//! All kinds of models share one description with optional fields, because the kind may come last in the file. Used by
//! [`super::TextModel`] and, with values of their own, by GGUF vocabularies.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::text_list::{Merges, TextList};

/// Far above any vocabulary; a damaged file must not make us allocate by its largest id.
const MAX_ID: u32 = 1 << 22;

/// The fields of a `tokenizer.json`'s `model` that matter.
#[derive(Default, Deserialize)]
pub(crate) struct ModelFile {
    /// `BPE`, `Unigram`, `WordPiece` or `WordLevel`; old files lack it.
    pub(crate) r#type: Option<String>,
    #[serde(deserialize_with = "read_vocab")]
    pub(crate) vocab: Vocab,
    #[serde(default, deserialize_with = "read_merges")]
    pub(crate) merges: Option<Merges>,
    pub(crate) unk_token: Option<String>,
    pub(crate) unk_id: Option<u32>,
    pub(crate) fuse_unk: Option<bool>,
    pub(crate) byte_fallback: Option<bool>,
    pub(crate) ignore_merges: Option<bool>,
    pub(crate) continuing_subword_prefix: Option<String>,
    pub(crate) end_of_word_suffix: Option<String>,
    pub(crate) max_input_chars_per_word: Option<usize>,
    pub(crate) dropout: Option<f32>,
}

/// Pieces by id, with scores where the model has them.
#[derive(Default)]
pub(crate) struct Vocab {
    pub(crate) pieces: TextList,
    /// Empty, or one per piece.
    pub(crate) scores: Vec<f64>,
}

fn read_vocab<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vocab, D::Error> {
    deserializer.deserialize_any(VocabVisitor)
}

struct VocabVisitor;

impl<'de> Visitor<'de> for VocabVisitor {
    type Value = Vocab;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of pieces to ids, or a list of pieces and scores")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
        let mut pieces = TextList::default();
        let mut order: Vec<(u32, u32)> = Vec::new();
        while map.next_key_seed(Append(&mut pieces.text))?.is_some() {
            let place = u32::try_from(pieces.len()).map_err(A::Error::custom)?;
            pieces.close();
            let id: u32 = map.next_value()?;
            if id >= MAX_ID {
                return Err(A::Error::custom(format!("a token has the id {id}, more than {MAX_ID}")));
            }
            order.push((id, place));
        }
        order.sort_unstable();
        let mut by_id = TextList::default();
        for (id, place) in order {
            if by_id.len() > id as usize {
                return Err(A::Error::custom(format!("two tokens have the id {id}")));
            }
            while by_id.len() < id as usize {
                by_id.push("");
            }
            by_id.push(pieces.get(place as usize));
        }
        Ok(Vocab { pieces: by_id, scores: Vec::new() })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vocab, A::Error> {
        let mut vocab = Vocab::default();
        while let Some(score) = seq.next_element_seed(ScoredPiece(&mut vocab.pieces.text))? {
            vocab.pieces.close();
            vocab.scores.push(score);
            if vocab.scores.len() > MAX_ID as usize {
                return Err(A::Error::custom(format!("there are more than {MAX_ID} tokens")));
            }
        }
        Ok(vocab)
    }
}

fn read_merges<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Merges>, D::Error> {
    struct MergesVisitor;
    impl<'de> Visitor<'de> for MergesVisitor {
        type Value = Option<Merges>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of merges")
        }

        fn visit_unit<E: Error>(self) -> Result<Option<Merges>, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Option<Merges>, A::Error> {
            let mut merges = Merges::default();
            while seq.next_element_seed(MergeInto(&mut merges))?.is_some() {}
            Ok(Some(merges))
        }
    }
    deserializer.deserialize_any(MergesVisitor)
}

/// Appends a string to another one.
struct Append<'a>(&'a mut String);

impl<'de> serde::de::DeserializeSeed<'de> for Append<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Append<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a piece")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.0.push_str(text);
        Ok(())
    }
}

/// A piece and its score, `["▁the", -3.4]`: appends the piece, returns the score.
struct ScoredPiece<'a>(&'a mut String);

impl<'de> serde::de::DeserializeSeed<'de> for ScoredPiece<'_> {
    type Value = f64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<f64, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ScoredPiece<'_> {
    type Value = f64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a piece and its score")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<f64, A::Error> {
        seq.next_element_seed(Append(self.0))?.ok_or_else(|| A::Error::custom("a token without a piece"))?;
        seq.next_element()?.ok_or_else(|| A::Error::custom("a token without a score"))
    }
}

/// A merge is `"a b"` or, in newer files, `["a", "b"]`.
struct MergeInto<'a>(&'a mut Merges);

impl<'de> serde::de::DeserializeSeed<'de> for MergeInto<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for MergeInto<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("two pieces")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.0.push_line(text).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let missing = || A::Error::custom("a merge has fewer than two pieces");
        let list = &mut self.0.joined;
        seq.next_element_seed(Append(&mut list.text))?.ok_or_else(missing)?;
        let left_len = list.open_len();
        seq.next_element_seed(Append(&mut list.text))?.ok_or_else(missing)?;
        self.0.close(left_len);
        Ok(())
    }
}
