//! `Q6_K`: super-blocks of 256 signed values (see [`SignedBlock`]): 128 bytes of low bits, 64 of high bits, 16 scales of
//! eight bits and an f16 scale. Each half of a super-block holds its 128 values so:
//!
//! ```text
//! value           low four bits            high two bits
//! 0..32           bytes 0..32, low half    bits 0, 1 of bytes 0..32
//! 32..64          bytes 32..64, low half   bits 2, 3
//! 64..96          bytes 0..32, high half   bits 4, 5
//! 96..128         bytes 32..64, high half  bits 6, 7
//! ```

use half::f16;

use super::super_block::{SUPER_LEN, SignedBlock};
use super::{Format, FormatInfo, fit};
use crate::matmul::Layout;

pub(crate) const BLOCK_BYTES: usize = SCALES + 16 + 2;
/// Where the high bits begin.
const HIGH: usize = SUPER_LEN / 2;
/// Where the scales begin.
const SCALES: usize = HIGH + SUPER_LEN / 4;

pub(super) const INFO: FormatInfo = FormatInfo {
    format: Format::Q6_K,
    name: "Q6_K",
    gguf_type: 14,
    block_len: SUPER_LEN,
    block_bytes: BLOCK_BYTES,
    native_layout: Layout::Q6K,
    dequantize,
    quantize: Some(quantize),
    repack: None,
};

/// Takes a block apart.
pub(crate) fn read(block: &[u8; BLOCK_BYTES]) -> SignedBlock {
    let mut quants = [0; SUPER_LEN];
    for (half, quants) in quants.chunks_mut(128).enumerate() {
        let (low, high) = (&block[64 * half..][..64], &block[HIGH + 32 * half..][..32]);
        for (i, quant) in quants.iter_mut().enumerate() {
            let quarter = i / 32;
            let nibble = low[i % 64] >> (quarter / 2 * 4) & 15;
            let top = high[i % 32] >> (2 * quarter) & 3;
            *quant = (nibble | top << 4).cast_signed() - 32;
        }
    }
    let mut scales = [0; 16];
    for (scale, byte) in scales.iter_mut().zip(&block[SCALES..]) {
        *scale = byte.cast_signed();
    }
    SignedBlock { scale: f16::from_le_bytes([block[SCALES + 16], block[SCALES + 17]]), scales, quants }
}

/// The reverse of [`read`].
pub(super) fn write(source: &SignedBlock, block: &mut [u8; BLOCK_BYTES]) {
    block.fill(0);
    let (low, rest) = block.split_at_mut(HIGH);
    let (high, rest) = rest.split_at_mut(SCALES - HIGH);
    for (i, quant) in source.quants.iter().enumerate() {
        let bits = (quant + 32).cast_unsigned();
        let (half, quarter) = (i / 128, i % 128 / 32);
        low[64 * half + i % 64] |= (bits & 15) << (quarter / 2 * 4);
        high[32 * half + i % 32] |= bits >> 4 << (2 * quarter);
    }
    for (byte, scale) in rest.iter_mut().zip(source.scales) {
        *byte = scale.cast_unsigned();
    }
    rest[16..].copy_from_slice(&source.scale.to_le_bytes());
}

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (values, block) in out.as_chunks_mut().0.iter_mut().zip(bytes.as_chunks().0) {
        read(block).dequantize(values);
    }
}

/// By search; see [`fit`].
fn quantize(src: &[f32], out: &mut [u8]) {
    for (values, block) in src.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        write(&fit::signed_block(values), block);
    }
}
