//! `Q3_K`: super-blocks of 256 signed values of three bits (see [`SignedBlock`]): 32 bytes of high bits, 64 of low bits, 16
//! scales of six bits in 12 bytes and an f16 scale. A value whose high bit is *not* set has 4 subtracted.

use half::f16;

use super::super_block::{SUPER_LEN, SignedBlock};
use super::{Format, FormatInfo, q6_k};
use crate::matmul::Layout;

const BLOCK_BYTES: usize = SCALES + 12 + 2;
/// Where the low bits begin.
const LOW: usize = SUPER_LEN / 8;
/// Where the scales begin.
const SCALES: usize = LOW + SUPER_LEN / 4;

pub(super) const INFO: FormatInfo = FormatInfo {
    format: Format::Q3_K,
    name: "Q3_K",
    gguf_type: 11,
    block_len: SUPER_LEN,
    block_bytes: BLOCK_BYTES,
    // Scales and values are among those of Q6_K, so nothing is lost.
    native_layout: Layout::Q6K,
    dequantize,
    quantize: None,
    repack: Some(repack),
};

fn read(block: &[u8; BLOCK_BYTES]) -> SignedBlock {
    let (high, low, packed) = (&block[..LOW], &block[LOW..SCALES], &block[SCALES..]);
    let mut quants = [0; SUPER_LEN];
    for (i, quant) in quants.iter_mut().enumerate() {
        let (half, quarter) = (i / 128, i % 128 / 32);
        let bits = low[32 * half + i % 32] >> (2 * quarter) & 3;
        let top = high[i % 32] >> (4 * half + quarter) & 1;
        *quant = (bits | top << 2).cast_signed() - 4;
    }
    let mut scales = [0; 16];
    for (s, scale) in scales.iter_mut().enumerate() {
        let low = packed[s % 8] >> (s / 8 * 4) & 15;
        let high = packed[8 + s % 4] >> (s / 4 * 2) & 3;
        *scale = (low | high << 4).cast_signed() - 32;
    }
    SignedBlock { scale: f16::from_le_bytes([packed[12], packed[13]]), scales, quants }
}

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (values, block) in out.as_chunks_mut().0.iter_mut().zip(bytes.as_chunks().0) {
        read(block).dequantize(values);
    }
}

fn repack(bytes: &[u8], out: &mut [u8]) {
    for (out, block) in out.as_chunks_mut().0.iter_mut().zip(bytes.as_chunks().0) {
        q6_k::write(&read(block), out);
    }
}
