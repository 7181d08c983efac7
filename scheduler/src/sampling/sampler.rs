//! [`Sampler`]: one sequence's parameters and generator; turns its row of logits into its next token.

use super::draw::{self, DrawScratch};
use super::processors::{self, Counts};
use super::rng::Rng;
use super::rows::{RowScanner, Scale};
use crate::request::{SamplingParams, SeqError, TokenLogprobs};
use tokenmill_kernels::isa::Isa;
use tokenmill_models::runner::TokenId;

/// Memory that sampling needs, for one row at a time; shared by all sequences of an engine.
pub struct Scratch {
    scanner: RowScanner,
    counts: Counts,
    draw: DrawScratch,
    /// `[vocab_size]`, the row while it is edited, if the original is needed afterwards.
    edited: Vec<f32>,
}

impl Scratch {
    /// Enough for rows of `vocab_size` entries, which are looked through with the kernels for `isa`.
    #[must_use]
    pub fn new(isa: Isa, vocab_size: usize) -> Self {
        Self {
            scanner: RowScanner::new(isa, vocab_size),
            counts: Counts::new(vocab_size),
            draw: DrawScratch::new(vocab_size),
            edited: vec![0.0; vocab_size],
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
        if !scratch.scanner.is_finite(row) {
            return Err(SeqError::NotFinite);
        }
        let Some(num_top) = self.params.num_logprobs else {
            let token = self.choose(row, history, scratch)?;
            return Ok((token, None));
        };
        let token = if processors::changes_row(&self.params, history) {
            let mut edited = std::mem::take(&mut scratch.edited);
            edited.copy_from_slice(row);
            let token = self.choose(&mut edited, history, scratch);
            scratch.edited = edited;
            token?
        } else {
            self.choose(row, history, scratch)?
        };
        Ok((token, Some(Box::new(logprobs(row, token, num_top, scratch)))))
    }

    fn choose(&mut self, row: &mut [f32], history: History<'_>, scratch: &mut Scratch) -> Result<TokenId, SeqError> {
        let Scratch { scanner, counts, draw, .. } = scratch;
        processors::apply(&self.params, history, row, counts);
        if self.params.temperature <= 0.0 {
            return scanner.argmax(row).ok_or(SeqError::NothingAllowed);
        }
        let max = scanner.max(row);
        if max == f32::NEG_INFINITY {
            return Err(SeqError::NothingAllowed);
        }
        draw::draw(&self.params, row, max, &mut self.rng, scanner, draw).ok_or(SeqError::NotFinite)
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
        if !scratch.scanner.is_finite(row) {
            return Err(SeqError::NotFinite);
        }
        Ok(logprobs(row, token, num_top, scratch))
    }
}

/// Log-softmax of the raw row: of `token` and of the `num_top` most likely tokens.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the logarithm of a sum of at most 2^32 ones is far from f32's limits"
)]
fn logprobs(row: &[f32], token: TokenId, num_top: u32, scratch: &mut Scratch) -> TokenLogprobs {
    let scanner = &mut scratch.scanner;
    let max = scanner.max(row);
    let log_sum = max + scanner.total_weight(row, Scale { max, factor: 1.0 }).ln() as f32;
    let top = scanner.top_logits(row, (num_top as usize).min(row.len()));
    let top = top.map(|(id, logit)| (id, logit - log_sum)).collect();
    TokenLogprobs { logprob: row[token as usize] - log_sum, top }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: History<'static> = History { prompt: &[], output: &[] };

    fn sample(params: &SamplingParams, row: &[f32]) -> Result<(TokenId, Option<TokenLogprobs>), SeqError> {
        let mut scratch = Scratch::new(Isa::best(), row.len());
        let sampled = Sampler::new(params.clone()).sample(&mut row.to_vec(), NOTHING, &mut scratch);
        sampled.map(|(token, logprobs)| (token, logprobs.map(|logprobs| *logprobs)))
    }

    fn greedy() -> SamplingParams {
        SamplingParams { temperature: 0.0, ..SamplingParams::default() }
    }

    fn assert_near(got: f32, expected: f64) {
        assert!((f64::from(got) - expected).abs() < 1e-5, "{got} instead of {expected}");
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(sample(&greedy(), &[0.0, 2.0, 2.0, 1.0]), Ok((1, None)));
        let params = SamplingParams { logit_bias: vec![(3, 5.0)], ..greedy() };
        assert_eq!(sample(&params, &[0.0, 2.0, 2.0, 1.0]), Ok((3, None)));
    }

    #[test]
    fn rows_that_are_not_numbers_fail() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for params in [greedy(), SamplingParams::default()] {
                assert_eq!(sample(&params, &[0.0, bad]), Err(SeqError::NotFinite), "{bad}");
            }
            let mut scratch = Scratch::new(Isa::best(), 2);
            assert_eq!(Sampler::prompt_logprobs(&[bad, 0.0], 1, 0, &mut scratch), Err(SeqError::NotFinite));
        }
    }

    #[test]
    fn forbidding_everything_fails() {
        let stop_token_ids = vec![1];
        let base = SamplingParams { allowed_token_ids: vec![1], stop_token_ids, min_tokens: 1, ..greedy() };
        for temperature in [0.0, 1.0] {
            let params = SamplingParams { temperature, ..base.clone() };
            assert_eq!(sample(&params, &[0.0, 0.0]), Err(SeqError::NothingAllowed));
        }
    }

    #[test]
    fn extreme_parameters_still_choose() {
        let params = SamplingParams { repetition_penalty: f32::MIN_POSITIVE, ..SamplingParams::default() };
        let mut scratch = Scratch::new(Isa::best(), 2);
        let history = History { prompt: &[0], output: &[] };
        let mut row = [1e30, -1e30];
        assert_eq!(Sampler::new(params).sample(&mut row, history, &mut scratch), Ok((0, None)));
    }

    #[test]
    fn logprobs_are_those_of_the_model_before_any_edit() {
        let row = [0.1_f32, 0.2, 0.3, 0.4].map(f32::ln);
        let base = SamplingParams { num_logprobs: Some(2), ..SamplingParams::default() };
        let biased = SamplingParams { logit_bias: vec![(0, 50.0)], temperature: 0.3, top_k: 1, ..base.clone() };
        for params in [SamplingParams { temperature: 0.0, ..base }, biased] {
            let (token, logprobs) = sample(&params, &row).unwrap();
            let logprobs = logprobs.unwrap();
            assert_eq!(token, if params.temperature == 0.0 { 3 } else { 0 });
            assert_near(logprobs.logprob, (f64::from(token + 1) / 10.0).ln());
        }
    }

    #[test]
    fn top_logprobs_are_best_first_lower_ids_first_among_equals() {
        let params = SamplingParams { num_logprobs: Some(3), ..greedy() };
        let (_, logprobs) = sample(&params, &[0.0, -30.0, 1.0, 1.0]).unwrap();
        let ids: Vec<TokenId> = logprobs.unwrap().top.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [2, 3, 0]);
        let params = SamplingParams { num_logprobs: Some(99), ..greedy() };
        assert_eq!(sample(&params, &[0.0, -30.0]).unwrap().1.unwrap().top.len(), 2, "no more than there are");
        let params = SamplingParams { num_logprobs: Some(0), ..greedy() };
        assert_eq!(sample(&params, &[0.0, -30.0]).unwrap().1.unwrap().top, []);
    }

    #[test]
    fn the_seed_alone_decides() {
        let row: Vec<f32> = (0..50_u8).map(|i| f32::from(i % 7)).collect();
        let draw = |seed| {
            let mut sampler = Sampler::new(SamplingParams { seed, ..SamplingParams::default() });
            let mut scratch = Scratch::new(Isa::best(), row.len());
            let next = |_| sampler.sample(&mut row.clone(), NOTHING, &mut scratch).unwrap().0;
            (0..20).map(next).collect::<Vec<TokenId>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
