//! Activation functions: the elementwise part of a gated MLP, and the soft cap on logits.

use crate::activations::Activations;
use crate::isa::Isa;
use crate::pool::Pool;
use crate::shared::SharedSlice;
use crate::simd::{LANES, Simd, Task, dispatch, exp, partial};

/// Logits that a thread caps at a time: some 10 µs of work.
const CAP_GRAIN: usize = 16 << 10;

/// The function that a gated MLP applies to its gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `x / (1 + e^-x)`: SwiGLU.
    Silu,
    /// GELU by its approximation with tanh (Hendrycks and Gimpel 2016): `gelu_pytorch_tanh`.
    GeluTanh,
}

/// `out = act(gate) * up`.
///
/// `gate_up` is `[2 * cols]`, the gate first; `out` is `[cols]`. Relative error below 4e-7 where nothing overflows
/// (GELU: 5e-7, or 1e-7 in all), the same bits on every instruction set. NaN and infinity stay in their element.
///
/// # Panics
/// When `gate_up` is not twice as long as `out`.
pub fn gated_row(isa: Isa, act: Gate, gate_up: &[f32], out: &mut [f32]) {
    assert!(gate_up.len() == 2 * out.len(), "a gate of {} into {}", gate_up.len(), out.len());
    let (gate, up) = gate_up.split_at(out.len());
    dispatch(isa, Row { act, gate, up, out });
}

/// [`gated_row`] with [`Gate::Silu`].
///
/// # Panics
/// When `gate_up` is not twice as long as `out`.
pub fn silu_mul_row(isa: Isa, gate_up: &[f32], out: &mut [f32]) {
    gated_row(isa, Gate::Silu, gate_up, out);
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

/// `x = cap * tanh(x / cap)` for every element (Gemma 2's logits).
pub fn softcap_all(pool: &Pool, isa: Isa, x: &mut [f32], cap: f32) {
    let num_chunks = x.len().div_ceil(CAP_GRAIN);
    let len = x.len();
    let shared = SharedSlice::new(x);
    pool.for_each(num_chunks, 1, |chunks| {
        // SAFETY: ranges of chunks that `for_each` hands out do not overlap.
        let part = unsafe { shared.part(chunks.start * CAP_GRAIN..len.min(chunks.end * CAP_GRAIN)) };
        dispatch(isa, Cap { x: part, cap });
    });
}

struct Row<'a> {
    act: Gate,
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
            let value = gated(simd, self.act, simd.load(gate), simd.load(up));
            simd.store(value, out);
        }
        if !out_rest.is_empty() {
            let mut lanes = [0.0; LANES];
            let gate = simd.load(&partial(gate_rest, 0.0));
            let value = gated(simd, self.act, gate, simd.load(&partial(up_rest, 0.0)));
            simd.store(value, &mut lanes);
            out_rest.copy_from_slice(&lanes[..out_rest.len()]);
        }
    }
}

#[inline(always)]
fn gated<S: Simd>(simd: S, act: Gate, gate: S::F32, up: S::F32) -> S::F32 {
    let minus_exponent = match act {
        Gate::Silu => gate,
        Gate::GeluTanh => {
            // (1 + tanh(u)) / 2 = 1 / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
            let square = simd.mul(gate, gate);
            let factor = simd.fma(square, simd.splat(2.0 * 0.797_884_6 * 0.044_715), simd.splat(2.0 * 0.797_884_6));
            simd.mul(gate, factor)
        }
    };
    let exponential = exp(simd, simd.sub(simd.splat(0.0), minus_exponent));
    simd.mul(simd.div(gate, simd.add(simd.splat(1.0), exponential)), up)
}

struct Cap<'a> {
    x: &'a mut [f32],
    cap: f32,
}

impl Task for Cap<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (chunks, rest) = self.x.as_chunks_mut::<LANES>();
        for chunk in chunks {
            let value = softcap(simd, simd.load(chunk), self.cap);
            simd.store(value, chunk);
        }
        if !rest.is_empty() {
            let mut lanes = partial(rest, 0.0);
            let value = softcap(simd, simd.load(&lanes), self.cap);
            simd.store(value, &mut lanes);
            rest.copy_from_slice(&lanes[..rest.len()]);
        }
    }
}

/// `cap * tanh(x / cap)`, by `tanh(y) = 1 - 2 / (e^2y + 1)`: absolute error below 2e-7 of `cap`.
#[inline(always)]
pub(crate) fn softcap<S: Simd>(simd: S, x: S::F32, cap: f32) -> S::F32 {
    let one = simd.splat(1.0);
    let exponential = exp(simd, simd.div(simd.mul(x, simd.splat(2.0)), simd.splat(cap)));
    let tanh = simd.sub(one, simd.div(simd.splat(2.0), simd.add(exponential, one)));
    simd.mul(tanh, simd.splat(cap))
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
    fn gelu_and_the_soft_cap_are_their_formulas_with_the_same_bits_on_every_isa() {
        let x: Vec<f32> = (0..203).map(|i| (i as f32 - 101.0) * 0.09).collect();
        let gate_up: Vec<f32> = x.iter().copied().chain(x.iter().map(|_| 1.0)).collect();
        let (mut gelu, mut capped) = (vec![0.0; 203], x.clone());
        gated_row(Isa::SCALAR, Gate::GeluTanh, &gate_up, &mut gelu);
        softcap_all(&Pool::new(1), Isa::SCALAR, &mut capped, 5.0);
        for i in 0..203 {
            let x = f64::from(x[i]);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            let exact = x / (1.0 + (-2.0 * inner).exp());
            assert!((f64::from(gelu[i]) - exact).abs() <= 5e-7 * exact.abs() + 1e-7, "gelu({x}) = {}", gelu[i]);
            let exact = 5.0 * (x / 5.0).tanh();
            assert!((f64::from(capped[i]) - exact).abs() <= 1e-6, "cap of {x} is {}, not {exact}", capped[i]);
        }
        for isa in Isa::available() {
            let (mut found, mut found_capped) = (vec![0.0; 203], x.clone());
            gated_row(isa, Gate::GeluTanh, &gate_up, &mut found);
            softcap_all(&Pool::new(2), isa, &mut found_capped, 5.0);
            assert_eq!((found, found_capped), (gelu.clone(), capped.clone()), "{isa}");
        }
        let mut edges = [f32::INFINITY, f32::NEG_INFINITY, 1e30, f32::NAN];
        softcap_all(&Pool::new(1), Isa::best(), &mut edges, 30.0);
        assert_eq!(edges[..3], [30.0, -30.0, 30.0]);
        assert!(edges[3].is_nan());
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
