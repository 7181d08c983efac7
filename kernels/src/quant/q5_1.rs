//! `Q5_1`: blocks of 32 values, f16 scale and minimum, and five bits a value as in `Q5_0`; value = scale * quant + minimum.

use half::f16;

use super::q5_0::{put_quants, quants};
use super::{Format, FormatInfo, f16_at, inverse_of, range_of};
use crate::matmul::Layout;

const BLOCK_LEN: usize = 32;
const BLOCK_BYTES: usize = 8 + BLOCK_LEN / 2;

pub(super) const INFO: FormatInfo = FormatInfo {
    format: Format::Q5_1,
    name: "Q5_1",
    gguf_type: 7,
    block_len: BLOCK_LEN,
    block_bytes: BLOCK_BYTES,
    // Rare in files. On normally distributed weights the bytes add 1.0 % to the error that the five bits have.
    native_layout: Layout::Q8,
    dequantize,
    quantize: Some(quantize),
    repack: None,
};

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (values, block) in out.as_chunks_mut::<BLOCK_LEN>().0.iter_mut().zip(bytes.as_chunks::<BLOCK_BYTES>().0) {
        let (scale, min) = (f16_at(block, 0), f16_at(block, 2));
        let (_, packed) = block.split_last_chunk().expect("a block ends with its quants");
        for (value, quant) in values.iter_mut().zip(quants(packed)) {
            *value = scale * f32::from(quant) + min;
        }
    }
}

/// ggml's `quantize_row_q5_1_ref`: the range of the block in 31 steps, by the scale before it is rounded to f16.
fn quantize(src: &[f32], out: &mut [u8]) {
    for (values, block) in src.as_chunks::<BLOCK_LEN>().0.iter().zip(out.as_chunks_mut::<BLOCK_BYTES>().0) {
        let (min, max) = range_of(values);
        let scale = (max - min) / 31.0;
        let inverse = inverse_of(scale);
        block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        block[2..4].copy_from_slice(&f16::from_f32(min).to_le_bytes());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and maps NaN to 0")]
        let quants = values.map(|value| (((value - min) * inverse + 0.5) as u8).min(31));
        put_quants(&quants, block.last_chunk_mut().expect("a block ends with its quants"));
    }
}
