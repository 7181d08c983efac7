//! Quantizes rows of activations: blocks of 32 signed bytes with a scale, and the integer sums that kernels start from.

use super::{BLOCK_LEN, INT8_COLS, Int8Unit, RowUnits};
use crate::isa::{Isa, Level};

/// Quantizes a row, padded with zeros to whole units.
pub(super) type QuantizeRow = fn(&[f32], &mut RowUnits<'_, Int8Unit>);

pub(super) fn quantize_row(isa: Isa) -> QuantizeRow {
    match isa.level() {
        Level::Scalar => quantize_units,
        // Compiled for NEON anyway.
        #[cfg(target_arch = "aarch64")]
        Level::Neon | Level::NeonDot | Level::NeonI8mm => quantize_units,
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this level exists only if the CPU has these features.
        Level::Avx2 => |values, units| unsafe { quantize_units_avx2(values, units) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this level exists only if the CPU has these features.
        Level::Avx512Vnni => |values, units| unsafe { avx512::quantize_units(values, units) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn quantize_units_avx2(values: &[f32], units: &mut RowUnits<'_, Int8Unit>) {
    quantize_units(values, units);
}

/// The reference, also compiled for AVX2; no operation in it may be contracted or reordered.
#[inline(always)]
fn quantize_units(values: &[f32], units: &mut RowUnits<'_, Int8Unit>) {
    for (unit_idx, values) in values.as_chunks::<INT8_COLS>().0.iter().enumerate() {
        let unit = units.unit(unit_idx);
        for (block, values) in values.as_chunks::<BLOCK_LEN>().0.iter().enumerate() {
            let (bytes, scale) = quantize_block(values);
            let [low, high] = bytes.as_chunks::<16>().0 else { unreachable!("two sixteenths") };
            let sum_of = |bytes: &[i8; 16]| bytes.iter().map(|b| i32::from(*b)).sum();
            let sums = [sum_of(low), sum_of(high)];
            for (word, bytes) in unit.words[8 * block..8 * block + 8].iter_mut().zip(bytes.as_chunks::<4>().0) {
                *word = i32::from_le_bytes(bytes.map(i8::cast_unsigned));
            }
            unit.put_sums(block, scale, sums);
        }
    }
}

impl Int8Unit {
    /// Stores the scale of a block and what follows from the sums of its two sixteenths.
    #[inline(always)]
    fn put_sums(&mut self, block: usize, scale: f32, sixteenths: [i32; 2]) {
        let sum = sixteenths[0] + sixteenths[1];
        self.scales[block] = scale;
        self.q8_init[block] = -128 * sum;
        self.q4_init[block] = -8 * sum;
        self.q5_init[block] = -16 * sum;
        self.q6_init[block] = sixteenths.map(|sum| -32 * sum);
        #[expect(clippy::cast_precision_loss, reason = "at most 32 * 127")]
        let sum = sum as f32;
        self.sums[block] = scale * sum;
    }
}

/// The largest magnitude becomes 127; ties round to even. The scale is rounded to f16's precision, its subnormals
/// included, but may exceed f16's range. A block with a NaN or an infinity, or one whose scale rounds to 0, becomes
/// zeros; the scale of the former stays NaN or infinite and so makes every output of its row NaN.
#[inline(always)]
fn quantize_block(values: &[f32; BLOCK_LEN]) -> ([i8; BLOCK_LEN], f32) {
    /// Adding it leaves the nearest integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    // Magnitudes compare like their bits, and a NaN is above all.
    let max = values.iter().fold(0, |max, x| max.max(x.to_bits() & 0x7fff_ffff));
    let max = f32::from_bits(max);
    let (scale, inverse) = scale_and_inverse(max);
    let Some(inverse) = inverse else { return ([0; BLOCK_LEN], scale) };
    let mut bytes = [0; BLOCK_LEN];
    for (byte, value) in bytes.iter_mut().zip(values) {
        #[expect(clippy::cast_possible_truncation, reason = "the lowest byte is the number, -127..=127")]
        let rounded = (value * inverse + ROUND).to_bits() as u8;
        *byte = rounded.cast_signed();
    }
    (bytes, scale)
}

/// The scale of a block with this largest magnitude, and what to multiply its values by unless all become zero.
#[inline(always)]
fn scale_and_inverse(max: f32) -> (f32, Option<f32>) {
    let scale = round_to_f16(max / 127.0);
    let is_usable = scale > 0.0 && scale < f32::INFINITY;
    (scale, is_usable.then_some(127.0 / max))
}

/// Rounds a number that is not negative to 11 significant bits and no finer than f16's smallest step, 2^-24; ties to
/// even.
#[inline(always)]
fn round_to_f16(x: f32) -> f32 {
    /// Its unit in the last place is 2^-24.
    const STEP: f32 = 0.5;
    const SMALLEST_NORMAL: f32 = 6.103_515_6e-5; // 2^-14
    if x < SMALLEST_NORMAL {
        return (x + STEP) - STEP;
    }
    let bits = x.to_bits();
    f32::from_bits((bits + 0xfff + (bits >> 13 & 1)) & !0x1fff)
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512, __m512i, _mm_storeu_si128, _mm512_andnot_ps, _mm512_castps_si512, _mm512_cvtepi32_epi8,
        _mm512_cvtps_epi32, _mm512_loadu_ps, _mm512_max_epu32, _mm512_mul_ps, _mm512_reduce_add_epi32,
        _mm512_reduce_max_epu32, _mm512_set1_ps,
    };

    use super::{BLOCK_LEN, INT8_COLS, Int8Unit, RowUnits, scale_and_inverse};

    /// Lanes of a register.
    const LANES: usize = 16;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn quantize_units(values: &[f32], units: &mut RowUnits<'_, Int8Unit>) {
        for (unit_idx, values) in values.as_chunks::<INT8_COLS>().0.iter().enumerate() {
            let unit = units.unit(unit_idx);
            for (block, values) in values.as_chunks::<BLOCK_LEN>().0.iter().enumerate() {
                quantize_block(values, unit, block);
            }
        }
    }

    /// As the reference does it: the conversion to integers rounds ties to even too.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn quantize_block(values: &[f32; BLOCK_LEN], unit: &mut Int8Unit, block: usize) {
        let [low, high] = values.as_chunks::<LANES>().0 else { unreachable!("two registers") };
        let (low, high) = (load(low), load(high));
        // Magnitudes compare like their bits, and a NaN is above all.
        let max = f32::from_bits(_mm512_reduce_max_epu32(_mm512_max_epu32(magnitude_bits(low), magnitude_bits(high))));
        let (scale, inverse) = scale_and_inverse(max);
        let Some(inverse) = inverse else {
            unit.words[8 * block..8 * block + 8].fill(0);
            unit.put_sums(block, scale, [0; 2]);
            return;
        };
        let inverse = _mm512_set1_ps(inverse);
        let low = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse));
        let high = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
        let [low_words, high_words] = unit.words[8 * block..8 * block + 8].as_chunks_mut::<4>().0 else {
            unreachable!("eight words")
        };
        store_bytes(low_words, low);
        store_bytes(high_words, high);
        unit.put_sums(block, scale, [_mm512_reduce_add_epi32(low), _mm512_reduce_add_epi32(high)]);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    fn magnitude_bits(values: __m512) -> __m512i {
        _mm512_castps_si512(_mm512_andnot_ps(_mm512_set1_ps(-0.0), values))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load(values: &[f32; LANES]) -> __m512 {
        // SAFETY: 64 bytes of a reference; no alignment needed.
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }

    /// Stores the lowest byte of each lane.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store_bytes(words: &mut [i32; 4], lanes: __m512i) {
        let bytes = _mm512_cvtepi32_epi8(lanes);
        // SAFETY: 16 bytes of an exclusive reference; no alignment needed.
        unsafe { _mm_storeu_si128(words.as_mut_ptr().cast(), bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_scaled_to_127_and_sums_are_exact() {
        let mut values = [0.0; BLOCK_LEN];
        values[3] = -12.7;
        values[4] = 0.05;
        values[5] = 0.15;
        let (bytes, scale) = quantize_block(&values);
        assert_eq!((bytes[3], bytes[4], bytes[5]), (-127, 0, 2), "ties round to even");
        assert_eq!(scale, half::f16::from_f32(0.1).to_f32());
        assert_eq!(quantize_block(&[f32::NAN; BLOCK_LEN]).0, [0; BLOCK_LEN]);
        assert!(!quantize_block(&[f32::INFINITY; BLOCK_LEN]).1.is_finite());
        assert_eq!(quantize_block(&[1e-7; BLOCK_LEN]), ([0; BLOCK_LEN], 0.0));
    }

    #[test]
    fn scales_round_like_half_precision() {
        for bits in (0..0x4780_0000u32).step_by(0x3fd).chain([0x3300_0000, 0x3300_0001, 0x3880_0000, 0x387f_ffff]) {
            let x = f32::from_bits(bits);
            if x < 65520.0 {
                assert_eq!(round_to_f16(x), half::f16::from_f32(x).to_f32(), "{x}");
            }
        }
        assert_eq!(round_to_f16(100_000.0), 99_968.0, "ties to even");
        assert!(!round_to_f16(f32::NAN).is_finite());
    }
}
