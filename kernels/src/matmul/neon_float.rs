//! Float layouts on aarch64: the 16 output channels of an n-block in four registers, one FMA chain an output, up to four
//! rows at a time.

use std::arch::aarch64::{
    float32x4_t, vdupq_n_f32, vfmaq_f32, vld1_u16, vmovl_u16, vreinterpretq_f32_u32, vshlq_n_u32,
};
use std::ops::Range;

use half::{bf16, f16};

use super::job::{Job, Sums};
use super::neon::{load, load_halves, prefetch_after, store};
use super::units::LANES;
use crate::activations::{FLOAT_COLS, FloatUnit};

/// Output channels in a register.
const QUARTER_LANES: usize = 4;
/// Rows at a time: four accumulators each.
const MAX_ROWS: usize = 4;

macro_rules! kernel {
    ($name:ident, $rows:ident, $value:ty, $load:path) => {
        /// The sums of rows `first_row .. first_row + R` of a tile.
        #[target_feature(enable = "neon")]
        fn $rows<const R: usize>(
            units: &[[$value; LANES]],
            x: &[FloatUnit],
            num_rows: usize,
            first_row: usize,
            sums: &mut Sums,
        ) {
            let mut accs = [[vdupq_n_f32(0.0); LANES / QUARTER_LANES]; R];
            for (units, x) in units.chunks(FLOAT_COLS).zip(x.chunks_exact(num_rows)) {
                let x: &[FloatUnit; R] = x[first_row..].first_chunk().expect("the rows are in the tile");
                for (k, unit) in units.iter().enumerate() {
                    prefetch_after(unit);
                    for (i, quarter) in unit.as_chunks::<QUARTER_LANES>().0.iter().enumerate() {
                        let weights = $load(quarter);
                        for r in 0..R {
                            accs[r][i] = vfmaq_f32(accs[r][i], weights, vdupq_n_f32(x[r][k]));
                        }
                    }
                }
            }
            for (accs, sums) in accs.into_iter().zip(&mut sums.0[first_row..]) {
                for (acc, sums) in accs.into_iter().zip(sums.as_chunks_mut::<QUARTER_LANES>().0) {
                    store(sums, acc);
                }
            }
        }

        #[target_feature(enable = "neon")]
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
                            _ => $rows::<4>(units, x, n, first, &mut sums),
                        }
                    }
                    job.store(block, tile, &sums);
                }
            }
        }
    };
}

kernel!(f32, f32_rows, f32, load);
kernel!(f16, f16_rows, f16, load_halves);
kernel!(bf16, bf16_rows, bf16, load_bf16);

#[inline]
#[target_feature(enable = "neon")]
fn load_bf16(values: &[bf16; QUARTER_LANES]) -> float32x4_t {
    // SAFETY: 8 bytes of a reference; no alignment needed.
    let bits = unsafe { vld1_u16(values.as_ptr().cast()) };
    vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(bits)))
}
