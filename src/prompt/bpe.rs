//! Byte pair encoding in a few megabytes.
//!
//! The `tokenizers` crate's own BPE keeps every piece in two hash maps of strings, 50 MB for 150,000 pieces, and a cache
//! of words per thread. This one keeps one text, one table of pieces and one of merges, and plugs into the rest of that
//! crate as its `Model`. Invariant: it yields the ids of that crate's BPE (without dropout) for every text.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Deserializer};
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{Model, Token};

use super::bpe_file::{BpeFile, TextList};

/// What encodes a piece of text: a vocabulary, and which neighbours merge first.
#[derive(Clone)]
pub(crate) struct SharedBpe(Arc<Bpe>);

struct Bpe {
    /// By id; an empty text is an id without a piece.
    pieces: TextList,
    num_pieces: usize,
    /// Ids by the hash of their piece, [`NONE`] where free; a power of two in length, at most half full.
    index: Vec<u32>,
    /// By the hash of the pair, at most half full.
    merges: Vec<Merge>,
    unknown_id: Option<u32>,
    fuse_unknown: bool,
    /// Ids of `<0x00>` to `<0xFF>`, where characters outside the vocabulary fall back to bytes.
    byte_ids: Option<Vec<Option<u32>>>,
    ignore_merges: bool,
}

const NONE: u32 = u32::MAX;

/// Two neighbours and what they become; lower ranks merge first.
#[derive(Clone, Copy)]
struct Merge {
    pair: (u32, u32),
    rank: u32,
    merged_id: u32,
}

const FREE: Merge = Merge { pair: (NONE, NONE), rank: 0, merged_id: NONE };

/// A part of the text while it is being merged: a link in a list.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    /// Bytes; 0 for a symbol that was merged into the one before.
    len: u32,
    prev: u32,
    next: u32,
}

impl SharedBpe {
    /// Builds the tables; the error says what contradicts what.
    pub(super) fn new(file: BpeFile) -> Result<Self, String> {
        let refuse = |name: &str, value: &Option<String>| match value.as_deref() {
            None | Some("") => Ok(()),
            Some(value) => Err(format!("{name} {value:?} is not supported")),
        };
        refuse("continuing_subword_prefix", &file.continuing_subword_prefix)?;
        refuse("end_of_word_suffix", &file.end_of_word_suffix)?;
        if file.dropout.is_some_and(|dropout| dropout > 0.0) {
            return Err("dropout is not supported".to_owned());
        }
        let mut bpe = Bpe {
            num_pieces: file.vocab.iter().filter(|piece| !piece.is_empty()).count(),
            index: vec![NONE; (file.vocab.len() * 2).next_power_of_two().max(2)],
            merges: vec![FREE; (file.merges.len() * 2).next_power_of_two().max(2)],
            pieces: file.vocab,
            unknown_id: None,
            fuse_unknown: file.fuse_unk.unwrap_or(false),
            byte_ids: None,
            ignore_merges: file.ignore_merges.unwrap_or(false),
        };
        bpe.fill_index();
        bpe.fill_merges(&file.merges)?;
        if let Some(unknown) = file.unk_token {
            let id = bpe.find(unknown.as_bytes());
            bpe.unknown_id = Some(id.ok_or_else(|| format!("the unknown token {unknown:?} is not in the vocabulary"))?);
        }
        if file.byte_fallback.unwrap_or(false) {
            bpe.byte_ids = Some((0..=u8::MAX).map(|byte| bpe.find(format!("<0x{byte:02X}>").as_bytes())).collect());
        }
        Ok(Self(Arc::new(bpe)))
    }

    /// The pieces by id; an empty one is an id without a piece.
    pub(super) fn pieces(&self) -> &TextList {
        &self.0.pieces
    }
}

impl Bpe {
    fn fill_index(&mut self) {
        for id in 0..self.pieces.len() {
            let piece = self.pieces.get(id).as_bytes();
            if piece.is_empty() {
                continue;
            }
            let slot = self.slot_of(piece);
            // Of equal pieces the first counts.
            if self.index[slot] == NONE {
                self.index[slot] = u32::try_from(id).expect("ids are 32 bits");
            }
        }
    }

    fn fill_merges(&mut self, merges: &TextList) -> Result<(), String> {
        let mut joined = Vec::new();
        for rank in 0..merges.len() {
            let text = merges.get(rank);
            let (left, right) =
                text.split_once(' ').ok_or_else(|| format!("merge {rank} is {text:?}, not two pieces"))?;
            joined.clear();
            joined.extend_from_slice(left.as_bytes());
            joined.extend_from_slice(right.as_bytes());
            let find = |piece: &[u8]| {
                self.find(piece).ok_or_else(|| {
                    format!("merge {rank} names {:?}, which is not in the vocabulary", String::from_utf8_lossy(piece))
                })
            };
            let pair = (find(left.as_bytes())?, find(right.as_bytes())?);
            let merged_id = find(&joined)?;
            let rank = u32::try_from(rank).map_err(|_| "there are too many merges".to_owned())?;
            let slot = self.merge_slot(pair);
            // Of equal pairs the last counts, as in a map that is filled in order.
            self.merges[slot] = Merge { pair, rank, merged_id };
        }
        Ok(())
    }

    /// The slot of `index` that holds `piece`, or the free one where it belongs.
    fn slot_of(&self, piece: &[u8]) -> usize {
        let mask = self.index.len() - 1;
        let mut slot = hash_bytes(piece) & mask;
        while self.index[slot] != NONE && self.pieces.get(self.index[slot] as usize).as_bytes() != piece {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn find(&self, piece: &[u8]) -> Option<u32> {
        let id = self.index[self.slot_of(piece)];
        (id != NONE).then_some(id)
    }

    /// The slot of `merges` that holds `pair`, or the free one where it belongs.
    fn merge_slot(&self, pair: (u32, u32)) -> usize {
        let mask = self.merges.len() - 1;
        let mut slot = hash_word(u64::from(pair.0) << 32 | u64::from(pair.1)) & mask;
        while self.merges[slot].merged_id != NONE && self.merges[slot].pair != pair {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn merge_of(&self, left: &Symbol, right: &Symbol) -> Option<Merge> {
        let merge = self.merges[self.merge_slot((left.id, right.id))];
        (merge.merged_id != NONE).then_some(merge)
    }

    /// The characters of `text` as symbols, before any merge.
    fn symbols(&self, text: &str) -> Vec<Symbol> {
        let mut symbols = Vec::with_capacity(text.len());
        let mut add = |id: u32, len: usize| {
            let place = u32::try_from(symbols.len()).expect("a text is far below 4 GiB");
            let len = u32::try_from(len).expect("a text is far below 4 GiB");
            symbols.push(Symbol { id, len, prev: place.wrapping_sub(1), next: place + 1 });
        };
        // An unknown character waits for more of its kind to be fused with.
        let mut unknown: Option<(u32, usize)> = None;
        let mut buffer = [0; 4];
        for char in text.chars() {
            let bytes = char.encode_utf8(&mut buffer).as_bytes();
            if let Some(id) = self.find(bytes) {
                if let Some((unknown_id, len)) = unknown.take() {
                    add(unknown_id, len);
                }
                add(id, bytes.len());
                continue;
            }
            let ids = self.byte_ids.as_ref().map(|ids| bytes.iter().map(|&byte| ids[usize::from(byte)]));
            if let Some(ids) = ids.and_then(|ids| ids.collect::<Option<Vec<u32>>>()) {
                ids.into_iter().for_each(|id| add(id, 1));
            } else if let Some(unknown_id) = self.unknown_id {
                let mut len = bytes.len();
                match unknown {
                    Some((_, waiting)) if self.fuse_unknown => len += waiting,
                    Some((id, waiting)) => add(id, waiting),
                    None => {}
                }
                unknown = Some((unknown_id, len));
            }
        }
        if let Some((id, len)) = unknown {
            add(id, len);
        }
        symbols
    }

    /// Merges neighbours, lowest rank first and leftmost of equals, until none merge. Time n log n.
    fn merge_all(&self, symbols: &mut [Symbol]) {
        let mut queue: BinaryHeap<Reverse<(u32, u32, u32)>> = BinaryHeap::with_capacity(symbols.len());
        for (place, pair) in (0..).zip(symbols.windows(2)) {
            queue.extend(self.merge_of(&pair[0], &pair[1]).map(|merge| Reverse((merge.rank, place, merge.merged_id))));
        }
        while let Some(Reverse((_, place, merged_id))) = queue.pop() {
            let left = symbols[place as usize];
            if left.len == 0 || left.next as usize >= symbols.len() {
                continue;
            }
            let right = symbols[left.next as usize];
            // Either side may have merged with another since.
            if self.merge_of(&left, &right).is_none_or(|merge| merge.merged_id != merged_id) {
                continue;
            }
            let merged = Symbol { id: merged_id, len: left.len + right.len, prev: left.prev, next: right.next };
            symbols[left.next as usize].len = 0;
            symbols[place as usize] = merged;
            if let Some(next) = symbols.get_mut(right.next as usize) {
                next.prev = place;
            }
            let neighbours = [
                (merged.prev, symbols.get(merged.prev as usize).copied(), Some(merged)),
                (place, Some(merged), symbols.get(merged.next as usize).copied()),
            ];
            for (place, left, right) in neighbours {
                let merge = left.zip(right).and_then(|(left, right)| self.merge_of(&left, &right));
                queue.extend(merge.map(|merge| Reverse((merge.rank, place, merge.merged_id))));
            }
        }
    }
}

/// Spreads the bits of `word`; the tables take the low ones.
fn hash_word(word: u64) -> usize {
    let word = (word ^ (word >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (word ^ (word >> 32)) as usize
}

fn hash_bytes(bytes: &[u8]) -> usize {
    let mut hash = bytes.len() as u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = (hash.rotate_left(29) ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    hash_word(hash)
}

impl<'de> Deserialize<'de> for SharedBpe {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(BpeFile::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Model for SharedBpe {
    type Trainer = BpeTrainer;

    fn tokenize(&self, sequence: &str) -> tokenizers::Result<Vec<Token>> {
        // Only ids are read later, so tokens go without their text.
        let token = |id: u32, start: usize, len: usize| Token::new(id, String::new(), (start, start + len));
        let whole = if self.0.ignore_merges { self.0.find(sequence.as_bytes()) } else { None };
        if let Some(id) = whole.filter(|_| !sequence.is_empty()) {
            return Ok(vec![token(id, 0, sequence.len())]);
        }
        let mut symbols = self.0.symbols(sequence);
        self.0.merge_all(&mut symbols);
        let mut start = 0;
        let mut tokens = Vec::new();
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            tokens.push(token(symbol.id, start, symbol.len as usize));
            start += symbol.len as usize;
        }
        Ok(tokens)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.find(token.as_bytes())
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        let id = id as usize;
        let piece = if id < self.0.pieces.len() { self.0.pieces.get(id) } else { "" };
        (!piece.is_empty()).then(|| piece.to_owned())
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        (0..).zip(self.0.pieces.iter()).map(|(id, piece)| (piece.to_owned(), id)).collect()
    }

    fn get_vocab_size(&self) -> usize {
        self.0.num_pieces
    }

    fn save(&self, _folder: &Path, _prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err("this model is only read".into())
    }

    fn get_trainer(&self) -> BpeTrainer {
        BpeTrainer::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::Numbers;
    use tokenizers::models::bpe::BPE;

    /// Random vocabularies over three letters, where every kind of overlap of merges occurs.
    #[test]
    fn equals_the_crates_own() {
        for seed in 1..400_u64 {
            let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut pieces: Vec<String> = ["a", "b", "é", "<unk>"].map(str::to_owned).to_vec();
            if seed % 3 == 0 {
                pieces.extend((0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>")));
            }
            let mut merges: Vec<(String, String)> = Vec::new();
            let mut plain: Vec<String> = pieces[..3].to_vec();
            for _ in 0..numbers.below(30) {
                let pair = (plain[numbers.below(plain.len())].clone(), plain[numbers.below(plain.len())].clone());
                let joined = format!("{}{}", pair.0, pair.1);
                if joined.len() < 12 && !merges.contains(&pair) {
                    merges.push(pair);
                    if !plain.contains(&joined) {
                        plain.push(joined.clone());
                        pieces.push(joined);
                    }
                }
            }
            let description = serde_json::json!({
                "type": "BPE",
                "unk_token": if seed % 2 == 0 { Some("<unk>") } else { None },
                "fuse_unk": seed % 4 == 0,
                "byte_fallback": seed % 3 == 0,
                "ignore_merges": seed % 5 == 0,
                "vocab": pieces.iter().zip(0..).map(|(piece, id)| (piece.clone(), id)).collect::<HashMap<_, u32>>(),
                "merges": if seed % 2 == 0 {
                    serde_json::json!(merges)
                } else {
                    serde_json::json!(merges.iter().map(|(a, b)| format!("{a} {b}")).collect::<Vec<_>>())
                },
            });
            let ours = SharedBpe::deserialize(&description).unwrap();
            let reference = BPE::deserialize(&description).unwrap();
            for _ in 0..30 {
                let text: String =
                    (0..numbers.below(40)).map(|_| ['a', 'b', 'é', 'x', '😀'][numbers.below(5)]).collect();
                let view = |tokens: Vec<Token>| -> Vec<_> { tokens.into_iter().map(|t| (t.id, t.offsets)).collect() };
                let expected = view(reference.tokenize(&text).unwrap());
                assert_eq!(view(ours.tokenize(&text).unwrap()), expected, "seed {seed}: {text:?}");
            }
        }
    }

    #[test]
    fn contradictions_are_named() {
        let read = |json: &str| serde_json::from_str::<SharedBpe>(json).err().map(|error| error.to_string());
        for (json, part) in [
            (r#"{"vocab": {"a": 0}, "merges": ["a b"]}"#, "merge 0 names \"b\""),
            (r#"{"vocab": {"a": 0, "b": 1}, "merges": ["a b"]}"#, "merge 0 names \"ab\""),
            (r#"{"vocab": {"a": 0}, "merges": ["a"]}"#, "not two pieces"),
            (r#"{"vocab": {"a": 0}, "merges": [], "unk_token": "u"}"#, "unknown token"),
            (r#"{"vocab": {"a": 4000000000}, "merges": []}"#, "4000000000"),
            (r#"{"vocab": {"a": 0}, "merges": [], "end_of_word_suffix": "</w>"}"#, "end_of_word_suffix"),
        ] {
            let message = read(json).unwrap_or_default();
            assert!(message.contains(part), "{json}: {message}");
        }
        assert_eq!(read(r#"{"vocab": {"a": 7}, "merges": []}"#), None);
    }
}
