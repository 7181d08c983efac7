//! One token from a row of logits: temperature, cuts, draw.
//!
//! The weight of a token is `exp((logit − max) / temperature)`, 1 for the most likely one. The cuts (top-k, then top-p
//! of what top-k left, then min-p) all keep the most likely tokens down to some rank, so each of them comes down to a
//! smallest weight; nothing is sorted but the few tokens of a top-k.

use super::rng::Rng;
use super::rows::{RowScanner, Scale, Weighed};
use crate::request::SamplingParams;
use tokenmill_models::runner::TokenId;

/// Temperatures below this count as this, so that no quotient overflows.
const MIN_TEMPERATURE: f32 = 1e-5;
/// Weights below e⁻⁸ are first left aside: the rest is nearly always all that a nucleus keeps.
const FIRST_LOG_FLOOR: f32 = -8.0;
/// Weights that are summed together to find the chunk that a draw falls into.
const CHUNK_LEN: usize = 1024;
/// Halvings of the range of a nucleus' smallest weight before the weights in the range are set apart.
const COARSE_HALVINGS: u32 = 8;

/// Memory for one draw.
pub(super) struct DrawScratch {
    /// Capacity for one sum per chunk of a row.
    chunk_sums: Vec<f64>,
    /// `[vocab_size]`
    in_range: Vec<f32>,
}

impl DrawScratch {
    pub(super) fn new(vocab_size: usize) -> Self {
        let chunk_sums = Vec::with_capacity(vocab_size.div_ceil(CHUNK_LEN));
        Self { chunk_sums, in_range: vec![0.0; vocab_size] }
    }
}

/// What a cut keeps: the weights above `weight`, and those equal to it up to index `last_idx`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cut {
    weight: f32,
    last_idx: usize,
}

impl Cut {
    /// Keeps every weight from `weight` on.
    fn from(weight: f32) -> Self {
        Self { weight, last_idx: usize::MAX }
    }

    fn keeps(self, idx: usize, weight: f32) -> bool {
        weight > self.weight || (weight == self.weight && idx <= self.last_idx)
    }
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
    let top_k = params.top_k as usize;
    let has_top_k = top_k > 0 && top_k < row.len();
    let is_nucleus = params.top_p < 1.0;
    if !has_top_k && !is_nucleus && params.min_p <= 0.0 {
        return draw_from_row(row, scale, rng.next_f64(), scanner, &mut scratch.chunk_sums);
    }
    let top_p = f64::from(params.top_p);
    let (weighed, target) = if has_top_k {
        let weighed = scanner.top(row, scale, top_k);
        (weighed, top_p * sum_from(weighed.weights, 0.0))
    } else if is_nucleus {
        let target = top_p * scanner.total_weight(row, scale);
        let has_all = sum_from(scanner.above_floor(row, scale, FIRST_LOG_FLOOR).weights, 0.0) >= target;
        let log_floor = if has_all { FIRST_LOG_FLOOR } else { f32::MIN };
        (scanner.above_floor(row, scale, log_floor), target)
    } else {
        (scanner.above_floor(row, scale, params.min_p.ln()), 0.0)
    };
    let mut cut = Cut::from(params.min_p.clamp(0.0, 1.0));
    if is_nucleus {
        let nucleus = nucleus(weighed.weights, target, &mut scratch.in_range);
        cut = if cut.weight > nucleus.weight { cut } else { nucleus };
    }
    draw_from(weighed, cut, rng.next_f64(), &mut scratch.chunk_sums)
}

/// Draws from all tokens, without setting down every weight: a chunk by its share, then a token of the chunk.
fn draw_from_row(
    row: &[f32],
    scale: Scale,
    uniform: f64,
    scanner: &mut RowScanner,
    chunk_sums: &mut Vec<f64>,
) -> Option<TokenId> {
    chunk_sums.clear();
    chunk_sums.extend(row.chunks(CHUNK_LEN).map(|chunk| scanner.total_weight(chunk, scale)));
    let target = uniform * chunk_sums.iter().sum::<f64>();
    let (chunk_idx, target) = pick(chunk_sums.iter().copied(), target)?;
    let start = chunk_idx * CHUNK_LEN;
    let weighed = scanner.all(&row[start..row.len().min(start + CHUNK_LEN)], scale);
    let (offset, _) = pick(weighed.weights.iter().map(|&weight| f64::from(weight)), target)?;
    Some(weighed.token(offset) + u32::try_from(start).expect("a vocabulary is smaller than 2^32"))
}

/// Draws from what `cut` keeps: a chunk by its share of the weight, then a token of the chunk.
fn draw_from(weighed: Weighed<'_>, cut: Cut, uniform: f64, chunk_sums: &mut Vec<f64>) -> Option<TokenId> {
    chunk_sums.clear();
    let chunks = weighed.weights.chunks(CHUNK_LEN).enumerate();
    chunk_sums.extend(chunks.map(|(chunk_idx, chunk)| sum_kept(chunk, chunk_idx * CHUNK_LEN, cut)));
    let target = uniform * chunk_sums.iter().sum::<f64>();
    let (chunk_idx, target) = pick(chunk_sums.iter().copied(), target)?;
    let start = chunk_idx * CHUNK_LEN;
    let chunk = weighed.weights[start..].iter().take(CHUNK_LEN).zip(start..);
    let kept = chunk.map(|(&weight, idx)| if cut.keeps(idx, weight) { f64::from(weight) } else { 0.0 });
    let (offset, _) = pick(kept, target)?;
    Some(weighed.token(start + offset))
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

/// The sum of what `cut` keeps of the weights from index `start` on.
fn sum_kept(weights: &[f32], start: usize, cut: Cut) -> f64 {
    let num_with_ties = cut.last_idx.saturating_add(1).saturating_sub(start).min(weights.len());
    let (with_ties, without) = weights.split_at(num_with_ties);
    sum_from(with_ties, cut.weight) + sum_from(without, cut.weight.next_up())
}

/// The sum of the weights of at least `floor`. Written for vectors: sixteen sums that do not wait for each other.
fn sum_from(weights: &[f32], floor: f32) -> f64 {
    let mut total = 0.0;
    for chunk in weights.chunks(CHUNK_LEN) {
        let mut sums = [0.0_f32; 16];
        let (rounds, rest) = chunk.as_chunks::<16>();
        for round in rounds {
            for (sum, &weight) in sums.iter_mut().zip(round) {
                *sum += if weight >= floor { weight } else { 0.0 };
            }
        }
        for (sum, &weight) in sums.iter_mut().zip(rest) {
            *sum += if weight >= floor { weight } else { 0.0 };
        }
        total += sums.iter().map(|&sum| f64::from(sum)).sum::<f64>();
    }
    total
}

/// The cut that keeps the fewest, largest weights whose sum reaches `target`, at least one.
///
/// Weights lie in 0..=1, where the bits of a float order like the float, so halving a range of bits finds the smallest
/// weight that is kept. Only the weights still in the range count after the first few halvings.
fn nucleus(weights: &[f32], target: f64, in_range: &mut [f32]) -> Cut {
    // Kept from `low` on, the weights reach the target; from `high` on, they do not.
    let (mut low, mut high) = (0_u32, 1.0_f32.to_bits() + 1);
    if sum_from(weights, 0.0) < target {
        return Cut::from(0.0);
    }
    let target = target.max(f64::MIN_POSITIVE);
    let mut above = 0.0;
    let mut rest = weights;
    let mut num_halvings = 0;
    while high - low > 1 {
        if num_halvings == COARSE_HALVINGS {
            let (from, to) = (f32::from_bits(low), f32::from_bits(high));
            above = sum_from(weights, to);
            let num_in_range = copy_range(weights, from, to, in_range);
            rest = &in_range[..num_in_range];
        }
        num_halvings += 1;
        let middle = low + (high - low) / 2;
        if above + sum_from(rest, f32::from_bits(middle)) >= target {
            low = middle;
        } else {
            high = middle;
        }
    }
    let weight = f32::from_bits(low);
    // Of the weights equal to the smallest, only as many as it takes, the first ones.
    let mut left = target - sum_from(weights, weight.next_up());
    let mut last_idx = 0;
    for (idx, _) in weights.iter().enumerate().filter(|(_, other)| **other == weight) {
        last_idx = idx;
        left -= f64::from(weight);
        if left <= 0.0 {
            break;
        }
    }
    Cut { weight, last_idx }
}

/// Writes the weights of `from..to` to the front of `out` and returns how many there are. Without a branch per weight:
/// which ones are in the range cannot be predicted.
fn copy_range(weights: &[f32], from: f32, to: f32, out: &mut [f32]) -> usize {
    let mut num_copied = 0;
    for &weight in weights {
        out[num_copied] = weight;
        num_copied += usize::from((weight >= from) & (weight < to));
    }
    num_copied
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
        // One token of weight 1, the others below the first floor but with 3.7 in all: 0.5 takes 1 + 1.35 of it, which
        // are those with the lower ids.
        let mut row = vec![-9.0; 30_000];
        row[17] = 0.0;
        let weight = (-9.0_f64).exp();
        let num_spread = (0.5 * (1.0 + 29_999.0 * weight) - 1.0) / weight;
        let mut scanner = RowScanner::new(Isa::best(), row.len());
        let mut scratch = DrawScratch::new(row.len());
        let params = SamplingParams { top_p: 0.5, ..SamplingParams::default() };
        let mut rng = Rng::new(3);
        let draws = (0..3000).map(|_| draw(&params, &row, 0.0, &mut rng, &mut scanner, &mut scratch).unwrap());
        let largest = f64::from(draws.max().unwrap());
        assert!(largest <= num_spread + 3.0 && largest > 0.98 * num_spread, "{largest}, {num_spread} are kept");
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
            let len = 1 + rng.below(if case % 10 == 0 { 5000 } else { 40 });
            // Powers of two sum exactly in any order; many are equal.
            let mut weights: Vec<f32> =
                (0..len).map(|_| (-f32::from(u16::try_from(rng.below(12)).unwrap())).exp2()).collect();
            weights[0] = 1.0;
            let total: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
            let target = rng.next_f64() * total;
            let mut order: Vec<usize> = (0..weights.len()).collect();
            order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
            let mut sum = 0.0;
            let last = order.iter().position(|&idx| {
                sum += f64::from(weights[idx]);
                sum >= target
            });
            let mut expected = order[..=last.unwrap()].to_vec();
            expected.sort_unstable();
            let cut = nucleus(&weights, target, &mut vec![0.0; weights.len()]);
            let kept: Vec<usize> = (0..weights.len()).filter(|&idx| cut.keeps(idx, weights[idx])).collect();
            assert_eq!(kept, expected, "case {case}");
            let sum_of_chunks: f64 = weights.chunks(7).enumerate().map(|(i, chunk)| sum_kept(chunk, 7 * i, cut)).sum();
            assert_eq!(sum_of_chunks, sum, "case {case}");
        }
    }

    #[test]
    fn a_nucleus_of_nothing_keeps_one_and_of_everything_all() {
        let weights = [0.25, 1.0, 1.0, 0.0];
        assert_eq!(nucleus(&weights, 0.0, &mut [0.0; 4]), Cut { weight: 1.0, last_idx: 1 });
        assert_eq!(nucleus(&weights, 9.0, &mut [0.0; 4]), Cut::from(0.0));
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
