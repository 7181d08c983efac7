//! `IQ4_NL`: blocks of 32 values, an f16 scale and 16 bytes; value = scale * [`TABLE`]\[nibble\]. Byte `i` holds value `i` in its
//! low half and value `i + 16` in its high half.

use half::f16;

use super::{Format, FormatInfo, f16_at, inverse_of};
use crate::matmul::Layout;

const BLOCK_LEN: usize = 32;
pub(crate) const BLOCK_BYTES: usize = 2 + BLOCK_LEN / 2;

/// What a nibble stands for: steps that are finer around zero (ggml's `kvalues_iq4nl`).
pub(crate) const TABLE: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

pub(super) const INFO: FormatInfo = FormatInfo {
    format: Format::IQ4_NL,
    name: "IQ4_NL",
    gguf_type: 20,
    block_len: BLOCK_LEN,
    block_bytes: BLOCK_BYTES,
    native_layout: Layout::Iq4,
    dequantize,
    quantize: Some(quantize),
    repack: None,
};

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (values, block) in out.as_chunks_mut::<BLOCK_LEN>().0.iter_mut().zip(bytes.as_chunks::<BLOCK_BYTES>().0) {
        let scale = f16_at(block, 0);
        for (i, byte) in block[2..].iter().enumerate() {
            values[i] = scale * f32::from(TABLE[usize::from(byte & 15)]);
            values[i + 16] = scale * f32::from(TABLE[usize::from(byte >> 4)]);
        }
    }
}

/// The value of largest magnitude becomes -127, whatever its sign; others the nearest of the table.
fn quantize(src: &[f32], out: &mut [u8]) {
    for (values, block) in src.as_chunks::<BLOCK_LEN>().0.iter().zip(out.as_chunks_mut::<BLOCK_BYTES>().0) {
        let max = values.iter().fold(0.0f32, |max, x| if x.abs() > max.abs() { *x } else { max });
        let scale = f16::from_f32(max / -127.0);
        let inverse = inverse_of(scale.to_f32());
        block[..2].copy_from_slice(&scale.to_le_bytes());
        let nibble = |value: f32| {
            let scaled = value * inverse;
            // The middles between neighbours are ascending, so those below count up to the nearest.
            let above = TABLE.windows(2).filter(|pair| scaled > f32::midpoint(f32::from(pair[0]), f32::from(pair[1])));
            u8::try_from(above.count()).expect("at most 15")
        };
        for i in 0..16 {
            block[2 + i] = nibble(values[i]) | nibble(values[i + 16]) << 4;
        }
    }
}
