//! BF16: the upper halves of singles, little-endian, one value a block.

use half::bf16;

use super::{Format, FormatInfo};
use crate::matmul::Layout;

pub(super) const INFO: FormatInfo = FormatInfo {
    format: Format::BF16,
    name: "BF16",
    gguf_type: 30,
    block_len: 1,
    block_bytes: 2,
    native_layout: Layout::BF16,
    dequantize,
    quantize: Some(quantize),
    repack: None,
};

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
}

/// Rounds to nearest, ties to even.
fn quantize(src: &[f32], out: &mut [u8]) {
    for (value, bytes) in src.iter().zip(out.as_chunks_mut::<2>().0) {
        *bytes = bf16::from_f32(*value).to_le_bytes();
    }
}
