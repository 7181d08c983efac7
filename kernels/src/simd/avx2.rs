//! [`Avx2`]: sixteen lanes in two registers.
#![cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "the names of intrinsics are a namespace of their own")
)]

use super::{LANES, Lanes, Simd, Task, portable};
use half::f16;
use std::arch::x86_64::*;

/// Proof of AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The CPU has all of the above.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

/// Lanes 0..8 and 8..16.
type Pair = (__m256, __m256);

#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn call<T: Task>(simd: Avx2, task: T) -> T::Output {
    task.run(simd)
}

/// Intrinsics that need nothing but the CPU.
macro_rules! proven {
    ($intrinsics:expr) => {
        // SAFETY: `self` proves that the CPU has them; their operands are values, or references to all that is read.
        unsafe { $intrinsics }
    };
}

/// `2^n` for whole `n`.
#[inline]
#[target_feature(enable = "avx2")]
fn power_of_two(n: __m256i) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))))
}

#[inline]
#[target_feature(enable = "avx2")]
fn scale_by_power(x: __m256, n: __m256) -> __m256 {
    // Two steps, of which only the second can leave the normal numbers and round.
    let n = _mm256_cvtps_epi32(n);
    let half = _mm256_srai_epi32::<1>(n);
    _mm256_mul_ps(_mm256_mul_ps(x, power_of_two(half)), power_of_two(_mm256_sub_epi32(n, half)))
}

impl Simd for Avx2 {
    type F32 = Pair;
    const MAX_ACCUMULATORS: usize = 5;
    const MAX_ROWS: usize = 6;

    #[inline(always)]
    fn call<T: Task>(self, task: T) -> T::Output {
        proven!(call(self, task))
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Pair {
        let x = proven!(_mm256_set1_ps(x));
        (x, x)
    }
    #[inline(always)]
    fn load(self, x: &Lanes) -> Pair {
        let (low, high) = x.split_at(LANES / 2);
        proven!((_mm256_loadu_ps(low.as_ptr()), _mm256_loadu_ps(high.as_ptr())))
    }
    #[inline(always)]
    fn store(self, x: Pair, out: &mut Lanes) {
        let (low, high) = out.split_at_mut(LANES / 2);
        proven!({
            _mm256_storeu_ps(low.as_mut_ptr(), x.0);
            _mm256_storeu_ps(high.as_mut_ptr(), x.1);
        });
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> Pair {
        let (low, high) = x.split_at(LANES / 2);
        proven!((
            _mm256_cvtph_ps(_mm_loadu_si128(low.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(high.as_ptr().cast())),
        ))
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> Pair {
        proven!({
            let bytes = _mm_loadu_si128(x.as_ptr().cast());
            let high = _mm_unpackhi_epi64(bytes, bytes);
            (_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)))
        })
    }
    #[inline(always)]
    fn to_f16(self, x: Pair) -> [f16; LANES] {
        let mut out = [f16::ZERO; LANES];
        let (low, high) = out.split_at_mut(LANES / 2);
        proven!({
            _mm_storeu_si128(low.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.0));
            _mm_storeu_si128(high.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x.1));
        });
        out
    }
    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        proven!((_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        proven!((_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        proven!((_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        proven!((_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn fma(self, a: Pair, b: Pair, c: Pair) -> Pair {
        proven!((_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)))
    }
    #[inline(always)]
    fn max(self, a: Pair, b: Pair) -> Pair {
        proven!((_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn min(self, a: Pair, b: Pair) -> Pair {
        proven!((_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)))
    }
    #[inline(always)]
    fn scale_by_power(self, x: Pair, n: Pair) -> Pair {
        proven!((scale_by_power(x.0, n.0), scale_by_power(x.1, n.1)))
    }
    #[inline(always)]
    fn first_lanes(self, n: usize, a: Pair, b: Pair) -> Pair {
        proven!({
            let n = _mm256_set1_epi32(n.min(LANES) as i32);
            let low = _mm256_cmpgt_epi32(n, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            let high = _mm256_cmpgt_epi32(n, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15));
            (
                _mm256_blendv_ps(b.0, a.0, _mm256_castsi256_ps(low)),
                _mm256_blendv_ps(b.1, a.1, _mm256_castsi256_ps(high)),
            )
        })
    }
    #[inline(always)]
    fn mask_ge(self, a: Pair, b: Pair) -> u16 {
        proven!({
            let low = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(a.0, b.0));
            let high = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(a.1, b.1));
            (low | high << 8) as u16
        })
    }
    #[inline(always)]
    fn sum(self, x: Pair) -> f32 {
        proven!({
            let x = _mm256_add_ps(x.0, x.1);
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        })
    }
    #[inline(always)]
    fn max_lane(self, x: Pair) -> f32 {
        proven!({
            let x = _mm256_max_ps(x.0, x.1);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        })
    }
    #[inline(always)]
    fn compress_ids(self, mask: u16, base: u32, out: &mut [u32; LANES]) {
        portable::compress_ids(mask, base, out);
    }
    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        proven!(_mm_prefetch::<_MM_HINT_T1>(address.cast()));
    }
}
