//! `Q5_0`: blocks of 32 values, an f16 scale, 32 high bits and 16 bytes; value = scale * (quant - 16). Byte `i` holds the
//! low four bits of value `i` in its low half and those of value `i + 16` in its high half; bit `i` of the word is the
//! fifth bit of value `i`.

use half::f16;

use super::{Format, FormatInfo, f16_at, inverse_of};
use crate::matmul::Layout;

const BLOCK_LEN: usize = 32;
pub(crate) const BLOCK_BYTES: usize = 6 + BLOCK_LEN / 2;

pub(super) const INFO: FormatInfo = FormatInfo {
    format: Format::Q5_0,
    name: "Q5_0",
    gguf_type: 6,
    block_len: BLOCK_LEN,
    block_bytes: BLOCK_BYTES,
    native_layout: Layout::Q5,
    dequantize,
    quantize: Some(quantize),
    repack: None,
};

/// Five bits of each value, in the order of the values; `block` is the 20 bytes after what precedes the high bits.
pub(crate) fn quants(block: &[u8; 20]) -> [u8; BLOCK_LEN] {
    let high = u32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    let mut out = [0; BLOCK_LEN];
    for (i, quant) in out.iter_mut().enumerate() {
        let byte = block[4 + i % 16];
        let low = if i < 16 { byte & 15 } else { byte >> 4 };
        *quant = low | u8::from(high >> i & 1 == 1) << 4;
    }
    out
}

/// The reverse of [`quants`].
pub(super) fn put_quants(quants: &[u8; BLOCK_LEN], block: &mut [u8; 20]) {
    let mut high = 0;
    for i in 0..16 {
        block[4 + i] = quants[i] & 15 | quants[i + 16] << 4;
        high |= u32::from(quants[i] >> 4) << i | u32::from(quants[i + 16] >> 4) << (i + 16);
    }
    block[..4].copy_from_slice(&high.to_le_bytes());
}

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (values, block) in out.as_chunks_mut::<BLOCK_LEN>().0.iter_mut().zip(bytes.as_chunks::<BLOCK_BYTES>().0) {
        let scale = f16_at(block, 0);
        let (_, packed) = block.split_last_chunk().expect("a block ends with its quants");
        for (value, quant) in values.iter_mut().zip(quants(packed)) {
            *value = scale * (f32::from(quant) - 16.0);
        }
    }
}

/// ggml's `quantize_row_q5_0_ref`: the value of largest magnitude becomes -16, whatever its sign. As in `Q4_0`, the
/// product is not rounded before 16.5 is added.
fn quantize(src: &[f32], out: &mut [u8]) {
    for (values, block) in src.as_chunks::<BLOCK_LEN>().0.iter().zip(out.as_chunks_mut::<BLOCK_BYTES>().0) {
        let max = values.iter().fold(0.0f32, |max, x| if x.abs() > max.abs() { *x } else { max });
        let scale = max / -16.0;
        let inverse = inverse_of(scale);
        block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and maps NaN to 0")]
        let quants = values.map(|value| ((f64::from(value) * f64::from(inverse) + 16.5) as u8).min(31));
        put_quants(&quants, block.last_chunk_mut().expect("a block ends with its quants"));
    }
}
