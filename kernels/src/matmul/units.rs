//! Packed weights: 16 output channels side by side, one in each lane of a 512-bit register.
//!
//! An n-block is 16 channels; its units follow each other with ascending columns, and n-blocks follow each other, so a
//! matmul reads one linear stream. Packing loses nothing: [`Unit::unpack`] gives back every weight exactly.

use half::{bf16, f16};

use crate::aligned::Plain;
use crate::quant::{
    Format, IQ4_NL_BLOCK_BYTES, IQ4_TABLE, Q4_0_BLOCK_BYTES, Q5_0_BLOCK_BYTES, Q8_0_BLOCK_BYTES, q5_0_quants,
};

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

/// A block of 32 with the bits above the fourth in `LINES` more lines; see [`put_quants`].
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct HighBlock<const LINES: usize> {
    pub(crate) lines: [[u8; 64]; 4],
    pub(crate) high: [[u8; 64]; LINES],
}

/// `Q5_0` weights: 64 columns, which are two blocks of 32.
///
/// The low four bits lie as in [`Q4Unit`], the fifth ones beside them: see [`put_quants`]. Values have 16 added, as in the
/// file.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Q5Unit {
    /// f16 bits.
    pub(crate) scales: [[u16; LANES]; 2],
    pub(crate) blocks: [HighBlock<1>; 2],
}

// SAFETY: plain numbers without padding (64 + 2 * 320 bytes), valid for every bit pattern.
unsafe impl Plain for Q5Unit {}

impl Unit for Q5Unit {
    const COLS: usize = 64;
    const FORMAT: Format = Format::Q5_0;

    fn pack(row: &[u8], lane: usize, units: &mut [Self]) {
        for (block_idx, block) in row.as_chunks::<Q5_0_BLOCK_BYTES>().0.iter().enumerate() {
            let (unit, b) = (&mut units[block_idx / 2], block_idx % 2);
            unit.scales[b][lane] = u16::from_le_bytes([block[0], block[1]]);
            let quants = q5_0_quants(block.last_chunk().expect("a block ends with its quants"));
            put_quants(&quants, lane, &mut unit.blocks[b].lines, &mut unit.blocks[b].high);
        }
    }

    fn unpack(units: &[Self], lane: usize, out: &mut [f32]) {
        for (block_idx, out) in out.chunks_mut(32).enumerate() {
            let (unit, b) = (&units[block_idx / 2], block_idx % 2);
            let scale = f16::from_bits(unit.scales[b][lane]).to_f32();
            for (i, value) in out.iter_mut().enumerate() {
                let block = &unit.blocks[b];
                *value = scale * (f32::from(quant(&block.lines, &block.high, lane, i)) - 16.0);
            }
        }
    }
}

/// `IQ4_NL` weights: 64 columns, which are two blocks of 32; everything lies as in [`Q4Unit`].
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Iq4Unit {
    /// f16 bits.
    pub(crate) scales: [[u16; LANES]; 2],
    pub(crate) lines: [[[u8; 64]; 4]; 2],
}

// SAFETY: plain numbers without padding (64 + 512 bytes), valid for every bit pattern.
unsafe impl Plain for Iq4Unit {}

impl Unit for Iq4Unit {
    const COLS: usize = 64;
    const FORMAT: Format = Format::IQ4_NL;

    fn pack(row: &[u8], lane: usize, units: &mut [Self]) {
        for (block_idx, block) in row.as_chunks::<IQ4_NL_BLOCK_BYTES>().0.iter().enumerate() {
            let unit = &mut units[block_idx / 2];
            unit.scales[block_idx % 2][lane] = u16::from_le_bytes([block[0], block[1]]);
            for (line, bytes) in unit.lines[block_idx % 2].iter_mut().zip(block[2..].as_chunks::<4>().0) {
                line[4 * lane..4 * lane + 4].copy_from_slice(bytes);
            }
        }
    }

    fn unpack(units: &[Self], lane: usize, out: &mut [f32]) {
        for (block_idx, out) in out.chunks_mut(32).enumerate() {
            let (unit, b) = (&units[block_idx / 2], block_idx % 2);
            let scale = f16::from_bits(unit.scales[b][lane]).to_f32();
            for (i, value) in out.iter_mut().enumerate() {
                *value = scale * f32::from(IQ4_TABLE[usize::from(quant::<0>(&unit.lines[b], &[], lane, i))]);
            }
        }
    }
}

/// Puts a channel's block of 32 quants into the lines of its unit.
///
/// Register `j` of a block holds columns `4 * j .. 4 * j + 4` of all channels. Its low four bits are the low halves of
/// line `j`, from register 4 on the high halves of line `j - 4`. The bits above them lie in `LINES` more lines, each for
/// as many registers as have room in its bytes:
///
/// ```text
/// one line:  bit j of a byte is bit 4 of register j
/// two lines: bits 2 (j % 4) and the next of line j / 4 are bits 4 and 5 of register j
/// ```
pub(crate) fn put_quants<const LINES: usize>(
    quants: &[u8; 32],
    lane: usize,
    low: &mut [[u8; 64]; 4],
    high: &mut [[u8; 64]; LINES],
) {
    for (i, quant) in quants.iter().enumerate() {
        let (register, byte) = (i / 4, 4 * lane + i % 4);
        let nibble = quant & 15;
        let place = &mut low[register % 4][byte];
        *place = if register < 4 { *place & 0xf0 | nibble } else { *place & 15 | nibble << 4 };
        if LINES > 0 {
            let (line, shift, mask) = high_place::<LINES>(register);
            let place = &mut high[line][byte];
            *place = *place & !(mask << shift) | (quant >> 4 & mask) << shift;
        }
    }
}

/// The quant of column `i` of a block; see [`put_quants`].
#[inline(always)]
pub(crate) fn quant<const LINES: usize>(low: &[[u8; 64]; 4], high: &[[u8; 64]; LINES], lane: usize, i: usize) -> u8 {
    let (register, byte) = (i / 4, 4 * lane + i % 4);
    let nibble = low[register % 4][byte] >> (register / 4 * 4) & 15;
    if LINES == 0 {
        return nibble;
    }
    let (line, shift, mask) = high_place::<LINES>(register);
    nibble | (high[line][byte] >> shift & mask) << 4
}

/// Line, shift and mask of a register's bits above the fourth.
#[inline(always)]
fn high_place<const LINES: usize>(register: usize) -> (usize, usize, u8) {
    let per_line = 8 / LINES;
    (register / per_line, register % per_line * LINES, if LINES == 1 { 1 } else { 3 })
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
