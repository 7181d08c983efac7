//! [`RowScanner`]: what the sampler asks of a whole row of logits. Each question is one or two passes of the kernels.

use tokenmill_kernels::isa::Isa;
use tokenmill_kernels::logits::{self, TopK};
use tokenmill_models::runner::TokenId;

/// One token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: TokenId,
    pub(super) logit: f32,
    /// Relative to the most likely token's, which is 1; set where it is needed.
    pub(super) weight: f32,
}

/// Most likely first, the lower id first among equals: a total order, so that a cut never depends on anything else.
pub(super) fn by_likelihood(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// Whether no entry is infinite or NaN.
pub(super) fn is_finite(row: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    // Without an early end the loop is a few instructions per vector.
    row.iter().fold(true, |finite, x| finite & (x.to_bits() & EXPONENT != EXPONENT))
}

/// Looks through rows of one vocabulary; holds the memory that this takes.
pub(super) struct RowScanner {
    isa: Isa,
    top_k: TopK,
    /// `[vocab_size]` both.
    ids: Vec<TokenId>,
    logits: Vec<f32>,
}

impl RowScanner {
    pub(super) fn new(isa: Isa, vocab_size: usize) -> Self {
        Self { isa, top_k: TopK::new(vocab_size), ids: vec![0; vocab_size], logits: vec![0.0; vocab_size] }
    }

    /// The largest entry; −∞ if every token is forbidden.
    pub(super) fn max(&self, row: &[f32]) -> f32 {
        logits::max(self.isa, row)
    }

    /// The token with the largest entry, the first among equals; `None` if every token is forbidden.
    pub(super) fn argmax(&self, row: &[f32]) -> Option<TokenId> {
        logits::argmax(self.isa, row).map(|idx| u32::try_from(idx).expect("a vocabulary is smaller than 2^32"))
    }

    /// `Σ exp((x − max) · scale)`.
    pub(super) fn sum_exp(&self, row: &[f32], max: f32, scale: f32) -> f64 {
        f64::from(logits::sum_exp(self.isa, row, max, scale))
    }

    /// Puts every entry of at least `floor` into `out`, in order of the ids, weights unset. Forbidden tokens never.
    pub(super) fn collect_from(&mut self, row: &[f32], floor: f32, out: &mut Vec<Candidate>) {
        let num_found = logits::collect_above(self.isa, row, floor.max(f32::MIN), &mut self.ids, &mut self.logits);
        self.put_first(num_found, out);
    }

    /// Puts the `count` most likely entries into `out`, best first, weights unset.
    pub(super) fn collect_top(&mut self, row: &[f32], count: usize, out: &mut Vec<Candidate>) {
        let num_found = self.top_k.select(self.isa, row, &mut self.ids[..count], &mut self.logits[..count]);
        self.put_first(num_found, out);
    }

    fn put_first(&self, count: usize, out: &mut Vec<Candidate>) {
        out.clear();
        let found = self.ids[..count].iter().zip(&self.logits);
        out.extend(found.map(|(&id, &logit)| Candidate { id, logit, weight: 0.0 }));
    }
}
