//! `IQ4_XS`: super-blocks of 256 values: an f16 scale, eight scales of six bits (two high bits each in a word, then four low
//! bits each), and 128 bytes as in `IQ4_NL`, 16 for each block of 32; value = scale * (s - 32) * table\[nibble\].

use half::f16;

use super::iq4_nl::{self, TABLE};
use super::super_block::SUPER_LEN;
use super::{Format, FormatInfo, f16_at};
use crate::matmul::Layout;

const BLOCK_BYTES: usize = QUANTS + SUPER_LEN / 2;
/// Where the values begin.
const QUANTS: usize = 8;

pub(super) const INFO: FormatInfo = FormatInfo {
    format: Format::IQ4_XS,
    name: "IQ4_XS",
    gguf_type: 23,
    block_len: SUPER_LEN,
    block_bytes: BLOCK_BYTES,
    // Exact but for the product of the two scales, which is rounded to f16.
    native_layout: Layout::Iq4,
    dequantize,
    quantize: None,
    repack: Some(repack),
};

/// The scale of block `b` of 32.
fn scale(block: &[u8; BLOCK_BYTES], b: usize) -> f32 {
    let high = u16::from_le_bytes([block[2], block[3]]) >> (2 * b) & 3;
    let low = block[4 + b / 2] >> (b % 2 * 4) & 15;
    f16_at(block, 0) * (f32::from(low) + 16.0 * f32::from(high) - 32.0)
}

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (values, block) in out.as_chunks_mut::<SUPER_LEN>().0.iter_mut().zip(bytes.as_chunks().0) {
        for (b, (values, bytes)) in values.chunks_mut(32).zip(block[QUANTS..].chunks(16)).enumerate() {
            let scale = scale(block, b);
            for (i, byte) in bytes.iter().enumerate() {
                values[i] = scale * f32::from(TABLE[usize::from(byte & 15)]);
                values[i + 16] = scale * f32::from(TABLE[usize::from(byte >> 4)]);
            }
        }
    }
}

fn repack(bytes: &[u8], out: &mut [u8]) {
    let blocks = out.as_chunks_mut::<{ 8 * iq4_nl::BLOCK_BYTES }>().0;
    for (out, block) in blocks.iter_mut().zip(bytes.as_chunks().0) {
        for (b, (out, bytes)) in out.chunks_mut(iq4_nl::BLOCK_BYTES).zip(block[QUANTS..].chunks(16)).enumerate() {
            out[..2].copy_from_slice(&f16::from_f32(scale(block, b)).to_le_bytes());
            out[2..].copy_from_slice(bytes);
        }
    }
}
