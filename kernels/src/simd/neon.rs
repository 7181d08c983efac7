//! [`Neon`]: sixteen lanes in four registers. Every aarch64 CPU has these instructions.

use super::{LANES, Lanes, Simd, Task, portable};
use half::f16;
use std::arch::aarch64::{
    float32x4_t, vaddq_f32, vaddq_s32, vaddvq_u16, vandq_u16, vbslq_f32, vcgeq_f32, vcgtq_f32, vcltq_f32, vcltq_u32,
    vcombine_u16, vcvt_f16_f32, vcvt_f32_f16, vcvtq_f32_s32, vcvtq_s32_f32, vdivq_f32, vdupq_n_f32, vdupq_n_s32,
    vdupq_n_u32, vfmaq_f32, vget_high_s8, vget_high_s16, vget_low_s8, vget_low_s16, vld1_u16, vld1q_f32, vld1q_s8,
    vld1q_u16, vld1q_u32, vmovl_s8, vmovl_s16, vmovn_u32, vmulq_f32, vreinterpret_f16_u16, vreinterpret_u16_f16,
    vreinterpretq_f32_s32, vshlq_n_s32, vshrq_n_s32, vst1_u16, vst1q_f32, vsubq_f32, vsubq_s32,
};

/// Proof of NEON, which is a part of the architecture.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

/// Lanes 0..4, 4..8, 8..12 and 12..16.
type Quad = [float32x4_t; 4];

/// Intrinsics that need nothing but the CPU.
macro_rules! proven {
    ($intrinsics:expr) => {
        // SAFETY: every aarch64 CPU has them; their operands are values, or references to all that is read or written.
        unsafe { $intrinsics }
    };
}

/// Four lanes.
#[inline(always)]
fn load(x: &[f32; 4]) -> float32x4_t {
    proven!(vld1q_f32(x.as_ptr()))
}

#[inline(always)]
fn store(x: float32x4_t, out: &mut [f32; 4]) {
    proven!(vst1q_f32(out.as_mut_ptr(), x));
}

#[inline(always)]
fn zip(a: Quad, b: Quad, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Quad {
    [f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]
}

#[inline(always)]
fn greater(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    proven!(vbslq_f32(vcgtq_f32(a, b), a, b))
}

/// `2^n` for whole `n`.
#[inline(always)]
fn power_of_two(n: std::arch::aarch64::int32x4_t) -> float32x4_t {
    proven!(vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127)))))
}

#[inline(always)]
fn scale_by_power(x: float32x4_t, n: float32x4_t) -> float32x4_t {
    proven!({
        // Two steps, of which only the second can leave the normal numbers and round.
        let n = vcvtq_s32_f32(n);
        let half = vshrq_n_s32::<1>(n);
        vmulq_f32(vmulq_f32(x, power_of_two(half)), power_of_two(vsubq_s32(n, half)))
    })
}

/// Lanes `8..` against `..8`, then `4..` against `..4`; the last two steps one by one.
#[inline(always)]
fn reduce(x: Quad, wide: impl Fn(float32x4_t, float32x4_t) -> float32x4_t, narrow: impl Fn(f32, f32) -> f32) -> f32 {
    let four = wide(wide(x[0], x[2]), wide(x[1], x[3]));
    let mut lanes = [0.0; 4];
    store(four, &mut lanes);
    narrow(narrow(lanes[0], lanes[2]), narrow(lanes[1], lanes[3]))
}

impl Simd for Neon {
    type F32 = Quad;
    const MAX_ACCUMULATORS: usize = 6;
    const MAX_ROWS: usize = 6;

    #[inline(always)]
    fn call<T: Task>(self, task: T) -> T::Output {
        call(task)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Quad {
        [proven!(vdupq_n_f32(x)); 4]
    }
    #[inline(always)]
    fn load(self, x: &Lanes) -> Quad {
        let (quads, _) = x.as_chunks::<4>();
        std::array::from_fn(|i| load(&quads[i]))
    }
    #[inline(always)]
    fn store(self, x: Quad, out: &mut Lanes) {
        for (out, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
            store(x, out);
        }
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> Quad {
        let (quads, _) = x.as_chunks::<4>();
        std::array::from_fn(|i| proven!(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(quads[i].as_ptr().cast())))))
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> Quad {
        proven!({
            let bytes = vld1q_s8(x.as_ptr());
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_s8(vget_high_s8(bytes)));
            [vget_low_s16(low), vget_high_s16(low), vget_low_s16(high), vget_high_s16(high)]
                .map(|words| vcvtq_f32_s32(vmovl_s16(words)))
        })
    }
    #[inline(always)]
    fn to_f16(self, x: Quad) -> [f16; LANES] {
        let mut out = [f16::ZERO; LANES];
        for (out, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
            proven!(vst1_u16(out.as_mut_ptr().cast(), vreinterpret_u16_f16(vcvt_f16_f32(x))));
        }
        out
    }
    #[inline(always)]
    fn add(self, a: Quad, b: Quad) -> Quad {
        proven!(zip(a, b, |a, b| vaddq_f32(a, b)))
    }
    #[inline(always)]
    fn sub(self, a: Quad, b: Quad) -> Quad {
        proven!(zip(a, b, |a, b| vsubq_f32(a, b)))
    }
    #[inline(always)]
    fn mul(self, a: Quad, b: Quad) -> Quad {
        proven!(zip(a, b, |a, b| vmulq_f32(a, b)))
    }
    #[inline(always)]
    fn div(self, a: Quad, b: Quad) -> Quad {
        proven!(zip(a, b, |a, b| vdivq_f32(a, b)))
    }
    #[inline(always)]
    fn fma(self, a: Quad, b: Quad, c: Quad) -> Quad {
        proven!(std::array::from_fn(|i| vfmaq_f32(c[i], a[i], b[i])))
    }
    #[inline(always)]
    fn max(self, a: Quad, b: Quad) -> Quad {
        zip(a, b, greater)
    }
    #[inline(always)]
    fn min(self, a: Quad, b: Quad) -> Quad {
        proven!(zip(a, b, |a, b| vbslq_f32(vcltq_f32(a, b), a, b)))
    }
    #[inline(always)]
    fn scale_by_power(self, x: Quad, n: Quad) -> Quad {
        zip(x, n, scale_by_power)
    }
    #[inline(always)]
    fn first_lanes(self, n: usize, a: Quad, b: Quad) -> Quad {
        proven!({
            const NUMBERS: [u32; LANES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
            #[expect(clippy::cast_possible_truncation, reason = "at most 16")]
            let n = vdupq_n_u32(n.min(LANES) as u32);
            let (numbers, _) = NUMBERS.as_chunks::<4>();
            std::array::from_fn(|i| {
                let numbers = vld1q_u32(numbers[i].as_ptr());
                vbslq_f32(vcltq_u32(numbers, n), a[i], b[i])
            })
        })
    }
    #[inline(always)]
    fn mask_ge(self, a: Quad, b: Quad) -> u16 {
        proven!({
            const BITS: [u16; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
            let bits = vld1q_u16(BITS.as_ptr());
            let half = |i: usize| {
                let low = vmovn_u32(vcgeq_f32(a[2 * i], b[2 * i]));
                let high = vmovn_u32(vcgeq_f32(a[2 * i + 1], b[2 * i + 1]));
                vaddvq_u16(vandq_u16(vcombine_u16(low, high), bits))
            };
            half(0) | half(1) << 8
        })
    }
    #[inline(always)]
    fn sum(self, x: Quad) -> f32 {
        proven!(reduce(x, |a, b| vaddq_f32(a, b), |a, b| a + b))
    }
    #[inline(always)]
    fn max_lane(self, x: Quad) -> f32 {
        reduce(x, greater, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn compress_ids(self, mask: u16, base: u32, out: &mut [u32; LANES]) {
        portable::compress_ids(mask, base, out);
    }
    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: a prefetch reads nothing and faults nowhere.
        unsafe {
            std::arch::asm!("prfm pldl2keep, [{0}]", in(reg) address, options(nostack, readonly, preserves_flags));
        }
    }
}

/// Keeps a task's code out of its caller's.
#[inline(never)]
fn call<T: Task>(task: T) -> T::Output {
    task.run(Neon)
}
