//! `Q8_0`: blocks of 32 values, an f16 scale and 32 signed bytes; value = scale * byte.

use half::f16;

use super::{Format, FormatInfo};
use crate::matmul::Layout;

const BLOCK_LEN: usize = 32;
pub(crate) const BLOCK_BYTES: usize = 2 + BLOCK_LEN;

pub(super) const INFO: FormatInfo = FormatInfo {
    format: Format::Q8_0,
    name: "Q8_0",
    gguf_type: 8,
    block_len: BLOCK_LEN,
    block_bytes: BLOCK_BYTES,
    native_layout: Layout::Q8,
    dequantize,
    quantize: Some(quantize),
    repack: None,
};

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (values, block) in out.as_chunks_mut::<BLOCK_LEN>().0.iter_mut().zip(bytes.as_chunks::<BLOCK_BYTES>().0) {
        let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
        for (value, byte) in values.iter_mut().zip(&block[2..]) {
            *value = scale * f32::from(byte.cast_signed());
        }
    }
}

/// ggml's `quantize_row_q8_0_ref`: the largest magnitude becomes 127, halves round away from zero, and the bytes belong
/// to the scale before it is rounded to f16. A block too small for an f32 reciprocal becomes zero.
fn quantize(src: &[f32], out: &mut [u8]) {
    for (values, block) in src.as_chunks::<BLOCK_LEN>().0.iter().zip(out.as_chunks_mut::<BLOCK_BYTES>().0) {
        let max = values.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        let scale = max / 127.0;
        let inverse = 1.0 / scale;
        let inverse = if inverse.is_finite() { inverse } else { 0.0 };
        block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        for (byte, value) in block[2..].iter_mut().zip(values) {
            // Saturates, and maps NaN to 0.
            #[expect(clippy::cast_possible_truncation, reason = "at most 127 in magnitude")]
            let rounded = (value * inverse).round() as i8;
            *byte = rounded.cast_unsigned();
        }
    }
}
