//! [`Avx512`]: sixteen lanes in one register.
#![cfg_attr(
    not(test),
    expect(clippy::wildcard_imports, reason = "the names of intrinsics are a namespace of their own")
)]

use super::{LANES, Lanes, Simd, Task};
use half::f16;
use std::arch::x86_64::*;

/// Proof of AVX-512 F, BW, DQ and VL, AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The CPU has all of the above.
    #[inline(always)]
    pub(super) unsafe fn new() -> Self {
        Self(())
    }
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn call<T: Task>(simd: Avx512, task: T) -> T::Output {
    task.run(simd)
}

/// Intrinsics that need nothing but the CPU.
macro_rules! proven {
    ($intrinsics:expr) => {
        // SAFETY: `self` proves that the CPU has them; their operands are values, or references to all that is read.
        unsafe { $intrinsics }
    };
}

impl Simd for Avx512 {
    type F32 = __m512;
    const MAX_ACCUMULATORS: usize = 28;
    const MAX_ROWS: usize = 7;

    #[inline(always)]
    fn call<T: Task>(self, task: T) -> T::Output {
        proven!(call(self, task))
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        proven!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, x: &Lanes) -> __m512 {
        proven!(_mm512_loadu_ps(x.as_ptr()))
    }
    #[inline(always)]
    fn store(self, x: __m512, out: &mut Lanes) {
        proven!(_mm512_storeu_ps(out.as_mut_ptr(), x));
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> __m512 {
        proven!(_mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> __m512 {
        proven!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))))
    }
    #[inline(always)]
    fn to_f16(self, x: __m512) -> [f16; LANES] {
        let mut out = [f16::ZERO; LANES];
        let halves = proven!(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
        proven!(_mm256_storeu_si256(out.as_mut_ptr().cast(), halves));
        out
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        proven!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn scale_by_power(self, x: __m512, n: __m512) -> __m512 {
        proven!(_mm512_scalef_ps(x, n))
    }
    #[inline(always)]
    fn first_lanes(self, n: usize, a: __m512, b: __m512) -> __m512 {
        let mask = ((1_u32 << n.min(LANES)) - 1) as u16;
        proven!(_mm512_mask_blend_ps(mask, b, a))
    }
    #[inline(always)]
    fn mask_ge(self, a: __m512, b: __m512) -> u16 {
        proven!(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b))
    }
    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        proven!({
            let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        })
    }
    #[inline(always)]
    fn max_lane(self, x: __m512) -> f32 {
        proven!({
            let x = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        })
    }
    #[inline(always)]
    fn compress_ids(self, mask: u16, base: u32, out: &mut [u32; LANES]) {
        proven!({
            let iota = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let ids = _mm512_add_epi32(iota, _mm512_set1_epi32(base.cast_signed()));
            // In a register, then one store: compressing into memory takes over a hundred cycles on Zen 4.
            _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_maskz_compress_epi32(mask, ids));
        });
    }
    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        proven!(_mm_prefetch::<_MM_HINT_T1>(address.cast()));
    }
}
