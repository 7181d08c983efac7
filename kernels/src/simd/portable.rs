//! [`Portable`]: plain Rust, the reference for the other instruction sets.

use super::{LANES, Lanes, Simd, Task};
use half::f16;

/// Available everywhere.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn zip(a: Lanes, b: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn reduce(mut x: Lanes, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            x[i] = f(x[i], x[i + width]);
        }
        width /= 2;
    }
    x[0]
}

#[inline(always)]
fn greater(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) << 23).cast_unsigned())
}

impl Simd for Portable {
    type F32 = Lanes;
    const MAX_ACCUMULATORS: usize = 5;
    const MAX_ROWS: usize = 6;

    #[inline(always)]
    fn call<T: Task>(self, task: T) -> T::Output {
        task.run(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Lanes {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &Lanes) -> Lanes {
        *x
    }
    #[inline(always)]
    fn store(self, x: Lanes, out: &mut Lanes) {
        *out = x;
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> Lanes {
        x.map(f16::to_f32)
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> Lanes {
        x.map(f32::from)
    }
    #[inline(always)]
    fn to_f16(self, x: Lanes) -> [f16; LANES] {
        x.map(f16::from_f32)
    }
    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, greater)
    }
    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn scale_by_power(self, x: Lanes, n: Lanes) -> Lanes {
        // Two steps, of which only the second can leave the normal numbers and round.
        zip(x, n, |x, n| {
            let n = n as i32;
            x * power_of_two(n >> 1) * power_of_two(n - (n >> 1))
        })
    }
    #[inline(always)]
    fn first_lanes(self, n: usize, a: Lanes, b: Lanes) -> Lanes {
        std::array::from_fn(|i| if i < n { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn mask_ge(self, a: Lanes, b: Lanes) -> u16 {
        (0..LANES).fold(0, |mask, i| mask | (u16::from(a[i] >= b[i]) << i))
    }
    #[inline(always)]
    fn sum(self, x: Lanes) -> f32 {
        reduce(x, |a, b| a + b)
    }
    #[inline(always)]
    fn max_lane(self, x: Lanes) -> f32 {
        reduce(x, greater)
    }
    #[inline(always)]
    fn compress_ids(self, mask: u16, base: u32, out: &mut [u32; LANES]) {
        compress_ids(mask, base, out);
    }
    #[inline(always)]
    fn prefetch(self, _address: *const u8) {}
}

/// [`Simd::compress_ids`] for instruction sets that have no compression.
#[inline(always)]
pub(super) fn compress_ids(mut mask: u16, base: u32, out: &mut [u32; LANES]) {
    let mut len = 0;
    while mask != 0 {
        out[len] = base + mask.trailing_zeros();
        len += 1;
        mask &= mask - 1;
    }
}
