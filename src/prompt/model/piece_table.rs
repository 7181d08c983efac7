//! The pieces of a vocabulary, found by id and by text.
//!
//! One text and one table of ids: a vocabulary of 150,000 pieces takes 3 MB, where two hash maps of strings take 50.
//! Invariant: a piece that occurs twice is found under its first id. Used by every model in this folder.

use super::text_list::TextList;

/// The pieces by id, and ids by piece.
#[derive(Debug)]
pub(crate) struct PieceTable {
    /// By id; an empty text is an id without a piece.
    pieces: TextList,
    num_pieces: usize,
    /// Ids by the hash of their piece, [`NONE`] where free; a power of two in length, at most half full.
    index: Vec<u32>,
}

const NONE: u32 = u32::MAX;

impl PieceTable {
    pub(crate) fn new(pieces: TextList) -> Self {
        let mut table = Self {
            num_pieces: pieces.iter().filter(|piece| !piece.is_empty()).count(),
            index: vec![NONE; (pieces.len() * 2).next_power_of_two().max(2)],
            pieces,
        };
        for id in 0..table.pieces.len() {
            let piece = table.pieces.get(id).as_bytes();
            if piece.is_empty() {
                continue;
            }
            let slot = table.slot_of(piece);
            if table.index[slot] == NONE {
                table.index[slot] = u32::try_from(id).expect("ids are 32 bits");
            }
        }
        table
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

    /// The id of `piece`.
    pub(crate) fn find(&self, piece: &str) -> Option<u32> {
        let id = self.index[self.slot_of(piece.as_bytes())];
        (id != NONE).then_some(id)
    }

    /// The piece with this id.
    pub(crate) fn piece(&self, id: u32) -> Option<&str> {
        let id = id as usize;
        let piece = if id < self.pieces.len() { self.pieces.get(id) } else { "" };
        (!piece.is_empty()).then_some(piece)
    }

    /// By id; an empty text is an id without a piece.
    pub(crate) fn pieces(&self) -> &TextList {
        &self.pieces
    }

    /// Number of ids that have a piece.
    pub(crate) fn num_pieces(&self) -> usize {
        self.num_pieces
    }

    /// Ids of the pieces `<0x00>` to `<0xFF>`, which stand for bytes.
    pub(super) fn byte_ids(&self) -> Vec<Option<u32>> {
        (0..=u8::MAX).map(|byte| self.find(&format!("<0x{byte:02X}>"))).collect()
    }
}

/// Spreads the bits of `word`; tables take the low ones.
pub(super) fn hash_word(word: u64) -> usize {
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
