//! The bytes behind every token id, and how to put them together as text.
//!
//! One blob with offsets instead of a string each: a vocabulary of 150,000 pieces takes 2 MB. Invariant: pushing ids one
//! by one through a [`TextAssembler`] yields, in sum, what the `tokenizers` crate decodes from all of them at once.

use serde_json::Value;
use tokenizers::{AddedToken, DecoderWrapper};

use super::bpe::SharedBpe;
use super::tokenizer::{TokenId, TokenizerError};
use super::vocabulary::byte_of_char;

/// What U+FFFD looks like in UTF-8 text: stands for bytes that are no character.
const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// How a decoder turns pieces into text.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Rule {
    /// Every character of a piece stands for one byte (GPT-2's table); the bytes of all pieces form the text.
    ByteLevel,
    /// Pieces are text; `<0xE4>` is a byte, and a run of such bytes is either UTF-8 as a whole or nothing but U+FFFD.
    Text { byte_fallback: bool, strip_start: Option<(char, usize)> },
}

/// The decoding table of a vocabulary.
pub(crate) struct Pieces {
    rule: Rule,
    blob: Vec<u8>,
    /// `[len + 1]`, into `blob`.
    offsets: Vec<u32>,
    flags: Vec<u8>,
}

const FLAG_SPECIAL: u8 = 1;
const FLAG_BYTE: u8 = 2;

impl Pieces {
    /// Reads every piece out of `model`; added tokens come from `added`.
    pub(super) fn new(
        model: &SharedBpe,
        decoder: Option<&DecoderWrapper>,
        added: &[(TokenId, AddedToken)],
    ) -> Result<Self, TokenizerError> {
        let (rule, replaces) = decoder_rule(decoder)?;
        let mut pieces = Self { rule, blob: Vec::new(), offsets: vec![0], flags: Vec::new() };
        let num_ids = added.iter().map(|(id, _)| *id as usize + 1).max().unwrap_or(0).max(model.pieces().len());
        let mut added = added.iter().peekable();
        for id in 0..num_ids {
            // `added` ascends by id.
            match added.next_if(|(added_id, _)| *added_id as usize == id) {
                Some((_, token)) => pieces.add(&token.content, &replaces, token.special),
                None if id < model.pieces().len() => pieces.add(model.pieces().get(id), &replaces, false),
                None => pieces.add("", &replaces, false),
            }
        }
        pieces.blob.shrink_to_fit();
        Ok(pieces)
    }

    fn add(&mut self, piece: &str, replaces: &[(String, String)], is_special: bool) {
        let mut flag = if is_special { FLAG_SPECIAL } else { 0 };
        match self.rule {
            Rule::ByteLevel => {
                let start = self.blob.len();
                for char in piece.chars() {
                    match byte_of_char(char) {
                        Some(byte) => self.blob.push(byte),
                        // A piece with a character outside the table stands for itself as a whole.
                        None => {
                            self.blob.truncate(start);
                            self.blob.extend_from_slice(piece.as_bytes());
                            break;
                        }
                    }
                }
            }
            Rule::Text { byte_fallback, .. } => match byte_piece(piece) {
                Some(byte) if byte_fallback => {
                    flag |= FLAG_BYTE;
                    self.blob.push(byte);
                }
                _ => {
                    let mut text = piece.to_owned();
                    for (from, to) in replaces {
                        text = text.replace(from, to);
                    }
                    self.blob.extend_from_slice(text.as_bytes());
                }
            },
        }
        self.flags.push(flag);
        self.offsets.push(u32::try_from(self.blob.len()).expect("a vocabulary is far below 4 GiB"));
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
        self.flags.get(id as usize).copied().unwrap_or(0)
    }
}

/// Puts pieces together as text, holding back what a later token may still change.
#[derive(Clone, Debug)]
pub(crate) struct TextAssembler {
    rule: Rule,
    /// Byte level: the start of a character, at most 3 bytes. Text: a run of byte tokens.
    pending: Vec<u8>,
    /// Characters still to be cut off the start of the text.
    strip: Option<(char, usize)>,
}

impl TextAssembler {
    pub(crate) fn new(pieces: &Pieces) -> Self {
        let strip = match &pieces.rule {
            Rule::ByteLevel => None,
            Rule::Text { strip_start, .. } => *strip_start,
        };
        Self { rule: pieces.rule.clone(), pending: Vec::new(), strip }
    }

    /// Appends to `out` the text that token `id` completes.
    pub(crate) fn push(&mut self, pieces: &Pieces, id: TokenId, out: &mut String) {
        let bytes = pieces.bytes(id);
        match self.rule {
            Rule::ByteLevel => {
                if let (true, Ok(text)) = (self.pending.is_empty(), std::str::from_utf8(bytes)) {
                    out.push_str(text);
                    return;
                }
                self.pending.extend_from_slice(bytes);
                take_complete_utf8(&mut self.pending, out);
            }
            Rule::Text { .. } if pieces.flag(id) & FLAG_BYTE != 0 => self.pending.extend_from_slice(bytes),
            Rule::Text { .. } => {
                // An id outside the vocabulary is no token, so it does not end a run of bytes either.
                if (id as usize) < pieces.len() {
                    self.flush_run(out);
                    let text = std::str::from_utf8(bytes).expect("pieces that are not bytes were made from text");
                    self.append(text, out);
                }
            }
        }
    }

    /// Appends what was held back, whole or not.
    pub(crate) fn finish(&mut self, out: &mut String) {
        match self.rule {
            Rule::ByteLevel if !self.pending.is_empty() => {
                out.push_str(&String::from_utf8_lossy(&self.pending));
                self.pending.clear();
            }
            Rule::ByteLevel => {}
            Rule::Text { .. } => self.flush_run(out),
        }
    }

    fn flush_run(&mut self, out: &mut String) {
        if self.pending.is_empty() {
            return;
        }
        let run = std::mem::take(&mut self.pending);
        match std::str::from_utf8(&run) {
            Ok(text) => self.append(text, out),
            Err(_) => self.append(&REPLACEMENT.to_string().repeat(run.len()), out),
        }
    }

    fn append(&mut self, text: &str, out: &mut String) {
        let mut text = text;
        while let Some((cut, num_left)) = self.strip {
            let Some(first) = text.chars().next() else { return };
            if num_left == 0 || first != cut {
                self.strip = None;
                break;
            }
            text = &text[first.len_utf8()..];
            self.strip = Some((cut, num_left - 1));
        }
        out.push_str(text);
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

/// The byte of a piece such as `<0xE4>`.
fn byte_piece(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

type Replaces = Vec<(String, String)>;

/// Reads a decoder's description; it is data for us, since its own code decodes whole texts only.
fn decoder_rule(decoder: Option<&DecoderWrapper>) -> Result<(Rule, Replaces), TokenizerError> {
    let unsupported = |what: &str| TokenizerError::Unsupported(format!("its decoder is {what}"));
    let Some(decoder) = decoder else { return Err(unsupported("missing")) };
    let description =
        serde_json::to_value(decoder).map_err(|error| TokenizerError::Invalid(format!("decoder: {error}")))?;
    let steps = match description["decoders"].as_array() {
        Some(steps) => steps.clone(),
        None => vec![description],
    };
    let mut replaces = Vec::new();
    let (mut byte_fallback, mut fuse, mut strip_start) = (false, false, None);
    for (idx, step) in steps.iter().enumerate() {
        match step["type"].as_str().unwrap_or_default() {
            "ByteLevel" if idx == 0 && steps.len() == 1 => return Ok((Rule::ByteLevel, replaces)),
            "Replace" if !byte_fallback && !fuse => match (&step["pattern"]["String"], &step["content"]) {
                (Value::String(from), Value::String(to)) => replaces.push((from.clone(), to.clone())),
                _ => return Err(unsupported("a Replace by a regular expression")),
            },
            "ByteFallback" if !fuse => byte_fallback = true,
            "Fuse" => fuse = true,
            "Strip" if fuse && strip_start.is_none() && step["stop"] == 0 => {
                let content = step["content"].as_str().and_then(|text| text.chars().next());
                let count = step["start"].as_u64().and_then(|count| usize::try_from(count).ok());
                strip_start = content.zip(count);
            }
            other => return Err(unsupported(&format!("{other:?} at place {idx}"))),
        }
    }
    Ok((Rule::Text { byte_fallback, strip_start }, replaces))
}
