//! What is asked: random prompts of a wanted length, never twice the same, fixed by a seed.

use std::str::FromStr;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::client::Client;

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

/// Requests that find out how many words make the wanted prompt, at most.
const MAX_CALIBRATIONS: usize = 4;

/// A number of tokens, fixed or drawn evenly from a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Length {
    /// Least, at least 1.
    pub(crate) min: u64,
    /// Most.
    pub(crate) max: u64,
}

impl FromStr for Length {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        let parse = |part: &str| part.trim().parse::<u64>().map_err(|_| format!("{text} is not a number or a range"));
        let length = Self { min: parse(min)?, max: parse(max)? };
        if length.min == 0 || length.min > length.max {
            return Err(format!("{text} must be at least 1, and a range must rise"));
        }
        Ok(length)
    }
}

impl Length {
    fn draw(self, rng: &mut Rng) -> u64 {
        self.min + rng.below(self.max - self.min + 1)
    }
}

/// `SplitMix64` (Steele et al. 2014): small, seedable, good enough for words and arrival times.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Even over `0..bound`; the bias of a remainder does not matter at these bounds.
    fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }

    /// Exponential with mean 1: the gap between arrivals of a Poisson process.
    pub(crate) fn exponential(&mut self) -> f64 {
        let unit = (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        -(1.0 - unit).ln()
    }
}

/// One request to send.
pub(crate) struct Job {
    pub(crate) prompt: String,
    pub(crate) output_tokens: u64,
}

/// The distribution that requests are drawn from.
#[derive(Serialize)]
pub(crate) struct Workload {
    prompt_tokens: Length,
    output_tokens: Length,
    seed: u64,
    /// Prompt tokens that an empty prompt costs (chat template).
    overhead_tokens: f64,
    tokens_per_word: f64,
}

impl Workload {
    /// Asks the server how many tokens its template and a word take, so that prompts come out at the wanted length.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(crate) async fn calibrated(client: &Client, prompt: Length, output: Length, seed: u64) -> Result<Self> {
        let mut this =
            Self { prompt_tokens: prompt, output_tokens: output, seed, overhead_tokens: 0.0, tokens_per_word: 1.0 };
        let mut rng = Rng::new(seed ^ 0x5eed);
        let mut last: Option<(f64, f64)> = None;
        for num_words in [8, 72, 264, 520].into_iter().take(MAX_CALIBRATIONS) {
            let answer = client.complete(&text_of(num_words, &mut rng), 1).await;
            let timing = answer.map_err(|failure| anyhow::anyhow!(failure.0)).context("the first request failed")?;
            if timing.prompt_tokens == 0 {
                return Ok(this); // The server does not count; a word is taken for a token.
            }
            let point = (num_words as f64, timing.prompt_tokens as f64);
            if let Some(last) = last {
                this.tokens_per_word = (point.1 - last.1) / (point.0 - last.0);
                this.overhead_tokens = point.1 - this.tokens_per_word * point.0;
            }
            last = Some(point);
            if num_words >= prompt.max {
                break;
            }
        }
        ensure!(this.tokens_per_word > 0.0, "the server counts no tokens for more words");
        Ok(this)
    }

    /// Request number `job_idx`: the same for the same seed, whatever else is sent.
    pub(crate) fn job(&self, job_idx: u64) -> Job {
        let mut rng = Rng::new(self.seed.wrapping_mul(0x1_0000_0001).wrapping_add(job_idx));
        let prompt_tokens = self.prompt_tokens.draw(&mut rng) as f64;
        let num_words = ((prompt_tokens - self.overhead_tokens) / self.tokens_per_word).round().max(1.0);
        // The number in front keeps prompts from sharing a prefix by chance.
        let prompt = format!("{job_idx} {}", text_of((num_words as u64).saturating_sub(1), &mut rng));
        Job { prompt, output_tokens: self.output_tokens.draw(&mut rng) }
    }
}

fn text_of(num_words: u64, rng: &mut Rng) -> String {
    let words: Vec<&str> = (0..num_words).map(|_| WORDS[rng.below(WORDS.len() as u64) as usize]).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_parse_or_say_why_not() {
        assert_eq!("64".parse::<Length>().unwrap(), Length { min: 64, max: 64 });
        assert_eq!("32-512".parse::<Length>().unwrap(), Length { min: 32, max: 512 });
        for bad in ["", "0", "a", "9-3", "-4", "1-"] {
            assert!(bad.parse::<Length>().is_err(), "{bad}");
        }
    }

    #[test]
    fn jobs_repeat_by_seed_and_differ_by_number() {
        let length = Length { min: 20, max: 40 };
        let workload = |seed| Workload {
            prompt_tokens: length,
            output_tokens: length,
            seed,
            overhead_tokens: 5.0,
            tokens_per_word: 1.5,
        };
        assert_eq!(workload(1).job(3).prompt, workload(1).job(3).prompt);
        assert_ne!(workload(1).job(3).prompt, workload(1).job(4).prompt);
        assert_ne!(workload(1).job(3).prompt, workload(2).job(3).prompt);
        for job_idx in 0..100 {
            let job = workload(1).job(job_idx);
            assert!((20..=40).contains(&job.output_tokens));
            let tokens = 5.0 + 1.5 * job.prompt.split(' ').count() as f64;
            assert!((19.0..=41.5).contains(&tokens), "{tokens}");
        }
    }

    #[test]
    fn exponential_gaps_have_mean_one() {
        let mut rng = Rng::new(7);
        let mean = (0..100_000).map(|_| rng.exponential()).sum::<f64>() / 100_000.0;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
    }
}
