//! Integer layouts with AVX2, FMA and F16C: eight output channels in the lanes, up to four rows at a time.
//!
//! `vpmaddubsw` adds two products in 16 bits, which may saturate:
//! * Q8 multiplies |weight| by the activation with the weight's sign. Activations are within ±127, so a pair is at most
//!   2 * 128 * 127 = 32512, below 32767. (Moving the sign the other way would turn a weight of -128 into itself.)
//! * Q4 multiplies weights of 0 to 15: a pair is at most 2 * 15 * 127 = 3810, and the eight of a block 30480.
//! * Q5 shares the sums of [`super::avx2_super`], IQ4 looks its weights up and goes on as Q8.

use std::arch::x86_64::{
    __m256i, _mm256_abs_epi8, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256, _mm256_broadcastsi128_si256,
    _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256,
    _mm256_shuffle_epi8, _mm256_sign_epi8, _mm256_srli_epi16, _mm256_xor_si256,
};
use std::ops::Range;

use super::avx2_super::five_bit_dots;
use super::job::{Job, Sums};
use super::units::{Iq4Unit, Q4Unit, Q5Unit, Q8Unit};
use super::x86::{ahead, load_bytes_128, load_bytes_256, load_halves_128, prefetch_after, store_256};
use crate::activations::Int8Unit;
use crate::quant::IQ4_TABLE;

/// Output channels in a register.
const HALF_LANES: usize = 8;
/// Rows at a time: an integer sum and an accumulator each.
const MAX_ROWS: usize = 4;

/// A kernel for one kind of unit; `$dots(unit, block, half, x)` are the exact integer sums of a block.
macro_rules! kernel {
    ($name:ident, $rows:ident, $unit:ty, $dots:path) => {
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
            for (unit, x) in units.iter().zip(x.chunks_exact(num_rows)) {
                prefetch_after::<AHEAD, _>(unit);
                let x: &[Int8Unit; R] = x[first_row..].first_chunk().expect("the rows are in the tile");
                for block in 0..2 {
                    let dots = $dots(unit, block, half, x);
                    let halves = &unit.scales[block].as_chunks::<HALF_LANES>().0[half];
                    let weight_scales = _mm256_cvtph_ps(load_halves_128(halves));
                    for r in 0..R {
                        let scales = _mm256_mul_ps(weight_scales, _mm256_set1_ps(x[r].scales[block]));
                        accs[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r]), scales, accs[r]);
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

kernel!(q8, q8_rows, Q8Unit, q8_dots);
kernel!(q4, q4_rows, Q4Unit, q4_dots);
kernel!(q5, q5_rows, Q5Unit, q5_dots);
kernel!(iq4, iq4_rows, Iq4Unit, iq4_dots);

#[inline]
#[target_feature(enable = "avx2")]
fn q8_dots<const R: usize>(unit: &Q8Unit, block: usize, half: usize, x: &[Int8Unit; R]) -> [__m256i; R] {
    let top_bit = _mm256_set1_epi8(i8::MIN);
    let mut dots = [_mm256_setzero_si256(); R];
    for (j, line) in unit.lines[block].iter().enumerate() {
        let weights = _mm256_xor_si256(load_bytes_256(&line.as_chunks::<32>().0[half]), top_bit);
        add_signed(weights, 8 * block + j, x, &mut dots);
    }
    dots
}

/// Adds products of signed weights and word `word` of each row.
#[inline]
#[target_feature(enable = "avx2")]
fn add_signed<const R: usize>(weights: __m256i, word: usize, x: &[Int8Unit; R], dots: &mut [__m256i; R]) {
    let (magnitudes, ones) = (_mm256_abs_epi8(weights), _mm256_set1_epi16(1));
    for r in 0..R {
        let signed = _mm256_sign_epi8(_mm256_set1_epi32(x[r].words[word]), weights);
        let pairs = _mm256_maddubs_epi16(magnitudes, signed);
        dots[r] = _mm256_add_epi32(dots[r], _mm256_madd_epi16(pairs, ones));
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn iq4_dots<const R: usize>(unit: &Iq4Unit, block: usize, half: usize, x: &[Int8Unit; R]) -> [__m256i; R] {
    let (low_half, table) = (_mm256_set1_epi8(15), _mm256_broadcastsi128_si256(load_bytes_128(&IQ4_TABLE)));
    let mut dots = [_mm256_setzero_si256(); R];
    for (j, line) in unit.lines[block].iter().enumerate() {
        let bytes = load_bytes_256(&line.as_chunks::<32>().0[half]);
        let low = _mm256_and_si256(bytes, low_half);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low_half);
        add_signed(_mm256_shuffle_epi8(table, low), 8 * block + j, x, &mut dots);
        add_signed(_mm256_shuffle_epi8(table, high), 8 * block + j + 4, x, &mut dots);
    }
    dots
}

#[inline]
#[target_feature(enable = "avx2")]
fn q5_dots<const R: usize>(unit: &Q5Unit, block: usize, half: usize, x: &[Int8Unit; R]) -> [__m256i; R] {
    let mut dots = five_bit_dots(&unit.blocks[block], block, half, x);
    for r in 0..R {
        dots[r] = _mm256_add_epi32(_mm256_set1_epi32(x[r].q5_init[block]), dots[r]);
    }
    dots
}

#[inline]
#[target_feature(enable = "avx2")]
fn q4_dots<const R: usize>(unit: &Q4Unit, block: usize, half: usize, x: &[Int8Unit; R]) -> [__m256i; R] {
    let (low_half, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
    let mut pairs = [_mm256_setzero_si256(); R];
    for (j, line) in unit.lines[block].iter().enumerate() {
        let bytes = load_bytes_256(&line.as_chunks::<32>().0[half]);
        let low = _mm256_and_si256(bytes, low_half);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low_half);
        for r in 0..R {
            let words = &x[r].words[8 * block..];
            let low = _mm256_maddubs_epi16(low, _mm256_set1_epi32(words[j]));
            let high = _mm256_maddubs_epi16(high, _mm256_set1_epi32(words[j + 4]));
            pairs[r] = _mm256_add_epi16(pairs[r], _mm256_add_epi16(low, high));
        }
    }
    let mut dots = pairs;
    for r in 0..R {
        let init = _mm256_set1_epi32(x[r].q4_init[block]);
        dots[r] = _mm256_add_epi32(init, _mm256_madd_epi16(pairs[r], ones));
    }
    dots
}
