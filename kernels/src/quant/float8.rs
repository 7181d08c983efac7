//! `F8_E4M3`: a sign, four bits of exponent and three of mantissa, one value a block; no infinities, NaN where all bits but the
//! sign are set. Found in safetensors, not in GGUF. The standard: OCP 8-bit Floating Point Specification 1.0, E4M3.

use super::{Format, FormatInfo};
use crate::matmul::Layout;

/// A number that no file has.
const NO_GGUF_TYPE: u32 = u32::MAX - 1;

pub(super) const INFO: FormatInfo = FormatInfo {
    format: Format::F8_E4M3,
    name: "F8_E4M3",
    gguf_type: NO_GGUF_TYPE,
    block_len: 1,
    block_bytes: 1,
    // Half precision has more of both bits.
    native_layout: Layout::F16,
    dequantize,
    quantize: None,
    repack: None,
};

fn dequantize(bytes: &[u8], out: &mut [f32]) {
    for (value, byte) in out.iter_mut().zip(bytes) {
        let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
        let magnitude = match (exponent, byte & 7) {
            (15, 7) => f32::NAN,
            // Subnormal: steps of 2^-9.
            (0, _) => mantissa * 2f32.powi(-9),
            _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
        };
        *value = if byte & 0x80 == 0 { magnitude } else { -magnitude };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_mean_what_the_standard_says() {
        let cases = [
            (0x00, 0.0),
            (0x01, 0.001_953_125),
            (0x07, 0.013_671_875),
            (0x08, 0.015_625),
            (0x38, 1.0),
            (0x3c, 1.5),
            (0xb8, -1.0),
            (0x7e, 448.0),
            (0xfe, -448.0),
        ];
        for (byte, expected) in cases {
            let mut value = [f32::NAN];
            dequantize(&[byte], &mut value);
            assert_eq!(value, [expected], "{byte:#x}");
        }
        let mut value = [0.0];
        dequantize(&[0x7f], &mut value);
        assert!(value[0].is_nan());
    }
}
