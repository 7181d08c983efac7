//! Float layouts with AVX2, FMA and F16C: the 16 output channels of an n-block in two registers, one FMA chain an
//! output, up to six rows at a time.

use std::arch::x86_64::{
    __m256, _mm256_castsi256_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_set1_ps,
    _mm256_setzero_ps, _mm256_slli_epi32,
};
use std::ops::Range;

use half::{bf16, f16};

use super::job::{Job, Sums};
use super::units::LANES;
use super::x86::{ahead, load_256, load_halves_128, prefetch_after, store_256};
use crate::activations::{FLOAT_COLS, FloatUnit};

/// Output channels in a register.
const HALF_LANES: usize = 8;
/// Rows at a time: two accumulators each.
const MAX_ROWS: usize = 6;

macro_rules! kernel {
    ($name:ident, $rows:ident, $value:ty, $load:path) => {
        /// The sums of rows `first_row .. first_row + R` of a tile.
        #[target_feature(enable = "avx2,fma,f16c")]
        fn $rows<const R: usize>(
            units: &[[$value; LANES]],
            x: &[FloatUnit],
            num_rows: usize,
            first_row: usize,
            sums: &mut Sums,
        ) {
            let mut accs = [[_mm256_setzero_ps(); 2]; R];
            for (units, x) in units.chunks(FLOAT_COLS).zip(x.chunks_exact(num_rows)) {
                let x: &[FloatUnit; R] = x[first_row..].first_chunk().expect("the rows are in the tile");
                for (k, unit) in units.iter().enumerate() {
                    prefetch_after::<{ ahead::FEW_ROWS }, _>(unit);
                    let [low, high] = unit.as_chunks::<HALF_LANES>().0 else { unreachable!("two halves") };
                    let (low, high) = ($load(low), $load(high));
                    for r in 0..R {
                        let x = _mm256_set1_ps(x[r][k]);
                        accs[r][0] = _mm256_fmadd_ps(low, x, accs[r][0]);
                        accs[r][1] = _mm256_fmadd_ps(high, x, accs[r][1]);
                    }
                }
            }
            for (accs, sums) in accs.into_iter().zip(&mut sums.0[first_row..]) {
                for (acc, sums) in accs.into_iter().zip(sums.as_chunks_mut::<HALF_LANES>().0) {
                    store_256(sums, acc);
                }
            }
        }

        #[target_feature(enable = "avx2,fma,f16c")]
        pub(super) fn $name(job: &Job<'_, [$value; LANES]>, blocks: Range<usize>) {
            for block in blocks {
                let units = job.block(block);
                for tile in job.x.tiles() {
                    let (x, n) = (job.x.float_tile(tile), tile.num_rows);
                    let mut sums = Sums::ZERO;
                    for first in (0..n).step_by(MAX_ROWS) {
                        match n - first {
                            1 => $rows::<1>(units, x, n, first, &mut sums),
                            2 => $rows::<2>(units, x, n, first, &mut sums),
                            3 => $rows::<3>(units, x, n, first, &mut sums),
                            4 => $rows::<4>(units, x, n, first, &mut sums),
                            5 => $rows::<5>(units, x, n, first, &mut sums),
                            _ => $rows::<6>(units, x, n, first, &mut sums),
                        }
                    }
                    job.store(block, tile, &sums);
                }
            }
        }
    };
}

kernel!(f32, f32_rows, f32, load_256);
kernel!(f16, f16_rows, f16, load_f16);
kernel!(bf16, bf16_rows, bf16, load_bf16);

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load_f16(values: &[f16; HALF_LANES]) -> __m256 {
    _mm256_cvtph_ps(load_halves_128(values))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_bf16(values: &[bf16; HALF_LANES]) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(load_halves_128(values))))
}
