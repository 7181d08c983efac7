//! `Q2_K`: super-blocks of 256 values of two bits: 16 bytes of scales (low half) and minima (high half), one for each
//! sixteenth, 64 bytes of values, f16 scale and minimum; value = scale * s * quant - minimum * m.

use super::super_block::{SIXTEENTH_LEN, SUPER_LEN};
use super::{Format, FormatInfo, f16_at};
use crate::matmul::Layout;

const BLOCK_BYTES: usize = QUANTS + SUPER_LEN / 4 + 4;
/// Where the values begin.
const QUANTS: usize = 16;

pub(super) const INFO: FormatInfo = FormatInfo {
    format: Format::Q2_K,
    name: "Q2_K",
    gguf_type: 10,
    block_len: SUPER_LEN,
    block_bytes: BLOCK_BYTES,
    // Minima for each sixteenth fit no other layout. On normally distributed weights the bytes add 0.02 % to the error
    // that the two bits have, but a weight takes 8.5 bits in memory.
    native_layout: Layout::Q8,
    dequantize,
    quantize: None,
    repack: None,
};

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (values, block) in out.as_chunks_mut::<SUPER_LEN>().0.iter_mut().zip(bytes.as_chunks::<BLOCK_BYTES>().0) {
        let (scale, min) = (f16_at(block, BLOCK_BYTES - 4), f16_at(block, BLOCK_BYTES - 2));
        for (s, values) in values.chunks_mut(SIXTEENTH_LEN).enumerate() {
            let (scale, min) = (scale * f32::from(block[s] & 15), min * f32::from(block[s] >> 4));
            // 128 values share 32 bytes, two bits each.
            let (half, quarter) = (s / 8, s % 8 / 2);
            let bytes = &block[QUANTS + 32 * half + s % 2 * SIXTEENTH_LEN..];
            for (value, byte) in values.iter_mut().zip(bytes) {
                *value = scale * f32::from(byte >> (2 * quarter) & 3) - min;
            }
        }
    }
}
