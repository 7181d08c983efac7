//! The reference: what every other kernel must equal bit for bit. Clarity only.
//!
//! An output is one chain of fused multiply-adds with ascending columns. In the integer layouts a link is a block of 32:
//! an exact integer sum times the product of its two scales. Where weights have minima, a second link takes the
//! minimum times the sum of the activations; where a block has two scales, its link is the sum of two products, the
//! second rounded.

use std::ops::Range;

use half::{bf16, f16};

use super::job::{Job, Sums};
use super::super_units::{MinUnit, NUM_BLOCKS, Q4KUnit, Q5KUnit, Q6KUnit};
use super::units::{Iq4Unit, LANES, Q4Unit, Q5Unit, Q8Unit, Unit, quant};
use crate::activations::{FLOAT_COLS, INT8_COLS, Int8Unit};
use crate::quant::IQ4_TABLE;

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
        let weight = |i| i32::from(quant(&unit.lines[block], &[], lane, i)) - 8;
        (block_dot(x, block, weight), unit.scales[block][lane])
    });
}

pub(super) fn q5(job: &Job<'_, Q5Unit>, blocks: Range<usize>) {
    int8(job, blocks, |unit, block, lane, x| {
        let weight = |i| i32::from(quant(&unit.blocks[block].lines, &unit.blocks[block].high, lane, i)) - 16;
        (block_dot(x, block, weight), unit.scales[block][lane])
    });
}

pub(super) fn iq4(job: &Job<'_, Iq4Unit>, blocks: Range<usize>) {
    int8(job, blocks, |unit, block, lane, x| {
        let weight = |i| i32::from(IQ4_TABLE[usize::from(quant(&unit.lines[block], &[], lane, i))]);
        (block_dot(x, block, weight), unit.scales[block][lane])
    });
}

/// The exact sum of a block of 32.
fn block_dot(x: &Int8Unit, block: usize, weight: impl Fn(usize) -> i32) -> i32 {
    (0..32).map(|i| weight(i) * i32::from(x.column(32 * block + i))).sum()
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
                            *sum = to_float(dot).mul_add(scale, *sum);
                        }
                    }
                }
            }
            job.store(n_block, tile, &sums);
        }
    }
}

pub(super) fn q4_k(job: &Job<'_, Q4KUnit>, blocks: Range<usize>) {
    with_minima(job, blocks);
}

pub(super) fn q5_k(job: &Job<'_, Q5KUnit>, blocks: Range<usize>) {
    with_minima(job, blocks);
}

fn with_minima<U: MinUnit>(job: &Job<'_, U>, blocks: Range<usize>) {
    super_blocks(job, blocks, |unit, b, lane, x, sum| {
        let (scale, min) = unit.scales().of(b, lane);
        let dot = block_dot(x, b % 2, |i| unit.quant(b, lane, i).into());
        let sum = to_float(dot).mul_add(scale * x.scales[b % 2], sum);
        (-min).mul_add(x.sums[b % 2], sum)
    });
}

pub(super) fn q6_k(job: &Job<'_, Q6KUnit>, blocks: Range<usize>) {
    super_blocks(job, blocks, |unit, b, lane, x, sum| {
        let block = &unit.blocks[b];
        let weight = |i| i32::from(quant(&block.lines, &block.high, lane, i)) - 32;
        let first = to_float(block_dot(x, b % 2, |i| if i < 16 { weight(i) } else { 0 }));
        let second = to_float(block_dot(x, b % 2, |i| if i < 16 { 0 } else { weight(i) }));
        let both = first.mul_add(unit.scale_of(2 * b, lane), second * unit.scale_of(2 * b + 1, lane));
        both.mul_add(x.scales[b % 2], sum)
    });
}

/// `add(unit, b, lane, x, sum)` is `sum` and what block `b` of a super-block adds to it; `x` is the block's unit.
fn super_blocks<U: Unit>(
    job: &Job<'_, U>,
    blocks: Range<usize>,
    add: impl Fn(&U, usize, usize, &Int8Unit, f32) -> f32,
) {
    for n_block in blocks {
        for tile in job.x.tiles() {
            let mut sums = Sums::ZERO;
            let x = job.x.int8_tile(tile);
            for (unit, x) in job.block(n_block).iter().zip(x.chunks(U::COLS / INT8_COLS * tile.num_rows)) {
                for (row, sums) in sums.0[..tile.num_rows].iter_mut().enumerate() {
                    for (lane, sum) in sums.iter_mut().enumerate() {
                        for b in 0..NUM_BLOCKS {
                            *sum = add(unit, b, lane, &x[b / 2 * tile.num_rows + row], *sum);
                        }
                    }
                }
            }
            job.store(n_block, tile, &sums);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "below 2^24: at most 32 * 128 * 127")]
fn to_float(dot: i32) -> f32 {
    dot as f32
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
