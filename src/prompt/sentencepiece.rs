//! SentencePiece's normalization of a text: replaced characters, merged spaces, spaces as `▁`.
//!
//! GGUF files of unigram models hold the replacements in SentencePiece's own compiled form (`precompiled_charsmap`): a
//! length, a double array of 32-bit units that maps prefixes to places, and the replacements, each ended by a zero byte.
//! Invariant: every access to it is checked, since it comes from a file. Used by GGUF vocabularies of model `t5`.

use serde::{Deserialize, Deserializer};
use tokenizers::{NormalizedString, Normalizer, NormalizerWrapper};

use std::sync::Arc;

/// How a space looks in pieces.
pub(super) const SPACE: char = '\u{2581}';

/// A text's first step: the `tokenizers` crate's, or SentencePiece's.
#[derive(Clone)]
pub(super) enum TextNormalizer {
    Crate(Box<NormalizerWrapper>),
    SentencePiece(Arc<SentencePiece>),
}

impl<'de> Deserialize<'de> for TextNormalizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        NormalizerWrapper::deserialize(deserializer).map(|normalizer| Self::Crate(Box::new(normalizer)))
    }
}

impl Normalizer for TextNormalizer {
    fn normalize(&self, normalized: &mut NormalizedString) -> tokenizers::Result<()> {
        match self {
            Self::Crate(normalizer) => normalizer.normalize(normalized),
            Self::SentencePiece(rules) => {
                let num_chars = normalized.get().chars().count();
                let text = rules.normalize(normalized.get());
                // The first character replaces the last of the old ones, the others are new; nobody reads offsets.
                let num_removed = if text.is_empty() { num_chars } else { num_chars.saturating_sub(1) };
                let changes = text.chars().enumerate().map(|(place, char)| (char, isize::from(place > 0)));
                if num_chars > 0 {
                    normalized.transform(changes.collect::<Vec<_>>(), num_removed);
                }
                Ok(())
            }
        }
    }
}

/// The rules that a SentencePiece model has for a text.
#[derive(Debug)]
pub(super) struct SentencePiece {
    charsmap: Option<Charsmap>,
    /// A space is put before the first word.
    pub(super) add_space_prefix: bool,
    /// Spaces at both ends go, and several become one.
    pub(super) remove_extra_spaces: bool,
}

#[derive(Debug)]
struct Charsmap {
    units: Vec<u32>,
    replacements: Vec<u8>,
}

impl SentencePiece {
    /// # Errors
    /// The compiled map is cut short.
    pub(super) fn new(charsmap: &[u8], add_space_prefix: bool, remove_extra_spaces: bool) -> Result<Self, String> {
        let charsmap = if charsmap.is_empty() { None } else { Some(Charsmap::new(charsmap)?) };
        Ok(Self { charsmap, add_space_prefix, remove_extra_spaces })
    }

    fn normalize(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len() + text.len() / 8 + 4);
        // A word has begun and not ended; no word has begun yet.
        let (mut in_word, mut is_start) = (false, true);
        let mut push = |char: char| {
            if char == ' ' {
                in_word = false;
                if !self.remove_extra_spaces {
                    if is_start && self.add_space_prefix {
                        out.push(SPACE);
                        is_start = false;
                    }
                    out.push(SPACE);
                }
                return;
            }
            if !in_word {
                in_word = true;
                if (is_start && self.add_space_prefix) || (!is_start && self.remove_extra_spaces) {
                    out.push(SPACE);
                }
                is_start = false;
            }
            out.push(char);
        };
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            match self.charsmap.as_ref().and_then(|map| map.longest(rest.as_bytes())) {
                Some((len, replacement)) if rest.is_char_boundary(len) => {
                    String::from_utf8_lossy(replacement).chars().for_each(&mut push);
                    rest = &rest[len..];
                }
                _ => {
                    push(first);
                    rest = &rest[first.len_utf8()..];
                }
            }
        }
        out
    }
}

impl Charsmap {
    fn new(bytes: &[u8]) -> Result<Self, String> {
        let cut = || "the precompiled_charsmap is cut short".to_owned();
        let (len, rest) = bytes.split_first_chunk::<4>().ok_or_else(cut)?;
        let len = usize::try_from(u32::from_le_bytes(*len)).map_err(|_| cut())?;
        let (units, replacements) = rest.split_at_checked(len).ok_or_else(cut)?;
        let (units, _) = units.as_chunks::<4>();
        let units: Vec<u32> = units.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        if units.is_empty() {
            return Err(cut());
        }
        Ok(Self { units, replacements: replacements.to_vec() })
    }

    /// The longest prefix of `text` that is replaced: its length, and by what.
    ///
    /// A unit of the double array holds, from the high bits: the offset of its children (22 bits), whether that is
    /// shifted by 8 (bit 9), whether a value follows (bit 8), and the byte that leads to it (bits 0 to 7, with bit 31).
    fn longest(&self, text: &[u8]) -> Option<(usize, &[u8])> {
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let mut longest = None;
        let mut place = offset(*self.units.first()?);
        for (idx, &byte) in text.iter().enumerate() {
            place ^= usize::from(byte);
            let Some(&unit) = self.units.get(place).filter(|_| byte != 0) else { break };
            if unit & ((1 << 31) | 0xff) != u32::from(byte) {
                break;
            }
            place ^= offset(unit);
            if (unit >> 8) & 1 == 1 {
                let value = self.units.get(place)? & ((1 << 31) - 1);
                longest = Some((idx + 1, value as usize));
            }
        }
        let (len, start) = longest?;
        let replacement = self.replacements.get(start..)?;
        let end = replacement.iter().position(|&byte| byte == 0).unwrap_or(replacement.len());
        Some((len, &replacement[..end]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map with a chain of units per key, for keys that start with different bytes.
    pub(crate) fn charsmap(entries: &[(&str, &str)]) -> Vec<u8> {
        // Each node's children start at a multiple of 256, so that no two nodes share a unit.
        let mut units = vec![0_u32; 256];
        let mut replacements = Vec::new();
        let grow = |units: &mut Vec<u32>| {
            units.resize(units.len() + 256, 0);
            units.len() - 256
        };
        let root = grow(&mut units);
        units[0] = u32::try_from(root).unwrap() << 10;
        for (key, value) in entries {
            let mut children = root;
            for (idx, &byte) in key.as_bytes().iter().enumerate() {
                let place = children ^ usize::from(byte);
                let next = grow(&mut units);
                let is_last = idx + 1 == key.len();
                let xor = u32::try_from(place ^ next).unwrap();
                units[place] = (xor << 10) | (u32::from(is_last) << 8) | u32::from(byte);
                if is_last {
                    units[next] = (1 << 31) | u32::try_from(replacements.len()).unwrap();
                }
                children = next;
            }
            replacements.extend_from_slice(value.as_bytes());
            replacements.push(0);
        }
        let mut bytes = u32::try_from(units.len() * 4).unwrap().to_le_bytes().to_vec();
        units.iter().for_each(|unit| bytes.extend_from_slice(&unit.to_le_bytes()));
        bytes.extend_from_slice(&replacements);
        bytes
    }

    #[test]
    fn characters_are_replaced_and_spaces_merged() {
        let map = charsmap(&[("ﬁ", "fi"), ("\t", " "), ("Å", "A"), ("™", "")]);
        let check = |prefix: bool, merge: bool, text: &str, expected: &str| {
            let rules = SentencePiece::new(&map, prefix, merge).unwrap();
            assert_eq!(rules.normalize(text), expected, "{text:?}");
            let mut normalized = NormalizedString::from(text);
            TextNormalizer::SentencePiece(Arc::new(rules)).normalize(&mut normalized).unwrap();
            assert_eq!(normalized.get(), expected, "{text:?}");
        };
        check(true, true, "  ﬁne\t Å™b  ", "▁fine▁Ab");
        check(false, true, "  a  b ", "a▁b");
        check(true, false, " a  b ", "▁▁a▁▁b▁");
        check(false, false, "a b", "a▁b");
        check(true, true, "", "");
        check(true, true, "   ", "");
        check(true, false, "   ", "▁▁▁▁");
    }

    #[test]
    fn a_damaged_map_is_refused_or_does_nothing() {
        for bytes in [&[1][..], &[8, 0, 0, 0, 1], &[0, 0, 0, 0]] {
            assert!(SentencePiece::new(bytes, true, true).unwrap_err().contains("cut short"), "{bytes:?}");
        }
        let mut numbers = crate::prompt::Numbers(7);
        let good = charsmap(&[("ab", "x"), ("é", "y")]);
        for _ in 0..500 {
            let mut bytes = good.clone();
            for _ in 0..8 {
                let place = 4 + numbers.below(bytes.len() - 4);
                bytes[place] = u8::try_from(numbers.below(256)).unwrap();
            }
            let rules = SentencePiece::new(&bytes, true, true).unwrap();
            let _text = rules.normalize("ab é abé");
        }
    }
}
