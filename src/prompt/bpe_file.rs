//! The BPE model as files hold it, read without a string per piece.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Far above any vocabulary; a damaged file must not make us allocate by its largest id.
const MAX_ID: u32 = 1 << 22;

/// A list of texts, end to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextList {
    text: String,
    ends: Vec<u32>,
}

impl TextList {
    /// Number of texts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Text `idx`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn get(&self, idx: usize) -> &str {
        let start = if idx == 0 { 0 } else { self.ends[idx - 1] as usize };
        &self.text[start..self.ends[idx] as usize]
    }

    /// The texts in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).map(|idx| self.get(idx))
    }

    /// Adds a text at the end.
    ///
    /// # Panics
    /// When all texts together exceed 4 GiB.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.close();
    }

    fn close(&mut self) {
        self.ends.push(u32::try_from(self.text.len()).expect("a vocabulary is far below 4 GiB"));
    }
}

impl<S: AsRef<str>> FromIterator<S> for TextList {
    fn from_iter<I: IntoIterator<Item = S>>(texts: I) -> Self {
        let mut list = Self::default();
        texts.into_iter().for_each(|text| list.push(text.as_ref()));
        list.text.shrink_to_fit();
        list.ends.shrink_to_fit();
        list
    }
}

/// The fields of a `tokenizer.json`'s `model` that matter.
#[derive(Default, Deserialize)]
pub(super) struct BpeFile {
    /// By id.
    #[serde(deserialize_with = "read_vocab")]
    pub(super) vocab: TextList,
    /// Two pieces with a space between.
    #[serde(deserialize_with = "read_merges")]
    pub(super) merges: TextList,
    pub(super) unk_token: Option<String>,
    pub(super) fuse_unk: Option<bool>,
    pub(super) byte_fallback: Option<bool>,
    pub(super) ignore_merges: Option<bool>,
    pub(super) continuing_subword_prefix: Option<String>,
    pub(super) end_of_word_suffix: Option<String>,
    pub(super) dropout: Option<f32>,
}

fn read_vocab<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TextList, D::Error> {
    struct Pieces;
    impl<'de> Visitor<'de> for Pieces {
        type Value = TextList;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map of pieces to ids")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TextList, A::Error> {
            let mut pieces = TextList::default();
            let mut order: Vec<(u32, u32)> = Vec::new();
            while let Some(Piece) = map.next_key_seed(PieceInto(&mut pieces.text))? {
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
            Ok(by_id)
        }
    }
    deserializer.deserialize_map(Pieces)
}

fn read_merges<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TextList, D::Error> {
    struct Merges;
    impl<'de> Visitor<'de> for Merges {
        type Value = TextList;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of merges")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<TextList, A::Error> {
            let mut merges = TextList::default();
            while seq.next_element_seed(MergeInto(&mut merges.text))?.is_some() {
                merges.close();
            }
            Ok(merges)
        }
    }
    deserializer.deserialize_seq(Merges)
}

/// A string that was appended to another one.
struct Piece;

struct PieceInto<'a>(&'a mut String);

impl<'de> serde::de::DeserializeSeed<'de> for PieceInto<'_> {
    type Value = Piece;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Piece, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for PieceInto<'_> {
    type Value = Piece;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a piece")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Piece, E> {
        self.0.push_str(text);
        Ok(Piece)
    }
}

/// A merge is `"a b"` or, in newer files, `["a", "b"]`.
struct MergeInto<'a>(&'a mut String);

impl<'de> serde::de::DeserializeSeed<'de> for MergeInto<'_> {
    type Value = Piece;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Piece, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for MergeInto<'_> {
    type Value = Piece;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("two pieces")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Piece, E> {
        self.0.push_str(text);
        Ok(Piece)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Piece, A::Error> {
        let start = self.0.len();
        let missing = || A::Error::custom("a merge has fewer than two pieces");
        seq.next_element_seed(PieceInto(self.0))?.ok_or_else(missing)?;
        self.0.push(' ');
        seq.next_element_seed(PieceInto(self.0))?.ok_or_else(missing)?;
        if self.0[start..].matches(' ').count() != 1 {
            return Err(A::Error::custom("a piece with a space in a merge is not supported"));
        }
        Ok(Piece)
    }
}
