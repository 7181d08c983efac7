//! `MXFP4`: blocks of 32 values, an exponent and 16 bytes; value = 2^(exponent - 128) * [`TABLE`]\[nibble\]. Byte `i` holds value
//! `i` in its low half and value `i + 16` in its high half. The standard: OCP Microscaling Formats 1.0.

use half::f16;

use super::{Format, FormatInfo, q8_0};
use crate::matmul::Layout;

const BLOCK_LEN: usize = 32;
const BLOCK_BYTES: usize = 1 + BLOCK_LEN / 2;

/// Twice the numbers of the format E2M1.
const TABLE: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
/// Of the largest number of E2M1, 6, the exponent.
const LARGEST_EXPONENT: i32 = 2;

pub(super) const INFO: FormatInfo = FormatInfo {
    format: Format::MXFP4,
    name: "MXFP4",
    gguf_type: 39,
    block_len: BLOCK_LEN,
    block_bytes: BLOCK_BYTES,
    // Exact where the power of two is one of f16, 2^-24 to 2^15.
    native_layout: Layout::Q8,
    dequantize,
    quantize: Some(quantize),
    repack: Some(repack),
};

/// Half of the power of two that an exponent stands for: 2^(exponent - 128).
fn half_power(exponent: u8) -> f32 {
    match exponent {
        0 | 1 => f32::from_bits(0x20_0000 << exponent),
        _ => f32::from_bits(u32::from(exponent - 1) << 23),
    }
}

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (values, block) in out.as_chunks_mut::<BLOCK_LEN>().0.iter_mut().zip(bytes.as_chunks::<BLOCK_BYTES>().0) {
        let scale = half_power(block[0]);
        for (i, byte) in block[1..].iter().enumerate() {
            values[i] = scale * f32::from(TABLE[usize::from(byte & 15)]);
            values[i + 16] = scale * f32::from(TABLE[usize::from(byte >> 4)]);
        }
    }
}

/// ggml's `quantize_row_mxfp4_ref`: the exponent of the largest magnitude becomes that of 6; values the nearest of the
/// table, the earlier one of two.
fn quantize(src: &[f32], out: &mut [u8]) {
    for (values, block) in src.as_chunks::<BLOCK_LEN>().0.iter().zip(out.as_chunks_mut::<BLOCK_BYTES>().0) {
        let max = values.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        #[expect(clippy::cast_possible_truncation, reason = "exponents of f32 are small; saturates at -inf")]
        let exponent = (max.log2().floor() as i32).saturating_sub(LARGEST_EXPONENT) + 127;
        let exponent = if max > 0.0 { u8::try_from(exponent.clamp(0, 254)).expect("clamped") } else { 0 };
        let scale = half_power(exponent);
        let nibble = |value: f32| {
            let mut best = (f32::INFINITY, 0);
            for (nibble, number) in (0..).zip(TABLE) {
                let error = (scale * f32::from(number) - value).abs();
                if error < best.0 {
                    best = (error, nibble);
                }
            }
            best.1
        };
        block[0] = exponent;
        for i in 0..16 {
            block[1 + i] = nibble(values[i]) | nibble(values[i + 16]) << 4;
        }
    }
}

fn repack(bytes: &[u8], out: &mut [u8]) {
    let blocks = out.as_chunks_mut::<{ q8_0::BLOCK_BYTES }>().0;
    for (out, block) in blocks.iter_mut().zip(bytes.as_chunks::<BLOCK_BYTES>().0) {
        let scale = f16::from_f32(half_power(block[0]).min(f16::MAX.to_f32()));
        out[..2].copy_from_slice(&scale.to_le_bytes());
        for i in 0..16 {
            out[2 + i] = TABLE[usize::from(block[1 + i] & 15)].cast_unsigned();
            out[18 + i] = TABLE[usize::from(block[1 + i] >> 4)].cast_unsigned();
        }
    }
}
