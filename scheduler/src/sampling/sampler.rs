//! [`Sampler`]: one sequence's parameters and generator; turns its row of logits into its next token.

use super::draw::{self, DrawScratch};
use super::processors::{self, Counts};
use super::rng::Rng;
use super::rows::{self, Candidate};
use crate::request::{SamplingParams, SeqError, TokenLogprobs};
use tokenmill_models::runner::TokenId;

/// Memory that sampling needs, for one row at a time; shared by all sequences of an engine.
pub struct Scratch {
    counts: Counts,
    draw: DrawScratch,
    /// `[vocab_size]`, the row while it is edited, if the original is needed afterwards.
    edited: Vec<f32>,
    top: Vec<Candidate>,
}

impl Scratch {
    /// Enough for rows of `vocab_size` entries.
    #[must_use]
    pub fn new(vocab_size: usize) -> Self {
        Self {
            counts: Counts::new(vocab_size),
            draw: DrawScratch::new(vocab_size),
            edited: vec![0.0; vocab_size],
            top: Vec::with_capacity(vocab_size),
        }
    }
}

/// The tokens before the one that is chosen.
#[derive(Clone, Copy)]
pub struct History<'a> {
    /// What the client sent.
    pub prompt: &'a [TokenId],
    /// What was chosen so far.
    pub output: &'a [TokenId],
}

/// Chooses one sequence's tokens.
pub struct Sampler {
    params: SamplingParams,
    rng: Rng,
}

impl Sampler {
    /// A sampler at the start of its generator's sequence.
    #[must_use]
    pub fn new(params: SamplingParams) -> Self {
        let rng = Rng::new(params.seed);
        Self { params, rng }
    }

    /// The parameters it was made with.
    #[must_use]
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Chooses the token that follows `history`; `row` is `[vocab_size]` and is used up.
    ///
    /// # Errors
    /// [`SeqError::NotFinite`] if the row holds NaN or an infinity, [`SeqError::NothingAllowed`] if the parameters
    /// forbid every token.
    pub fn sample(
        &mut self,
        row: &mut [f32],
        history: History<'_>,
        scratch: &mut Scratch,
    ) -> Result<(TokenId, Option<Box<TokenLogprobs>>), SeqError> {
        if !rows::is_finite(row) {
            return Err(SeqError::NotFinite);
        }
        let params = &self.params;
        let is_greedy = params.temperature <= 0.0;
        let is_edited = !is_greedy || processors::changes_row(params, history);
        let Some(num_top) = params.num_logprobs else {
            let token = choose(params, &mut self.rng, row, history, &mut scratch.counts, &mut scratch.draw)?;
            return Ok((token, None));
        };
        let Scratch { counts, draw, edited, top } = scratch;
        let token = if is_edited {
            edited.copy_from_slice(row);
            choose(params, &mut self.rng, edited, history, counts, draw)?
        } else {
            first_index(rows::argmax(row))
        };
        Ok((token, Some(Box::new(logprobs(row, token, num_top, top)))))
    }

    /// Log-probabilities of `token`, which stands after the position that `row` belongs to.
    ///
    /// # Errors
    /// [`SeqError::NotFinite`] if the row holds NaN or an infinity.
    pub fn prompt_logprobs(
        row: &[f32],
        token: TokenId,
        num_top: u32,
        scratch: &mut Scratch,
    ) -> Result<TokenLogprobs, SeqError> {
        if !rows::is_finite(row) {
            return Err(SeqError::NotFinite);
        }
        Ok(logprobs(row, token, num_top, &mut scratch.top))
    }
}

fn choose(
    params: &SamplingParams,
    rng: &mut Rng,
    row: &mut [f32],
    history: History<'_>,
    counts: &mut Counts,
    scratch: &mut DrawScratch,
) -> Result<TokenId, SeqError> {
    processors::apply(params, history, row, counts);
    if params.temperature <= 0.0 {
        let best = rows::argmax(row);
        return if row[best] == f32::NEG_INFINITY { Err(SeqError::NothingAllowed) } else { Ok(first_index(best)) };
    }
    if rows::max(row) == f32::NEG_INFINITY {
        return Err(SeqError::NothingAllowed);
    }
    draw::draw(params, row, rng, scratch).ok_or(SeqError::NotFinite)
}

fn first_index(idx: usize) -> TokenId {
    u32::try_from(idx).expect("a vocabulary is smaller than 2^32")
}

/// Log-softmax of the raw row: of `token` and of the `num_top` most likely tokens.
#[expect(clippy::cast_possible_truncation, reason = "a logarithm of a sum of at most 2^32 ones fits f32 well")]
fn logprobs(row: &[f32], token: TokenId, num_top: u32, scratch: &mut Vec<Candidate>) -> TokenLogprobs {
    let max = rows::max(row);
    let log_sum = max + rows::sum_exp(row, max).ln() as f32;
    rows::top(row, max, (num_top as usize).min(row.len()), scratch);
    let top = scratch.iter().map(|candidate| (candidate.id, candidate.logit - log_sum)).collect();
    TokenLogprobs { logprob: row[token as usize] - log_sum, top }
}
