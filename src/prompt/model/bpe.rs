//! Byte pair encoding in a few megabytes.
//!
//! The `tokenizers` crate's own BPE keeps every piece in two hash maps of strings, 50 MB for 150,000 pieces, and a cache
//! of words per thread. This one keeps one text, one table of pieces and one of merges. Invariant: it yields the ids of
//! that crate's BPE (without dropout) for every text.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use tokenizers::Token;

use super::file::ModelFile;
use super::piece_table::{PieceTable, hash_word};
use super::text_list::{Merges, TextList};

/// What encodes a piece of text: a vocabulary, and which neighbours merge first.
#[derive(Clone)]
pub(crate) struct Bpe {
    tables: Arc<Tables>,
    /// Ids, ascending, that are not taken whole for what a text says.
    blocked: Arc<[u32]>,
}

struct Tables {
    table: PieceTable,
    /// By the hash of the pair, at most half full.
    merges: Vec<Merge>,
    unknown_id: Option<u32>,
    fuse_unknown: bool,
    /// Ids of `<0x00>` to `<0xFF>`, where characters outside the vocabulary fall back to bytes.
    byte_ids: Option<Vec<Option<u32>>>,
    ignore_merges: bool,
}

const NONE: u32 = u32::MAX;

/// Longest piece that a scored vocabulary may merge to, in bytes: finding its halves takes time quadratic in that.
const MAX_SCORED_PIECE: usize = 512;

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

impl Bpe {
    /// Builds the tables; the error says what contradicts what.
    pub(crate) fn new(file: ModelFile) -> Result<Self, String> {
        let refuse = |name: &str, value: &Option<String>| match value.as_deref() {
            None | Some("") => Ok(()),
            Some(value) => Err(format!("{name} {value:?} is not supported")),
        };
        refuse("continuing_subword_prefix", &file.continuing_subword_prefix)?;
        refuse("end_of_word_suffix", &file.end_of_word_suffix)?;
        if file.dropout.is_some_and(|dropout| dropout > 0.0) {
            return Err("dropout is not supported".to_owned());
        }
        let merges = file.merges.unwrap_or_default();
        let mut tables = Tables::new(file.vocab.pieces, merges.len());
        tables.fill_merges(&merges)?;
        tables.fuse_unknown = file.fuse_unk.unwrap_or(false);
        tables.ignore_merges = file.ignore_merges.unwrap_or(false);
        if let Some(unknown) = file.unk_token {
            let id = tables.table.find(&unknown);
            tables.unknown_id =
                Some(id.ok_or_else(|| format!("the unknown token {unknown:?} is not in the vocabulary"))?);
        }
        if file.byte_fallback.unwrap_or(false) {
            tables.byte_ids = Some(tables.table.byte_ids());
        }
        Ok(Self { tables: Arc::new(tables), blocked: Arc::default() })
    }

    /// SentencePiece's BPE: two neighbours merge if what they make is a piece, the best-scored first. `may_merge` tells
    /// the pieces that may come about so; bytes stand for unknown characters where the vocabulary has them.
    pub(crate) fn from_scores(
        pieces: TextList,
        scores: &[f32],
        unknown_id: Option<u32>,
        may_merge: impl Fn(u32) -> bool,
    ) -> Self {
        let mut by_score: Vec<u32> = (0..).take(pieces.len().min(scores.len())).filter(|&id| may_merge(id)).collect();
        by_score.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]));
        let mut tables = Tables::new(pieces, 0);
        let (mut found, mut rank) = (Vec::new(), 0);
        for (place, &id) in by_score.iter().enumerate() {
            // Of equal scores the leftmost pair merges first, so they share a rank.
            if place > 0 && scores[id as usize] != scores[by_score[place - 1] as usize] {
                rank += 1;
            }
            let piece = tables.table.piece(id).unwrap_or_default();
            if piece.len() > MAX_SCORED_PIECE {
                continue;
            }
            for (cut, _) in piece.char_indices().skip(1) {
                let halves = (tables.table.find(&piece[..cut]), tables.table.find(&piece[cut..]));
                if let (Some(left), Some(right)) = halves {
                    found.push(Merge { pair: (left, right), rank, merged_id: id });
                }
            }
        }
        tables.merges = vec![FREE; (found.len() * 2).next_power_of_two().max(2)];
        for merge in found {
            let slot = tables.merge_slot(merge.pair);
            tables.merges[slot] = merge;
        }
        let byte_ids = tables.table.byte_ids();
        tables.byte_ids = byte_ids.iter().any(Option::is_some).then_some(byte_ids);
        tables.unknown_id = unknown_id;
        tables.fuse_unknown = true;
        Self { tables: Arc::new(tables), blocked: Arc::default() }
    }

    /// The same model, that does not take the pieces `blocked` (ascending) whole.
    pub(super) fn without(&self, blocked: &[u32]) -> Self {
        Self { tables: self.tables.clone(), blocked: blocked.into() }
    }

    pub(super) fn table(&self) -> &PieceTable {
        &self.tables.table
    }

    pub(super) fn tokenize(&self, text: &str) -> Vec<Token> {
        // Only ids are read later, so tokens go without their text.
        let token = |id: u32, start: usize, len: usize| Token::new(id, String::new(), (start, start + len));
        let tables = &*self.tables;
        let whole = if tables.ignore_merges && !text.is_empty() { tables.table.find(text) } else { None };
        if let Some(id) = whole.filter(|id| self.blocked.binary_search(id).is_err()) {
            return vec![token(id, 0, text.len())];
        }
        let mut symbols = tables.symbols(text);
        tables.merge_all(&mut symbols);
        let mut start = 0;
        let mut tokens = Vec::new();
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            tokens.push(token(symbol.id, start, symbol.len as usize));
            start += symbol.len as usize;
        }
        tokens
    }
}

impl Tables {
    fn new(pieces: TextList, num_merges: usize) -> Self {
        Self {
            table: PieceTable::new(pieces),
            merges: vec![FREE; (num_merges * 2).next_power_of_two().max(2)],
            unknown_id: None,
            fuse_unknown: false,
            byte_ids: None,
            ignore_merges: false,
        }
    }

    fn fill_merges(&mut self, merges: &Merges) -> Result<(), String> {
        for rank in 0..merges.len() {
            let (left, right) = merges.get(rank);
            let find = |piece: &str| {
                let id = self.table.find(piece);
                id.ok_or_else(|| format!("merge {rank} names {piece:?}, which is not in the vocabulary"))
            };
            let pair = (find(left)?, find(right)?);
            let merged_id = find(merges.joined(rank))?;
            let rank = u32::try_from(rank).map_err(|_| "there are too many merges".to_owned())?;
            let slot = self.merge_slot(pair);
            // Of equal pairs the last counts, as in a map that is filled in order.
            self.merges[slot] = Merge { pair, rank, merged_id };
        }
        Ok(())
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
            let char = &*char.encode_utf8(&mut buffer);
            let bytes = char.as_bytes();
            if let Some(id) = self.table.find(char) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::Numbers;
    use serde::Deserialize;
    use std::collections::HashMap;
    use tokenizers::Model;
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
            let ours = Bpe::new(ModelFile::deserialize(&description).unwrap()).unwrap();
            let reference = BPE::deserialize(&description).unwrap();
            for _ in 0..30 {
                let text: String =
                    (0..numbers.below(40)).map(|_| ['a', 'b', 'é', 'x', '😀'][numbers.below(5)]).collect();
                let view = |tokens: Vec<Token>| -> Vec<_> { tokens.into_iter().map(|t| (t.id, t.offsets)).collect() };
                let expected = view(reference.tokenize(&text).unwrap());
                assert_eq!(view(ours.tokenize(&text)), expected, "seed {seed}: {text:?}");
            }
        }
    }

    #[test]
    fn contradictions_are_named() {
        let read = |json: &str| {
            let file = serde_json::from_str::<ModelFile>(json).map_err(|error| error.to_string());
            file.and_then(Bpe::new).err()
        };
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
