//! One token from a row of logits: temperature, cuts, draw.
//!
//! The weight of a token is `exp((logit − max) / temperature)`, 1 for the most likely one. The cuts (top-k, then top-p
//! of what top-k left, then min-p) all keep the most likely tokens down to some rank, so they only have to look at
//! candidates above a floor, with the whole row as the fallback.

use super::rng::Rng;
use super::rows::{self, Candidate, RowScanner};
use crate::request::SamplingParams;
use tokenmill_models::runner::TokenId;

/// Temperatures below this count as this, so that no quotient overflows.
const MIN_TEMPERATURE: f32 = 1e-5;
/// Weights below e⁻⁸ are first left aside: the rest is nearly always all that a nucleus keeps.
const FIRST_FLOOR: f32 = -8.0;
/// Ranges of candidates below this are sorted instead of partitioned again.
const SORT_BELOW: usize = 32;
/// Entries of a row whose weights are summed together to find the chunk that a draw falls into.
const CHUNK_LEN: usize = 1024;

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

/// From logits to weights.
#[derive(Clone, Copy)]
struct Scale {
    max: f32,
    /// 1 / temperature.
    factor: f32,
}

impl Scale {
    fn weight(self, logit: f32) -> f32 {
        ((logit - self.max) * self.factor).exp()
    }

    /// The logit whose weight is `exp(log_weight)`.
    fn logit(self, log_weight: f32) -> f32 {
        self.max + log_weight / self.factor
    }
}

#[derive(Clone, Copy)]
struct Cut {
    /// At most the vocabulary's size, which keeps all.
    top_k: usize,
    top_p: f32,
    min_p: f32,
}

/// Chooses a token at the temperature of `params`, which is not 0, from a row whose largest entry is `max`. `None` if no
/// weight is left to draw from (NaN).
pub(super) fn draw(
    params: &SamplingParams,
    row: &[f32],
    max: f32,
    rng: &mut Rng,
    scanner: &mut RowScanner,
    scratch: &mut DrawScratch,
) -> Option<TokenId> {
    let scale = Scale { max, factor: 1.0 / params.temperature.max(MIN_TEMPERATURE) };
    let top_k = match params.top_k as usize {
        0 => row.len(),
        top_k => top_k.min(row.len()),
    };
    let cut = Cut { top_k, top_p: params.top_p, min_p: params.min_p };
    if top_k == row.len() && cut.top_p >= 1.0 && cut.min_p <= 0.0 {
        return draw_from_row(row, scale, rng.next_f64(), scanner, &mut scratch.chunk_sums);
    }
    find_candidates(row, scale, cut, scanner, &mut scratch.candidates);
    draw_from_candidates(&scratch.candidates, rng.next_f64())
}

/// Draws from all tokens: a chunk by its share of the weight, then a token of the chunk.
fn draw_from_row(
    row: &[f32],
    scale: Scale,
    uniform: f64,
    scanner: &RowScanner,
    chunk_sums: &mut Vec<f64>,
) -> Option<TokenId> {
    chunk_sums.clear();
    chunk_sums.extend(row.chunks(CHUNK_LEN).map(|chunk| scanner.sum_exp(chunk, scale.max, scale.factor)));
    let target = uniform * chunk_sums.iter().sum::<f64>();
    let (chunk_idx, target) = pick(chunk_sums.iter().copied(), target)?;
    let start = chunk_idx * CHUNK_LEN;
    let chunk = &row[start..row.len().min(start + CHUNK_LEN)];
    let (offset, _) = pick(chunk.iter().map(|&logit| f64::from(scale.weight(logit))), target)?;
    Some(u32::try_from(start + offset).expect("a vocabulary is smaller than 2^32"))
}

/// The index whose share of the running sum holds `target`, and how far into that share it lies. An index without
/// weight is never picked; where rounding leaves the target behind the end, the last index with weight is.
fn pick(weights: impl Iterator<Item = f64>, target: f64) -> Option<(usize, f64)> {
    let mut left = target;
    let mut picked = None;
    for (idx, weight) in weights.enumerate() {
        if weight > 0.0 {
            picked = Some((idx, left));
            if left < weight {
                break;
            }
        }
        left -= weight;
    }
    picked
}

/// Leaves in `candidates` the tokens that survive the cut, weights set.
fn find_candidates(row: &[f32], scale: Scale, cut: Cut, scanner: &mut RowScanner, candidates: &mut Vec<Candidate>) {
    let is_nucleus = cut.top_p < 1.0;
    // ln(0) is −∞: everything but forbidden tokens.
    let min_logit = scale.logit(cut.min_p.ln());
    if cut.top_k < row.len() {
        scanner.collect_top(row, cut.top_k, candidates);
        let total = set_weights(candidates, scale);
        if is_nucleus {
            keep_nucleus(candidates, f64::from(cut.top_p) * total);
        }
    } else if is_nucleus {
        let target = f64::from(cut.top_p) * scanner.sum_exp(row, scale.max, scale.factor);
        scanner.collect_from(row, scale.logit(FIRST_FLOOR), candidates);
        if set_weights(candidates, scale) < target {
            scanner.collect_from(row, f32::MIN, candidates);
            set_weights(candidates, scale);
        }
        keep_nucleus(candidates, target);
    } else {
        scanner.collect_from(row, min_logit, candidates);
        set_weights(candidates, scale);
    }
    candidates.retain(|candidate| candidate.logit >= min_logit);
}

/// Sets every weight and returns their sum.
fn set_weights(candidates: &mut [Candidate], scale: Scale) -> f64 {
    for candidate in &mut *candidates {
        candidate.weight = scale.weight(candidate.logit);
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
    let weights = candidates.iter().map(|candidate| f64::from(candidate.weight));
    let (idx, _) = pick(weights, uniform * sum_of(candidates))?;
    Some(candidates[idx].id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenmill_kernels::isa::Isa;

    const NUM_DRAWS: u32 = 20_000;

    /// Draws often from `row` and compares with `weights` (unnormalised; 0: must never come) by a chi-square bound.
    fn check(params: &SamplingParams, row: &[f32], weights: &[f64]) {
        let mut rng = Rng::new(11);
        let mut scanner = RowScanner::new(Isa::best(), row.len());
        let mut scratch = DrawScratch::new(row.len());
        let max = scanner.max(row);
        let mut counts = vec![0_u32; row.len()];
        for _ in 0..NUM_DRAWS {
            let token = draw(params, row, max, &mut rng, &mut scanner, &mut scratch).unwrap();
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
        let mut scanner = RowScanner::new(Isa::best(), row.len());
        let cut = Cut { top_k: row.len(), top_p: 0.5, min_p: 0.0 };
        find_candidates(&row, Scale { max: 0.0, factor: 1.0 }, cut, &mut scanner, &mut kept);
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
            let target = rng.next_f64() * set_weights(&mut candidates, Scale { max: 0.0, factor: 1.0 });
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
        let (mut scanner, mut scratch) = (RowScanner::new(Isa::best(), 2), DrawScratch::new(2));
        let mut rng = Rng::new(1);
        for top_p in [1.0, 0.5] {
            let params = SamplingParams { top_p, ..SamplingParams::default() };
            assert_eq!(draw(&params, &[f32::NAN; 2], f32::NAN, &mut rng, &mut scanner, &mut scratch), None);
        }
    }
}
