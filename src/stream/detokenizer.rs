//! Text of one sequence, token by token.
//!
//! Invariant: what [`Detokenizer::push`] and [`Detokenizer::finish`] return, joined, is [`Tokenizer::decode`] of all
//! ids, and each piece is whole characters. A token costs time in its own length only. Used per choice of a response.

use std::sync::Arc;

use crate::prompt::{TextAssembler, TokenId, Tokenizer};

/// Turns a sequence's ids into text as they arrive.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    assembler: TextAssembler,
    skip_special: bool,
}

impl Detokenizer {
    /// A detokenizer at the start of a text; `skip_special` leaves out special tokens.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        let assembler = TextAssembler::new(tokenizer.pieces());
        Self { tokenizer, assembler, skip_special }
    }

    /// The text that token `id` completes: empty while a character is incomplete.
    #[must_use]
    pub fn push(&mut self, id: TokenId) -> String {
        let mut text = String::new();
        if !(self.skip_special && self.tokenizer.is_special(id)) {
            self.assembler.push(self.tokenizer.pieces(), id, &mut text);
        }
        text
    }

    /// What was held back at the end, with U+FFFD for what never became a character.
    #[must_use]
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        self.assembler.finish(self.tokenizer.pieces(), &mut text);
        text
    }
}
