//! The bytes behind every token id, and how to put them together as text.
//!
//! One blob with offsets instead of a string each: a vocabulary of 150,000 pieces takes 2 MB. Invariant: pushing ids one
//! by one through a [`TextAssembler`] yields, in sum, what the `tokenizers` crate decodes from all of them at once.

use std::collections::BTreeMap;

use tokenizers::{AddedToken, DecoderWrapper};

use super::byte_alphabet::byte_of_char;
use super::decoder::{ByteRule, Decoding, PieceText};
use super::model::TextModel;
use super::tokenizer::{TokenId, TokenizerError};

/// What U+FFFD looks like in UTF-8 text: stands for bytes that are no character.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// The decoding table of a vocabulary.
pub(crate) struct Pieces {
    decoding: Decoding,
    blob: Vec<u8>,
    /// `[len + 1]`, into `blob`.
    offsets: Vec<u32>,
    flags: Vec<u8>,
    /// What tokens are at the start of a text, where that is not their bytes less a leading space.
    odd_first_forms: BTreeMap<TokenId, String>,
}

const FLAG_SPECIAL: u8 = 1;
const FLAG_BYTE: u8 = 2;
/// An id without a piece.
const FLAG_GAP: u8 = 4;

impl Pieces {
    /// Reads every piece out of `model`; added tokens come from `added`, ascending by id.
    pub(super) fn new(
        model: &TextModel,
        decoder: Option<&DecoderWrapper>,
        added: &[(TokenId, AddedToken)],
    ) -> Result<Self, TokenizerError> {
        let mut pieces = Self {
            decoding: Decoding::read(decoder)?,
            blob: Vec::new(),
            offsets: vec![0],
            flags: Vec::new(),
            odd_first_forms: BTreeMap::new(),
        };
        let num_ids = added.iter().map(|(id, _)| *id as usize + 1).max().unwrap_or(0).max(model.pieces().len());
        let mut added = added.iter().peekable();
        for id in 0..num_ids {
            match added.next_if(|(added_id, _)| *added_id as usize == id) {
                Some((_, token)) => pieces.add(&token.content, token.special)?,
                None if id < model.pieces().len() => pieces.add(model.pieces().get(id), false)?,
                None => pieces.add("", false)?,
            }
        }
        pieces.blob.shrink_to_fit();
        Ok(pieces)
    }

    fn add(&mut self, piece: &str, is_special: bool) -> Result<(), TokenizerError> {
        let mut flag = if is_special { FLAG_SPECIAL } else { 0 };
        if piece.is_empty() {
            flag |= FLAG_GAP;
        } else {
            match self.decoding.text_of(piece, false)? {
                PieceText::Byte(byte) => {
                    flag |= FLAG_BYTE;
                    self.blob.push(byte);
                }
                PieceText::Text(text) => {
                    self.note_first_form(piece, &text)?;
                    self.add_text(&text);
                }
            }
        }
        self.flags.push(flag);
        self.offsets.push(u32::try_from(self.blob.len()).expect("a vocabulary is far below 4 GiB"));
        Ok(())
    }

    fn note_first_form(&mut self, piece: &str, text: &str) -> Result<(), TokenizerError> {
        if self.decoding.has_first_form()
            && let PieceText::Text(first) = self.decoding.text_of(piece, true)?
            && first != self.decoding.usual_first_form(text)
        {
            let id = TokenId::try_from(self.flags.len()).expect("ids are 32 bits");
            self.odd_first_forms.insert(id, first);
        }
        Ok(())
    }

    fn add_text(&mut self, text: &str) {
        if self.decoding.bytes != ByteRule::Level {
            self.blob.extend_from_slice(text.as_bytes());
            return;
        }
        let start = self.blob.len();
        for char in text.chars() {
            match byte_of_char(char) {
                Some(byte) => self.blob.push(byte),
                // A piece with a character outside the table stands for itself as a whole.
                None => {
                    self.blob.truncate(start);
                    self.blob.extend_from_slice(text.as_bytes());
                    return;
                }
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.flags.len()
    }

    pub(crate) fn bytes(&self, id: TokenId) -> &[u8] {
        let id = id as usize;
        if id >= self.flags.len() {
            return &[];
        }
        &self.blob[self.offsets[id] as usize..self.offsets[id + 1] as usize]
    }

    pub(crate) fn is_special(&self, id: TokenId) -> bool {
        self.flag(id) & FLAG_SPECIAL != 0
    }

    fn flag(&self, id: TokenId) -> u8 {
        self.flags.get(id as usize).copied().unwrap_or(FLAG_GAP)
    }

    /// The text of a token that is not a byte, at the start of a text or within it.
    fn text(&self, id: TokenId, is_first: bool) -> &str {
        let text = std::str::from_utf8(self.bytes(id)).expect("pieces that are not bytes were made from text");
        if !is_first {
            return text;
        }
        self.odd_first_forms.get(&id).map_or_else(|| self.decoding.usual_first_form(text), String::as_str)
    }
}

/// Puts pieces together as text, holding back what a later token may still change.
#[derive(Clone, Debug)]
pub(crate) struct TextAssembler {
    /// Byte level: the start of a character, at most 3 bytes. Otherwise: a run of byte tokens.
    pending: Vec<u8>,
    /// No token has come yet.
    is_first: bool,
    /// Characters still to be cut off the start of the text.
    num_to_strip: usize,
    /// Characters at the end that go if nothing follows.
    num_held: usize,
}

impl TextAssembler {
    pub(crate) fn new(pieces: &Pieces) -> Self {
        let num_to_strip = pieces.decoding.strip.rule.map_or(0, |(_, start, _)| start);
        Self { pending: Vec::new(), is_first: true, num_to_strip, num_held: 0 }
    }

    /// Appends to `out` the text that token `id` completes.
    pub(crate) fn push(&mut self, pieces: &Pieces, id: TokenId, out: &mut String) {
        let flag = pieces.flag(id);
        // An id without a piece is no token, so it does not end a run of bytes either.
        if flag & FLAG_GAP != 0 {
            return;
        }
        let bytes = pieces.bytes(id);
        if pieces.decoding.bytes == ByteRule::Level {
            if let (true, Ok(text)) = (self.pending.is_empty(), std::str::from_utf8(bytes)) {
                self.append(pieces, text, out);
                return;
            }
            self.pending.extend_from_slice(bytes);
            let mut whole = String::new();
            take_complete_utf8(&mut self.pending, &mut whole);
            self.append(pieces, &whole, out);
        } else if flag & FLAG_BYTE != 0 {
            self.pending.extend_from_slice(bytes);
        } else {
            self.flush_run(pieces, out);
            let is_first = std::mem::take(&mut self.is_first);
            self.append(pieces, pieces.text(id, is_first), out);
        }
    }

    /// Appends what was held back, whole or not.
    pub(crate) fn finish(&mut self, pieces: &Pieces, out: &mut String) {
        if pieces.decoding.bytes == ByteRule::Level {
            let rest = std::mem::take(&mut self.pending);
            self.append(pieces, &String::from_utf8_lossy(&rest), out);
        } else {
            self.flush_run(pieces, out);
        }
        self.num_held = 0;
    }

    fn flush_run(&mut self, pieces: &Pieces, out: &mut String) {
        if self.pending.is_empty() {
            return;
        }
        let run = std::mem::take(&mut self.pending);
        let is_first = std::mem::take(&mut self.is_first);
        match std::str::from_utf8(&run) {
            Ok(text) => self.append(pieces, &pieces.decoding.text_of_run(text, is_first), out),
            Err(_) => {
                // Each byte is a token of its own here.
                let mark = REPLACEMENT.to_string();
                let later = pieces.decoding.text_of_run(&mark, false).repeat(run.len() - 1);
                self.append(pieces, &(pieces.decoding.text_of_run(&mark, is_first) + &later), out);
            }
        }
    }

    /// Appends `text`, less what is stripped from the ends of the whole.
    fn append(&mut self, pieces: &Pieces, text: &str, out: &mut String) {
        let Some((char, _, stop)) = pieces.decoding.strip.rule else {
            out.push_str(text);
            return;
        };
        let mut text = text;
        while self.num_to_strip > 0 && !text.is_empty() {
            match text.strip_prefix(char) {
                Some(rest) => {
                    text = rest;
                    self.num_to_strip -= 1;
                }
                None => self.num_to_strip = 0,
            }
        }
        let num_trailing = text.chars().rev().take_while(|&other| other == char).count();
        let is_all = num_trailing == text.chars().count();
        let num_waiting = num_trailing + if is_all { self.num_held } else { 0 };
        let num_held = num_waiting.min(stop);
        let body = &text[..text.len() - num_trailing * char.len_utf8()];
        let num_out = self.num_held + num_trailing - num_held;
        let (num_front, num_back) = if is_all { (num_out, 0) } else { (self.num_held, num_trailing - num_held) };
        out.extend(std::iter::repeat_n(char, num_front));
        out.push_str(body);
        out.extend(std::iter::repeat_n(char, num_back));
        self.num_held = num_held;
    }
}

/// Moves whole characters from the front of `pending` to `out`, with U+FFFD for each maximal part that cannot become
/// one, exactly as `String::from_utf8_lossy` does; what may still become a character stays.
fn take_complete_utf8(pending: &mut Vec<u8>, out: &mut String) {
    let mut done = 0;
    while done < pending.len() {
        match std::str::from_utf8(&pending[done..]) {
            Ok(text) => {
                out.push_str(text);
                done = pending.len();
            }
            Err(error) => {
                let valid = &pending[done..done + error.valid_up_to()];
                out.push_str(std::str::from_utf8(valid).expect("valid up to here"));
                done += error.valid_up_to();
                let Some(len) = error.error_len() else { break };
                out.push(REPLACEMENT);
                done += len;
            }
        }
    }
    pending.drain(..done);
}
