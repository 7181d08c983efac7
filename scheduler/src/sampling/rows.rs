//! [`RowScanner`]: what the sampler asks of a whole row of logits. Each question is one or two passes of the kernels.

use tokenmill_kernels::isa::Isa;
use tokenmill_kernels::logits::{self, TopK};
use tokenmill_models::runner::TokenId;

/// Looks through rows of one vocabulary; holds the memory that this takes.
pub(super) struct RowScanner {
    isa: Isa,
    top_k: TopK,
    /// `[vocab_size]` each; the first of them mean something after a search.
    ids: Vec<TokenId>,
    logits: Vec<f32>,
    weights: Vec<f32>,
}

/// Some tokens and their weights, of equal length. Without ids: all entries of what was weighed, in order.
#[derive(Clone, Copy)]
pub(super) struct Weighed<'a> {
    ids: Option<&'a [TokenId]>,
    pub(super) weights: &'a [f32],
}

impl Weighed<'_> {
    /// The token at `idx`.
    pub(super) fn token(self, idx: usize) -> TokenId {
        self.ids.map_or_else(|| token(idx), |ids| ids[idx])
    }
}

/// From logits to weights: `exp((logit − max) · factor)`, 1 for the most likely token.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    pub(super) max: f32,
    /// 1 / temperature.
    pub(super) factor: f32,
}

impl RowScanner {
    pub(super) fn new(isa: Isa, vocab_size: usize) -> Self {
        let floats = || vec![0.0; vocab_size];
        Self { isa, top_k: TopK::new(vocab_size), ids: vec![0; vocab_size], logits: floats(), weights: floats() }
    }

    /// Whether no entry is infinite or NaN.
    pub(super) fn is_finite(&self, row: &[f32]) -> bool {
        logits::is_finite(self.isa, row)
    }

    /// The largest entry; −∞ if every token is forbidden.
    pub(super) fn max(&self, row: &[f32]) -> f32 {
        logits::max(self.isa, row)
    }

    /// The token with the largest entry, the first among equals; `None` if every token is forbidden.
    pub(super) fn argmax(&self, row: &[f32]) -> Option<TokenId> {
        logits::argmax(self.isa, row).map(token)
    }

    /// The sum of all weights.
    pub(super) fn total_weight(&self, row: &[f32], scale: Scale) -> f64 {
        f64::from(logits::sum_exp(self.isa, row, scale.max, scale.factor))
    }

    /// Every entry of a row or of a part of one.
    pub(super) fn all(&mut self, row: &[f32], scale: Scale) -> Weighed<'_> {
        let weights = &mut self.weights[..row.len()];
        logits::weights(self.isa, row, scale.max, scale.factor, weights);
        Weighed { ids: None, weights }
    }

    /// The tokens with a weight of at least `exp(log_floor)`, in order of their ids.
    pub(super) fn above_floor(&mut self, row: &[f32], scale: Scale, log_floor: f32) -> Weighed<'_> {
        let floor = scale.max + log_floor / scale.factor;
        let num_found = logits::collect_above(self.isa, row, floor, &mut self.ids, &mut self.logits);
        self.weigh_first(num_found, scale)
    }

    /// The `count` most likely tokens, best first, lower ids first among equals.
    pub(super) fn top(&mut self, row: &[f32], scale: Scale, count: usize) -> Weighed<'_> {
        let num_found = self.select_top(row, count);
        self.weigh_first(num_found, scale)
    }

    /// The `count` most likely tokens with their logits, best first, lower ids first among equals.
    pub(super) fn top_logits(&mut self, row: &[f32], count: usize) -> impl Iterator<Item = (TokenId, f32)> {
        let num_found = self.select_top(row, count);
        self.ids[..num_found].iter().copied().zip(self.logits[..num_found].iter().copied())
    }

    fn select_top(&mut self, row: &[f32], count: usize) -> usize {
        self.top_k.select(self.isa, row, &mut self.ids[..count], &mut self.logits[..count])
    }

    fn weigh_first(&mut self, count: usize, scale: Scale) -> Weighed<'_> {
        let weights = &mut self.weights[..count];
        logits::weights(self.isa, &self.logits[..count], scale.max, scale.factor, weights);
        Weighed { ids: Some(&self.ids[..count]), weights }
    }
}

fn token(idx: usize) -> TokenId {
    u32::try_from(idx).expect("a vocabulary is smaller than 2^32")
}
