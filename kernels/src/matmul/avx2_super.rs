//! Layouts of super-blocks with AVX2, FMA and F16C: eight output channels in the lanes, up to four rows at a time.
//!
//! `vpmaddubsw` adds two products in 16 bits: with weights of 0 to 15 a pair is at most 2 * 15 * 127 = 3810, with 0 to 31
//! 7874, with 0 to 63 16002, so eight, four or two of them stay below 32767 before they are widened.

use std::arch::x86_64::{
    __m256, __m256i, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps,
    _mm256_cvtepu8_epi32, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_fnmadd_ps, _mm256_madd_epi16, _mm256_maddubs_epi16,
    _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_setzero_ps, _mm256_setzero_si256, _mm256_slli_epi16, _mm256_srli_epi16,
};
use std::ops::Range;

use super::job::{Job, Sums};
use super::super_units::{MinScales, NUM_BLOCKS, Q4KUnit, Q5KUnit, Q6KUnit};
use super::units::HighBlock;
use super::x86::{ahead, load_bytes_64, load_bytes_256, load_halves_128, prefetch_after, store_256};
use crate::activations::Int8Unit;

/// Output channels in a register.
const HALF_LANES: usize = 8;
/// Rows at a time: an integer sum or two and an accumulator each.
const MAX_ROWS: usize = 4;

/// A kernel for one kind of unit; `$add(unit, b, half, x, accs)` adds what block `b` contributes.
macro_rules! kernel {
    ($name:ident, $rows:ident, $unit:ty, $add:path) => {
        /// The sums of rows `first_row .. first_row + R` of a tile, for one half of an n-block's channels.
        #[target_feature(enable = "avx2,fma,f16c")]
        fn $rows<const R: usize, const AHEAD: usize>(
            units: &[$unit],
            x: &[Int8Unit],
            num_rows: usize,
            first_row: usize,
            half: usize,
            sums: &mut Sums,
        ) {
            let mut accs = [_mm256_setzero_ps(); R];
            for (unit, x) in units.iter().zip(x.chunks_exact(NUM_BLOCKS / 2 * num_rows)) {
                prefetch_after::<AHEAD, _>(&unit.scales);
                for (pair, x) in x.chunks_exact(num_rows).enumerate() {
                    let x: &[Int8Unit; R] = x[first_row..].first_chunk().expect("the rows are in the tile");
                    for block in 0..2 {
                        prefetch_after::<AHEAD, _>(&unit.blocks[2 * pair + block]);
                        $add(unit, 2 * pair + block, half, x, &mut accs);
                    }
                }
            }
            for (acc, sums) in accs.into_iter().zip(&mut sums.0[first_row..]) {
                store_256(&mut sums.as_chunks_mut::<HALF_LANES>().0[half], acc);
            }
        }

        #[target_feature(enable = "avx2,fma,f16c")]
        pub(super) fn $name(job: &Job<'_, $unit>, blocks: Range<usize>) {
            const FEW: usize = ahead::FEW_ROWS;
            const NONE: usize = ahead::NONE;
            for block in blocks {
                let units = job.block(block);
                for tile in job.x.tiles() {
                    let (x, n) = (job.x.int8_tile(tile), tile.num_rows);
                    let mut sums = Sums::ZERO;
                    for first in (0..n).step_by(MAX_ROWS) {
                        for half in 0..2 {
                            let is_first = tile.first_row + first + half == 0;
                            match (n - first, is_first) {
                                (1, true) => $rows::<1, FEW>(units, x, n, first, half, &mut sums),
                                (2, true) => $rows::<2, FEW>(units, x, n, first, half, &mut sums),
                                (3, true) => $rows::<3, FEW>(units, x, n, first, half, &mut sums),
                                (_, true) => $rows::<4, FEW>(units, x, n, first, half, &mut sums),
                                (1, false) => $rows::<1, NONE>(units, x, n, first, half, &mut sums),
                                (2, false) => $rows::<2, NONE>(units, x, n, first, half, &mut sums),
                                (3, false) => $rows::<3, NONE>(units, x, n, first, half, &mut sums),
                                (_, false) => $rows::<4, NONE>(units, x, n, first, half, &mut sums),
                            }
                        }
                    }
                    job.store(block, tile, &sums);
                }
            }
        }
    };
}

kernel!(q4_k, q4_k_rows, Q4KUnit, add_q4_k);
kernel!(q5_k, q5_k_rows, Q5KUnit, add_q5_k);
kernel!(q6_k, q6_k_rows, Q6KUnit, add_q6_k);

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_q4_k<const R: usize>(unit: &Q4KUnit, b: usize, half: usize, x: &[Int8Unit; R], accs: &mut [__m256; R]) {
    let low_half = _mm256_set1_epi8(15);
    let mut pairs = [_mm256_setzero_si256(); R];
    for (j, line) in unit.blocks[b].iter().enumerate() {
        let bytes = load_bytes_256(&line.as_chunks::<32>().0[half]);
        let low = _mm256_and_si256(bytes, low_half);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low_half);
        add_pairs(low, j, b, x, &mut pairs);
        add_pairs(high, j + 4, b, x, &mut pairs);
    }
    add_with_minima(&unit.scales, b, half, x, widened(pairs), accs);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_q5_k<const R: usize>(unit: &Q5KUnit, b: usize, half: usize, x: &[Int8Unit; R], accs: &mut [__m256; R]) {
    add_with_minima(&unit.scales, b, half, x, five_bit_dots(&unit.blocks[b], b, half, x), accs);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_q6_k<const R: usize>(unit: &Q6KUnit, b: usize, half: usize, x: &[Int8Unit; R], accs: &mut [__m256; R]) {
    let block = &unit.blocks[b];
    let (low_half, top) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30));
    let dots = [0, 1].map(|sixteenth| {
        let high = load_bytes_256(&block.high[sixteenth].as_chunks::<32>().0[half]);
        let tops = [_mm256_slli_epi16::<4>(high), _mm256_slli_epi16::<2>(high), high, _mm256_srli_epi16::<2>(high)];
        let mut dots = x.each_ref().map(|x| _mm256_set1_epi32(x.q6_init[b % 2][sixteenth]));
        for first in [0, 2] {
            let mut pairs = [_mm256_setzero_si256(); R];
            for j in first..first + 2 {
                let bytes = load_bytes_256(&block.lines[j].as_chunks::<32>().0[half]);
                let bytes = if sixteenth == 0 { bytes } else { _mm256_srli_epi16::<4>(bytes) };
                let low = _mm256_and_si256(bytes, low_half);
                let weights = _mm256_or_si256(low, _mm256_and_si256(tops[j], top));
                add_pairs(weights, 4 * sixteenth + j, b, x, &mut pairs);
            }
            for (dot, pairs) in dots.iter_mut().zip(widened(pairs)) {
                *dot = _mm256_add_epi32(*dot, pairs);
            }
        }
        dots
    });
    let scale = _mm256_cvtph_ps(load_halves_128(&unit.scale.as_chunks::<HALF_LANES>().0[half]));
    let scales = [0, 1].map(|sixteenth| {
        let bytes = load_bytes_64(&unit.scales[2 * b + sixteenth].as_chunks::<HALF_LANES>().0[half]);
        _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)))
    });
    for r in 0..R {
        let both = _mm256_mul_ps(_mm256_cvtepi32_ps(dots[1][r]), scales[1]);
        let both = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[0][r]), scales[0], both);
        accs[r] = _mm256_fmadd_ps(both, _mm256_set1_ps(x[r].scales[b % 2]), accs[r]);
    }
}

/// Adds products of register `j`'s weights to sums of 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn add_pairs<const R: usize>(weights: __m256i, j: usize, b: usize, x: &[Int8Unit; R], pairs: &mut [__m256i; R]) {
    for r in 0..R {
        let products = _mm256_maddubs_epi16(weights, _mm256_set1_epi32(x[r].words[8 * (b % 2) + j]));
        pairs[r] = _mm256_add_epi16(pairs[r], products);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn widened<const R: usize>(mut pairs: [__m256i; R]) -> [__m256i; R] {
    for sum in &mut pairs {
        *sum = _mm256_madd_epi16(*sum, _mm256_set1_epi16(1));
    }
    pairs
}

/// The integer sums of a block of five bits a weight.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn five_bit_dots<const R: usize>(
    block: &HighBlock<1>,
    b: usize,
    half: usize,
    x: &[Int8Unit; R],
) -> [__m256i; R] {
    let (low_half, top) = (_mm256_set1_epi8(15), _mm256_set1_epi8(16));
    let high = load_bytes_256(&block.high[0].as_chunks::<32>().0[half]);
    let tops = [
        [_mm256_slli_epi16::<4>(high), _mm256_slli_epi16::<3>(high)],
        [_mm256_slli_epi16::<2>(high), _mm256_slli_epi16::<1>(high)],
        [high, _mm256_srli_epi16::<1>(high)],
        [_mm256_srli_epi16::<2>(high), _mm256_srli_epi16::<3>(high)],
    ];
    let mut dots = [_mm256_setzero_si256(); R];
    for group in 0..2 {
        let mut pairs = [_mm256_setzero_si256(); R];
        for j in 0..4 {
            let bytes = load_bytes_256(&block.lines[j].as_chunks::<32>().0[half]);
            let bytes = if group == 0 { bytes } else { _mm256_srli_epi16::<4>(bytes) };
            let low = _mm256_and_si256(bytes, low_half);
            let weights = _mm256_or_si256(low, _mm256_and_si256(tops[2 * group + j / 2][j % 2], top));
            add_pairs(weights, 4 * group + j, b, x, &mut pairs);
        }
        for (dot, pairs) in dots.iter_mut().zip(widened(pairs)) {
            *dot = _mm256_add_epi32(*dot, pairs);
        }
    }
    dots
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_with_minima<const R: usize>(
    scales: &MinScales,
    b: usize,
    half: usize,
    x: &[Int8Unit; R],
    dots: [__m256i; R],
    accs: &mut [__m256; R],
) {
    let bytes = |bytes: &[u8; 16]| {
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_bytes_64(&bytes.as_chunks::<HALF_LANES>().0[half])))
    };
    let halves = |halves: &[u16; 16]| _mm256_cvtph_ps(load_halves_128(&halves.as_chunks::<HALF_LANES>().0[half]));
    let weight_scales = _mm256_mul_ps(halves(&scales.scale), bytes(&scales.scales[b]));
    let mins = _mm256_mul_ps(halves(&scales.min), bytes(&scales.mins[b]));
    for r in 0..R {
        let scales = _mm256_mul_ps(weight_scales, _mm256_set1_ps(x[r].scales[b % 2]));
        accs[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r]), scales, accs[r]);
        accs[r] = _mm256_fnmadd_ps(mins, _mm256_set1_ps(x[r].sums[b % 2]), accs[r]);
    }
}
