//! One token from a row of logits: temperature, cuts, draw.
//!
//! The row is shifted and scaled once, so that its largest entry is 0 and `exp` of an entry is its weight. The cuts
//! (top-k, then top-p of what top-k left, then min-p) all keep the most likely tokens down to some rank, so they only
//! have to look at candidates above a floor, with the whole row as the fallback.

use super::rng::Rng;
use super::rows::{self, CHUNK_LEN, Candidate};
use crate::request::SamplingParams;
use tokenmill_models::runner::TokenId;

/// Temperatures below this count as this, so that no quotient overflows.
const MIN_TEMPERATURE: f32 = 1e-5;
/// Candidates are first sought within e⁸ of the most likely token: nearly always all that a cut keeps.
const FIRST_FLOOR: f32 = -8.0;
/// Ranges of candidates below this are sorted instead of partitioned again.
const SORT_BELOW: usize = 32;

/// Memory for one draw.
pub(super) struct DrawScratch {
    /// Capacity `vocab_size`.
    candidates: Vec<Candidate>,
    /// Capacity for one sum per chunk of a row.
    chunk_sums: Vec<f64>,
}

impl DrawScratch {
    pub(super) fn new(vocab_size: usize) -> Self {
        let chunk_sums = Vec::with_capacity(vocab_size.div_ceil(CHUNK_LEN));
        Self { candidates: Vec::with_capacity(vocab_size), chunk_sums }
    }
}

/// Chooses a token at the temperature of `params`, which is not 0. The row is used up. `None` if no weight is left to
/// draw from (NaN).
pub(super) fn draw(
    params: &SamplingParams,
    row: &mut [f32],
    rng: &mut Rng,
    scratch: &mut DrawScratch,
) -> Option<TokenId> {
    let max = rows::max(row);
    rows::shift_and_scale(row, max, 1.0 / params.temperature.max(MIN_TEMPERATURE));
    let vocab_size = row.len();
    let top_k = match params.top_k as usize {
        0 => vocab_size,
        top_k => top_k.min(vocab_size),
    };
    let cut = Cut { top_k, top_p: params.top_p, min_logit: params.min_p.ln() };
    if top_k == vocab_size && cut.top_p >= 1.0 && cut.min_logit == f32::NEG_INFINITY {
        return draw_from_row(row, rng.next_f64(), &mut scratch.chunk_sums);
    }
    let candidates = &mut scratch.candidates;
    find_candidates(row, cut, candidates);
    draw_from_candidates(candidates, rng.next_f64())
}

#[derive(Clone, Copy)]
struct Cut {
    top_k: usize,
    top_p: f32,
    /// `ln(min_p)`: weights are relative to the largest already.
    min_logit: f32,
}

/// Draws from all tokens: a chunk by its share of the weight, then a token of the chunk.
fn draw_from_row(row: &[f32], uniform: f64, chunk_sums: &mut Vec<f64>) -> Option<TokenId> {
    chunk_sums.clear();
    chunk_sums.extend(row.chunks(CHUNK_LEN).map(|chunk| rows::sum_exp_chunk(chunk, 0.0)));
    let mut left = uniform * chunk_sums.iter().sum::<f64>();
    let mut chosen = None;
    for (chunk_idx, &sum) in chunk_sums.iter().enumerate() {
        if sum > 0.0 {
            chosen = Some(chunk_idx);
            if left < sum {
                break;
            }
        }
        left -= sum;
    }
    let start = chosen? * CHUNK_LEN;
    let chunk = &row[start..row.len().min(start + CHUNK_LEN)];
    let mut chosen = None;
    for (offset, logit) in chunk.iter().enumerate() {
        let weight = f64::from(logit.exp());
        if weight > 0.0 {
            chosen = Some(start + offset);
            if left < weight {
                break;
            }
        }
        left -= weight;
    }
    chosen.map(|idx| u32::try_from(idx).expect("a vocabulary is smaller than 2^32"))
}

/// Leaves in `candidates` the tokens that survive the cut, weights set.
fn find_candidates(row: &[f32], cut: Cut, candidates: &mut Vec<Candidate>) {
    candidates.clear();
    let is_nucleus = cut.top_p < 1.0;
    if cut.top_k < row.len() {
        rows::top_unsorted(row, cut.top_k, FIRST_FLOOR, candidates);
        let total = set_weights(candidates);
        if is_nucleus {
            keep_nucleus(candidates, f64::from(cut.top_p) * total);
        }
    } else if is_nucleus {
        let target = f64::from(cut.top_p) * rows::sum_exp(row, 0.0);
        rows::collect_from(row, FIRST_FLOOR, candidates);
        if set_weights(candidates) < target {
            candidates.clear();
            rows::collect_from(row, f32::MIN, candidates);
            set_weights(candidates);
        }
        keep_nucleus(candidates, target);
    } else {
        rows::collect_from(row, cut.min_logit, candidates);
        set_weights(candidates);
    }
    candidates.retain(|candidate| candidate.logit >= cut.min_logit);
}

/// Sets every weight and returns their sum.
fn set_weights(candidates: &mut [Candidate]) -> f64 {
    for candidate in &mut *candidates {
        candidate.weight = candidate.logit.exp();
    }
    sum_of(candidates)
}

fn sum_of(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.weight)).sum()
}

/// Keeps the fewest most likely candidates whose weights reach `target`, at least one.
///
/// A quickselect by weight: the range that holds the boundary is halved until it is small enough to sort.
fn keep_nucleus(candidates: &mut Vec<Candidate>, target: f64) {
    let (mut start, mut end, mut before) = (0, candidates.len(), 0.0);
    while end - start > SORT_BELOW {
        let middle = start + (end - start) / 2;
        candidates[start..end].select_nth_unstable_by(middle - start, rows::by_likelihood);
        let sum = sum_of(&candidates[start..middle]);
        if before + sum >= target {
            end = middle;
        } else {
            before += sum;
            start = middle;
        }
    }
    candidates[start..end].sort_unstable_by(rows::by_likelihood);
    for idx in start..end {
        before += f64::from(candidates[idx].weight);
        if before >= target {
            candidates.truncate(idx + 1);
            return;
        }
    }
    candidates.truncate(end);
}

fn draw_from_candidates(candidates: &[Candidate], uniform: f64) -> Option<TokenId> {
    let mut left = uniform * sum_of(candidates);
    let mut chosen = None;
    for candidate in candidates {
        let weight = f64::from(candidate.weight);
        if weight > 0.0 {
            chosen = Some(candidate.id);
            if left < weight {
                break;
            }
        }
        left -= weight;
    }
    chosen
}
