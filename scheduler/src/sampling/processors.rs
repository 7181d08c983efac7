//! Edits of a row of logits before the draw, each one knob (or one family) of `SamplingParams`.
//!
//! Adding one: a function here, a field in `SamplingParams`, its place in [`apply`] and in [`changes_row`].

use super::sampler::History;
use crate::request::SamplingParams;
use tokenmill_models::runner::TokenId;

/// Set in a token's count when it occurs in the prompt.
const IN_PROMPT: u32 = 1 << 31;

/// Which tokens occur how often; all zero between calls.
pub(super) struct Counts {
    /// `[vocab_size]`
    counts: Vec<u32>,
    /// The tokens whose count is not 0.
    touched: Vec<TokenId>,
}

impl Counts {
    pub(super) fn new(vocab_size: usize) -> Self {
        Self { counts: vec![0; vocab_size], touched: Vec::with_capacity(vocab_size) }
    }

    fn add(&mut self, token: TokenId, amount: u32) {
        let count = &mut self.counts[token as usize];
        if *count == 0 {
            self.touched.push(token);
        }
        *count = if amount == IN_PROMPT { *count | IN_PROMPT } else { *count + amount };
    }

    fn clear(&mut self) {
        for &token in &self.touched {
            self.counts[token as usize] = 0;
        }
        self.touched.clear();
    }
}

/// Whether [`apply`] may change anything.
pub(super) fn changes_row(params: &SamplingParams, history: History<'_>) -> bool {
    has_penalties(params)
        || !params.logit_bias.is_empty()
        || !params.allowed_token_ids.is_empty()
        || bans_stop(params, history)
}

/// Runs every processor, in the documented order.
pub(super) fn apply(params: &SamplingParams, history: History<'_>, row: &mut [f32], counts: &mut Counts) {
    if has_penalties(params) {
        penalize(params, history, row, counts);
    }
    for &(token, bias) in &params.logit_bias {
        row[token as usize] += bias;
    }
    if !params.allowed_token_ids.is_empty() {
        keep_allowed(&params.allowed_token_ids, row, counts);
    }
    if bans_stop(params, history) {
        for &token in &params.stop_token_ids {
            if let Some(logit) = row.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

fn has_penalties(params: &SamplingParams) -> bool {
    params.repetition_penalty != 1.0 || params.presence_penalty != 0.0 || params.frequency_penalty != 0.0
}

fn bans_stop(params: &SamplingParams, history: History<'_>) -> bool {
    !params.stop_token_ids.is_empty() && history.output.len() < params.min_tokens as usize
}

/// Repetition penalty on tokens of prompt and output, then presence and frequency penalties on tokens of the output.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^24")]
fn penalize(params: &SamplingParams, history: History<'_>, row: &mut [f32], counts: &mut Counts) {
    if params.repetition_penalty != 1.0 {
        for &token in history.prompt {
            counts.add(token, IN_PROMPT);
        }
    }
    for &token in history.output {
        counts.add(token, 1);
    }
    for &token in &counts.touched {
        let num_in_output = counts.counts[token as usize] & !IN_PROMPT;
        let logit = &mut row[token as usize];
        if params.repetition_penalty != 1.0 {
            let penalty = params.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
        if num_in_output > 0 {
            *logit -= params.presence_penalty + params.frequency_penalty * num_in_output as f32;
        }
        // A penalty out of all proportion must not make the row useless.
        *logit = logit.clamp(f32::MIN, f32::MAX);
    }
    counts.clear();
}

fn keep_allowed(allowed: &[TokenId], row: &mut [f32], counts: &mut Counts) {
    for &token in allowed {
        counts.add(token, 1);
    }
    for (logit, &count) in row.iter_mut().zip(&counts.counts) {
        if count == 0 {
            *logit = f32::NEG_INFINITY;
        }
    }
    counts.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(params: &SamplingParams, prompt: &[TokenId], output: &[TokenId], row: &[f32], expected: &[f32]) {
        let mut counts = Counts::new(row.len());
        // Twice: the scratch must come back clean.
        for _ in 0..2 {
            let mut edited = row.to_vec();
            let history = History { prompt, output };
            assert_eq!(changes_row(params, history), row != expected, "{params:?}");
            apply(params, history, &mut edited, &mut counts);
            assert_eq!(edited, expected, "{params:?}");
        }
    }

    #[test]
    fn presence_and_frequency_penalties_follow_openai() {
        // mu[j] -= c[j] * frequency + (c[j] > 0) * presence, c counted in the output alone.
        let params = SamplingParams { presence_penalty: 0.5, frequency_penalty: 0.25, ..SamplingParams::default() };
        check(&params, &[3], &[1, 1, 2], &[1.0, 1.0, 1.0, 1.0], &[1.0, 0.0, 0.25, 1.0]);
        let params = SamplingParams { presence_penalty: -0.5, ..SamplingParams::default() };
        check(&params, &[3], &[1, 1, 2], &[1.0, 1.0, 1.0, 1.0], &[1.0, 1.5, 1.5, 1.0]);
    }

    #[test]
    fn repetition_penalty_covers_the_prompt_and_applies_once() {
        let params = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::default() };
        check(&params, &[3, 3, 1], &[1, 1, 2], &[1.0, 1.0, -1.0, 4.0], &[1.0, 0.5, -2.0, 2.0]);
        let params = SamplingParams { repetition_penalty: 2.0, presence_penalty: 1.0, ..SamplingParams::default() };
        check(&params, &[0], &[1], &[1.0, 1.0], &[0.5, -0.5]);
        let params = SamplingParams { repetition_penalty: f32::MIN_POSITIVE, ..SamplingParams::default() };
        check(&params, &[0], &[], &[1.0, 1.0], &[f32::MAX.min(1.0 / f32::MIN_POSITIVE), 1.0]);
    }

    #[test]
    fn bias_adds_and_forbids() {
        let logit_bias = vec![(0, 2.0), (2, f32::NEG_INFINITY)];
        let params = SamplingParams { logit_bias, ..SamplingParams::default() };
        check(&params, &[0], &[], &[1.0, 1.0, 1.0], &[3.0, 1.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn only_allowed_tokens_are_left() {
        let params = SamplingParams { allowed_token_ids: vec![1, 1], ..SamplingParams::default() };
        check(&params, &[0], &[], &[1.0, 1.0, 1.0], &[f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn stop_tokens_are_banned_until_min_tokens() {
        let params = SamplingParams { stop_token_ids: vec![1, 99], min_tokens: 2, ..SamplingParams::default() };
        check(&params, &[0], &[0], &[1.0, 1.0], &[1.0, f32::NEG_INFINITY]);
        check(&params, &[0], &[0, 0], &[1.0, 1.0], &[1.0, 1.0]);
    }
}
