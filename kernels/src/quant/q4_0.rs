//! `Q4_0`: blocks of 32 values, an f16 scale and 16 bytes; value = scale * (nibble - 8). Byte `i` holds value `i` in its
//! low half and value `i + 16` in its high half.

use half::f16;

use super::{Format, FormatInfo};
use crate::matmul::Layout;

const BLOCK_LEN: usize = 32;
pub(crate) const BLOCK_BYTES: usize = 2 + BLOCK_LEN / 2;

pub(super) const INFO: FormatInfo = FormatInfo {
    format: Format::Q4_0,
    name: "Q4_0",
    gguf_type: 2,
    block_len: BLOCK_LEN,
    block_bytes: BLOCK_BYTES,
    native_layout: Layout::Q4,
    dequantize,
    quantize: Some(quantize),
    repack: None,
};

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (values, block) in out.as_chunks_mut::<BLOCK_LEN>().0.iter_mut().zip(bytes.as_chunks::<BLOCK_BYTES>().0) {
        let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
        for (i, byte) in block[2..].iter().enumerate() {
            values[i] = scale * (f32::from(byte & 15) - 8.0);
            values[i + 16] = scale * (f32::from(byte >> 4) - 8.0);
        }
    }
}

/// ggml's `quantize_row_q4_0_ref`: the value of largest magnitude becomes -8, whatever its sign, and the nibbles belong
/// to the scale before it is rounded to f16. The product is not rounded before 8.5 is added, as where FMA exists.
fn quantize(src: &[f32], out: &mut [u8]) {
    for (values, block) in src.as_chunks::<BLOCK_LEN>().0.iter().zip(out.as_chunks_mut::<BLOCK_BYTES>().0) {
        let max = values.iter().fold(0.0f32, |max, x| if x.abs() > max.abs() { *x } else { max });
        let scale = max / -8.0;
        let inverse = 1.0 / scale;
        let inverse = if inverse.is_finite() { inverse } else { 0.0 };
        block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        let nibble = |value: f32| {
            // Saturates at 0, and maps NaN to 0.
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in 0..=17")]
            let rounded = (f64::from(value) * f64::from(inverse) + 8.5) as u8;
            rounded.min(15)
        };
        for i in 0..16 {
            block[2 + i] = nibble(values[i]) | nibble(values[i + 16]) << 4;
        }
    }
}
