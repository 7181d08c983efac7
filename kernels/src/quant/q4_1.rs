//! `Q4_1`: blocks of 32 values, f16 scale and minimum and 16 bytes; value = scale * nibble + minimum. Byte `i` holds value
//! `i` in its low half and value `i + 16` in its high half.

use half::f16;

use super::{Format, FormatInfo, f16_at, inverse_of, range_of};
use crate::matmul::Layout;

const BLOCK_LEN: usize = 32;
const BLOCK_BYTES: usize = 4 + BLOCK_LEN / 2;

pub(super) const INFO: FormatInfo = FormatInfo {
    format: Format::Q4_1,
    name: "Q4_1",
    gguf_type: 3,
    block_len: BLOCK_LEN,
    block_bytes: BLOCK_BYTES,
    // Rare in files. On normally distributed weights the bytes add 0.2 % to the error that the four bits have.
    native_layout: Layout::Q8,
    dequantize,
    quantize: Some(quantize),
    repack: None,
};

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (values, block) in out.as_chunks_mut::<BLOCK_LEN>().0.iter_mut().zip(bytes.as_chunks::<BLOCK_BYTES>().0) {
        let (scale, min) = (f16_at(block, 0), f16_at(block, 2));
        for (i, byte) in block[4..].iter().enumerate() {
            values[i] = scale * f32::from(byte & 15) + min;
            values[i + 16] = scale * f32::from(byte >> 4) + min;
        }
    }
}

/// ggml's `quantize_row_q4_1_ref`: the range of the block in 15 steps, by the scale before it is rounded to f16.
fn quantize(src: &[f32], out: &mut [u8]) {
    for (values, block) in src.as_chunks::<BLOCK_LEN>().0.iter().zip(out.as_chunks_mut::<BLOCK_BYTES>().0) {
        let (min, max) = range_of(values);
        let scale = (max - min) / 15.0;
        let inverse = inverse_of(scale);
        block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        block[2..4].copy_from_slice(&f16::from_f32(min).to_le_bytes());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and maps NaN to 0")]
        let nibble = |value: f32| (((value - min) * inverse + 0.5) as u8).min(15);
        for i in 0..16 {
            block[4 + i] = nibble(values[i]) | nibble(values[i + 16]) << 4;
        }
    }
}
