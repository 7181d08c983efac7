//! Weight formats as they lie in files: one file per format, one row in [`FORMATS`].
//!
//! Blocks are what ggml's reference implementation makes of the same numbers, bit for bit. Used by the loaders, and by
//! [`crate::matmul`] to pack matrices for the kernels.

use std::ops::Range;

use half::f16;

use crate::matmul::Layout;

mod bfloat16;
mod fit;
mod float16;
mod float32;
mod float8;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod super_block;

pub(crate) use iq4_nl::{BLOCK_BYTES as IQ4_NL_BLOCK_BYTES, TABLE as IQ4_TABLE};
pub(crate) use q4_0::BLOCK_BYTES as Q4_0_BLOCK_BYTES;
pub(crate) use q4_k::read as read_q4_k;
pub(crate) use q5_0::{BLOCK_BYTES as Q5_0_BLOCK_BYTES, quants as q5_0_quants};
pub(crate) use q5_k::read as read_q5_k;
pub(crate) use q6_k::read as read_q6_k;
pub(crate) use q8_0::BLOCK_BYTES as Q8_0_BLOCK_BYTES;
pub(crate) use super_block::{BLOCK_LEN, MinBlock, SIXTEENTH_LEN, SUPER_LEN};

/// How numbers of a matrix are stored in a file.
#[expect(non_camel_case_types, reason = "the names that files and their users know")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    BF16,
    /// A float of eight bits, four of them exponent; in safetensors only.
    F8_E4M3,
    /// Blocks of 32: an f16 scale and 32 signed bytes.
    Q8_0,
    /// Blocks of 32: an f16 scale and 32 values of 4 bits, stored with 8 added.
    Q4_0,
    /// Blocks of 32: f16 scale and minimum, 4 bits a value.
    Q4_1,
    /// Blocks of 32: an f16 scale, 5 bits a value.
    Q5_0,
    /// Blocks of 32: f16 scale and minimum, 5 bits a value.
    Q5_1,
    /// Super-blocks of 256: a scale and a minimum for each 16, 2 bits a value.
    Q2_K,
    /// Super-blocks of 256: a scale for each 16, 3 bits a value.
    Q3_K,
    /// Super-blocks of 256: a scale and a minimum for each 32, 4 bits a value.
    Q4_K,
    /// Super-blocks of 256: a scale and a minimum for each 32, 5 bits a value.
    Q5_K,
    /// Super-blocks of 256: a scale for each 16, 6 bits a value.
    Q6_K,
    /// Blocks of 32: an f16 scale, 4 bits a value that select from a table.
    IQ4_NL,
    /// Super-blocks of 256: a scale for each 32, 4 bits a value that select from a table.
    IQ4_XS,
    /// Blocks of 32: a power of two, 4 bits a value that are a tiny float.
    MXFP4,
}

/// What is known of a [`Format`].
#[derive(Debug)]
pub struct FormatInfo {
    /// The format that this row describes.
    pub format: Format,
    /// Its name in GGUF, logs and `inspect`.
    pub name: &'static str,
    /// Its `ggml_type` number in GGUF files; one that no file has where GGUF does not know the format.
    pub gguf_type: u32,
    /// Values in a block.
    pub block_len: usize,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// The layout that its values are packed in: exactly, unless the format's file says what is lost.
    pub native_layout: Layout,
    /// Whole blocks to as many values.
    dequantize: fn(&[u8], &mut [f32]),
    /// Whole blocks of values to bytes; none for a format that is only read.
    quantize: Option<Quantize>,
    /// Whole blocks to those of the layout's own format; by way of f32 where there is none.
    repack: Option<Repack>,
}

type Quantize = fn(&[f32], &mut [u8]);
type Repack = fn(&[u8], &mut [u8]);

/// Every format that can be read. A new one is a file beside this one and a row here.
pub const FORMATS: &[FormatInfo] = &[
    float32::INFO,
    float16::INFO,
    bfloat16::INFO,
    float8::INFO,
    q8_0::INFO,
    q4_0::INFO,
    q4_1::INFO,
    q5_0::INFO,
    q5_1::INFO,
    q2_k::INFO,
    q3_k::INFO,
    q4_k::INFO,
    q5_k::INFO,
    q6_k::INFO,
    iq4_nl::INFO,
    iq4_xs::INFO,
    mxfp4::INFO,
];

impl Format {
    /// Its row of [`FORMATS`].
    #[must_use]
    pub fn info(self) -> &'static FormatInfo {
        FORMATS.iter().find(|info| info.format == self).expect("every format has a row")
    }

    /// The format with this `ggml_type` number, if it is one that can be read.
    #[must_use]
    pub fn from_gguf_type(gguf_type: u32) -> Option<Format> {
        FORMATS.iter().find(|info| info.gguf_type == gguf_type).map(|info| info.format)
    }

    /// Bytes of a row of `cols` values; `None` if `cols` is not a multiple of the block length, or too large.
    #[must_use]
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let info = self.info();
        if !cols.is_multiple_of(info.block_len) {
            return None;
        }
        (cols / info.block_len).checked_mul(info.block_bytes)
    }
}

impl FormatInfo {
    /// Whether values can be stored in this format, not only read.
    #[must_use]
    pub fn can_quantize(&self) -> bool {
        self.quantize.is_some()
    }

    /// Bits that a value takes on average.
    #[must_use]
    pub fn bits_per_value(&self) -> f32 {
        8.0 * self.block_bytes as f32 / self.block_len as f32
    }
}

/// The f16 number at byte `at` of a block.
fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// 1 / scale, and 0 where that is no number.
fn inverse_of(scale: f32) -> f32 {
    let inverse = 1.0 / scale;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The least and the largest of some values.
fn range_of(values: &[f32]) -> (f32, f32) {
    values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), x| (min.min(*x), max.max(*x)))
}

/// Why bytes are no matrix.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum QuantError {
    /// A row does not consist of whole blocks.
    #[error("a {name} row of {cols} values is not a multiple of {block_len}; use another format for this tensor", name = .format.info().name, block_len = .format.info().block_len)]
    Cols {
        /// The format asked for.
        format: Format,
        /// Values in a row.
        cols: usize,
    },
    /// The bytes are more or fewer than the shape needs.
    #[error("a {name} matrix of {rows} x {cols} has {found} bytes instead of {expected:?}; the file is damaged", name = .format.info().name)]
    Bytes {
        /// The format asked for.
        format: Format,
        /// Rows of the matrix.
        rows: usize,
        /// Values in a row.
        cols: usize,
        /// Bytes given.
        found: usize,
        /// Bytes needed, `None` if more than can be addressed.
        expected: Option<usize>,
    },
}

/// A matrix in a file: `[rows, cols]`, row by row, borrowed and of any alignment.
#[derive(Clone, Copy, Debug)]
pub struct QuantMatrix<'a> {
    format: Format,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    data: &'a [u8],
}

impl<'a> QuantMatrix<'a> {
    /// The matrix whose blocks are `data`.
    ///
    /// # Errors
    /// When rows are not whole blocks, or `data` has another length than the shape says.
    pub fn new(format: Format, rows: usize, cols: usize, data: &'a [u8]) -> Result<Self, QuantError> {
        let row_bytes = format.row_bytes(cols).ok_or(QuantError::Cols { format, cols })?;
        let expected = row_bytes.checked_mul(rows);
        if expected != Some(data.len()) {
            return Err(QuantError::Bytes { format, rows, cols, found: data.len(), expected });
        }
        Ok(Self { format, rows, cols, row_bytes, data })
    }

    /// Rows, which are output channels of a layer.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values in a row.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How the values are stored.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The blocks of one row.
    ///
    /// # Panics
    /// When there is no such row.
    #[must_use]
    pub fn row(&self, row: usize) -> &'a [u8] {
        assert!(row < self.rows, "row {row} of a matrix of {} rows", self.rows);
        &self.data[row * self.row_bytes..][..self.row_bytes]
    }

    /// The values of one row, `out` being `[cols]`.
    ///
    /// # Panics
    /// When there is no such row or `out` has another length.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "a row has {} values", self.cols);
        (self.format.info().dequantize)(self.row(row), out);
    }

    /// One row as `format`, `out` being its bytes: as it lies in the file if that is its format already, else converted
    /// with `values`, `[cols]`, as scratch.
    pub(crate) fn convert_row(&self, row: usize, format: Format, values: &mut [f32], out: &mut [u8]) {
        let info = self.format.info();
        match info.repack.filter(|_| info.native_layout.native_format() == format) {
            Some(repack) => repack(self.row(row), out),
            None => {
                self.dequantize_row(row, values);
                quantize_row(format, values, out);
            }
        }
    }

    /// The rows `range` as a matrix.
    ///
    /// # Panics
    /// When the range leaves the matrix.
    #[must_use]
    pub fn slice_rows(&self, range: Range<usize>) -> QuantMatrix<'a> {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let data = &self.data[range.start * self.row_bytes..range.end * self.row_bytes];
        QuantMatrix { rows: range.len(), data, ..*self }
    }
}

/// Stores whole blocks of values as `format`.
///
/// # Panics
/// When `src` is not whole blocks, `out` has another length than they need, or the format is one that is only read
/// ([`FormatInfo::can_quantize`]).
pub fn quantize_row(format: Format, src: &[f32], out: &mut [u8]) {
    assert_eq!(Some(out.len()), format.row_bytes(src.len()), "{format:?} row of {} values", src.len());
    let quantize = format.info().quantize.expect("a format that can be written");
    quantize(src, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activations::{ActivationKinds, Activations};
    use crate::isa::Isa;
    use crate::matmul::{PackedMatrix, Part, Place, matmul};
    use crate::pool::Pool;
    use std::path::PathBuf;

    /// A file of the shared golden set beside the project.
    fn golden(name: &str) -> Option<Vec<u8>> {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden/quants").join(name);
        std::fs::read(path).ok()
    }

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    /// The packed matrix times `x`, whose rows become bytes, is within a hundredth of the sum of magnitudes.
    fn check_product(matrix: &QuantMatrix<'_>, values: &[f32], x: &[f32]) {
        let (isa, pool, format) = (Isa::best(), Pool::new(1), matrix.format());
        let layout = format.info().native_layout;
        let packed = PackedMatrix::pack(isa, &pool, &[Part::new(*matrix)], layout);
        let mut rows = Activations::new(isa, 1, x.len(), ActivationKinds { int8: true, f32: true });
        rows.fill(&pool, 1, |_, out| out.copy_from_slice(x));
        let mut out = vec![0.0; matrix.rows()];
        matmul(&pool, &packed, &rows, &mut out, Place::rows_of(matrix.rows()));
        for (out, values) in out.iter().zip(values.chunks(x.len())) {
            let products = || values.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            let (expected, scale): (f64, f64) = (products().sum(), products().map(f64::abs).sum());
            assert!((f64::from(*out) - expected).abs() < 0.01 * scale, "{format:?}: {out} {expected} of {scale}");
        }
    }

    #[expect(clippy::print_stderr, reason = "says why a test is skipped")]
    #[test]
    fn blocks_and_values_are_those_of_ggml() {
        for info in FORMATS {
            for (rows, cols) in [(6, 512), (3, 256)] {
                let name = format!("{}_{rows}x{cols}", info.name.to_lowercase());
                let (Some(blocks), Some(values)) = (golden(&format!("{name}.blocks")), golden(&format!("{name}.f32")))
                else {
                    eprintln!("skipped: no golden blocks of {name} beside the project");
                    continue;
                };
                let matrix = QuantMatrix::new(info.format, rows, cols, &blocks).unwrap();
                let mut row = vec![0.0; cols];
                for (r, expected) in floats(&values).chunks(cols).enumerate() {
                    matrix.dequantize_row(r, &mut row);
                    assert_eq!(row, expected, "{name} row {r}");
                }
                let x = floats(&golden(&format!("{name}.x.f32")).unwrap());
                check_product(&matrix, &floats(&values), &x);
                let Some(src) = golden(&format!("{name}.src.f32")) else { continue };
                let src = floats(&src);
                let mut quantized = vec![0; blocks.len()];
                quantize_row(info.format, &src, &mut quantized);
                assert!(quantized == blocks, "{name}: quantized blocks differ");
            }
        }
    }

    #[test]
    fn wrong_shapes_are_refused() {
        assert_eq!(
            QuantMatrix::new(Format::Q8_0, 1, 33, &[]).unwrap_err(),
            QuantError::Cols { format: Format::Q8_0, cols: 33 }
        );
        let error = QuantMatrix::new(Format::Q4_0, 2, 32, &[0; 35]).unwrap_err();
        assert_eq!(error.to_string(), "a Q4_0 matrix of 2 x 32 has 35 bytes instead of Some(36); the file is damaged");
        assert!(QuantMatrix::new(Format::F32, usize::MAX / 2, 64, &[]).is_err());
        assert!(QuantMatrix::new(Format::F32, 0, 64, &[]).is_ok());
    }

    #[test]
    fn every_gguf_type_is_found_again_and_row_bytes_fit() {
        for info in FORMATS {
            assert_eq!(Format::from_gguf_type(info.gguf_type), Some(info.format));
            assert_eq!(info.format.info().name, info.name);
            assert_eq!(info.format.row_bytes(512), Some(512 / info.block_len * info.block_bytes));
            assert_eq!(info.native_layout.native_format().info().native_layout, info.native_layout);
        }
        assert_eq!(Format::from_gguf_type(u32::MAX), None);
    }

    #[test]
    fn rows_can_be_sliced() {
        let data: Vec<u8> = (0..6u8).flat_map(|v| f32::from(v).to_le_bytes()).collect();
        let matrix = QuantMatrix::new(Format::F32, 3, 2, &data).unwrap().slice_rows(1..3);
        let mut row = [0.0; 2];
        matrix.dequantize_row(1, &mut row);
        assert_eq!((matrix.rows(), row), (2, [4.0, 5.0]));
    }

    #[test]
    fn zero_subnormal_and_extreme_blocks_quantize_to_finite_values() {
        for info in FORMATS.iter().filter(|info| info.can_quantize() && info.block_len > 1) {
            let format = info.format;
            for value in [0.0, -0.0, f32::MIN_POSITIVE, 1e-40, -1e-45, 12.0, 60000.0] {
                let mut bytes = vec![0; format.row_bytes(256).unwrap()];
                quantize_row(format, &[value; 256], &mut bytes);
                let mut row = [f32::NAN; 256];
                QuantMatrix::new(format, 1, 256, &bytes).unwrap().dequantize_row(0, &mut row);
                let tolerance = value.abs() * if format == Format::MXFP4 { 0.2 } else { 0.01 } + 1e-6;
                assert!(row.iter().all(|x| (x - value).abs() <= tolerance), "{format:?} {value}: {row:?}");
            }
        }
    }

    #[test]
    fn searched_scales_beat_the_plain_ones() {
        // Close to a normal distribution, as weights are; sums of uniform numbers.
        let mut state = 1_u64;
        let mut uniform = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 40) as f32 / 16_777_216.0 - 0.5
        };
        let values: Vec<f32> = (0..64 * 256).map(|_| (0..6).map(|_| uniform()).sum::<f32>() * 0.03).collect();
        let error = |format: Format| {
            let mut bytes = vec![0; format.row_bytes(values.len()).unwrap()];
            quantize_row(format, &values, &mut bytes);
            let mut row = vec![0.0; values.len()];
            QuantMatrix::new(format, 1, values.len(), &bytes).unwrap().dequantize_row(0, &mut row);
            let square = |it: &mut dyn Iterator<Item = f32>| it.map(|x| x * x).sum::<f32>();
            (square(&mut row.iter().zip(&values).map(|(a, b)| a - b)) / square(&mut values.iter().copied())).sqrt()
        };
        let limits = [
            (Format::Q4_K, 0.072),
            (Format::Q5_K, 0.036),
            (Format::Q6_K, 0.019),
            (Format::Q4_0, 0.092),
            (Format::Q8_0, 0.006),
        ];
        for (format, limit) in limits {
            let error = error(format);
            assert!(error < limit && error > limit / 2.0, "{format:?}: relative error {error}");
        }
    }
}
