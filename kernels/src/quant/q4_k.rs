//! `Q4_K`: super-blocks of 256 values with minima (see [`MinBlock`]): f16 scale and minimum, 12 bytes of scales, 128 bytes.
//! Byte `i` of 32 holds value `i` of one block of 32 in its low half and that of the next block in its high half.

use half::f16;

use super::super_block::{MinBlock, SCALES_BYTES, SUPER_LEN, pack_scales, unpack_scales};
use super::{Format, FormatInfo, fit};
use crate::matmul::Layout;

pub(crate) const BLOCK_BYTES: usize = 4 + SCALES_BYTES + SUPER_LEN / 2;
const MAX_QUANT: u8 = 15;

pub(super) const INFO: FormatInfo = FormatInfo {
    format: Format::Q4_K,
    name: "Q4_K",
    gguf_type: 12,
    block_len: SUPER_LEN,
    block_bytes: BLOCK_BYTES,
    native_layout: Layout::Q4K,
    dequantize,
    quantize: Some(quantize),
    repack: None,
};

/// Takes a block apart.
pub(crate) fn read(block: &[u8; BLOCK_BYTES]) -> MinBlock {
    let (scales, mins) = unpack_scales(block[4..].first_chunk().expect("scales follow"));
    let mut quants = [0; SUPER_LEN];
    for (quants, bytes) in quants.chunks_mut(64).zip(block[4 + SCALES_BYTES..].chunks(32)) {
        for (i, byte) in bytes.iter().enumerate() {
            quants[i] = byte & 15;
            quants[i + 32] = byte >> 4;
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
        block[4..4 + SCALES_BYTES].copy_from_slice(&pack_scales(&fitted.scales, &fitted.mins));
        for (quants, bytes) in fitted.quants.chunks(64).zip(block[4 + SCALES_BYTES..].chunks_mut(32)) {
            for (i, byte) in bytes.iter_mut().enumerate() {
                *byte = quants[i] | quants[i + 32] << 4;
            }
        }
    }
}
