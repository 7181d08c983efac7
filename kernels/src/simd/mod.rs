//! [`Simd`]: sixteen `f32` lanes, the same on every instruction set, for operations that are written once.
//!
//! An operation is a [`Task`]: generic over `Simd` and inlined into a function that is compiled for the instruction
//! set. Every method is defined lane by lane and every reduction has one fixed tree, so that a task's result has the
//! same bits everywhere (the payload of a NaN aside).

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use crate::isa::{Isa, Level};
use half::f16;
pub(crate) use portable::Portable;

/// Lanes of a [`Simd::F32`].
pub(crate) const LANES: usize = 16;
/// The memory of one [`Simd::F32`].
pub(crate) type Lanes = [f32; LANES];

/// A computation that is compiled once per instruction set.
///
/// `run` and all that it calls with a [`Simd`] must be `#[inline(always)]`, and no closure may use one: a function that
/// is not inlined is compiled without the instructions, and calls each of them.
pub(crate) trait Task {
    /// What it returns.
    type Output;
    /// The computation.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// An instruction set. Holding a value proves that the CPU has it.
pub(crate) trait Simd: Copy {
    /// Sixteen lanes in registers.
    type F32: Copy;
    /// Most values of [`Simd::F32`] that a loop over several columns of lanes can accumulate in registers.
    const MAX_ACCUMULATORS: usize;
    /// Most that a loop over one column can.
    const MAX_ROWS: usize;

    /// Runs `task` in a function of its own, compiled for this instruction set.
    fn call<T: Task>(self, task: T) -> T::Output;
    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::F32;
    fn load(self, x: &Lanes) -> Self::F32;
    fn store(self, x: Self::F32, out: &mut Lanes);
    /// Exact.
    fn load_f16(self, x: &[f16; LANES]) -> Self::F32;
    /// Exact.
    fn load_i8(self, x: &[i8; LANES]) -> Self::F32;
    /// Rounds to nearest, ties to even; above the largest finite `f16` to infinity.
    fn to_f16(self, x: Self::F32) -> [f16; LANES];
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `if a > b { a } else { b }`: `b` where either is not a number.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `if a < b { a } else { b }`: `b` where either is not a number.
    fn min(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `x * 2^n`, rounded once, for whole `n` in -200..=200 and `x` in 0.5..2.
    fn scale_by_power(self, x: Self::F32, n: Self::F32) -> Self::F32;
    /// The first `n` lanes of `a`, the others of `b`.
    fn first_lanes(self, n: usize, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Bit `i` is set where lane `i` has `a >= b`.
    fn mask_ge(self, a: Self::F32, b: Self::F32) -> u16;
    /// Lane `i` with lane `i + 8`, then `i + 4`, `i + 2` and `i + 1`.
    fn sum(self, x: Self::F32) -> f32;
    /// Same tree as [`Simd::sum`], with [`Simd::max`].
    fn max_lane(self, x: Self::F32) -> f32;
    /// Writes `base` plus the index of each set bit of `mask`, ascending; what follows them in `out` is undefined.
    fn compress_ids(self, mask: u16, base: u32, out: &mut [u32; LANES]);
    /// Asks for the cache line at `address`, which need not be valid, to come into the second-level cache.
    fn prefetch(self, address: *const u8);
}

/// Runs `task` with the instruction set `isa`.
#[inline]
pub(crate) fn dispatch<T: Task>(isa: Isa, task: T) -> T::Output {
    match isa.level() {
        Level::Scalar => Portable.call(task),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => {
            // SAFETY: an `Isa` of this level exists only if the CPU has AVX2, FMA and F16C.
            let simd = unsafe { avx2::Avx2::new() };
            simd.call(task)
        }
        #[cfg(target_arch = "x86_64")]
        Level::Avx512Vnni => {
            // SAFETY: an `Isa` of this level exists only if the CPU has AVX-512 F, BW, DQ and VL.
            let simd = unsafe { avx512::Avx512::new() };
            simd.call(task)
        }
        #[cfg(target_arch = "aarch64")]
        Level::Neon | Level::NeonDot | Level::NeonI8mm => neon::Neon.call(task),
    }
}

/// `e^x`, relative error below 1.2e-7; 0 below -104, infinity above 89, NaN for NaN.
///
/// `x = n ln 2 + r` with whole `n`; `e^r = 1 + r + r^2 q(r)`, `q` the minimax polynomial of degree 4 on ±0.3473
/// (error 4e-9, by the Remez exchange).
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    // Adding 1.5 * 2^23 leaves no bits for a fraction, so the sum is rounded to a whole number.
    const ROUND: f32 = 12_582_912.0;
    const LN_2: f32 = std::f32::consts::LN_2;
    /// What `LN_2` is too large by.
    const LN_2_EXCESS: f32 = 1.904_654_3e-9;
    // The argument that may be NaN comes second, so that it survives.
    let x = simd.max(simd.splat(-110.0), simd.min(simd.splat(90.0), x));
    let n = simd.fma(x, simd.splat(std::f32::consts::LOG2_E), simd.splat(ROUND));
    let n = simd.sub(n, simd.splat(ROUND));
    let r = simd.fma(n, simd.splat(-LN_2), x);
    let r = simd.fma(n, simd.splat(LN_2_EXCESS), r);
    let q = simd.splat(1.381_432_2e-3);
    let q = simd.fma(q, r, simd.splat(8.368_851e-3));
    let q = simd.fma(q, r, simd.splat(4.166_84e-2));
    let q = simd.fma(q, r, simd.splat(0.166_665_2));
    let q = simd.fma(q, r, simd.splat(0.499_999_94));
    let p = simd.add(simd.fma(q, simd.mul(r, r), r), simd.splat(1.0));
    simd.scale_by_power(p, n)
}

/// The first lanes from `values` (at most 16), the rest `fill`.
#[inline(always)]
pub(crate) fn partial(values: &[f32], fill: f32) -> Lanes {
    let mut lanes = [fill; LANES];
    lanes[..values.len()].copy_from_slice(values);
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every method returns for one pair of inputs, as bits.
    struct Everything<'a>(&'a Lanes, &'a Lanes, usize);

    impl Task for Everything<'_> {
        type Output = Vec<u32>;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<u32> {
            let (a, b) = (simd.load(self.0), simd.load(self.1));
            let whole = simd.sub(simd.add(b, simd.splat(12_582_912.0)), simd.splat(12_582_912.0));
            let n = simd.max(simd.min(whole, simd.splat(199.0)), simd.splat(-199.0));
            let halves = simd.to_f16(a);
            let bytes: [i8; LANES] = std::array::from_fn(|i| (i as i8 - 8) * 15 - 3);
            let vectors = [
                simd.add(a, b),
                simd.sub(a, b),
                simd.mul(a, b),
                simd.div(a, b),
                simd.fma(a, b, simd.splat(0.1)),
                simd.max(a, b),
                simd.min(a, b),
                simd.first_lanes(self.2, a, b),
                simd.load_f16(&halves),
                simd.load_i8(&bytes),
                simd.scale_by_power(simd.splat(1.4), n),
                exp(simd, a),
            ];
            let mut out = Vec::new();
            for v in vectors {
                let mut lanes = [0.0; LANES];
                simd.store(v, &mut lanes);
                out.extend(lanes.map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }));
            }
            out.extend([simd.sum(a), simd.max_lane(a)].map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }));
            let mask = simd.mask_ge(a, b);
            out.push(u32::from(mask));
            let mut ids = [0; LANES];
            simd.compress_ids(mask, 1000, &mut ids);
            out.extend(&ids[..mask.count_ones() as usize]);
            out
        }
    }

    fn inputs() -> Vec<Lanes> {
        let mut state = 1_u32;
        let mut all: Vec<Lanes> = (0..200)
            .map(|i| {
                std::array::from_fn(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * [1.0, 20.0, 120.0, 1e-3][i % 4]
                })
            })
            .collect();
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        all.push([
            0.0, -0.0, 1.0, -1.0, inf, -inf, 65504.0, 65519.9, 65520.0, 1e-8, 6e-8, 88.7, 88.8, -87.4, -103.9, -104.1,
        ]);
        all.push([nan, 1.0, nan, 0.0, 3.0, nan, -inf, inf, 2.0, nan, 0.0, -0.0, nan, 1e-45, -1e-40, 1e38]);
        all
    }

    #[test]
    fn every_method_has_the_same_bits_on_every_isa() {
        let inputs = inputs();
        for (i, a) in inputs.iter().enumerate() {
            let b = &inputs[(i * 7 + 3) % inputs.len()];
            let expected = dispatch(Isa::SCALAR, Everything(a, b, i % 17));
            for isa in Isa::available() {
                assert_eq!(dispatch(isa, Everything(a, b, i % 17)), expected, "{isa} {a:?} {b:?}");
            }
        }
    }

    struct Exp(Lanes);

    impl Task for Exp {
        type Output = Lanes;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Lanes {
            let mut out = [0.0; LANES];
            simd.store(exp(simd, simd.load(&self.0)), &mut out);
            out
        }
    }

    #[test]
    fn exp_is_accurate_and_keeps_its_limits() {
        for isa in Isa::available() {
            for i in -8700..8870 {
                let x = i as f32 * 0.01;
                let (found, exact) = (f64::from(dispatch(isa, Exp([x; LANES]))[5]), f64::from(x).exp());
                assert!((found - exact).abs() <= 1.2e-7 * exact, "{isa} exp({x}) = {found}, not {exact}");
            }
            let edges = partial(&[f32::NEG_INFINITY, -104.5, f32::INFINITY, 89.0, 0.0, -0.0, f32::NAN], 1.0);
            let found = dispatch(isa, Exp(edges));
            assert_eq!(found[..6], [0.0, 0.0, f32::INFINITY, f32::INFINITY, 1.0, 1.0], "{isa}");
            assert!(found[6].is_nan(), "{isa}");
        }
    }
}
