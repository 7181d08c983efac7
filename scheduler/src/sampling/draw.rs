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

#[cfg(test)]
mod tests {
    use super::*;

    const NUM_DRAWS: u32 = 20_000;

    /// Draws often from `row` and compares with `weights` (unnormalised; 0: must never come) by a chi-square bound.
    fn check(params: &SamplingParams, row: &[f32], weights: &[f64]) {
        let mut rng = Rng::new(11);
        let mut scratch = DrawScratch::new(row.len());
        let mut counts = vec![0_u32; row.len()];
        for _ in 0..NUM_DRAWS {
            let token = draw(params, &mut row.to_vec(), &mut rng, &mut scratch).unwrap();
            counts[token as usize] += 1;
        }
        let total: f64 = weights.iter().sum();
        let (mut chi_square, mut num_kept) = (0.0, 0.0);
        for (id, (&count, weight)) in counts.iter().zip(weights).enumerate() {
            let expected = weight / total * f64::from(NUM_DRAWS);
            if *weight == 0.0 {
                assert_eq!(count, 0, "token {id} was cut off: {params:?}");
                continue;
            }
            chi_square += (f64::from(count) - expected).powi(2) / expected;
            num_kept += 1.0;
        }
        // Mean and deviation of chi-square with k - 1 degrees of freedom are k - 1 and sqrt(2 (k - 1)).
        let bound = (num_kept - 1.0_f64) + 4.0 * (2.0 * num_kept).sqrt();
        assert!(chi_square <= bound, "chi-square {chi_square} over {bound} for {params:?}: {counts:?}");
    }

    fn softmax(row: &[f32], temperature: f64) -> Vec<f64> {
        row.iter().map(|&x| (f64::from(x) / temperature).exp()).collect()
    }

    #[test]
    fn temperature_sharpens_and_flattens() {
        let row = [1.0, 3.0, 0.5, 2.0, -1.0];
        for temperature in [0.5, 1.0, 2.0] {
            let params = SamplingParams { temperature, ..SamplingParams::default() };
            check(&params, &row, &softmax(&row, f64::from(temperature)));
        }
        let params = SamplingParams { temperature: f32::MIN_POSITIVE, ..SamplingParams::default() };
        check(&params, &row, &[0.0, 1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_row_of_many_chunks_is_drawn_from_evenly() {
        let row = vec![0.5; 3 * CHUNK_LEN + 7];
        check(&SamplingParams::default(), &row, &vec![1.0; row.len()]);
        let mut row = vec![f32::NEG_INFINITY; 2 * CHUNK_LEN + 7];
        let mut weights = vec![0.0; row.len()];
        for idx in [0, CHUNK_LEN, row.len() - 1] {
            (row[idx], weights[idx]) = (1.0, 1.0);
        }
        check(&SamplingParams::default(), &row, &weights);
    }

    #[test]
    fn top_k_keeps_k_and_the_lower_ids_of_equals() {
        let row = [1.0, 2.0, 1.0, 0.0];
        let with = |top_k| SamplingParams { top_k, ..SamplingParams::default() };
        let e = std::f64::consts::E;
        check(&with(1), &row, &[0.0, 1.0, 0.0, 0.0]);
        check(&with(2), &row, &[1.0, e, 0.0, 0.0]);
        check(&with(3), &row, &[1.0, e, 1.0, 0.0]);
        check(&with(99), &row, &softmax(&row, 1.0));
        // Fewer than k within the first floor: the rest of the row is looked at, but never what is forbidden.
        check(&with(3), &[0.0, -20.0, f32::NEG_INFINITY, -0.5], &[1.0, (-20.0_f64).exp(), 0.0, (-0.5_f64).exp()]);
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        let row = [0.5_f32, 0.3, 0.15, 0.05].map(f32::ln);
        let with = |top_p| SamplingParams { top_p, ..SamplingParams::default() };
        check(&with(0.0), &row, &[1.0, 0.0, 0.0, 0.0]);
        check(&with(0.49), &row, &[1.0, 0.0, 0.0, 0.0]);
        check(&with(0.6), &row, &[5.0, 3.0, 0.0, 0.0]);
        check(&with(0.9), &row, &[50.0, 30.0, 15.0, 0.0]);
        check(&with(0.99), &row, &[50.0, 30.0, 15.0, 5.0]);
    }

    #[test]
    fn top_p_looks_at_the_whole_row_where_the_mass_is_spread() {
        // One token at weight 1, the others below the first floor but with 3.7 in all: 0.5 takes 1 + 1.35 of it.
        let mut row = vec![-9.0; 30_000];
        row[17] = 0.0;
        let weight = (-9.0_f64).exp();
        let num_spread = (0.5 * (1.0 + 29_999.0 * weight) - 1.0) / weight;
        let mut kept = Vec::new();
        find_candidates(&row, Cut { top_k: row.len(), top_p: 0.5, min_logit: f32::NEG_INFINITY }, &mut kept);
        let mut ids: Vec<TokenId> = kept.iter().map(|candidate| candidate.id).collect();
        ids.sort_unstable();
        // Summed in f32 weights, so the boundary may be a token or two off.
        assert!((ids.len() as f64 - (1.0 + num_spread.ceil())).abs() <= 2.0, "{} kept, {num_spread} spread", ids.len());
        assert_eq!(ids.last(), u32::try_from(ids.len() - 1).ok().as_ref(), "the lower ids of equals are kept");
    }

    #[test]
    fn min_p_is_relative_to_the_most_likely() {
        let row = [0.5_f32, 0.3, 0.15, 0.05].map(f32::ln);
        let with = |min_p| SamplingParams { min_p, ..SamplingParams::default() };
        check(&with(0.55), &row, &[5.0, 3.0, 0.0, 0.0]);
        check(&with(0.2), &row, &[50.0, 30.0, 15.0, 0.0]);
        check(&with(1.0), &row, &[1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn top_p_counts_within_top_k() {
        let row = [0.4_f32, 0.3, 0.2, 0.1].map(f32::ln);
        // Of the three left by top-k, the first two have 0.7 / 0.9 of the weight.
        let params = SamplingParams { top_k: 3, top_p: 0.75, ..SamplingParams::default() };
        check(&params, &row, &[4.0, 3.0, 0.0, 0.0]);
        let params = SamplingParams { top_k: 3, top_p: 0.8, min_p: 0.6, ..SamplingParams::default() };
        check(&params, &row, &[4.0, 3.0, 0.0, 0.0]);
    }

    #[test]
    fn the_nucleus_equals_that_of_a_full_sort() {
        let mut rng = Rng::new(5);
        for case in 0..300 {
            let len = 1 + rng.below(400);
            let mut candidates: Vec<Candidate> = (0..len)
                .map(|id| {
                    let step = u16::try_from(rng.below(20)).unwrap();
                    Candidate { id, logit: -f32::from(step) / 4.0, weight: 0.0 }
                })
                .collect();
            let target = rng.next_f64() * set_weights(&mut candidates);
            let mut sorted = candidates.clone();
            sorted.sort_by(rows::by_likelihood);
            let mut sum = 0.0;
            let num_kept = sorted.iter().position(|candidate| {
                sum += f64::from(candidate.weight);
                sum >= target
            });
            sorted.truncate(num_kept.map_or(sorted.len(), |last| last + 1));
            keep_nucleus(&mut candidates, target);
            candidates.sort_by(rows::by_likelihood);
            assert_eq!(candidates, sorted, "case {case}");
        }
    }

    #[test]
    fn weights_that_are_not_numbers_give_nothing() {
        let mut scratch = DrawScratch::new(2);
        let mut rng = Rng::new(1);
        for top_p in [1.0, 0.5] {
            let params = SamplingParams { top_p, ..SamplingParams::default() };
            assert_eq!(draw(&params, &mut [f32::NAN, f32::NAN], &mut rng, &mut scratch), None);
        }
    }
}
