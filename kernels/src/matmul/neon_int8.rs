//! Integer layouts on aarch64: three levels that differ in how they form the exact integer sums of a block.
//!
//! [`widening`] multiplies to 16 bits and adds in pairs, [`dotprod`] has four products a lane in one instruction, [`i8mm`]
//! multiplies two rows of activations with two channels, eight columns at a time, once there are four rows.

use std::arch::aarch64::{
    int8x16_t, int32x4_t, vaddq_s32, vdupq_n_f32, vdupq_n_s32, vdupq_n_s64, vreinterpretq_s8_s32, vreinterpretq_s8_s64,
    vreinterpretq_s32_s8, vsetq_lane_s64, vuzp1q_s32, vuzp2q_s32, vzip1q_s32, vzip2q_s32,
};
use std::ops::Range;

use super::job::{Job, Sums};
use super::neon::{dot, dot_2x2, dot_widening, prefetch_after, store};
use super::neon_units::{BlockDots, HALF_LANES, NeonUnit};
use crate::activations::Int8Unit;

/// Rows at a time.
const MAX_ROWS: usize = 4;
/// Columns in an [`Int8Unit`], in blocks of 32.
const X_BLOCKS: usize = 2;

/// The integer sums of a block, for each row.
type Dots<const R: usize> = [BlockDots; R];

/// A level: its kernel for every kind of unit. `$dots` and `$four_dots` give the integer sums of a block for any number of
/// rows, and for four.
macro_rules! level {
    ($features:literal, $dots:ident, $four_dots:ident) => {
        use super::*;

        /// The sums of rows `first_row .. first_row + R` of a tile, for one half of an n-block's channels.
        #[target_feature(enable = $features)]
        fn rows<U: NeonUnit, const R: usize>(
            units: &[U],
            x: &[Int8Unit],
            num_rows: usize,
            first_row: usize,
            half: usize,
            sums: &mut Sums,
        ) {
            let mut accs = [[vdupq_n_f32(0.0); 2]; R];
            for (unit, x) in units.iter().zip(x.chunks_exact(U::BLOCKS / X_BLOCKS * num_rows)) {
                if half == 0 {
                    prefetch_after(unit);
                }
                for b in 0..U::BLOCKS {
                    let x = &x[b / X_BLOCKS * num_rows + first_row..];
                    let x: &[Int8Unit; R] = x.first_chunk().expect("the rows are in the tile");
                    let mut dots: Dots<R> = [[[vdupq_n_s32(0); 2]; 2]; R];
                    let four = (x.as_slice().as_array::<MAX_ROWS>(), dots.as_mut_slice().as_mut_array::<MAX_ROWS>());
                    if let (Some(x), Some(dots)) = four {
                        *dots = $four_dots(unit, b, half, x);
                    } else {
                        dots = $dots(unit, b, half, x);
                    }
                    for r in 0..R {
                        accs[r] = unit.add(b, half, &x[r], dots[r], accs[r]);
                    }
                }
            }
            for (acc, sums) in accs.into_iter().zip(&mut sums.0[first_row..]) {
                let out = sums.as_chunks_mut::<HALF_LANES>().0[half].as_chunks_mut::<4>().0;
                store(&mut out[0], acc[0]);
                store(&mut out[1], acc[1]);
            }
        }

        /// The kernel.
        #[target_feature(enable = $features)]
        pub(in super::super) fn int8<U: NeonUnit>(job: &Job<'_, U>, blocks: Range<usize>) {
            for block in blocks {
                let units = job.block(block);
                for tile in job.x.tiles() {
                    let (x, n) = (job.x.int8_tile(tile), tile.num_rows);
                    let mut sums = Sums::ZERO;
                    for first in (0..n).step_by(MAX_ROWS) {
                        for half in 0..2 {
                            match n - first {
                                1 => rows::<U, 1>(units, x, n, first, half, &mut sums),
                                2 => rows::<U, 2>(units, x, n, first, half, &mut sums),
                                3 => rows::<U, 3>(units, x, n, first, half, &mut sums),
                                _ => rows::<U, 4>(units, x, n, first, half, &mut sums),
                            }
                        }
                    }
                    job.store(block, tile, &sums);
                }
            }
        }
    };
}

/// What the sums of block `b` start from.
#[inline]
#[target_feature(enable = "neon")]
fn start<U: NeonUnit, const R: usize>(b: usize, x: &[Int8Unit; R]) -> Dots<R> {
    let mut dots = [[[vdupq_n_s32(0); 2]; 2]; R];
    for r in 0..R {
        for sum in 0..U::SUMS {
            dots[r][sum] = [vdupq_n_s32(U::start(&x[r], b % X_BLOCKS, sum)); 2];
        }
    }
    dots
}

/// The sums of a block from products of four columns a lane.
macro_rules! dots {
    ($name:ident, $features:literal, $dot:path) => {
        #[inline]
        #[target_feature(enable = $features)]
        fn $name<U: NeonUnit, const R: usize>(unit: &U, b: usize, half: usize, x: &[Int8Unit; R]) -> Dots<R> {
            let mut dots = start::<U, R>(b, x);
            for j in 0..8 {
                let weights = unit.weights(b, half, j);
                let sum = j * U::SUMS / 8;
                for r in 0..R {
                    let x = vreinterpretq_s8_s32(vdupq_n_s32(x[r].words[8 * (b % X_BLOCKS) + j]));
                    for i in 0..2 {
                        dots[r][sum][i] = $dot(dots[r][sum][i], weights[i], x);
                    }
                }
            }
            dots
        }
    };
}

dots!(widening_dots, "neon", dot_widening);
dots!(dotprod_dots, "neon,dotprod", dot);

/// The sums of a block for four rows, from products of two rows and two channels, eight columns each.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn four_dots<U: NeonUnit>(unit: &U, b: usize, half: usize, x: &[Int8Unit; MAX_ROWS]) -> Dots<MAX_ROWS> {
    let mut dots = start::<U, MAX_ROWS>(b, x);
    for sum in 0..U::SUMS {
        // Of rows 2 p and 2 p + 1: channels 2 i and 2 i + 1.
        let mut squares = [[vdupq_n_s32(0); 4]; 2];
        let words = 8 / U::SUMS;
        for j in (sum * words..(sum + 1) * words).step_by(2) {
            let (left, right) = (unit.weights(b, half, j), unit.weights(b, half, j + 1));
            for (pair, squares) in squares.iter_mut().enumerate() {
                let x = two_rows(&x[2 * pair], &x[2 * pair + 1], 8 * (b % X_BLOCKS) + j);
                for i in 0..2 {
                    let (a, b) = (vreinterpretq_s32_s8(left[i]), vreinterpretq_s32_s8(right[i]));
                    squares[2 * i] = dot_2x2(squares[2 * i], vreinterpretq_s8_s32(vzip1q_s32(a, b)), x);
                    squares[2 * i + 1] = dot_2x2(squares[2 * i + 1], vreinterpretq_s8_s32(vzip2q_s32(a, b)), x);
                }
            }
        }
        for (pair, squares) in squares.into_iter().enumerate() {
            for i in 0..2 {
                let (a, b) = (squares[2 * i], squares[2 * i + 1]);
                let rows: [int32x4_t; 2] = [vuzp1q_s32(a, b), vuzp2q_s32(a, b)];
                for (r, row) in rows.into_iter().enumerate() {
                    let dots = &mut dots[2 * pair + r][sum][i];
                    *dots = vaddq_s32(*dots, row);
                }
            }
        }
    }
    dots
}

/// Words `word` and the next of two rows: eight columns each.
#[inline]
#[target_feature(enable = "neon")]
fn two_rows(a: &Int8Unit, b: &Int8Unit, word: usize) -> int8x16_t {
    let join = |x: &Int8Unit| i64::from(x.words[word].cast_unsigned()) | i64::from(x.words[word + 1]) << 32;
    vreinterpretq_s8_s64(vsetq_lane_s64::<1>(join(b), vdupq_n_s64(join(a))))
}

/// Every aarch64 CPU.
pub(super) mod widening {
    level!("neon", widening_dots, widening_dots);
}

/// CPUs with dot products.
pub(super) mod dotprod {
    level!("neon,dotprod", dotprod_dots, dotprod_dots);
}

/// CPUs with dot products and products of matrices.
pub(super) mod i8mm {
    level!("neon,dotprod,i8mm", dotprod_dots, four_dots);
}
