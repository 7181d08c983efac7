//! Packed weights: 16 output channels side by side, one in each lane of a 512-bit register.
//!
//! An n-block is 16 channels; its units follow each other with ascending columns, and n-blocks follow each other, so a
//! matmul reads one linear stream. Packing loses nothing: [`Unit::unpack`] gives back every weight exactly.

use half::{bf16, f16};

use crate::aligned::Plain;
use crate::quant::{Format, Q4_0_BLOCK_BYTES, Q8_0_BLOCK_BYTES};

/// Output channels in an n-block.
pub(crate) const LANES: usize = 16;

/// Weights of 16 output channels and `COLS` columns.
pub(crate) trait Unit: Plain {
    /// Columns in a unit.
    const COLS: usize;
    /// The file format with the same values.
    const FORMAT: Format;
    /// Writes one channel's row, in [`Unit::FORMAT`], into the units of its n-block.
    fn pack(row: &[u8], lane: usize, units: &mut [Self]);
    /// The values of one channel; `out` may end inside the last unit.
    fn unpack(units: &[Self], lane: usize, out: &mut [f32]);
}

/// `Q8_0` weights: 64 columns, which are two blocks of 32.
///
/// Line `j` of a block holds columns `4 * j .. 4 * j + 4`, four bytes a channel. Bytes have 128 added (the top bit
/// flipped), as the unsigned operand of `vpdpbusd`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Q8Unit {
    /// f16 bits.
    pub(crate) scales: [[u16; LANES]; 2],
    pub(crate) lines: [[[u8; 64]; 8]; 2],
}

// SAFETY: plain numbers without padding (64 + 1024 bytes), valid for every bit pattern.
unsafe impl Plain for Q8Unit {}

impl Unit for Q8Unit {
    const COLS: usize = 64;
    const FORMAT: Format = Format::Q8_0;

    fn pack(row: &[u8], lane: usize, units: &mut [Self]) {
        for (block_idx, block) in row.as_chunks::<Q8_0_BLOCK_BYTES>().0.iter().enumerate() {
            let unit = &mut units[block_idx / 2];
            unit.scales[block_idx % 2][lane] = u16::from_le_bytes([block[0], block[1]]);
            for (line, bytes) in unit.lines[block_idx % 2].iter_mut().zip(block[2..].as_chunks::<4>().0) {
                line[4 * lane..4 * lane + 4].copy_from_slice(&bytes.map(|b| b ^ 0x80));
            }
        }
    }

    fn unpack(units: &[Self], lane: usize, out: &mut [f32]) {
        for (block_idx, out) in out.chunks_mut(32).enumerate() {
            let unit = &units[block_idx / 2];
            let scale = f16::from_bits(unit.scales[block_idx % 2][lane]).to_f32();
            for (i, value) in out.iter_mut().enumerate() {
                let byte = unit.lines[block_idx % 2][i / 4][4 * lane + i % 4] ^ 0x80;
                *value = scale * f32::from(byte.cast_signed());
            }
        }
    }
}

/// `Q4_0` weights: 64 columns, which are two blocks of 32.
///
/// Line `j` of a block holds columns `4 * j .. 4 * j + 4` in the low halves of its bytes and the columns 16 further on
/// in the high halves, four bytes a channel. Values have 8 added, as in the file.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Q4Unit {
    /// f16 bits.
    pub(crate) scales: [[u16; LANES]; 2],
    pub(crate) lines: [[[u8; 64]; 4]; 2],
}

// SAFETY: plain numbers without padding (64 + 512 bytes), valid for every bit pattern.
unsafe impl Plain for Q4Unit {}

impl Unit for Q4Unit {
    const COLS: usize = 64;
    const FORMAT: Format = Format::Q4_0;

    fn pack(row: &[u8], lane: usize, units: &mut [Self]) {
        for (block_idx, block) in row.as_chunks::<Q4_0_BLOCK_BYTES>().0.iter().enumerate() {
            let unit = &mut units[block_idx / 2];
            unit.scales[block_idx % 2][lane] = u16::from_le_bytes([block[0], block[1]]);
            for (line, bytes) in unit.lines[block_idx % 2].iter_mut().zip(block[2..].as_chunks::<4>().0) {
                line[4 * lane..4 * lane + 4].copy_from_slice(bytes);
            }
        }
    }

    fn unpack(units: &[Self], lane: usize, out: &mut [f32]) {
        for (block_idx, out) in out.chunks_mut(32).enumerate() {
            let unit = &units[block_idx / 2];
            let scale = f16::from_bits(unit.scales[block_idx % 2][lane]).to_f32();
            for (i, value) in out.iter_mut().enumerate() {
                let byte = unit.lines[block_idx % 2][i % 16 / 4][4 * lane + i % 4];
                let nibble = if i < 16 { byte & 15 } else { byte >> 4 };
                *value = scale * (f32::from(nibble) - 8.0);
            }
        }
    }
}

impl Unit for [f32; LANES] {
    const COLS: usize = 1;
    const FORMAT: Format = Format::F32;

    fn pack(row: &[u8], lane: usize, units: &mut [Self]) {
        for (unit, bytes) in units.iter_mut().zip(row.as_chunks::<4>().0) {
            unit[lane] = f32::from_le_bytes(*bytes);
        }
    }

    fn unpack(units: &[Self], lane: usize, out: &mut [f32]) {
        for (value, unit) in out.iter_mut().zip(units) {
            *value = unit[lane];
        }
    }
}

impl Unit for [f16; LANES] {
    const COLS: usize = 1;
    const FORMAT: Format = Format::F16;

    fn pack(row: &[u8], lane: usize, units: &mut [Self]) {
        for (unit, bytes) in units.iter_mut().zip(row.as_chunks::<2>().0) {
            unit[lane] = f16::from_le_bytes(*bytes);
        }
    }

    fn unpack(units: &[Self], lane: usize, out: &mut [f32]) {
        for (value, unit) in out.iter_mut().zip(units) {
            *value = unit[lane].to_f32();
        }
    }
}

impl Unit for [bf16; LANES] {
    const COLS: usize = 1;
    const FORMAT: Format = Format::BF16;

    fn pack(row: &[u8], lane: usize, units: &mut [Self]) {
        for (unit, bytes) in units.iter_mut().zip(row.as_chunks::<2>().0) {
            unit[lane] = bf16::from_le_bytes(*bytes);
        }
    }

    fn unpack(units: &[Self], lane: usize, out: &mut [f32]) {
        for (value, unit) in out.iter_mut().zip(units) {
            *value = unit[lane].to_f32();
        }
    }
}
