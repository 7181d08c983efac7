//! Models that look words up: whole (`WordLevel`), or cut into the longest pieces from the left (`WordPiece`, BERT's).
//!
//! Invariant: they yield the ids of the `tokenizers` crate's models of these names.

use std::sync::Arc;

use tokenizers::Token;

use super::piece_table::PieceTable;

/// A vocabulary of words, or of words and their parts.
#[derive(Clone)]
pub(crate) struct Words(Arc<Tables>);

struct Tables {
    table: PieceTable,
    unknown_id: Option<u32>,
    /// `None` where words are only looked up whole.
    parts: Option<Parts>,
}

/// How words are cut.
pub(super) struct Parts {
    /// What a part that does not start a word starts with: `##`.
    pub(super) prefix: String,
    /// A word with more characters is unknown, so that no word takes long.
    pub(super) max_chars: usize,
}

impl Words {
    pub(super) fn new(table: PieceTable, unknown: &str, parts: Option<Parts>) -> Self {
        let unknown_id = table.find(unknown);
        Self(Arc::new(Tables { table, unknown_id, parts }))
    }

    pub(super) fn table(&self) -> &PieceTable {
        &self.0.table
    }

    pub(super) fn tokenize(&self, word: &str) -> Result<Vec<Token>, String> {
        let known = match &self.0.parts {
            Some(parts) => self.cut(word, parts),
            None => self.0.table.find(word).map(|id| vec![token(id, 0, word.len())]),
        };
        match known {
            Some(tokens) => Ok(tokens),
            None => {
                let id = self.0.unknown_id.ok_or("a word is unknown, and so is what stands for those")?;
                Ok(vec![token(id, 0, word.len())])
            }
        }
    }

    /// `None` if some part of the word is unknown.
    fn cut(&self, word: &str, parts: &Parts) -> Option<Vec<Token>> {
        if word.chars().count() > parts.max_chars {
            return None;
        }
        let mut tokens = Vec::new();
        let mut start = 0;
        let mut candidate = String::new();
        while start < word.len() {
            candidate.clear();
            let prefix = if start > 0 { parts.prefix.as_str() } else { "" };
            candidate.push_str(prefix);
            candidate.push_str(&word[start..]);
            let id = loop {
                if candidate.len() == prefix.len() {
                    return None;
                }
                if let Some(id) = self.0.table.find(&candidate) {
                    break id;
                }
                candidate.pop();
            };
            let end = start + candidate.len() - prefix.len();
            tokens.push(token(id, start, end));
            start = end;
        }
        Some(tokens)
    }
}

fn token(id: u32, start: usize, end: usize) -> Token {
    Token::new(id, String::new(), (start, end))
}
