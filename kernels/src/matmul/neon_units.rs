//! What aarch64's kernels see of each integer layout: the weights of four columns, and what a block adds to an output.
//!
//! Everything here needs only what every aarch64 CPU has, so that it can be inlined into the kernels of any level.

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, vandq_u8, vcvtq_f32_s32, vcvtq_f32_u32, vdup_n_u32, vdupq_n_f32, vdupq_n_s8,
    vdupq_n_u8, veorq_u8, vfmaq_f32, vfmsq_f32, vget_low_s16, vget_low_u16, vmovl_s8, vmovl_s16, vmovl_u8, vmovl_u16,
    vmulq_f32, vorrq_u8, vqtbl1q_s8, vreinterpret_s8_u32, vreinterpret_u8_u32, vreinterpretq_s8_u8,
    vreinterpretq_u8_s8, vshlq_u8, vshrq_n_u8,
};

use super::neon::{load_bytes, load_halves};
use super::super_units::{MinScales, NUM_BLOCKS, Q4KUnit, Q5KUnit, Q6KUnit};
use super::units::{HighBlock, Iq4Unit, Q4Unit, Q5Unit, Q8Unit, Unit};
use crate::activations::Int8Unit;
use crate::quant::IQ4_TABLE;

/// Output channels that are computed together: two registers of four.
pub(super) const HALF_LANES: usize = 8;

/// The integer sums of a block for eight channels; the second are of its second sixteenth, where a unit has two.
pub(super) type BlockDots = [[int32x4_t; 2]; 2];
/// The outputs of eight channels.
pub(super) type Outputs = [float32x4_t; 2];

/// A unit of an integer layout.
pub(super) trait NeonUnit: Unit {
    /// Blocks of 32 columns in a unit.
    const BLOCKS: usize = 2;
    /// Integer sums of a block: 1, or 2 where its sixteenths have scales of their own.
    const SUMS: usize = 1;

    /// Columns `4 * j ..` of block `b`, eight channels.
    fn weights(&self, b: usize, half: usize, j: usize) -> [int8x16_t; 2];
    /// What integer sum `sum` of block `b` starts from.
    fn start(x: &Int8Unit, b: usize, sum: usize) -> i32;
    /// Adds a block's sums, scaled, to the outputs of the row `x`.
    fn add(&self, b: usize, half: usize, x: &Int8Unit, dots: BlockDots, out: Outputs) -> Outputs;
}

/// Intrinsics that every aarch64 CPU has, on values.
macro_rules! proven {
    ($intrinsics:expr) => {
        // SAFETY: every aarch64 CPU has them; their operands are values.
        unsafe { $intrinsics }
    };
}

/// The bytes of eight channels in a line.
#[inline(always)]
fn line_bytes(line: &[u8; 64], half: usize) -> [std::arch::aarch64::uint8x16_t; 2] {
    let quads = line.as_chunks::<32>().0[half].as_chunks::<16>().0;
    [load_bytes(&quads[0]), load_bytes(&quads[1])]
}

/// Four bits a weight: register `j` of a block.
#[inline(always)]
fn nibbles(lines: &[[u8; 64]; 4], half: usize, j: usize) -> [int8x16_t; 2] {
    line_bytes(&lines[j % 4], half).map(|bytes| {
        proven!(vreinterpretq_s8_u8(if j < 4 { vandq_u8(bytes, vdupq_n_u8(15)) } else { vshrq_n_u8::<4>(bytes) }))
    })
}

/// Five or six bits a weight: register `j` of a block.
#[inline(always)]
fn with_high_bits<const LINES: usize>(block: &HighBlock<LINES>, half: usize, j: usize) -> [int8x16_t; 2] {
    let per_line = 8 / LINES;
    let (line, bit) = (j / per_line, j % per_line * LINES);
    let mask = if LINES == 1 { 16 } else { 48 };
    let high = line_bytes(&block.high[line], half);
    let low = nibbles(&block.lines, half, j);
    [0, 1].map(|i| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "between -4 and 4")]
        let shift = 4 - bit as i8;
        proven!({
            let top = vandq_u8(vshlq_u8(high[i], vdupq_n_s8(shift)), vdupq_n_u8(mask));
            vreinterpretq_s8_u8(vorrq_u8(vreinterpretq_u8_s8(low[i]), top))
        })
    })
}

/// f16 numbers of eight channels.
#[inline(always)]
fn halves(values: &[u16; 16], half: usize) -> Outputs {
    let quads = values.as_chunks::<HALF_LANES>().0[half].as_chunks::<4>().0;
    [load_halves(&quads[0]), load_halves(&quads[1])]
}

/// Four bytes from `bytes[4 * i ..]` of a half, as floats.
#[inline(always)]
fn small(bytes: &[u8; 16], half: usize, i: usize) -> float32x4_t {
    let quad = bytes.as_chunks::<HALF_LANES>().0[half].as_chunks::<4>().0[i];
    proven!({
        let wide = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(u32::from_le_bytes(quad))));
        vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide)))
    })
}

/// The same, signed.
#[inline(always)]
fn small_signed(bytes: &[i8; 16], half: usize, i: usize) -> float32x4_t {
    let quad = bytes.as_chunks::<HALF_LANES>().0[half].as_chunks::<4>().0[i].map(i8::cast_unsigned);
    proven!({
        let wide = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(u32::from_le_bytes(quad))));
        vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)))
    })
}

/// One sum with one f16 scale.
#[inline(always)]
fn add_scaled(scales: &[u16; 16], b: usize, half: usize, x: &Int8Unit, dots: BlockDots, out: Outputs) -> Outputs {
    let scales = halves(scales, half);
    std::array::from_fn(|i| {
        proven!({
            let scale = vmulq_f32(scales[i], vdupq_n_f32(x.scales[b]));
            vfmaq_f32(out[i], vcvtq_f32_s32(dots[0][i]), scale)
        })
    })
}

/// One sum with a scale and a minimum.
#[inline(always)]
fn add_with_minima(s: &MinScales, b: usize, half: usize, x: &Int8Unit, dots: BlockDots, out: Outputs) -> Outputs {
    let (scale, min) = (halves(&s.scale, half), halves(&s.min, half));
    std::array::from_fn(|i| {
        let (scales, mins) = (small(&s.scales[b], half, i), small(&s.mins[b], half, i));
        proven!({
            let scale = vmulq_f32(vmulq_f32(scale[i], scales), vdupq_n_f32(x.scales[b % 2]));
            let sum = vfmaq_f32(out[i], vcvtq_f32_s32(dots[0][i]), scale);
            vfmsq_f32(sum, vmulq_f32(min[i], mins), vdupq_n_f32(x.sums[b % 2]))
        })
    })
}

impl NeonUnit for Q8Unit {
    #[inline(always)]
    fn weights(&self, b: usize, half: usize, j: usize) -> [int8x16_t; 2] {
        line_bytes(&self.lines[b][j], half).map(|bytes| proven!(vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(128)))))
    }
    #[inline(always)]
    fn start(_x: &Int8Unit, _b: usize, _sum: usize) -> i32 {
        0
    }
    #[inline(always)]
    fn add(&self, b: usize, half: usize, x: &Int8Unit, dots: BlockDots, out: Outputs) -> Outputs {
        add_scaled(&self.scales[b], b, half, x, dots, out)
    }
}

impl NeonUnit for Q4Unit {
    #[inline(always)]
    fn weights(&self, b: usize, half: usize, j: usize) -> [int8x16_t; 2] {
        nibbles(&self.lines[b], half, j)
    }
    #[inline(always)]
    fn start(x: &Int8Unit, b: usize, _sum: usize) -> i32 {
        x.q4_init[b]
    }
    #[inline(always)]
    fn add(&self, b: usize, half: usize, x: &Int8Unit, dots: BlockDots, out: Outputs) -> Outputs {
        add_scaled(&self.scales[b], b, half, x, dots, out)
    }
}

impl NeonUnit for Q5Unit {
    #[inline(always)]
    fn weights(&self, b: usize, half: usize, j: usize) -> [int8x16_t; 2] {
        with_high_bits(&self.blocks[b], half, j)
    }
    #[inline(always)]
    fn start(x: &Int8Unit, b: usize, _sum: usize) -> i32 {
        x.q5_init[b]
    }
    #[inline(always)]
    fn add(&self, b: usize, half: usize, x: &Int8Unit, dots: BlockDots, out: Outputs) -> Outputs {
        add_scaled(&self.scales[b], b, half, x, dots, out)
    }
}

impl NeonUnit for Iq4Unit {
    #[inline(always)]
    fn weights(&self, b: usize, half: usize, j: usize) -> [int8x16_t; 2] {
        let table = load_bytes(&IQ4_TABLE.map(i8::cast_unsigned));
        nibbles(&self.lines[b], half, j)
            .map(|quants| proven!(vqtbl1q_s8(vreinterpretq_s8_u8(table), vreinterpretq_u8_s8(quants))))
    }
    #[inline(always)]
    fn start(_x: &Int8Unit, _b: usize, _sum: usize) -> i32 {
        0
    }
    #[inline(always)]
    fn add(&self, b: usize, half: usize, x: &Int8Unit, dots: BlockDots, out: Outputs) -> Outputs {
        add_scaled(&self.scales[b], b, half, x, dots, out)
    }
}

impl NeonUnit for Q4KUnit {
    const BLOCKS: usize = NUM_BLOCKS;

    #[inline(always)]
    fn weights(&self, b: usize, half: usize, j: usize) -> [int8x16_t; 2] {
        nibbles(&self.blocks[b], half, j)
    }
    #[inline(always)]
    fn start(_x: &Int8Unit, _b: usize, _sum: usize) -> i32 {
        0
    }
    #[inline(always)]
    fn add(&self, b: usize, half: usize, x: &Int8Unit, dots: BlockDots, out: Outputs) -> Outputs {
        add_with_minima(&self.scales, b, half, x, dots, out)
    }
}

impl NeonUnit for Q5KUnit {
    const BLOCKS: usize = NUM_BLOCKS;

    #[inline(always)]
    fn weights(&self, b: usize, half: usize, j: usize) -> [int8x16_t; 2] {
        with_high_bits(&self.blocks[b], half, j)
    }
    #[inline(always)]
    fn start(_x: &Int8Unit, _b: usize, _sum: usize) -> i32 {
        0
    }
    #[inline(always)]
    fn add(&self, b: usize, half: usize, x: &Int8Unit, dots: BlockDots, out: Outputs) -> Outputs {
        add_with_minima(&self.scales, b, half, x, dots, out)
    }
}

impl NeonUnit for Q6KUnit {
    const BLOCKS: usize = NUM_BLOCKS;
    const SUMS: usize = 2;

    #[inline(always)]
    fn weights(&self, b: usize, half: usize, j: usize) -> [int8x16_t; 2] {
        with_high_bits(&self.blocks[b], half, j)
    }
    #[inline(always)]
    fn start(x: &Int8Unit, b: usize, sum: usize) -> i32 {
        x.q6_init[b % 2][sum]
    }
    #[inline(always)]
    fn add(&self, b: usize, half: usize, x: &Int8Unit, dots: BlockDots, out: Outputs) -> Outputs {
        let scale = halves(&self.scale, half);
        std::array::from_fn(|i| {
            let scales = [0, 1].map(|s| small_signed(&self.scales[2 * b + s], half, i));
            proven!({
                let scales = [vmulq_f32(scale[i], scales[0]), vmulq_f32(scale[i], scales[1])];
                let both = vmulq_f32(vcvtq_f32_s32(dots[1][i]), scales[1]);
                let both = vfmaq_f32(both, vcvtq_f32_s32(dots[0][i]), scales[0]);
                vfmaq_f32(out[i], both, vdupq_n_f32(x.scales[b % 2]))
            })
        })
    }
}
