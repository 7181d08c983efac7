//! What is asked: sessions of one or more turns, drawn from distributions or taken from a trace, fixed by a seed.
//!
//! Session `idx` of a run is the same for every server, so that servers compared side by side get the same requests.
//! Two runs never share text by chance: each has its own salt. Used by `load`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::lengths::Lengths;
use crate::random::Rng;
use crate::trace::{Entry, Input};

/// Common words, so that any tokenizer needs about one token for each.
const WORDS: &[&str] = &[
    "apple", "bread", "bridge", "bright", "carry", "chair", "clear", "cloud", "corner", "cross", "dance", "dark",
    "door", "dream", "early", "earth", "field", "fire", "floor", "fresh", "garden", "glass", "gold", "green", "hand",
    "heart", "heavy", "house", "island", "jump", "keep", "kind", "lake", "large", "leave", "letter", "light", "long",
    "market", "month", "moon", "morning", "music", "name", "night", "north", "ocean", "open", "paper", "party", "path",
    "piece", "plant", "quick", "quiet", "rain", "river", "road", "round", "salt", "sand", "school", "seed", "ship",
    "short", "silver", "sleep", "small", "snow", "song", "south", "stone", "story", "street", "sugar", "summer",
    "table", "tall", "thing", "time", "town", "train", "tree", "under", "valley", "voice", "walk", "warm", "water",
    "week", "west", "white", "wide", "wind", "window", "winter", "wood", "word", "yellow", "young",
];

/// Numbers of words whose token counts settle how many words make a prompt.
const CALIBRATION_WORDS: &[u64] = &[8, 72, 264, 520];
/// Tokens that one entry of a trace's `hash_ids` stands for (Mooncake's block).
const TRACE_BLOCK_TOKENS: u64 = 512;
/// Turns of one session, at most.
pub(crate) const MAX_TURNS: u64 = 1000;

/// What `Rng::stream` draws for.
const PREFIX_STREAM: u64 = 1;
const SESSION_STREAM: u64 = 2;
const BLOCK_STREAM: u64 = 3;

/// How many tokens text takes on one server: its template and its tokenizer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// Tokens of an empty prompt.
    pub(crate) overhead_tokens: f64,
    pub(crate) tokens_per_word: f64,
}

impl Scale {
    /// A word is a token: for servers that do not count.
    const UNKNOWN: Self = Self { overhead_tokens: 0.0, tokens_per_word: 1.0 };

    /// Settles the scale by asking a server, through `count_tokens`, how many tokens a prompt took (`None`: not told).
    ///
    /// # Errors
    /// When the server does not answer, or counts no more tokens for more words.
    pub(crate) async fn measure<F, C>(longest_tokens: u64, seed: u64, mut count_tokens: C) -> Result<Self>
    where
        C: FnMut(String) -> F,
        F: Future<Output = Result<Option<u64>>>,
    {
        let mut scale = Self::UNKNOWN;
        let mut last: Option<(f64, f64)> = None;
        for num_words in CALIBRATION_WORDS {
            let mut rng = Rng::stream(seed, 0, *num_words);
            let text = tagged_text(seed, *num_words, *num_words, &mut rng);
            let Some(tokens) = count_tokens(text).await? else { return Ok(Self::UNKNOWN) };
            let point = (*num_words as f64, tokens as f64);
            if let Some(last) = last {
                scale.tokens_per_word = (point.1 - last.1) / (point.0 - last.0);
                scale.overhead_tokens = point.1 - scale.tokens_per_word * point.0;
            }
            if last.is_some() && *num_words >= longest_tokens {
                break;
            }
            last = Some(point);
        }
        ensure!(scale.tokens_per_word > 0.0, "the server counts no more tokens for more words");
        Ok(scale)
    }

    fn words(self, tokens: u64) -> u64 {
        (tokens as f64 / self.tokens_per_word).round().max(1.0) as u64
    }

    /// Words of a first message whose prompt, with the template, takes `tokens`.
    fn words_of_prompt(self, tokens: u64) -> u64 {
        self.words((tokens as f64 - self.overhead_tokens).max(0.0) as u64)
    }
}

/// Distributions that sessions are drawn from.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Of a session's first message, template included.
    pub(crate) prompt: Lengths,
    pub(crate) output: Lengths,
    pub(crate) turns: Lengths,
    /// Of the messages after the first.
    pub(crate) turn_prompt: Lengths,
    /// Between an answer's end and the next turn.
    pub(crate) think: Duration,
    /// Groups of sessions that begin with the same system message; 0 for no such message.
    pub(crate) prefix_groups: u64,
    /// Of each group's system message.
    pub(crate) prefix: Lengths,
}

/// Where sessions come from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Drawn(Box<Shape>),
    Trace(Vec<Entry>),
}

/// The sessions of one run on one server.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) source: Arc<Source>,
    pub(crate) scale: Scale,
    pub(crate) seed: u64,
    /// Of the run: loads and rounds ask different things.
    pub(crate) salt: u64,
}

/// One conversation.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// Messages before the first turn.
    pub(crate) opening: Vec<Value>,
    pub(crate) turns: Vec<Turn>,
    pub(crate) think: Duration,
}

/// One request of a session: messages to add, then the wanted length of the answer.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    pub(crate) messages: Vec<Value>,
    pub(crate) output_tokens: u64,
}

impl Workload {
    /// Session number `idx` of this run.
    pub(crate) fn session(&self, idx: u64) -> Session {
        match &*self.source {
            Source::Drawn(shape) => self.drawn(shape, idx),
            Source::Trace(entries) => self.recorded(&entries[idx as usize % entries.len()], idx),
        }
    }

    fn drawn(&self, shape: &Shape, idx: u64) -> Session {
        let mut rng = Rng::stream(self.seed ^ self.salt.rotate_left(32), SESSION_STREAM, idx);
        let mut opening = Vec::new();
        if shape.prefix_groups > 0 {
            let group = rng.below(shape.prefix_groups);
            opening.push(json!({"role": "system", "content": self.prefix(shape, group)}));
        }
        let num_turns = shape.turns.draw(&mut rng).min(MAX_TURNS);
        let turns = (0..num_turns).map(|turn| {
            let text = if turn == 0 {
                let words = self.scale.words_of_prompt(shape.prompt.draw(&mut rng));
                tagged_text(self.salt, idx, words, &mut rng)
            } else {
                text_of(self.scale.words(shape.turn_prompt.draw(&mut rng)), &mut rng)
            };
            Turn { messages: vec![user(&text)], output_tokens: shape.output.draw(&mut rng) }
        });
        let turns = turns.collect();
        Session { opening, turns, think: shape.think }
    }

    /// The same in every run, so that only the first ever computes it.
    fn prefix(&self, shape: &Shape, group: u64) -> String {
        let mut rng = Rng::stream(self.seed, PREFIX_STREAM, group);
        let words = self.scale.words(shape.prefix.draw(&mut rng));
        tagged_text(self.seed, group, words, &mut rng)
    }

    fn recorded(&self, entry: &Entry, idx: u64) -> Session {
        let messages = match &entry.input {
            Input::Messages(messages) => messages.clone(),
            Input::Length { tokens, hash_ids } => {
                let mut rng = Rng::stream(self.seed ^ self.salt.rotate_left(32), SESSION_STREAM, idx);
                let num_words = self.scale.words_of_prompt(*tokens);
                let mut text = self.shared_blocks(hash_ids, num_words);
                let missing = num_words.saturating_sub(text.split(' ').filter(|word| !word.is_empty()).count() as u64);
                if missing > 0 {
                    text += &tagged_text(self.salt, idx, missing, &mut rng);
                }
                vec![user(text.trim_end())]
            }
        };
        let turns = vec![Turn { messages, output_tokens: entry.output_tokens }];
        Session { opening: Vec::new(), turns, think: Duration::ZERO }
    }

    /// The text that `hash_ids` stand for, at most `max_words`; equal ids give equal text in the whole run.
    fn shared_blocks(&self, hash_ids: &[u64], max_words: u64) -> String {
        let block_words = self.scale.words(TRACE_BLOCK_TOKENS);
        let (mut text, mut left) = (String::new(), max_words);
        for id in hash_ids {
            let num_words = block_words.min(left);
            if num_words == 0 {
                break;
            }
            let mut rng = Rng::stream(self.seed ^ self.salt.rotate_left(32), BLOCK_STREAM, *id);
            text += &text_of(num_words, &mut rng);
            text.push(' ');
            left -= num_words;
        }
        text
    }
}

/// Longest prompt that a source will ask for often, in tokens.
pub(crate) fn longest_prompt(source: &Source) -> u64 {
    match source {
        Source::Drawn(shape) => shape.prompt.typical_max(),
        Source::Trace(entries) => {
            let lengths = entries.iter().map(|entry| match entry.input {
                Input::Length { tokens, .. } => tokens,
                Input::Messages(_) => 0,
            });
            lengths.max().unwrap_or(0)
        }
    }
}

fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

/// Text that begins with a tag, which keeps prompts from sharing a prefix by chance.
fn tagged_text(salt: u64, idx: u64, num_words: u64, rng: &mut Rng) -> String {
    format!("{idx}.{:x} {}", salt & 0xffff, text_of(num_words.saturating_sub(1), rng))
}

fn text_of(num_words: u64, rng: &mut Rng) -> String {
    let mut text = String::with_capacity(num_words as usize * 6);
    for word_idx in 0..num_words {
        if word_idx > 0 {
            text.push(' ');
        }
        text += WORDS[rng.below(WORDS.len() as u64) as usize];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            prompt: "20-40".parse().unwrap(),
            output: "20-40".parse().unwrap(),
            turns: "1".parse().unwrap(),
            turn_prompt: "10".parse().unwrap(),
            think: Duration::ZERO,
            prefix_groups: 0,
            prefix: "100".parse().unwrap(),
        }
    }

    fn workload(source: Source, seed: u64, salt: u64) -> Workload {
        Workload { source: Arc::new(source), scale: Scale { overhead_tokens: 5.0, tokens_per_word: 1.5 }, seed, salt }
    }

    fn drawn(shape: Shape, seed: u64, salt: u64) -> Workload {
        workload(Source::Drawn(Box::new(shape)), seed, salt)
    }

    fn text(message: &Value) -> &str {
        message["content"].as_str().unwrap()
    }

    fn num_words(message: &Value) -> f64 {
        text(message).split(' ').count() as f64
    }

    #[test]
    fn sessions_repeat_by_seed_and_differ_by_number_and_run() {
        let first = |seed, salt, idx| text(&drawn(shape(), seed, salt).session(idx).turns[0].messages[0]).to_owned();
        assert_eq!(first(1, 1, 3), first(1, 1, 3));
        for other in [first(1, 1, 4), first(2, 1, 3), first(1, 2, 3)] {
            assert_ne!(first(1, 1, 3), other);
        }
        for idx in 0..100 {
            let session = drawn(shape(), 1, 1).session(idx);
            assert!(session.opening.is_empty() && session.turns.len() == 1);
            assert!((20..=40).contains(&session.turns[0].output_tokens));
            let tokens = 5.0 + 1.5 * num_words(&session.turns[0].messages[0]);
            assert!((19.0..=41.5).contains(&tokens), "{tokens}");
        }
    }

    #[test]
    fn groups_share_their_prefix_across_runs_and_turns_have_their_own_length() {
        let shape = Shape { prefix_groups: 3, turns: "2-4".parse().unwrap(), ..shape() };
        let mut prefixes = std::collections::BTreeSet::new();
        for (salt, idx) in (0..40).map(|idx| (idx % 2, idx)) {
            let session = drawn(shape.clone(), 9, salt).session(idx);
            prefixes.insert(text(&session.opening[0]).to_owned());
            assert!((98.0..=102.0).contains(&(1.5 * num_words(&session.opening[0]))));
            assert!((2..=4).contains(&session.turns.len()));
            assert!((9.0..=11.0).contains(&(1.5 * num_words(&session.turns[1].messages[0]))));
        }
        assert_eq!(prefixes.len(), 3);
    }

    #[test]
    fn a_trace_gives_shared_blocks_for_equal_ids() {
        let entry = |tokens, hash_ids: &[u64]| Entry {
            at: Duration::ZERO,
            input: Input::Length { tokens, hash_ids: hash_ids.to_vec() },
            output_tokens: 7,
        };
        let entries = vec![entry(1205, &[1, 2, 3]), entry(1205, &[1, 2, 4]), entry(305, &[])];
        let workload = workload(Source::Trace(entries), 1, 1);
        let messages = [0, 1, 2].map(|idx| workload.session(idx).turns[0].messages[0].clone());
        let common = text(&messages[0]).bytes().zip(text(&messages[1]).bytes()).take_while(|(a, b)| a == b).count();
        let words = text(&messages[0])[..common].split(' ').count() as f64;
        assert!((words * 1.5 - 1024.0).abs() < 10.0, "two blocks of 512 tokens are shared, not {words} words");
        for (message, tokens) in messages.iter().zip([1205.0, 1205.0, 305.0]) {
            assert!((5.0 + 1.5 * num_words(message) - tokens).abs() < 3.0);
        }
        assert_eq!(workload.session(0).turns[0].output_tokens, 7);
    }

    #[tokio::test]
    async fn the_scale_of_a_server_is_found() {
        let count = |text: String| async move { Ok(Some(12 + 2 * text.split(' ').count() as u64)) };
        let scale = Scale::measure(400, 1, count).await.unwrap();
        assert!((scale.tokens_per_word - 2.0).abs() < 1e-9 && (scale.overhead_tokens - 12.0).abs() < 1e-9);
        assert_eq!(scale.words_of_prompt(112), 50);
        let unknown = Scale::measure(400, 1, |_| async { Ok(None) }).await.unwrap();
        assert_eq!(unknown.words_of_prompt(112), 112);
        assert!(Scale::measure(400, 1, |_| async { Ok(Some(5)) }).await.is_err());
    }
}
