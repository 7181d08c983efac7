//! F32: little-endian singles, one value a block.

use super::{Format, FormatInfo};
use crate::matmul::Layout;

pub(super) const INFO: FormatInfo = FormatInfo {
    format: Format::F32,
    name: "F32",
    gguf_type: 0,
    block_len: 1,
    block_bytes: 4,
    native_layout: Layout::F32,
    dequantize,
    quantize: Some(quantize),
    repack: None,
};

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *value = f32::from_le_bytes(*bytes);
    }
}

fn quantize(src: &[f32], out: &mut [u8]) {
    for (value, bytes) in src.iter().zip(out.as_chunks_mut::<4>().0) {
        *bytes = value.to_le_bytes();
    }
}
