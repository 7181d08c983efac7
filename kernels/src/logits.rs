//! Passes over a row of logits for sampling. None allocates; NaN is never chosen, found or counted.

use crate::isa::Isa;
use crate::simd::{LANES, Simd, Task, dispatch, exp, partial};

/// Elements whose exponentials are added in `f32` before they go to the `f64` total, and in which an argmax is looked
/// for again.
const CHUNK: usize = 4096;

/// The largest value; negative infinity for an empty row.
#[must_use]
pub fn max(isa: Isa, logits: &[f32]) -> f32 {
    dispatch(isa, Max(logits))
}

struct Max<'a>(&'a [f32]);

impl Task for Max<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        max_of(simd, self.0)
    }
}

#[inline(always)]
fn max_of<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let mut maxima = [simd.splat(f32::NEG_INFINITY); 4];
    let (rounds, rest) = x.as_chunks::<{ 4 * LANES }>();
    for round in rounds {
        let (chunks, _) = round.as_chunks::<LANES>();
        for i in 0..4 {
            // The old maximum comes second, so that it survives a NaN.
            maxima[i] = simd.max(simd.load(&chunks[i]), maxima[i]);
        }
    }
    for chunk in rest.chunks(LANES) {
        let lanes = simd.load(&partial(chunk, f32::NEG_INFINITY));
        maxima[0] = simd.max(lanes, maxima[0]);
    }
    simd.max_lane(simd.max(simd.max(maxima[0], maxima[1]), simd.max(maxima[2], maxima[3])))
}

/// Index of the largest value, the first of equals; `None` if nothing is above negative infinity.
#[must_use]
pub fn argmax(isa: Isa, logits: &[f32]) -> Option<usize> {
    let (mut best, mut best_start) = (f32::NEG_INFINITY, None);
    for (chunk_idx, chunk) in logits.chunks(CHUNK).enumerate() {
        let chunk_max = max(isa, chunk);
        if chunk_max > best {
            (best, best_start) = (chunk_max, Some(chunk_idx * CHUNK));
        }
    }
    let start = best_start?;
    logits[start..].iter().position(|x| *x == best).map(|offset| start + offset)
}

/// The sum of `e^((x - max) * scale)` over the row; `scale` is the inverse of a temperature. Relative error below 1e-6.
#[must_use]
pub fn sum_exp(isa: Isa, logits: &[f32], max: f32, scale: f32) -> f32 {
    logits.chunks(CHUNK).map(|chunk| f64::from(dispatch(isa, SumExp { chunk, max, scale }))).sum::<f64>() as f32
}

struct SumExp<'a> {
    chunk: &'a [f32],
    max: f32,
    scale: f32,
}

impl Task for SumExp<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let (max, scale) = (simd.splat(self.max), simd.splat(self.scale));
        let mut sums = [simd.splat(0.0); 2];
        let (rounds, rest) = self.chunk.as_chunks::<{ 2 * LANES }>();
        for round in rounds {
            let (chunks, _) = round.as_chunks::<LANES>();
            for i in 0..2 {
                // A NaN becomes negative infinity, whose exponential is 0.
                let x = simd.max(simd.load(&chunks[i]), simd.splat(f32::NEG_INFINITY));
                sums[i] = simd.add(sums[i], exp(simd, simd.mul(simd.sub(x, max), scale)));
            }
        }
        for chunk in rest.chunks(LANES) {
            let x = simd.load(&partial(chunk, f32::NEG_INFINITY));
            let x = simd.max(x, simd.splat(f32::NEG_INFINITY));
            sums[0] = simd.add(sums[0], exp(simd, simd.mul(simd.sub(x, max), scale)));
        }
        simd.sum(simd.add(sums[0], sums[1]))
    }
}

/// Writes `e^((x - max) * scale)` for every element; `scale` is the inverse of a temperature. 0 for NaN.
///
/// # Panics
/// When `logits` and `out` differ in length.
pub fn weights(isa: Isa, logits: &[f32], max: f32, scale: f32, out: &mut [f32]) {
    assert!(logits.len() == out.len(), "{} logits, room for {}", logits.len(), out.len());
    dispatch(isa, Weights { logits, max, scale, out });
}

struct Weights<'a> {
    logits: &'a [f32],
    max: f32,
    scale: f32,
    out: &'a mut [f32],
}

impl Task for Weights<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (chunks, rest) = self.logits.as_chunks::<LANES>();
        let (outs, rest_out) = self.out.as_chunks_mut::<LANES>();
        for (chunk, out) in chunks.iter().zip(outs) {
            simd.store(weigh(simd, chunk, self.max, self.scale), out);
        }
        let mut lanes = [0.0; LANES];
        simd.store(weigh(simd, &partial(rest, f32::NEG_INFINITY), self.max, self.scale), &mut lanes);
        rest_out.copy_from_slice(&lanes[..rest.len()]);
    }
}

#[inline(always)]
fn weigh<S: Simd>(simd: S, lanes: &[f32; LANES], max: f32, scale: f32) -> S::F32 {
    // A NaN becomes negative infinity, whose exponential is 0.
    let x = simd.max(simd.load(lanes), simd.splat(f32::NEG_INFINITY));
    exp(simd, simd.mul(simd.sub(x, simd.splat(max)), simd.splat(scale)))
}

/// Whether no element is infinite or NaN.
#[must_use]
pub fn is_finite(isa: Isa, logits: &[f32]) -> bool {
    dispatch(isa, IsFinite(logits))
}

struct IsFinite<'a>(&'a [f32]);

impl Task for IsFinite<'_> {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> bool {
        // 0 x is 0, but NaN if x is infinite or NaN, and a NaN stays in the sum.
        let zero = simd.splat(0.0);
        let mut sums = [zero; 4];
        let (rounds, rest) = self.0.as_chunks::<{ 4 * LANES }>();
        for round in rounds {
            let (chunks, _) = round.as_chunks::<LANES>();
            for i in 0..4 {
                sums[i] = simd.fma(simd.load(&chunks[i]), zero, sums[i]);
            }
        }
        for chunk in rest.chunks(LANES) {
            sums[0] = simd.fma(simd.load(&partial(chunk, 0.0)), zero, sums[0]);
        }
        simd.sum(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3]))) == 0.0
    }
}

/// Natural logarithm of the softmax at `index`, `max` and `sum_exp` being those of the row at scale 1.
///
/// # Panics
/// When `index` is outside the row.
#[must_use]
pub fn log_softmax_at(logits: &[f32], index: usize, max: f32, sum_exp: f32) -> f32 {
    logits[index] - max - sum_exp.ln()
}

/// Finds the elements at or above `threshold`: writes indices to `ids` and values to `values`, ascending by index, as
/// far as they have room, and returns how many there are in all.
///
/// # Panics
/// When `ids` and `values` differ in length.
pub fn collect_above(isa: Isa, logits: &[f32], threshold: f32, ids: &mut [u32], values: &mut [f32]) -> usize {
    assert!(ids.len() == values.len(), "{} ids, {} values", ids.len(), values.len());
    let found = dispatch(isa, CollectAbove { logits, threshold, ids });
    for (value, id) in values.iter_mut().zip(ids.iter()).take(found) {
        *value = logits[*id as usize];
    }
    found
}

struct CollectAbove<'a> {
    logits: &'a [f32],
    threshold: f32,
    ids: &'a mut [u32],
}

impl Task for CollectAbove<'_> {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> usize {
        let threshold = simd.splat(self.threshold);
        let mut found = 0;
        let (rounds, rest) = self.logits.as_chunks::<{ 4 * LANES }>();
        for (round_idx, round) in rounds.iter().enumerate() {
            let (chunks, _) = round.as_chunks::<LANES>();
            let mut masks = [0; 4];
            for i in 0..4 {
                masks[i] = simd.mask_ge(simd.load(&chunks[i]), threshold);
            }
            if masks != [0; 4] {
                for i in 0..4 {
                    found += put(simd, masks[i], (4 * round_idx + i) * LANES, found, self.ids);
                }
            }
        }
        let start = self.logits.len() - rest.len();
        for (i, chunk) in rest.chunks(LANES).enumerate() {
            let mask = simd.mask_ge(simd.load(&partial(chunk, f32::NAN)), threshold);
            found += put(simd, mask, start + i * LANES, found, self.ids);
        }
        found
    }
}

/// Writes the indices of a mask's bits from `ids[at]` on, as far as there is room, and returns how many it has.
#[inline(always)]
fn put<S: Simd>(simd: S, mask: u16, base: usize, at: usize, ids: &mut [u32]) -> usize {
    let len = mask.count_ones() as usize;
    let room = ids.len().saturating_sub(at);
    if room >= LANES {
        if let Some(out) = ids[at..].first_chunk_mut::<LANES>() {
            simd.compress_ids(mask, base as u32, out);
        }
    } else if room > 0 {
        let mut lanes = [0; LANES];
        simd.compress_ids(mask, base as u32, &mut lanes);
        ids[at..at + room.min(len)].copy_from_slice(&lanes[..room.min(len)]);
    }
    len
}

/// Finds the largest elements of rows; holds the memory that this takes.
pub struct TopK {
    /// Maxima of groups of elements.
    maxima: Vec<f32>,
    ids: Vec<u32>,
    values: Vec<f32>,
    keys: Vec<u64>,
}

impl TopK {
    /// Elements per maximum: a row of 150,000 has 2,400.
    const GROUP: usize = 4 * LANES;

    /// For rows of at most `max_len` elements.
    #[must_use]
    pub fn new(max_len: usize) -> Self {
        Self {
            maxima: Vec::with_capacity(max_len.div_ceil(Self::GROUP)),
            ids: vec![0; max_len],
            values: vec![0.0; max_len],
            keys: Vec::with_capacity(max_len),
        }
    }

    /// Writes the largest elements, as many as `ids` and `values` have room for, in descending order, equals by
    /// ascending index; returns how many (fewer only if the row has fewer that are numbers).
    ///
    /// # Panics
    /// When the row is longer than `max_len`, or `ids` and `values` differ in length.
    pub fn select(&mut self, isa: Isa, logits: &[f32], ids: &mut [u32], values: &mut [f32]) -> usize {
        assert!(logits.len() <= self.ids.len(), "a row of {}, room for {}", logits.len(), self.ids.len());
        let k = ids.len().min(logits.len());
        if k == 0 {
            return 0;
        }
        // The k-th largest maximum of a group is exceeded by k - 1 others, so k elements at least reach it.
        self.maxima.clear();
        self.maxima.resize(logits.len().div_ceil(Self::GROUP), f32::NEG_INFINITY);
        dispatch(isa, GroupMaxima { logits, maxima: &mut self.maxima });
        let threshold = if k <= self.maxima.len() {
            *self.maxima.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
        } else {
            f32::NEG_INFINITY
        };
        let found = collect_above(isa, logits, threshold, &mut self.ids, &mut self.values);
        top_of(&self.ids[..found], &self.values[..found], &mut self.keys, ids, values)
    }
}

/// The largest of some candidates (as [`collect_above`] finds them), into `out_ids` and `out_values` as
/// [`TopK::select`] does. `keys` is memory: with room for all candidates it does not grow.
///
/// # Panics
/// When ids and values differ in length.
pub fn top_of(ids: &[u32], values: &[f32], keys: &mut Vec<u64>, out_ids: &mut [u32], out_values: &mut [f32]) -> usize {
    assert!(ids.len() == values.len() && out_ids.len() == out_values.len(), "ids and values of different lengths");
    keys.clear();
    keys.extend(ids.iter().zip(values).map(|(id, value)| key(*id, *value)));
    let k = out_ids.len().min(keys.len());
    if k == 0 {
        return 0;
    }
    if k < keys.len() {
        keys.select_nth_unstable(k - 1);
    }
    let top = &mut keys[..k];
    top.sort_unstable();
    for ((key, id), value) in top.iter().zip(out_ids).zip(out_values) {
        (*id, *value) = id_and_value(*key);
    }
    k
}

/// Ascending keys are descending values, then ascending ids. Negative zero becomes zero.
fn key(id: u32, value: f32) -> u64 {
    let bits = (value + 0.0).to_bits();
    let descending = if bits >> 31 == 0 { !bits & 0x7fff_ffff } else { bits };
    u64::from(descending) << 32 | u64::from(id)
}

fn id_and_value(key: u64) -> (u32, f32) {
    let descending = (key >> 32) as u32;
    let bits = if descending >> 31 == 0 { !descending & 0x7fff_ffff } else { descending };
    ((key & u64::from(u32::MAX)) as u32, f32::from_bits(bits))
}

struct GroupMaxima<'a> {
    logits: &'a [f32],
    maxima: &'a mut [f32],
}

impl Task for GroupMaxima<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (group, max) in self.logits.chunks(TopK::GROUP).zip(self.maxima) {
            *max = max_of(simd, group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Multiples of 1/16, so that equals occur.
                ((state >> 22) as f32 - 512.0) / 16.0
            })
            .collect()
    }

    const LENGTHS: [usize; 10] = [1, 15, 16, 17, 63, 64, 65, 4095, 4097, 30_001];

    #[test]
    fn max_argmax_and_sum_match_plain_loops() {
        for isa in Isa::available() {
            for len in LENGTHS {
                let x = row(len, len as u32);
                let expected = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                assert_eq!(max(isa, &x), expected, "{isa} {len}");
                assert_eq!(argmax(isa, &x), x.iter().position(|x| *x == expected), "{isa} {len}");
                for scale in [1.0, 0.25, 3.0] {
                    let exact: f64 = x.iter().map(|x| (f64::from(x - expected) * f64::from(scale)).exp()).sum();
                    let found = f64::from(sum_exp(isa, &x, expected, scale));
                    assert!((found - exact).abs() <= 1e-6 * exact, "{isa} {len}: {found}, not {exact}");
                    let scalar = sum_exp(Isa::SCALAR, &x, expected, scale);
                    assert_eq!(sum_exp(isa, &x, expected, scale).to_bits(), scalar.to_bits(), "{isa} {len}");
                }
            }
        }
    }

    #[test]
    fn weights_are_exponentials_with_the_same_bits_on_every_isa() {
        for isa in Isa::available() {
            for len in LENGTHS {
                let mut x = row(len, len as u32);
                x[len / 2] = f32::NEG_INFINITY;
                let (mut found, mut scalar) = (vec![9.0; len], vec![9.0; len]);
                weights(isa, &x, 31.0, 0.5, &mut found);
                weights(Isa::SCALAR, &x, 31.0, 0.5, &mut scalar);
                assert_eq!(found, scalar, "{isa} {len}");
                for (x, found) in x.iter().zip(found) {
                    let exact = (f64::from(x - 31.0) * 0.5).exp();
                    assert!((f64::from(found) - exact).abs() <= 2e-7 * exact, "{isa} {x}: {found}, not {exact}");
                }
            }
        }
    }

    #[test]
    fn one_element_that_is_not_finite_is_noticed() {
        for isa in Isa::available() {
            for len in LENGTHS {
                let mut x = row(len, 5);
                x[0] = f32::MAX;
                assert!(is_finite(isa, &x), "{isa} {len}");
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    for at in [0, len / 2, len - 1] {
                        let before = std::mem::replace(&mut x[at], bad);
                        assert!(!is_finite(isa, &x), "{isa} {len} {bad} at {at}");
                        x[at] = before;
                    }
                }
            }
        }
    }

    #[test]
    fn the_first_of_equals_wins_wherever_it_is() {
        for isa in Isa::available() {
            for first in [0, 5, 16, 63, 64, 4095, 4096, 9998] {
                let mut x = vec![-3.0; 10_000];
                (x[first], x[9_999]) = (7.0, 7.0);
                assert_eq!(argmax(isa, &x), Some(first), "{isa}");
            }
        }
    }

    #[test]
    fn nan_is_never_chosen_found_or_counted() {
        for isa in Isa::available() {
            for nan_at in [0, 1, 17, 70, 99] {
                let mut x = vec![1.0; 100];
                (x[nan_at], x[40]) = (f32::NAN, 2.0);
                assert_eq!((max(isa, &x), argmax(isa, &x)), (2.0, Some(40)), "{isa}");
                assert!((sum_exp(isa, &x, 2.0, 1.0) - (1.0 + 98.0 * (-1_f32).exp())).abs() < 1e-4);
                let (mut ids, mut values) = ([0; 100], [0.0; 100]);
                assert_eq!(collect_above(isa, &x, f32::NEG_INFINITY, &mut ids, &mut values), 99);
                assert!(!ids[..99].contains(&(nan_at as u32)));
                assert_eq!(TopK::new(100).select(isa, &x, &mut ids, &mut values), 99);
            }
            assert_eq!(argmax(isa, &[f32::NAN, f32::NEG_INFINITY]), None);
            assert_eq!(argmax(isa, &[]), None);
        }
    }

    #[test]
    fn collects_in_order_and_counts_what_has_no_room() {
        for isa in Isa::available() {
            for len in LENGTHS {
                let x = row(len, 3);
                for threshold in [-40.0, 0.0, 30.0, 100.0] {
                    let expected: Vec<u32> = (0..len as u32).filter(|i| x[*i as usize] >= threshold).collect();
                    for room in [0, 1, 20, len] {
                        let (mut ids, mut values) = (vec![0; room], vec![0.0; room]);
                        let found = collect_above(isa, &x, threshold, &mut ids, &mut values);
                        assert_eq!(found, expected.len(), "{isa} {len}");
                        let kept = found.min(room);
                        assert_eq!(ids[..kept], expected[..kept], "{isa} {len}");
                        assert!((0..kept).all(|i| values[i] == x[ids[i] as usize]));
                    }
                }
            }
        }
    }

    #[test]
    fn top_k_is_a_prefix_of_the_sorted_row() {
        let mut top = TopK::new(30_001);
        for isa in Isa::available() {
            for len in LENGTHS {
                let mut x = row(len, 9);
                x[len / 2] = -0.0;
                let mut expected: Vec<usize> = (0..len).collect();
                expected.sort_by(|a, b| x[*b].partial_cmp(&x[*a]).unwrap().then(a.cmp(b)));
                for k in [1, 2, 40, 1000, len] {
                    let (mut ids, mut values) = (vec![0; k], vec![0.0; k]);
                    let found = top.select(isa, &x, &mut ids, &mut values);
                    assert_eq!(found, k.min(len));
                    let ids: Vec<usize> = ids[..found].iter().map(|id| *id as usize).collect();
                    assert_eq!(ids, expected[..found], "{isa} {len} {k}");
                    assert!((0..found).all(|i| values[i] == x[ids[i]]));
                }
            }
        }
    }

    #[test]
    fn top_k_of_equals_takes_the_first() {
        let (mut ids, mut values) = ([0; 3], [0.0; 3]);
        assert_eq!(TopK::new(1000).select(Isa::best(), &[4.5; 1000], &mut ids, &mut values), 3);
        assert_eq!((ids, values), ([0, 1, 2], [4.5; 3]));
    }

    #[test]
    fn log_softmax_is_the_logarithm_of_the_share() {
        let x = row(500, 1);
        let largest = max(Isa::best(), &x);
        let sum = sum_exp(Isa::best(), &x, largest, 1.0);
        let total: f64 = (0..500).map(|i| f64::from(log_softmax_at(&x, i, largest, sum)).exp()).sum();
        assert!((total - 1.0).abs() < 1e-5, "{total}");
    }
}
