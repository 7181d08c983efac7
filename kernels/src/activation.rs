//! SwiGLU's elementwise part.

use crate::activations::Activations;
use crate::isa::Isa;
use crate::pool::Pool;
use crate::simd::{LANES, Simd, Task, dispatch, exp, partial};

/// `out = silu(gate) * up`, `silu(x) = x / (1 + e^-x)`.
///
/// `gate_up` is `[2 * cols]`, the gate first; `out` is `[cols]`. Relative error below 4e-7 where nothing overflows, the
/// same bits on every instruction set. NaN and infinity stay in their element.
///
/// # Panics
/// When `gate_up` is not twice as long as `out`.
pub fn silu_mul_row(isa: Isa, gate_up: &[f32], out: &mut [f32]) {
    assert!(gate_up.len() == 2 * out.len(), "silu of {} into {}", gate_up.len(), out.len());
    let (gate, up) = gate_up.split_at(out.len());
    dispatch(isa, Row { gate, up, out });
}

/// [`silu_mul_row`] of every row of `gate_up`, `[num_rows, 2 * cols]`, into `out`, which has rows of `cols`.
///
/// # Panics
/// When `gate_up` is not a whole number of rows or `out` has no room for them.
pub fn silu_mul(pool: &Pool, isa: Isa, gate_up: &[f32], out: &mut Activations) {
    let row_len = 2 * out.cols();
    let num_rows = gate_up.len() / row_len;
    assert!(gate_up.len() == num_rows * row_len, "silu of {} values in rows of {row_len}", gate_up.len());
    out.fill(pool, num_rows, |row, out| silu_mul_row(isa, &gate_up[row * row_len..][..row_len], out));
}

struct Row<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Task for Row<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (gates, gate_rest) = self.gate.as_chunks::<LANES>();
        let (ups, up_rest) = self.up.as_chunks::<LANES>();
        let (outs, out_rest) = self.out.as_chunks_mut::<LANES>();
        for ((gate, up), out) in gates.iter().zip(ups).zip(outs) {
            let value = silu_mul_lanes(simd, simd.load(gate), simd.load(up));
            simd.store(value, out);
        }
        if !out_rest.is_empty() {
            let mut lanes = [0.0; LANES];
            let gate = simd.load(&partial(gate_rest, 0.0));
            let value = silu_mul_lanes(simd, gate, simd.load(&partial(up_rest, 0.0)));
            simd.store(value, &mut lanes);
            out_rest.copy_from_slice(&lanes[..out_rest.len()]);
        }
    }
}

#[inline(always)]
fn silu_mul_lanes<S: Simd>(simd: S, gate: S::F32, up: S::F32) -> S::F32 {
    let minus_gate = simd.sub(simd.splat(0.0), gate);
    let silu = simd.div(gate, simd.add(simd.splat(1.0), exp(simd, minus_gate)));
    simd.mul(silu, up)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activations::ActivationKinds;

    #[test]
    fn is_the_formula_with_the_same_bits_on_every_isa() {
        for cols in [1, 15, 16, 17, 31, 64, 100, 4864] {
            let gate_up: Vec<f32> = (0..2 * cols).map(|i| ((i * 71 % 1009) as f32 - 500.0) * 0.07).collect();
            let mut expected = vec![0.0; cols];
            silu_mul_row(Isa::SCALAR, &gate_up, &mut expected);
            for i in 0..cols {
                let (gate, up) = (f64::from(gate_up[i]), f64::from(gate_up[cols + i]));
                let exact = gate / (1.0 + (-gate).exp()) * up;
                assert!((f64::from(expected[i]) - exact).abs() <= 4e-7 * exact.abs(), "silu({gate}) * {up}");
            }
            for isa in Isa::available() {
                let mut found = vec![0.0; cols];
                silu_mul_row(isa, &gate_up, &mut found);
                assert_eq!(found, expected, "{isa} {cols}");
            }
        }
    }

    #[test]
    fn rows_are_computed_one_by_one() {
        let gate_up: Vec<f32> = (0..7 * 64).map(|i| (i * 29 % 83) as f32 * 0.1 - 4.0).collect();
        let mut out = Activations::new(Isa::best(), 8, 32, ActivationKinds { int8: false, f32: true });
        silu_mul(&Pool::new(3), Isa::best(), &gate_up, &mut out);
        assert_eq!(out.num_rows(), 7);
        for (row, gate_up) in gate_up.chunks(64).enumerate() {
            let (mut expected, mut found) = ([0.0; 32], [0.0; 32]);
            silu_mul_row(Isa::best(), gate_up, &mut expected);
            out.copy_row(row, &mut found);
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn extremes_stay_in_their_element() {
        for isa in Isa::available() {
            let mut out = [0.0; 5];
            let gate_up = [-1000.0, 1000.0, f32::NAN, f32::INFINITY, 0.0, 1.0, 2.0, 1.0, 1.0, 1.0];
            silu_mul_row(isa, &gate_up, &mut out);
            assert_eq!((out[0], out[1], out[3], out[4]), (0.0, 2000.0, f32::INFINITY, 0.0), "{isa}");
            assert!(out[2].is_nan());
        }
    }
}
