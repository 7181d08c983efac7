//! The reference: what every other kernel must equal bit for bit. Clarity only.
//!
//! An output is one chain of fused multiply-adds with ascending columns. In the integer layouts a link is a block of 32:
//! an exact integer sum times the product of its two scales.

use std::ops::Range;

use half::{bf16, f16};

use super::job::{Job, Sums};
use super::units::{LANES, Q4Unit, Q8Unit, Unit};
use crate::activations::{FLOAT_COLS, Int8Unit};

pub(super) fn q8(job: &Job<'_, Q8Unit>, blocks: Range<usize>) {
    int8(job, blocks, |unit, block, lane, x| {
        let mut sum = 0;
        for i in 0..32 {
            let weight = (unit.lines[block][i / 4][4 * lane + i % 4] ^ 0x80).cast_signed();
            sum += i32::from(weight) * i32::from(x.column(32 * block + i));
        }
        (sum, unit.scales[block][lane])
    });
}

pub(super) fn q4(job: &Job<'_, Q4Unit>, blocks: Range<usize>) {
    int8(job, blocks, |unit, block, lane, x| {
        let mut sum = 0;
        for i in 0..32 {
            let byte = unit.lines[block][i % 16 / 4][4 * lane + i % 4];
            let weight = i32::from(if i < 16 { byte & 15 } else { byte >> 4 }) - 8;
            sum += weight * i32::from(x.column(32 * block + i));
        }
        (sum, unit.scales[block][lane])
    });
}

/// `dot(unit, block, lane, x)` is the integer sum of a block of one channel, and the channel's scale as f16 bits.
fn int8<U: Unit>(job: &Job<'_, U>, blocks: Range<usize>, dot: impl Fn(&U, usize, usize, &Int8Unit) -> (i32, u16)) {
    for n_block in blocks {
        for tile in job.x.tiles() {
            let mut sums = Sums::ZERO;
            let x = job.x.int8_tile(tile);
            for (unit, x) in job.block(n_block).iter().zip(x.chunks(tile.num_rows)) {
                for (x, sums) in x.iter().zip(&mut sums.0) {
                    for (lane, sum) in sums.iter_mut().enumerate() {
                        for block in 0..2 {
                            let (dot, scale) = dot(unit, block, lane, x);
                            let scale = f16::from_bits(scale).to_f32() * x.scales[block];
                            #[expect(clippy::cast_precision_loss, reason = "below 2^24: at most 32 * 128 * 127")]
                            let dot = dot as f32;
                            *sum = dot.mul_add(scale, *sum);
                        }
                    }
                }
            }
            job.store(n_block, tile, &sums);
        }
    }
}

pub(super) fn f32(job: &Job<'_, [f32; LANES]>, blocks: Range<usize>) {
    float(job, blocks, |x| x);
}

pub(super) fn f16(job: &Job<'_, [f16; LANES]>, blocks: Range<usize>) {
    float(job, blocks, f16::to_f32);
}

pub(super) fn bf16(job: &Job<'_, [bf16; LANES]>, blocks: Range<usize>) {
    float(job, blocks, bf16::to_f32);
}

fn float<T: Copy>(job: &Job<'_, [T; LANES]>, blocks: Range<usize>, to_f32: impl Fn(T) -> f32)
where
    [T; LANES]: Unit,
{
    for n_block in blocks {
        for tile in job.x.tiles() {
            let mut sums = Sums::ZERO;
            let x = job.x.float_tile(tile);
            for (units, x) in job.block(n_block).chunks(FLOAT_COLS).zip(x.chunks(tile.num_rows)) {
                for (x, sums) in x.iter().zip(&mut sums.0) {
                    for (unit, x) in units.iter().zip(x) {
                        for (weight, sum) in unit.iter().zip(sums.iter_mut()) {
                            *sum = to_f32(*weight).mul_add(*x, *sum);
                        }
                    }
                }
            }
            job.store(n_block, tile, &sums);
        }
    }
}
