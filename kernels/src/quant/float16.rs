//! F16: little-endian half precision, one value a block.

use half::f16;

use super::{Format, FormatInfo};
use crate::matmul::Layout;

pub(super) const INFO: FormatInfo = FormatInfo {
    format: Format::F16,
    name: "F16",
    gguf_type: 1,
    block_len: 1,
    block_bytes: 2,
    native_layout: Layout::F16,
    dequantize,
    quantize: Some(quantize),
    repack: None,
};

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *value = f16::from_le_bytes(*bytes).to_f32();
    }
}

/// Rounds to nearest, ties to even; too large becomes infinite.
fn quantize(src: &[f32], out: &mut [u8]) {
    for (value, bytes) in src.iter().zip(out.as_chunks_mut::<2>().0) {
        *bytes = f16::from_f32(*value).to_le_bytes();
    }
}
