//! The unigram model: the sequence of pieces whose scores have the largest sum.
//!
//! Pieces are found by narrowing a range of the sorted vocabulary byte by byte, so that the table is 4 bytes a piece.
//! Invariant: it yields the ids of the `tokenizers` crate's Unigram (without sampling) for every text. Source: T. Kudo,
//! "Subword Regularization", 2018; the search is Viterbi's over the bytes of the text.

use std::sync::Arc;

use tokenizers::Token;

use super::piece_table::PieceTable;

/// What an unknown character costs more than the worst piece.
const UNKNOWN_PENALTY: f64 = 10.0;

/// A unigram vocabulary.
#[derive(Clone)]
pub(crate) struct Unigram {
    tables: Arc<Tables>,
    /// Ids of the pieces that may occur, by their text.
    order: Arc<[u32]>,
}

struct Tables {
    table: PieceTable,
    scores: Vec<f64>,
    unknown_score: f64,
    unknown_id: Option<u32>,
    /// Where unknown characters fall back to bytes.
    byte_ids: Option<Vec<Option<u32>>>,
}

/// The best way to write the text up to some place.
#[derive(Clone, Copy)]
struct Arrival {
    score: f64,
    /// Where its last piece starts; [`NONE`] where no way leads here.
    start: u32,
    id: u32,
}

const NONE: u32 = u32::MAX;

impl Unigram {
    /// A model of `table`. `may_occur` tells the pieces that are found in texts; `worst_score` is the lowest of all.
    pub(crate) fn new(
        table: PieceTable,
        scores: Vec<f64>,
        worst_score: f64,
        unknown_id: Option<u32>,
        byte_fallback: bool,
        may_occur: impl Fn(u32) -> bool,
    ) -> Result<Self, String> {
        if scores.len() != table.pieces().len() {
            return Err(format!("there are {} pieces, but {} scores", table.pieces().len(), scores.len()));
        }
        if scores.iter().any(|score| score.is_nan()) {
            return Err("a score is not a number".to_owned());
        }
        if let Some(id) = unknown_id.filter(|&id| id as usize >= scores.len()) {
            return Err(format!("the unknown token's id {id} is outside the vocabulary"));
        }
        let ids = 0..u32::try_from(scores.len()).map_err(|_| "there are too many pieces".to_owned())?;
        // Of equal pieces the last one counts, as in a map that is filled in order; the table finds the first.
        let mut order: Vec<u32> = ids.filter(|&id| table.piece(id).is_some() && may_occur(id)).collect();
        order.sort_by_key(|&id| (table.piece(id), id));
        order.reverse();
        order.dedup_by_key(|id| table.piece(*id));
        order.reverse();
        let byte_ids = byte_fallback.then(|| table.byte_ids());
        let unknown_score = worst_score - UNKNOWN_PENALTY;
        let tables = Tables { table, scores, unknown_score, unknown_id, byte_ids };
        Ok(Self { tables: Arc::new(tables), order: order.into() })
    }

    /// The same model, in whose texts the pieces `blocked` (ascending) do not occur.
    pub(super) fn without(&self, blocked: &[u32]) -> Self {
        let order = self.order.iter().copied().filter(|id| blocked.binary_search(id).is_err()).collect();
        Self { tables: self.tables.clone(), order }
    }

    pub(super) fn table(&self) -> &PieceTable {
        &self.tables.table
    }

    /// Calls `found` with each piece that `text` starts with, shortest first: its id and its length in bytes.
    fn each_prefix(&self, text: &[u8], mut found: impl FnMut(u32, usize)) {
        let piece = |id: u32| self.tables.table.piece(id).unwrap_or_default().as_bytes();
        let mut range = &self.order[..];
        for (place, byte) in text.iter().enumerate() {
            // All of `range` starts with `text[..place]` and is longer.
            let start = range.partition_point(|&id| piece(id)[place] < *byte);
            range = &range[start..];
            let end = range.partition_point(|&id| piece(id)[place] == *byte);
            range = &range[..end];
            let Some((&first, rest)) = range.split_first() else { return };
            if piece(first).len() == place + 1 {
                found(first, place + 1);
                range = rest;
            }
        }
    }

    /// The piece that is `text`, if it may occur.
    fn find(&self, text: &str) -> Option<u32> {
        let place = self.order.binary_search_by_key(&Some(text), |&id| self.tables.table.piece(id)).ok()?;
        Some(self.order[place])
    }

    /// The best way to each place of `text`.
    fn arrivals(&self, text: &str) -> Result<Vec<Arrival>, String> {
        let tables = &*self.tables;
        let mut arrivals = vec![Arrival { score: 0.0, start: NONE, id: NONE }; text.len() + 1];
        for (start, char) in text.char_indices() {
            let base = arrivals[start].score;
            let from = u32::try_from(start).expect("a text is far below 4 GiB");
            let mut offer = |end: usize, id: u32, score: f64| {
                let arrival = &mut arrivals[end];
                if arrival.start == NONE || score > arrival.score {
                    *arrival = Arrival { score, start: from, id };
                }
            };
            let mut is_known = false;
            self.each_prefix(&text.as_bytes()[start..], |id, len| {
                offer(start + len, id, tables.scores[id as usize] + base);
                is_known |= len == char.len_utf8();
            });
            if !is_known {
                let id = tables.unknown_id.ok_or("a character is unknown, and so is what stands for those")?;
                offer(start + char.len_utf8(), id, tables.unknown_score + base);
            }
        }
        Ok(arrivals)
    }

    pub(super) fn tokenize(&self, text: &str) -> Result<Vec<Token>, String> {
        let tables = &*self.tables;
        let arrivals = self.arrivals(text)?;
        // From the end to the start; neighbouring unknown characters are one part.
        let mut parts: Vec<(usize, usize, u32)> = Vec::new();
        let mut end = text.len();
        while end > 0 {
            let Arrival { start, id, .. } = arrivals[end];
            let start = start as usize;
            match parts.last_mut() {
                Some(last) if Some(id) == tables.unknown_id && last.2 == id => last.0 = start,
                _ => parts.push((start, end, id)),
            }
            end = start;
        }
        let mut tokens = Vec::with_capacity(parts.len());
        for (start, end, id) in parts.into_iter().rev() {
            let mut add = |id: u32| tokens.push(Token::new(id, String::new(), (start, end)));
            if Some(id) != tables.unknown_id {
                add(id);
                continue;
            }
            // As a whole, unknown characters may spell a piece: the unknown token's own text.
            if let Some(id) = self.find(&text[start..end]) {
                add(id);
                continue;
            }
            let bytes = text[start..end].bytes();
            let ids = tables.byte_ids.as_ref().map(|ids| bytes.map(|byte| ids[usize::from(byte)]));
            match ids.and_then(|ids| ids.collect::<Option<Vec<u32>>>()) {
                Some(ids) => ids.into_iter().for_each(add),
                None => add(id),
            }
        }
        Ok(tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::Numbers;
    use crate::prompt::model::text_list::TextList;
    use tokenizers::Model;

    /// Random vocabularies over three letters and random texts, with characters that are unknown.
    #[test]
    fn equals_the_crates_own() {
        for seed in 1..300_u64 {
            let mut numbers = Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let letters = ["a", "b", "é"];
            let mut vocab = vec![("<unk>".to_owned(), 0.0)];
            if seed % 3 == 0 {
                vocab.extend((0..=u8::MAX).map(|byte| (format!("<0x{byte:02X}>"), 0.0)));
            }
            for _ in 0..numbers.below(20) {
                let piece: String = (0..=numbers.below(4)).map(|_| letters[numbers.below(3)]).collect();
                if vocab.iter().all(|(other, _)| *other != piece) {
                    vocab.push((piece, -0.37 * (1 + numbers.below(30)) as f64));
                }
            }
            let byte_fallback = seed % 3 == 0;
            let reference = tokenizers::models::unigram::Unigram::from(vocab.clone(), Some(0), byte_fallback).unwrap();
            let pieces: TextList = vocab.iter().map(|(piece, _)| piece).collect();
            let scores: Vec<f64> = vocab.iter().map(|(_, score)| *score).collect();
            let worst = scores.iter().copied().fold(f64::INFINITY, f64::min);
            let ours = Unigram::new(PieceTable::new(pieces), scores, worst, Some(0), byte_fallback, |_| true).unwrap();
            for _ in 0..40 {
                let text: String =
                    (0..numbers.below(30)).map(|_| ["a", "b", "é", "x", "😀", "<unk>"][numbers.below(6)]).collect();
                let ids = |tokens: Vec<Token>| -> Vec<u32> { tokens.into_iter().map(|token| token.id).collect() };
                let expected = ids(reference.tokenize(&text).unwrap());
                assert_eq!(ids(ours.tokenize(&text).unwrap()), expected, "seed {seed}: {text:?}");
            }
        }
    }
}
