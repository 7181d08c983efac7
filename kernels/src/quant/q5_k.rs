//! `Q5_K`: super-blocks of 256 values with minima (see [`MinBlock`]): f16 scale and minimum, 12 bytes of scales, 32 bytes of
//! fifth bits, then four bits a value as in `Q4_K`. Bit `b` of byte `i` of the fifth bits belongs to value `i` of block `b`.

use half::f16;

use super::super_block::{BLOCK_LEN, MinBlock, SCALES_BYTES, SUPER_LEN, pack_scales, unpack_scales};
use super::{Format, FormatInfo, fit};
use crate::matmul::Layout;

pub(crate) const BLOCK_BYTES: usize = HIGH + BLOCK_LEN + SUPER_LEN / 2;
/// Where the fifth bits begin.
const HIGH: usize = 4 + SCALES_BYTES;
const MAX_QUANT: u8 = 31;

pub(super) const INFO: FormatInfo = FormatInfo {
    format: Format::Q5_K,
    name: "Q5_K",
    gguf_type: 13,
    block_len: SUPER_LEN,
    block_bytes: BLOCK_BYTES,
    native_layout: Layout::Q5K,
    dequantize,
    quantize: Some(quantize),
    repack: None,
};

/// Takes a block apart.
pub(crate) fn read(block: &[u8; BLOCK_BYTES]) -> MinBlock {
    let (scales, mins) = unpack_scales(block[4..].first_chunk().expect("scales follow"));
    let (high, low) = block[HIGH..].split_at(BLOCK_LEN);
    let mut quants = [0; SUPER_LEN];
    for (pair, (quants, bytes)) in quants.chunks_mut(64).zip(low.chunks(32)).enumerate() {
        for (i, byte) in bytes.iter().enumerate() {
            quants[i] = byte & 15 | (high[i] >> (2 * pair) & 1) << 4;
            quants[i + 32] = byte >> 4 | (high[i] >> (2 * pair + 1) & 1) << 4;
        }
    }
    let (scale, min) = (f16::from_le_bytes([block[0], block[1]]), f16::from_le_bytes([block[2], block[3]]));
    MinBlock { scale, min, scales, mins, quants }
}

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (values, block) in out.as_chunks_mut().0.iter_mut().zip(bytes.as_chunks().0) {
        read(block).dequantize(values);
    }
}

/// By search; see [`fit`].
fn quantize(src: &[f32], out: &mut [u8]) {
    for (values, block) in src.as_chunks().0.iter().zip(out.as_chunks_mut::<BLOCK_BYTES>().0) {
        let fitted = fit::min_block(values, MAX_QUANT);
        block[..2].copy_from_slice(&fitted.scale.to_le_bytes());
        block[2..4].copy_from_slice(&fitted.min.to_le_bytes());
        block[4..HIGH].copy_from_slice(&pack_scales(&fitted.scales, &fitted.mins));
        let (high, low) = block[HIGH..].split_at_mut(BLOCK_LEN);
        high.fill(0);
        for (pair, (quants, bytes)) in fitted.quants.chunks(64).zip(low.chunks_mut(32)).enumerate() {
            for (i, byte) in bytes.iter_mut().enumerate() {
                *byte = quants[i] & 15 | quants[i + 32] << 4;
                high[i] |= quants[i] >> 4 << (2 * pair) | quants[i + 32] >> 4 << (2 * pair + 1);
            }
        }
    }
}
