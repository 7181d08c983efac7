//! How pieces become text: the decoder of a `tokenizer.json`, read as data.
//!
//! The `tokenizers` crate's decoders take all pieces at once; a streamed answer needs one piece at a time. So each step
//! that looks at one piece alone is applied when the vocabulary is read ([`Decoding::text_of`]), and the few that look at
//! neighbours are carried out as tokens arrive. Used by [`super::pieces`].

use serde_json::Value;
use tokenizers::decoders::wordpiece;
use tokenizers::normalizers::replace::Replace;
use tokenizers::{Decoder, DecoderWrapper};

use super::tokenizer::TokenizerError;

/// A decoder's steps in order.
#[derive(Debug, Default)]
pub(super) struct Decoding {
    /// On each piece, before bytes are put together.
    before: Vec<Step>,
    pub(super) bytes: ByteRule,
    /// On each piece, and on each text that bytes formed.
    after: Vec<Step>,
    /// On the whole text.
    pub(super) strip: Strip,
}

/// How pieces stand for bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ByteRule {
    /// They do not.
    #[default]
    None,
    /// Every character of a piece stands for one byte (GPT-2's table); the bytes of all pieces form the text.
    Level,
    /// `<0xE4>` is a byte, and a run of such bytes is either UTF-8 as a whole or nothing but U+FFFD.
    Fallback,
}

/// Characters cut off the text's ends.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Strip {
    /// Which, and how many at the start and at the end at most.
    pub(super) rule: Option<(char, usize, usize)>,
}

/// What happens to one piece.
#[derive(Debug)]
enum Step {
    Replace(Replace),
    /// `mark` is a space; the first piece's are dropped if `drop_first`.
    Spaces {
        mark: char,
        drop_first: bool,
    },
    /// A piece with `prefix` continues a word, any other but the first starts one.
    Words {
        prefix: String,
        cleanup: bool,
    },
    /// Spaces between pieces: what happens without a decoder.
    Join,
}

impl Decoding {
    /// Reads a decoder's description.
    ///
    /// # Errors
    /// [`TokenizerError::Unsupported`] for steps, and orders of steps, that are not implemented.
    pub(super) fn read(decoder: Option<&DecoderWrapper>) -> Result<Self, TokenizerError> {
        let mut decoding = Self::default();
        let Some(decoder) = decoder else {
            decoding.before.push(Step::Join);
            return Ok(decoding);
        };
        let description =
            serde_json::to_value(decoder).map_err(|error| TokenizerError::Invalid(format!("decoder: {error}")))?;
        let mut is_fused = false;
        decoding.read_steps(&description, &mut is_fused)?;
        Ok(decoding)
    }

    fn read_steps(&mut self, step: &Value, is_fused: &mut bool) -> Result<(), TokenizerError> {
        let kind = step["type"].as_str().unwrap_or_default();
        let unsupported = |why: &str| TokenizerError::Unsupported(format!("its decoder has {kind:?} {why}"));
        let steps = if self.bytes == ByteRule::None { &mut self.before } else { &mut self.after };
        match kind {
            "Sequence" => {
                for inner in step["decoders"].as_array().unwrap_or(&Vec::new()) {
                    self.read_steps(inner, is_fused)?;
                }
            }
            "Fuse" => *is_fused = true,
            "Strip" => {
                let content = step["content"].as_str().and_then(|text| text.chars().next());
                let count = |key: &str| step[key].as_u64().and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
                if !*is_fused || self.strip.rule.is_some() {
                    return Err(unsupported("before everything is fused, or twice"));
                }
                self.strip.rule = content.map(|content| (content, count("start"), count("stop")));
            }
            _ if *is_fused => return Err(unsupported("after everything is fused")),
            "ByteLevel" | "ByteFallback" if self.bytes != ByteRule::None => return Err(unsupported("twice")),
            "ByteLevel" => {
                self.bytes = ByteRule::Level;
                *is_fused = true;
            }
            "ByteFallback" => self.bytes = ByteRule::Fallback,
            "Replace" => {
                let replace = serde_json::from_value(step.clone());
                steps.push(Step::Replace(replace.map_err(|error| unsupported(&error.to_string()))?));
            }
            "Metaspace" => {
                let mark = step["replacement"].as_str().and_then(|text| text.chars().next()).unwrap_or('\u{2581}');
                steps.push(Step::Spaces { mark, drop_first: step["prepend_scheme"] != "never" });
            }
            "WordPiece" => {
                let prefix = step["prefix"].as_str().unwrap_or("##").to_owned();
                steps.push(Step::Words { prefix, cleanup: step["cleanup"] != false });
            }
            _ => return Err(unsupported("which is not implemented")),
        }
        Ok(())
    }

    /// The text of `piece`, or the byte that it stands for.
    pub(super) fn text_of(&self, piece: &str, is_first: bool) -> Result<PieceText, TokenizerError> {
        let text = apply(&self.before, piece.to_owned(), is_first)?;
        match byte_of_piece(&text).filter(|_| self.bytes == ByteRule::Fallback) {
            Some(byte) => Ok(PieceText::Byte(byte)),
            None => apply(&self.after, text, is_first).map(PieceText::Text),
        }
    }

    /// What becomes of the text that a run of bytes formed.
    pub(super) fn text_of_run(&self, text: &str, is_first: bool) -> String {
        // The same steps have run on every piece, so none of them fails.
        apply(&self.after, text.to_owned(), is_first).unwrap_or_default()
    }

    /// Whether the first piece of a text reads differently from later ones.
    pub(super) fn has_first_form(&self) -> bool {
        self.before.iter().chain(&self.after).any(|step| match step {
            Step::Replace(_) => false,
            Step::Spaces { drop_first, .. } => *drop_first,
            Step::Words { .. } | Step::Join => true,
        })
    }

    /// What the first piece of a text usually is, where later in a text it is `text`.
    pub(super) fn usual_first_form<'a>(&self, text: &'a str) -> &'a str {
        text.strip_prefix(' ').filter(|_| self.has_first_form()).unwrap_or(text)
    }
}

/// What a piece stands for.
pub(super) enum PieceText {
    Text(String),
    Byte(u8),
}

fn apply(steps: &[Step], mut text: String, is_first: bool) -> Result<String, TokenizerError> {
    for step in steps {
        text = match step {
            Step::Replace(replace) => {
                let done = replace.decode_chain(vec![text]);
                done.map_err(|error| TokenizerError::Invalid(format!("decoder: {error}")))?.concat()
            }
            Step::Spaces { mark, drop_first } if is_first && *drop_first => text.replace(*mark, ""),
            Step::Spaces { mark, .. } => text.replace(*mark, " "),
            Step::Words { prefix, cleanup } => {
                let joined = match text.strip_prefix(prefix.as_str()) {
                    _ if is_first => text,
                    Some(rest) => rest.to_owned(),
                    None => format!(" {text}"),
                };
                if *cleanup { wordpiece::cleanup(&joined) } else { joined }
            }
            Step::Join if is_first => text,
            Step::Join => format!(" {text}"),
        };
    }
    Ok(text)
}

/// The byte of a piece such as `<0xE4>`.
fn byte_of_piece(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}
