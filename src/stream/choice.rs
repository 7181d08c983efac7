//! One choice on its way out: tokens in, deltas of text out.
//!
//! Text is held back where it could still change: an incomplete UTF-8 character, a possible beginning of a stop string. Ids
//! and log-probabilities travel with the text that they belong to, or with the next that is released. Every generated
//! token, the one that ends the output included, counts and is reported once.

use std::sync::Arc;

use tokenmill_models::runner::TokenId;
use tokenmill_scheduler::request::TokenLogprobs;

use super::{detokenizer::Detokenizer, stop::StopScanner};
use crate::prompt::Tokenizer;

/// How the output of a choice is cut.
#[derive(Clone, Debug, Default)]
pub struct ChoiceRules {
    /// Texts that end it.
    pub stops: Vec<String>,
    /// Tokens that end it, end-of-sequence tokens included unless they are ignored.
    pub stop_token_ids: Vec<TokenId>,
    /// Of those, the ones that the client named.
    pub named_stop_token_ids: Vec<TokenId>,
    /// What ended it stays in the text.
    pub include_stop: bool,
    /// No stop string is looked for before this many tokens.
    pub min_tokens: u32,
    /// Special tokens show in the text.
    pub show_special_tokens: bool,
    /// Tokens per delta at least, but for the last.
    pub interval: u32,
}

/// Why a choice ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Finish {
    /// A token that ends sequences; the id if the client named it.
    StopToken(Option<TokenId>),
    /// A stop string.
    StopText(String),
    /// `max_tokens`, or the context.
    Length,
}

/// One token of a delta.
#[derive(Clone, Debug, PartialEq)]
pub struct OutputToken {
    /// Its id.
    pub id: TokenId,
    /// If the client wants them.
    pub logprobs: Option<Box<TokenLogprobs>>,
    /// Characters of generated text before it.
    pub text_offset: u64,
}

/// What a choice has gained.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// Text to append.
    pub text: String,
    /// Tokens to append.
    pub tokens: Vec<OutputToken>,
    /// Present in the last delta.
    pub finish: Option<Finish>,
}

impl Delta {
    /// Adds a later delta to this one.
    pub fn append(&mut self, later: Self) {
        self.text.push_str(&later.text);
        self.tokens.extend(later.tokens);
        self.finish = later.finish;
    }
}

/// Turns the tokens of one choice into deltas.
pub struct ChoiceOutput {
    detokenizer: Detokenizer,
    scanner: StopScanner,
    rules: Arc<ChoiceRules>,
    pending: Delta,
    num_tokens: u32,
    num_chars: u64,
    is_finished: bool,
}

impl ChoiceOutput {
    /// Nothing has been generated yet.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, rules: Arc<ChoiceRules>) -> Self {
        Self {
            detokenizer: Detokenizer::new(tokenizer, !rules.show_special_tokens),
            scanner: StopScanner::new(rules.stops.clone(), rules.include_stop),
            rules,
            pending: Delta::default(),
            num_tokens: 0,
            num_chars: 0,
            is_finished: false,
        }
    }

    /// Tokens so far.
    #[must_use]
    pub fn num_tokens(&self) -> u32 {
        self.num_tokens
    }

    /// Takes the next token. Once this has ended the choice ([`ChoiceOutput::is_finished`]), nothing more may come.
    pub fn push(&mut self, id: TokenId, logprobs: Option<Box<TokenLogprobs>>) {
        debug_assert!(!self.is_finished(), "a token after the end");
        self.num_tokens += 1;
        self.pending.tokens.push(OutputToken { id, logprobs, text_offset: self.num_chars });
        if self.rules.stop_token_ids.contains(&id) {
            if self.rules.include_stop {
                let text = self.detokenizer.push(id);
                self.release(&text);
            }
            let named = self.rules.named_stop_token_ids.contains(&id).then_some(id);
            self.finish(Finish::StopToken(named));
            return;
        }
        let text = self.detokenizer.push(id);
        self.release(&text);
    }

    /// The engine has ended the choice without a stop token of ours.
    pub fn finish(&mut self, finish: Finish) {
        if self.is_finished() {
            return;
        }
        let rest = self.detokenizer.finish();
        self.release(&rest);
        if !self.is_finished() {
            let held = self.scanner.finish();
            self.pending.text.push_str(&held);
            self.end(finish);
        }
    }

    fn end(&mut self, finish: Finish) {
        self.pending.finish = Some(finish);
        self.is_finished = true;
    }

    /// Whether the choice has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// What there is to send, if anything is ready. The delta with the end is handed out once.
    pub fn take(&mut self) -> Option<Delta> {
        let is_enough = !self.pending.text.is_empty() && self.pending.tokens.len() >= self.rules.interval as usize;
        (is_enough || self.pending.finish.is_some()).then(|| std::mem::take(&mut self.pending))
    }

    /// Passes decoded text on, by way of the stop strings.
    fn release(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.num_chars += text.chars().count() as u64;
        if self.num_tokens <= self.rules.min_tokens {
            self.pending.text.push_str(text);
            return;
        }
        let output = self.scanner.push(text);
        self.pending.text.push_str(&output.text);
        if output.matched {
            let stop = self.scanner.matched().expect("a match has a stop string").to_owned();
            self.end(Finish::StopText(stop));
        }
    }
}

impl Finish {
    /// OpenAI's `finish_reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::StopToken(_) | Self::StopText(_) => "stop",
            Self::Length => "length",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Id `b` is the byte `b` where that is ASCII; 200 to 202 are the bytes of `模`; 256 is special.
    fn tokenizer() -> Arc<Tokenizer> {
        let mut vocab = serde_json::Map::new();
        for id in 0..256_u32 {
            // Byte-level BPE writes bytes that are not printable as characters from U+0100 on.
            let char = match id {
                33..=126 => char::from_u32(id),
                32 => Some('\u{120}'),
                200 => Some('æ'),
                201 => Some('¨'),
                202 => Some('¡'),
                _ => char::from_u32(0x2000 + id),
            };
            vocab.insert(char.unwrap().to_string(), id.into());
        }
        let special = json!({"id": 256, "content": "<end>", "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false});
        let tokenizer = json!({"version": "1.0", "added_tokens": [special], "decoder": {"type": "ByteLevel",
            "add_prefix_space": false, "trim_offsets": false, "use_regex": false}, "pre_tokenizer": {"type": "ByteLevel",
            "add_prefix_space": false, "trim_offsets": false, "use_regex": false}, "model": {"type": "BPE",
            "vocab": vocab, "merges": []}});
        Arc::new(Tokenizer::from_json(tokenizer.to_string().as_bytes()).unwrap())
    }

    /// Feeds `ids` and joins what comes out; returns the deltas too.
    fn run(rules: ChoiceRules, ids: &[TokenId]) -> (Delta, Vec<Delta>) {
        let mut output = ChoiceOutput::new(tokenizer(), Arc::new(rules));
        let (mut whole, mut deltas) = (Delta::default(), Vec::new());
        for &id in ids {
            output.push(id, None);
            deltas.extend(output.take());
            if output.is_finished() {
                break;
            }
        }
        output.finish(Finish::Length);
        deltas.extend(output.take());
        assert!(output.take().is_none(), "the end is handed out once");
        for delta in &deltas {
            whole.append(delta.clone());
        }
        (whole, deltas)
    }

    fn ids(text: &str) -> Vec<TokenId> {
        text.bytes().map(TokenId::from).collect()
    }

    fn stops(stops: &[&str]) -> ChoiceRules {
        ChoiceRules { stops: stops.iter().map(|stop| (*stop).to_owned()).collect(), ..ChoiceRules::default() }
    }

    #[test]
    fn every_token_is_reported_once_with_its_offset() {
        let (whole, deltas) = run(ChoiceRules::default(), &[65, 200, 201, 202, 66]);
        assert_eq!(whole.text, "A模B");
        assert_eq!(deltas.iter().map(|delta| delta.text.as_str()).collect::<Vec<_>>(), ["A", "模", "B", ""]);
        let offsets: Vec<_> = whole.tokens.iter().map(|token| (token.id, token.text_offset)).collect();
        assert_eq!(offsets, [(65, 0), (200, 1), (201, 1), (202, 1), (66, 2)]);
        assert_eq!(whole.finish, Some(Finish::Length));
    }

    #[test]
    fn a_stop_string_is_cut_out_and_its_tokens_still_count() {
        let (whole, deltas) = run(stops(&["END"]), &ids("ab EN END x"));
        assert_eq!(whole.text, "ab EN ");
        assert_eq!(whole.finish, Some(Finish::StopText("END".to_owned())));
        assert_eq!(whole.tokens.len(), 9);
        assert!(deltas.iter().all(|delta| !delta.text.ends_with('E')), "a possible beginning is held back");
        let rules = ChoiceRules { include_stop: true, ..stops(&["END"]) };
        assert_eq!(run(rules, &ids("ab END x")).0.text, "ab END");
    }

    #[test]
    fn what_was_held_back_for_a_stop_string_comes_at_the_end() {
        let (whole, _) = run(stops(&["END"]), &ids("ab EN"));
        assert_eq!((whole.text.as_str(), whole.finish), ("ab EN", Some(Finish::Length)));
    }

    #[test]
    fn no_stop_string_is_found_before_min_tokens() {
        let rules = ChoiceRules { min_tokens: 4, ..stops(&["b"]) };
        let (whole, _) = run(rules, &ids("abababab"));
        assert_eq!(whole.text, "abab".to_owned() + "a");
    }

    #[test]
    fn a_stop_token_ends_the_text_before_itself() {
        let rules =
            ChoiceRules { stop_token_ids: vec![66, 256], named_stop_token_ids: vec![66], ..ChoiceRules::default() };
        let (whole, _) = run(rules.clone(), &ids("aAB"));
        assert_eq!((whole.text.as_str(), whole.finish), ("aA", Some(Finish::StopToken(Some(66)))));
        assert_eq!(whole.tokens.len(), 3);
        let (whole, _) = run(rules.clone(), &[65, 256]);
        assert_eq!((whole.text.as_str(), whole.finish), ("A", Some(Finish::StopToken(None))));
        let rules = ChoiceRules { include_stop: true, show_special_tokens: true, ..rules };
        assert_eq!(run(rules, &[65, 256]).0.text, "A<end>");
    }

    #[test]
    fn an_unfinished_character_is_replaced_at_the_end() {
        assert_eq!(run(ChoiceRules::default(), &[65, 200, 201]).0.text, "A\u{fffd}");
    }

    #[test]
    fn an_interval_joins_tokens_into_fewer_deltas() {
        let rules = ChoiceRules { interval: 4, ..ChoiceRules::default() };
        let (whole, deltas) = run(rules, &ids("abcdefghij"));
        assert_eq!(whole.text, "abcdefghij");
        assert_eq!(deltas.iter().map(|delta| delta.tokens.len()).collect::<Vec<_>>(), [4, 4, 2]);
    }
}
