//! Loads, stores and prefetches of x86-64: the only unsafe operations of its kernels, each over a checked reference.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, __m512, __m512i, _MM_HINT_T0, _MM_HINT_T1, _mm_loadl_epi64, _mm_loadu_si128,
    _mm_prefetch, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_storeu_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_storeu_ps,
};

/// How far ahead of the weights in use the next are asked for.
///
/// From memory, arithmetic on few rows waits for every line, so they go to L1. On more rows the time is long enough to
/// fill L2, whose requests are not limited by L1's few miss buffers: measured 20 to 60 % faster at 8 rows on Zen 4.
pub(super) mod ahead {
    /// Not at all: an earlier tile of rows has done it.
    pub(in super::super) const NONE: usize = 0;
    /// To L1, for few rows.
    pub(in super::super) const FEW_ROWS: usize = 8 << 10;
    /// To L2, and again to L1 when they are [`NEAR`]: for few rows of weights whose bits are spread over more lines, which
    /// L1's miss buffers alone keep up with less well. Measured 4 to 30 % faster on Zen 4 with 5 and 6 bits.
    pub(in super::super) const FEW_ROWS_TWICE: usize = 12 << 10;
    /// How far from L1 the second request of [`FEW_ROWS_TWICE`] is.
    pub(in super::super) const NEAR: usize = 2 << 10;
    /// To L2.
    pub(in super::super) const MANY_ROWS: usize = 16 << 10;
}

/// Asks for the cache lines of `value`'s size that lie `AHEAD` bytes (one of [`ahead`]) after it.
#[inline(always)]
pub(super) fn prefetch_after<const AHEAD: usize, T>(value: &T) {
    prefetch_part_after::<AHEAD, 1, T>(value, 0);
}

/// The same for one of `PARTS` equal parts of `value`: requests for all lines of a large one at once would wait for each
/// other.
#[inline(always)]
pub(super) fn prefetch_part_after<const AHEAD: usize, const PARTS: usize, T>(value: &T, part: usize) {
    if AHEAD == ahead::NONE {
        return;
    }
    let start: *const i8 = std::ptr::from_ref(value).cast();
    let num_lines = size_of::<T>().div_ceil(64);
    for line in part * num_lines / PARTS..(part + 1) * num_lines / PARTS {
        // The end of the matrix may lie before that, hence no `add`.
        let line = start.wrapping_add(AHEAD + 64 * line);
        if AHEAD == ahead::FEW_ROWS {
            // SAFETY: a prefetch reads nothing and faults nowhere.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line) };
        } else {
            // SAFETY: a prefetch reads nothing and faults nowhere.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line) };
            if AHEAD == ahead::FEW_ROWS_TWICE {
                // SAFETY: a prefetch reads nothing and faults nowhere.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(line.wrapping_sub(AHEAD - ahead::NEAR)) };
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_bytes_512(line: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes of a reference; no alignment needed.
    unsafe { _mm512_loadu_si512(line.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_512(values: &[f32; 16]) -> __m512 {
    // SAFETY: 64 bytes of a reference; no alignment needed.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_512(out: &mut [f32; 16], values: __m512) {
    // SAFETY: 64 bytes of an exclusive reference; no alignment needed.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) }
}

/// Sixteen values of 16 bits.
#[inline]
#[target_feature(enable = "avx")]
pub(super) fn load_halves_256<T>(values: &[T; 16]) -> __m256i {
    const { assert!(size_of::<T>() == 2, "values of 16 bits") };
    // SAFETY: 32 bytes of a reference; no alignment needed.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx")]
pub(super) fn load_bytes_256(bytes: &[u8; 32]) -> __m256i {
    // SAFETY: 32 bytes of a reference; no alignment needed.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx")]
pub(super) fn load_256(values: &[f32; 8]) -> __m256 {
    // SAFETY: 32 bytes of a reference; no alignment needed.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx")]
pub(super) fn store_256(out: &mut [f32; 8], values: __m256) {
    // SAFETY: 32 bytes of an exclusive reference; no alignment needed.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) }
}

/// Eight values of 16 bits.
#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn load_halves_128<T>(values: &[T; 8]) -> __m128i {
    const { assert!(size_of::<T>() == 2, "values of 16 bits") };
    // SAFETY: 16 bytes of a reference; no alignment needed.
    unsafe { _mm_loadu_si128(values.as_ptr().cast()) }
}

/// Sixteen bytes.
#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn load_bytes_128<T>(bytes: &[T; 16]) -> __m128i {
    const { assert!(size_of::<T>() == 1, "bytes") };
    // SAFETY: 16 bytes of a reference; no alignment needed.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Eight bytes, in the low half.
#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn load_bytes_64<T>(bytes: &[T; 8]) -> __m128i {
    const { assert!(size_of::<T>() == 1, "bytes") };
    // SAFETY: 8 bytes of a reference; no alignment needed.
    unsafe { _mm_loadl_epi64(bytes.as_ptr().cast()) }
}
