//! Every kernel against the contract, and against memory that may not be touched ([`guard`]).

use super::{Layout, PackedMatrix, Part, Place, Store, matmul};
use crate::activations::{ActivationKind, ActivationKinds, Activations};
use crate::isa::Isa;
use crate::pool::Pool;
use crate::quant::{
    FORMATS, Format, IQ4_TABLE, QuantMatrix, q5_0_quants, quantize_row, read_q4_k, read_q5_k, read_q6_k,
};
use half::f16;

#[cfg(target_os = "linux")]
mod guard;

/// Numbers that look random and are the same on every run.
struct Noise(u64);

impl Noise {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In -1..1.
    fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / 8_388_608.0 - 1.0
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }
}

/// A matrix in a file's format.
struct File {
    format: Format,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
}

impl File {
    fn noise(format: Format, rows: usize, cols: usize, noise: &mut Noise) -> Self {
        let mut bytes = vec![0; rows * format.row_bytes(cols).unwrap()];
        quantize_row(format, &noise.floats(rows * cols), &mut bytes);
        Self { format, rows, cols, bytes }
    }

    fn matrix(&self) -> QuantMatrix<'_> {
        QuantMatrix::new(self.format, self.rows, self.cols, &self.bytes).unwrap()
    }

    /// Sets the scale of block `block` of row `row` of an integer format.
    fn set_scale(&mut self, row: usize, block: usize, scale: f16) {
        let block_bytes = self.format.info().block_bytes;
        let start = row * self.format.row_bytes(self.cols).unwrap() + block * block_bytes;
        let places = match self.format {
            Format::Q6_K => [block_bytes - 2; 2],
            Format::Q4_K | Format::Q5_K => [0, 2],
            _ => [0; 2],
        };
        for place in places {
            self.bytes[start + place..start + place + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
}

fn kinds(layout: Layout) -> ActivationKinds {
    let int8 = layout.activation_kind() == ActivationKind::Int8;
    ActivationKinds { int8, f32: !int8 }
}

fn activations(isa: Isa, pool: &Pool, rows: &[f32], cols: usize, layout: Layout) -> Activations {
    let mut x = Activations::new(isa, rows.len() / cols, cols, kinds(layout));
    x.fill(pool, rows.len() / cols, |row, out| out.copy_from_slice(&rows[row * cols..][..cols]));
    x
}

/// `cols`, or where super-blocks need more, as many of those as `cols` has blocks of 32.
fn cols_of(layout: Layout, cols: usize) -> usize {
    if layout.native_format().info().block_len > 32 { cols * 8 } else { cols }
}

/// The contract, written down from the file's bytes: no packing, no tiles, no threads.
fn reference(matrix: QuantMatrix<'_>, x: &[f32]) -> Vec<f32> {
    let cols = matrix.cols();
    let mut out = Vec::new();
    for x in x.chunks(cols) {
        for row in 0..matrix.rows() {
            let sum = match matrix.format() {
                Format::Q4_K | Format::Q5_K | Format::Q6_K => super_reference(matrix, row, x),
                Format::Q8_0 | Format::Q4_0 | Format::Q5_0 | Format::IQ4_NL => int8_reference(matrix, row, x),
                _ => {
                    let mut weights = vec![0.0; cols];
                    matrix.dequantize_row(row, &mut weights);
                    weights.iter().zip(x).fold(0.0, |sum, (w, x)| w.mul_add(*x, sum))
                }
            };
            out.push(sum);
        }
    }
    out
}

/// A block of 32 values as the kernels must quantize it: integers and their scale.
fn quantized(x: &[f32]) -> (Vec<i32>, f32) {
    let max = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let scale = f16::from_f32(max / 127.0).to_f32();
    let value = |x: &f32| if scale == 0.0 { 0 } else { (x * (127.0 / max)).round_ties_even() as i32 };
    (x.iter().map(value).collect(), scale)
}

fn dot(weights: impl Iterator<Item = i32>, x: &[i32]) -> f32 {
    weights.zip(x).map(|(w, x)| w * x).sum::<i32>() as f32
}

fn int8_reference(matrix: QuantMatrix<'_>, row: usize, x: &[f32]) -> f32 {
    let block_bytes = matrix.format().info().block_bytes;
    let mut sum = 0.0;
    for (block, x) in matrix.row(row).chunks(block_bytes).zip(x.chunks(32)) {
        let nibble = |i: usize| if i < 16 { block[2 + i] & 15 } else { block[2 + i - 16] >> 4 };
        let weight = |i: usize| match matrix.format() {
            Format::Q8_0 => i32::from(block[2 + i].cast_signed()),
            Format::Q5_0 => i32::from(q5_0_quants(block[2..].first_chunk().unwrap())[i]) - 16,
            Format::IQ4_NL => i32::from(IQ4_TABLE[usize::from(nibble(i))]),
            _ => i32::from(nibble(i)) - 8,
        };
        let (x, scale) = quantized(x);
        let weight_scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
        sum = dot((0..32).map(weight), &x).mul_add(weight_scale * scale, sum);
    }
    sum
}

fn super_reference(matrix: QuantMatrix<'_>, row: usize, x: &[f32]) -> f32 {
    let block_bytes = matrix.format().info().block_bytes;
    let mut sum = 0.0f32;
    for (bytes, x) in matrix.row(row).chunks(block_bytes).zip(x.chunks(256)) {
        for (b, x) in x.chunks(32).enumerate() {
            let (x, scale) = quantized(x);
            if matrix.format() == Format::Q6_K {
                let block = read_q6_k(bytes.first_chunk().unwrap());
                let scale_of = |s: usize| block.scale.to_f32() * f32::from(block.scales[s]);
                let dot = |s: usize, x: &[i32]| dot(block.quants[16 * s..].iter().map(|q| i32::from(*q)), x);
                let second = dot(2 * b + 1, &x[16..]) * scale_of(2 * b + 1);
                let both = dot(2 * b, &x[..16]).mul_add(scale_of(2 * b), second);
                sum = both.mul_add(scale, sum);
            } else {
                let block = match matrix.format() {
                    Format::Q4_K => read_q4_k(bytes.first_chunk().unwrap()),
                    _ => read_q5_k(bytes.first_chunk().unwrap()),
                };
                let weight_scale = block.scale.to_f32() * f32::from(block.scales[b]);
                let dot = dot(block.quants[32 * b..].iter().map(|q| i32::from(*q)), &x);
                sum = dot.mul_add(weight_scale * scale, sum);
                let min = block.min.to_f32() * f32::from(block.mins[b]);
                sum = (-min).mul_add(scale * x.iter().sum::<i32>() as f32, sum);
            }
        }
    }
    sum
}

#[track_caller]
fn assert_same(got: &[f32], expected: &[f32], case: &dyn std::fmt::Debug) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        // A NaN is a NaN; its payload is unspecified.
        let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
        assert!(same, "{case:?}: output {i} is {got:e} instead of {expected:e}");
    }
}

/// Multiplies on every instruction set and compares with [`reference`].
fn check(file: &File, x: &[f32], case: &dyn std::fmt::Debug) {
    let layout = file.format.info().native_layout;
    let expected = reference(file.matrix(), x);
    for isa in Isa::available() {
        let pool = Pool::new(1);
        let packed = PackedMatrix::pack(isa, &pool, &[Part::new(file.matrix())], layout);
        let x = activations(isa, &pool, x, file.cols, layout);
        let mut out = vec![f32::NAN; expected.len()];
        matmul(&pool, &packed, &x, &mut out, Place::rows_of(file.rows));
        assert_same(&out, &expected, &(isa.name(), layout, case));
    }
}

const ROW_COUNTS: [usize; 20] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 31, 32, 33];

#[test]
fn every_shape_equals_the_reference() {
    let noise = &mut Noise(1);
    for layout in Layout::ALL {
        let all_cols: &[usize] = match layout.native_format().info().block_len {
            256 => &[256, 512, 768],
            32 => &[32, 64, 96, 128, 512, 896],
            _ => &[1, 7, 16, 31, 64, 129, 512],
        };
        for &cols in all_cols {
            for rows in [1, 15, 16, 17, 48, 80] {
                // Every combination where it is cheap; elsewhere a walk through the row counts.
                let file = File::noise(layout.native_format(), rows, cols, noise);
                let step = if cols * rows <= 4096 { 1 } else { 3 };
                for num_rows in ROW_COUNTS.into_iter().skip(rows % step).step_by(step) {
                    check(&file, &noise.floats(num_rows * cols), &(num_rows, rows, cols));
                }
            }
        }
    }
}

#[test]
fn every_row_count_equals_the_reference_at_a_real_width() {
    let noise = &mut Noise(2);
    for layout in Layout::ALL {
        let cols = if layout.native_format().row_bytes(896).is_some() { 896 } else { 1024 };
        let file = File::noise(layout.native_format(), 48, cols, noise);
        for num_rows in ROW_COUNTS {
            check(&file, &noise.floats(num_rows * cols), &num_rows);
        }
    }
}

#[test]
fn extreme_weights_do_not_saturate() {
    for (byte, sign) in [(0x80u8, -1.0), (0x7f, 1.0), (0x80, 1.0), (0x81, -1.0)] {
        let mut file = File { format: Format::Q8_0, rows: 16, cols: 4864, bytes: vec![byte; 16 * 4864 / 32 * 34] };
        for row in 0..16 {
            for block in 0..4864 / 32 {
                file.set_scale(row, block, f16::ONE);
            }
        }
        check(&file, &vec![sign * 127.0; 3 * 4864], &("q8", byte, sign));
    }
    for (byte, sign) in [(0x00u8, -1.0), (0xff, 1.0), (0x0f, 1.0)] {
        let mut file = File { format: Format::Q4_0, rows: 16, cols: 4864, bytes: vec![byte; 16 * 4864 / 32 * 18] };
        for row in 0..16 {
            for block in 0..4864 / 32 {
                file.set_scale(row, block, f16::ONE);
            }
        }
        check(&file, &vec![sign * 127.0; 5 * 4864], &("q4", byte, sign));
    }
    // Every bit of every other format set or clear, its scales too; 1.0 and -1.0 are finite in every place of an f16.
    for format in [Format::Q5_0, Format::IQ4_NL, Format::Q4_K, Format::Q5_K, Format::Q6_K] {
        for byte in [0x00, 0xff, 0x7f, 0x80] {
            let row_bytes = format.row_bytes(4864).unwrap();
            let mut file = File { format, rows: 16, cols: 4864, bytes: vec![byte; 16 * row_bytes] };
            for row in 0..16 {
                for block in 0..4864 / format.info().block_len {
                    file.set_scale(row, block, f16::ONE);
                }
            }
            for sign in [1.0, -1.0] {
                check(&file, &vec![sign * 127.0; 5 * 4864], &("all bits", format, byte, sign));
            }
        }
    }
}

#[test]
fn extreme_scales_and_values_equal_the_reference() {
    let noise = &mut Noise(3);
    let scales = [
        f16::ZERO,
        f16::NEG_ZERO,
        f16::MIN_POSITIVE_SUBNORMAL,
        f16::MAX_SUBNORMAL,
        f16::MAX,
        f16::MIN,
        f16::INFINITY,
        f16::NAN,
    ];
    for layout in Layout::ALL.into_iter().filter(|layout| layout.activation_kind() == ActivationKind::Int8) {
        let format = layout.native_format();
        let cols = 3 * format.info().block_len;
        for scale in scales {
            let mut file = File::noise(format, 17, cols, noise);
            file.set_scale(3, 1, scale);
            file.set_scale(16, 2, scale);
            let mut x = noise.floats(9 * cols);
            x[..cols].fill(0.0);
            x[cols..2 * cols].fill(1.0);
            x[2 * cols..2 * cols + 32].fill(1e-45);
            x[2 * cols + 32..2 * cols + 64].fill(60000.0 * 127.0);
            check(&file, &x, &scale);
        }
    }
    for format in [Format::F32, Format::F16, Format::BF16] {
        let mut file = File::noise(format, 17, 33, noise);
        let specials = [0.0, -0.0, 1e-40, -1e-7, 65504.0, f32::MAX, f32::INFINITY, f32::NAN];
        let mut row = noise.floats(33);
        row[..8].copy_from_slice(&specials);
        let row_bytes = format.row_bytes(33).unwrap();
        quantize_row(format, &row, &mut file.bytes[5 * row_bytes..6 * row_bytes]);
        let mut x = noise.floats(9 * 33);
        x[40] = f32::MAX;
        x[80] = 1e-45;
        check(&file, &x, &"specials");
    }
}

#[test]
fn a_row_with_a_nan_or_infinity_is_nan_and_its_neighbours_are_not() {
    let noise = &mut Noise(4);
    for layout in Layout::ALL {
        let cols = cols_of(layout, 64);
        let file = File::noise(layout.native_format(), 20, cols, noise);
        for isa in Isa::available() {
            for special in [f32::NAN, f32::INFINITY] {
                let pool = Pool::new(1);
                let mut x = noise.floats(5 * cols);
                x[2 * cols + 40] = special;
                let packed = PackedMatrix::pack(isa, &pool, &[Part::new(file.matrix())], layout);
                let x = activations(isa, &pool, &x, cols, layout);
                let mut out = vec![0.0; 5 * 20];
                matmul(&pool, &packed, &x, &mut out, Place::rows_of(20));
                for (row, out) in out.chunks(20).enumerate() {
                    let good = out.iter().all(|y| y.is_finite() == (row != 2));
                    assert!(good, "{isa} {layout:?} {special} row {row}: {out:?}");
                }
            }
        }
    }
}

#[test]
fn rows_do_not_depend_on_their_batch_or_on_threads() {
    let noise = &mut Noise(5);
    let isa = Isa::best();
    let pools = [Pool::new(1), Pool::new(2), Pool::new(5)];
    for layout in Layout::ALL {
        let (rows, cols) = (200, cols_of(layout, 192));
        let file = File::noise(layout.native_format(), rows, cols, noise);
        let packed = PackedMatrix::pack(isa, &pools[1], &[Part::new(file.matrix())], layout);
        let all = noise.floats(33 * cols);
        let mut alone = Vec::new();
        for x in all.chunks(cols) {
            let mut out = vec![0.0; rows];
            let x = activations(isa, &pools[0], x, cols, layout);
            matmul(&pools[0], &packed, &x, &mut out, Place::rows_of(rows));
            alone.extend(out);
        }
        for pool in &pools {
            for num_rows in ROW_COUNTS {
                // The last `num_rows` rows, so that a row meets every place in every tile.
                let first = 33 - num_rows;
                let x = activations(isa, pool, &all[first * cols..], cols, layout);
                let mut out = vec![0.0; num_rows * rows];
                matmul(pool, &packed, &x, &mut out, Place::rows_of(rows));
                assert_same(&out, &alone[first * rows..], &(layout, num_rows, pool.num_threads()));
            }
        }
    }
}

#[test]
fn products_land_at_their_place_with_bias_and_residual() {
    let noise = &mut Noise(6);
    let pool = Pool::new(2);
    for isa in Isa::available() {
        for layout in Layout::ALL {
            let (rows, cols, num_rows) = (21, cols_of(layout, 64), 3);
            let file = File::noise(layout.native_format(), rows, cols, noise);
            let (x, bias) = (noise.floats(num_rows * cols), noise.floats(rows));
            let product = reference(file.matrix(), &x);
            let packed = PackedMatrix::pack(isa, &pool, &[Part::new(file.matrix())], layout).with_bias(bias.clone());
            let x = activations(isa, &pool, &x, cols, layout);
            for store in [Store::Replace, Store::Add] {
                let before = noise.floats(num_rows * 30);
                let mut out = before.clone();
                matmul(&pool, &packed, &x, &mut out, Place { stride: 30, offset: 4, store });
                for (i, (out, before)) in out.iter().zip(&before).enumerate() {
                    let (row, col) = (i / 30, i % 30);
                    let expected = if (4..4 + rows).contains(&col) {
                        let value = product[row * rows + col - 4] + bias[col - 4];
                        if store == Store::Add { before + value } else { value }
                    } else {
                        *before
                    };
                    assert_eq!(out.to_bits(), expected.to_bits(), "{isa} {layout:?} {store:?} {row} {col}");
                }
            }
        }
    }
}

#[test]
fn packing_loses_nothing_and_stacks_reordered_parts() {
    let noise = &mut Noise(7);
    let pool = Pool::new(2);
    for layout in Layout::ALL {
        for cols in [32, 96, 128].map(|cols| cols_of(layout, cols)) {
            let a = File::noise(layout.native_format(), 19, cols, noise);
            let b = File::noise(layout.native_format(), 6, cols, noise);
            let order = [5, 3, 1, 0];
            let parts = [Part::new(a.matrix()), Part { matrix: b.matrix(), row_order: Some(&order) }];
            let packed = PackedMatrix::pack(Isa::best(), &pool, &parts, layout);
            assert_eq!((packed.rows(), packed.cols(), packed.layout()), (23, cols, layout));
            assert_eq!(packed.size_bytes(), PackedMatrix::size_bytes_for(23, cols, layout));
            let (mut got, mut expected) = (vec![0.0; cols], vec![0.0; cols]);
            for row in 0..23 {
                packed.dequantize_row(row, &mut got);
                match row.checked_sub(19) {
                    None => a.matrix().dequantize_row(row, &mut expected),
                    Some(i) => b.matrix().dequantize_row(order[i] as usize, &mut expected),
                }
                assert_same(&got, &expected, &(layout, cols, row));
            }
        }
    }
}

#[test]
fn other_formats_are_converted_as_if_quantized_in_the_file() {
    let noise = &mut Noise(8);
    let pool = Pool::new(2);
    let source = File::noise(Format::BF16, 18, 256, noise);
    let mut values = vec![0.0; 18 * 256];
    for (row, values) in values.chunks_mut(256).enumerate() {
        source.matrix().dequantize_row(row, values);
    }
    for layout in Layout::ALL {
        let format = layout.native_format();
        let mut bytes = vec![0; 18 * format.row_bytes(256).unwrap()];
        quantize_row(format, &values, &mut bytes);
        let converted = QuantMatrix::new(format, 18, 256, &bytes).unwrap();
        let packed = PackedMatrix::pack(Isa::best(), &pool, &[Part::new(source.matrix())], layout);
        let (mut got, mut expected) = (vec![0.0; 256], vec![0.0; 256]);
        for row in 0..18 {
            packed.dequantize_row(row, &mut got);
            converted.dequantize_row(row, &mut expected);
            assert_same(&got, &expected, &(layout, row));
        }
    }
}

#[test]
fn every_format_is_packed_with_what_it_means() {
    let noise = &mut Noise(11);
    let pool = Pool::new(1);
    for info in FORMATS {
        // Files hold bits that no quantizer here wrote, but their scales are small numbers.
        let row_bytes = info.format.row_bytes(512).unwrap();
        let mut bytes: Vec<u8> = (0..3 * row_bytes).map(|_| noise.bits() as u8).collect();
        for block in bytes.chunks_mut(info.block_bytes) {
            let scale = f16::from_f32(0.01 + noise.float().abs()).to_le_bytes();
            let (first, last) = (block.len().min(4), block.len().saturating_sub(4));
            for place in [0, last] {
                block[place..place + first].copy_from_slice(&[scale, scale].concat()[..first]);
            }
            if info.format == Format::MXFP4 {
                block[0] = 120;
            }
        }
        let matrix = QuantMatrix::new(info.format, 3, 512, &bytes).unwrap();
        let packed = PackedMatrix::pack(Isa::best(), &pool, &[Part::new(matrix)], info.native_layout);
        let (mut got, mut expected) = (vec![0.0; 512], vec![0.0; 512]);
        for row in 0..3 {
            packed.dequantize_row(row, &mut got);
            matrix.dequantize_row(row, &mut expected);
            let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            let tolerance = match info.format {
                Format::Q4_1 | Format::Q5_1 | Format::Q2_K => largest / 240.0,
                Format::IQ4_XS => largest / 2048.0,
                _ => 0.0,
            };
            for (got, expected) in got.iter().zip(&expected) {
                let is_near = (got - expected).abs() <= tolerance || got.is_nan() && expected.is_nan();
                assert!(is_near, "{} {got} {expected} of {largest}", info.name);
            }
        }
    }
}

#[test]
fn no_rows_and_wrong_shapes() {
    let pool = Pool::new(1);
    let file = File::noise(Format::Q8_0, 16, 64, &mut Noise(9));
    let packed = PackedMatrix::pack(Isa::best(), &pool, &[Part::new(file.matrix())], Layout::Q8);
    let mut x = Activations::new(Isa::best(), 4, 64, kinds(Layout::Q8));
    x.fill(&pool, 0, |_, _| {});
    matmul(&pool, &packed, &x, &mut [], Place::rows_of(16));
    x.fill(&pool, 2, |_, out| out.fill(1.0));
    let too_short = std::panic::catch_unwind(|| {
        matmul(&Pool::new(1), &packed, &x, &mut [0.0; 31], Place::rows_of(16));
    });
    assert!(too_short.is_err());
    let wrong_kind = std::panic::catch_unwind(|| {
        let x = Activations::new(Isa::best(), 4, 64, kinds(Layout::F32));
        matmul(&Pool::new(1), &packed, &x, &mut [0.0; 64], Place::rows_of(16));
    });
    assert!(wrong_kind.is_err());
}
