//! Packed super-blocks of 256 columns: the units of the K formats.
//!
//! As in [`super::units`], 16 output channels lie side by side. Scales stay as in the file, an f16 number and small integers,
//! so nothing is rounded and a weight takes an eighth of a bit more than there.

use half::f16;

use super::units::{HighBlock, LANES, Unit, put_quants, quant};
use crate::aligned::Plain;
use crate::quant::{BLOCK_LEN, Format, MinBlock, SIXTEENTH_LEN, SUPER_LEN, read_q4_k, read_q5_k, read_q6_k};

/// Blocks of 32 in a super-block.
pub(crate) const NUM_BLOCKS: usize = SUPER_LEN / BLOCK_LEN;

/// Scales and minima of a super-block: the weights of block `b` are
/// `scale * scales[b] * quant - min * mins[b]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct MinScales {
    /// f16 bits.
    pub(crate) scale: [u16; LANES],
    /// f16 bits.
    pub(crate) min: [u16; LANES],
    pub(crate) scales: [[u8; LANES]; NUM_BLOCKS],
    pub(crate) mins: [[u8; LANES]; NUM_BLOCKS],
}

impl MinScales {
    fn put(&mut self, lane: usize, block: &MinBlock) {
        self.scale[lane] = block.scale.to_bits();
        self.min[lane] = block.min.to_bits();
        for b in 0..NUM_BLOCKS {
            self.scales[b][lane] = block.scales[b];
            self.mins[b][lane] = block.mins[b];
        }
    }

    /// Scale and minimum of a block of one channel; both are exact.
    #[inline(always)]
    pub(crate) fn of(&self, b: usize, lane: usize) -> (f32, f32) {
        let (scale, min) = (f16::from_bits(self.scale[lane]).to_f32(), f16::from_bits(self.min[lane]).to_f32());
        (scale * f32::from(self.scales[b][lane]), min * f32::from(self.mins[b][lane]))
    }
}

/// A unit with minima; quants lie as [`put_quants`] says.
pub(crate) trait MinUnit: Unit {
    /// Scales and minima.
    fn scales(&self) -> &MinScales;
    /// The quant of column `i` of block `b`.
    fn quant(&self, b: usize, lane: usize, i: usize) -> u8;
}

fn unpack_min<U: MinUnit>(units: &[U], lane: usize, out: &mut [f32]) {
    for (block_idx, out) in out.chunks_mut(BLOCK_LEN).enumerate() {
        let (unit, b) = (&units[block_idx / NUM_BLOCKS], block_idx % NUM_BLOCKS);
        let (scale, min) = unit.scales().of(b, lane);
        for (i, value) in out.iter_mut().enumerate() {
            *value = scale * f32::from(unit.quant(b, lane, i)) - min;
        }
    }
}

/// `Q4_K` weights.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Q4KUnit {
    pub(crate) scales: MinScales,
    pub(crate) blocks: [[[u8; 64]; 4]; NUM_BLOCKS],
}

// SAFETY: plain numbers without padding (320 + 2048 bytes), valid for every bit pattern.
unsafe impl Plain for Q4KUnit {}

impl Unit for Q4KUnit {
    const COLS: usize = SUPER_LEN;
    const FORMAT: Format = Format::Q4_K;

    fn pack(row: &[u8], lane: usize, units: &mut [Self]) {
        for (unit, block) in units.iter_mut().zip(row.as_chunks().0) {
            let block = read_q4_k(block);
            unit.scales.put(lane, &block);
            for (lines, quants) in unit.blocks.iter_mut().zip(block.quants.as_chunks().0) {
                put_quants(quants, lane, lines, &mut []);
            }
        }
    }

    fn unpack(units: &[Self], lane: usize, out: &mut [f32]) {
        unpack_min(units, lane, out);
    }
}

impl MinUnit for Q4KUnit {
    fn scales(&self) -> &MinScales {
        &self.scales
    }

    #[inline(always)]
    fn quant(&self, b: usize, lane: usize, i: usize) -> u8 {
        quant(&self.blocks[b], &[], lane, i)
    }
}

/// `Q5_K` weights.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Q5KUnit {
    pub(crate) scales: MinScales,
    pub(crate) blocks: [HighBlock<1>; NUM_BLOCKS],
}

// SAFETY: plain numbers without padding (320 + 8 * 320 bytes), valid for every bit pattern.
unsafe impl Plain for Q5KUnit {}

impl Unit for Q5KUnit {
    const COLS: usize = SUPER_LEN;
    const FORMAT: Format = Format::Q5_K;

    fn pack(row: &[u8], lane: usize, units: &mut [Self]) {
        for (unit, block) in units.iter_mut().zip(row.as_chunks().0) {
            let block = read_q5_k(block);
            unit.scales.put(lane, &block);
            for (place, quants) in unit.blocks.iter_mut().zip(block.quants.as_chunks().0) {
                put_quants(quants, lane, &mut place.lines, &mut place.high);
            }
        }
    }

    fn unpack(units: &[Self], lane: usize, out: &mut [f32]) {
        unpack_min(units, lane, out);
    }
}

impl MinUnit for Q5KUnit {
    fn scales(&self) -> &MinScales {
        &self.scales
    }

    #[inline(always)]
    fn quant(&self, b: usize, lane: usize, i: usize) -> u8 {
        quant(&self.blocks[b].lines, &self.blocks[b].high, lane, i)
    }
}

/// `Q6_K` weights with 32 added: those of sixteenth `s` are `scale * scales[s] * (quant - 32)`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Q6KUnit {
    /// f16 bits.
    pub(crate) scale: [u16; LANES],
    padding: [u16; LANES],
    pub(crate) scales: [[i8; LANES]; 2 * NUM_BLOCKS],
    pub(crate) blocks: [HighBlock<2>; NUM_BLOCKS],
}

// SAFETY: plain numbers without implicit padding (64 + 256 + 8 * 384 bytes), valid for every bit pattern.
unsafe impl Plain for Q6KUnit {}

impl Q6KUnit {
    /// The scale of a sixteenth of one channel; exact.
    #[inline(always)]
    pub(crate) fn scale_of(&self, sixteenth: usize, lane: usize) -> f32 {
        f16::from_bits(self.scale[lane]).to_f32() * f32::from(self.scales[sixteenth][lane])
    }
}

impl Unit for Q6KUnit {
    const COLS: usize = SUPER_LEN;
    const FORMAT: Format = Format::Q6_K;

    fn pack(row: &[u8], lane: usize, units: &mut [Self]) {
        for (unit, block) in units.iter_mut().zip(row.as_chunks().0) {
            let block = read_q6_k(block);
            unit.scale[lane] = block.scale.to_bits();
            for (scales, scale) in unit.scales.iter_mut().zip(block.scales) {
                scales[lane] = scale;
            }
            for (place, quants) in unit.blocks.iter_mut().zip(block.quants.as_chunks::<BLOCK_LEN>().0) {
                let quants = quants.map(|quant| (quant + 32).cast_unsigned());
                put_quants(&quants, lane, &mut place.lines, &mut place.high);
            }
        }
    }

    fn unpack(units: &[Self], lane: usize, out: &mut [f32]) {
        for (sixteenth_idx, out) in out.chunks_mut(SIXTEENTH_LEN).enumerate() {
            let (unit, s) = (&units[sixteenth_idx / (2 * NUM_BLOCKS)], sixteenth_idx % (2 * NUM_BLOCKS));
            let (scale, block) = (unit.scale_of(s, lane), &unit.blocks[s / 2]);
            for (i, value) in out.iter_mut().enumerate() {
                let quant = quant(&block.lines, &block.high, lane, s % 2 * SIXTEENTH_LEN + i);
                *value = scale * (f32::from(quant) - 32.0);
            }
        }
    }
}
