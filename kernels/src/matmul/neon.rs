//! Loads, stores, prefetches and dot products of aarch64: the only unsafe operations of its kernels.
//!
//! The dot products are instructions for which the standard library has no stable functions, hence the assembly.

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, uint8x16_t, vaddq_s32, vcvt_f32_f16, vget_low_s8, vld1_u16, vld1q_f32, vld1q_u8,
    vmull_high_s8, vmull_s8, vpaddlq_s16, vpaddq_s32, vreinterpret_f16_u16, vst1q_f32,
};
use std::arch::asm;

/// How far ahead of the weights in use the next are asked for: bytes.
const AHEAD: usize = 4 << 10;

/// Asks for the cache lines of `value`'s size that lie some way after it.
#[inline(always)]
pub(super) fn prefetch_after<T>(value: &T) {
    let start: *const u8 = std::ptr::from_ref(value).cast();
    for line in 0..size_of::<T>().div_ceil(64) {
        // The end of the matrix may lie before that, hence no `add`.
        let line = start.wrapping_add(AHEAD + 64 * line);
        // SAFETY: a prefetch reads nothing and faults nowhere.
        unsafe { asm!("prfm pldl1keep, [{0}]", in(reg) line, options(nostack, readonly, preserves_flags)) };
    }
}

#[inline(always)]
pub(super) fn load_bytes(bytes: &[u8; 16]) -> uint8x16_t {
    // SAFETY: 16 bytes of a reference; no alignment needed.
    unsafe { vld1q_u8(bytes.as_ptr()) }
}

#[inline(always)]
pub(super) fn load(values: &[f32; 4]) -> float32x4_t {
    // SAFETY: 16 bytes of a reference; no alignment needed.
    unsafe { vld1q_f32(values.as_ptr()) }
}

#[inline(always)]
pub(super) fn store(out: &mut [f32; 4], values: float32x4_t) {
    // SAFETY: 16 bytes of an exclusive reference; no alignment needed.
    unsafe { vst1q_f32(out.as_mut_ptr(), values) }
}

/// Four values of half precision, given as such or as bits.
#[inline(always)]
pub(super) fn load_halves<T>(values: &[T; 4]) -> float32x4_t {
    const { assert!(size_of::<T>() == 2, "values of 16 bits") };
    // SAFETY: 8 bytes of a reference; no alignment needed.
    let bits = unsafe { vld1_u16(values.as_ptr().cast()) };
    // SAFETY: every aarch64 CPU has the instruction.
    unsafe { vcvt_f32_f16(vreinterpret_f16_u16(bits)) }
}

/// `sum[i] + a[4 i ..] · b[4 i ..]` with instructions that every CPU has.
#[inline]
#[target_feature(enable = "neon")]
pub(crate) fn dot_widening(sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    vaddq_s32(sum, vpaddq_s32(low, vpaddlq_s16(vmull_high_s8(a, b))))
}

/// `sum[i] + a[4 i ..] · b[4 i ..]`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(crate) fn dot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the CPU has the instruction, which touches nothing but these registers.
    unsafe {
        asm!("sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b", sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
             options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// `sum[2 i + j] + a[8 i ..] · b[8 j ..]` for `i` and `j` in 0..2: two rows of eight against two.
#[inline]
#[target_feature(enable = "neon,i8mm")]
pub(crate) fn dot_2x2(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the CPU has the instruction, which touches nothing but these registers.
    unsafe {
        asm!("smmla {sum:v}.4s, {a:v}.16b, {b:v}.16b", sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
             options(pure, nomem, nostack, preserves_flags));
    }
    sum
}
