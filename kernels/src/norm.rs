//! RMS normalisation of rows.
//!
//! The sum of squares runs in four accumulators of sixteen lanes on every instruction set, so that a row has the same
//! bits everywhere.

use crate::activations::Activations;
use crate::isa::Isa;
use crate::pool::Pool;
use crate::simd::{LANES, Simd, Task, dispatch};

/// Elements that the accumulators take in one round.
const ROUND: usize = 4 * LANES;

/// Root mean square normalisation (Zhang and Sennrich 2019, eq. 4): `out = x / sqrt(mean(x^2) + eps) * weight`, with
/// `weight` applied last as in Hugging Face's `LlamaRMSNorm`.
///
/// `x`, `weight` and `out` are `[cols]`. A NaN or an infinity in `x` spoils this row and no other.
///
/// # Panics
/// When the lengths differ.
pub fn rms_norm_row(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "a norm of {} by {}", x.len(), weight.len());
    dispatch(isa, Row { x, weight, eps, out });
}

/// Which rows of a matrix an operation reads, in the order of its output.
#[derive(Clone, Copy, Debug)]
pub enum RowSelect<'a> {
    /// The first so many.
    All(usize),
    /// Those with these indices.
    Rows(&'a [u32]),
}

impl RowSelect<'_> {
    /// Rows of the output.
    #[must_use]
    pub fn num_rows(self) -> usize {
        match self {
            RowSelect::All(num_rows) => num_rows,
            RowSelect::Rows(rows) => rows.len(),
        }
    }

    /// Row of the input that output row `row` comes from.
    fn source(self, row: usize) -> usize {
        match self {
            RowSelect::All(_) => row,
            RowSelect::Rows(rows) => rows[row] as usize,
        }
    }
}

/// [`rms_norm_row`] of rows of `x`, `[*, cols]` with `cols` the length of `weight`, into `out`.
///
/// # Panics
/// When a row is missing in `x`, or the sizes of `out` do not fit.
pub fn rms_norm(
    pool: &Pool,
    isa: Isa,
    x: &[f32],
    rows: RowSelect<'_>,
    weight: &[f32],
    eps: f32,
    out: &mut Activations,
) {
    let cols = weight.len();
    assert!(out.cols() == cols, "a norm of {cols} into rows of {}", out.cols());
    out.fill(pool, rows.num_rows(), |row, out| {
        rms_norm_row(isa, &x[rows.source(row) * cols..][..cols], weight, eps, out);
    });
}

struct Row<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Task for Row<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let factor = inverse_rms(simd, self.x, self.eps);
        for ((out, x), weight) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *out = x * factor * weight;
        }
    }
}

/// [`rms_norm_row`] in place, for use inside another task.
#[inline(always)]
pub(crate) fn rms_norm_in_place<S: Simd>(simd: S, x: &mut [f32], weight: &[f32], eps: f32) {
    let factor = inverse_rms(simd, x, eps);
    for (x, weight) in x.iter_mut().zip(weight) {
        *x = *x * factor * weight;
    }
}

#[inline(always)]
fn inverse_rms<S: Simd>(simd: S, x: &[f32], eps: f32) -> f32 {
    let mut sums = [simd.splat(0.0); 4];
    let (rounds, rest) = x.as_chunks::<ROUND>();
    for round in rounds {
        add_squares(simd, round, &mut sums);
    }
    if !rest.is_empty() {
        let mut round = [0.0; ROUND];
        round[..rest.len()].copy_from_slice(rest);
        add_squares(simd, &round, &mut sums);
    }
    let sum = simd.sum(simd.add(simd.add(sums[0], sums[1]), simd.add(sums[2], sums[3])));
    1.0 / (sum / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn add_squares<S: Simd>(simd: S, round: &[f32; ROUND], sums: &mut [S::F32; 4]) {
    let (chunks, _) = round.as_chunks::<LANES>();
    for (sum, chunk) in sums.iter_mut().zip(chunks) {
        let x = simd.load(chunk);
        *sum = simd.fma(x, x, *sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activations::ActivationKinds;

    #[test]
    fn is_the_formula_with_the_same_bits_on_every_isa() {
        for cols in [1, 7, 8, 15, 16, 17, 63, 64, 65, 576, 896, 1000] {
            let x: Vec<f32> = (0..cols).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.13).collect();
            let weight: Vec<f32> = (0..cols).map(|i| 1.0 + (i % 13) as f32 * 0.01).collect();
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / cols as f64;
            let mut expected = vec![0.0; cols];
            rms_norm_row(Isa::SCALAR, &x, &weight, 1e-6, &mut expected);
            for i in 0..cols {
                let exact = f64::from(x[i]) / (mean + 1e-6).sqrt() * f64::from(weight[i]);
                assert!((f64::from(expected[i]) - exact).abs() <= 1e-6 * exact.abs(), "{cols} {i}");
            }
            for isa in Isa::available() {
                let mut found = vec![0.0; cols];
                rms_norm_row(isa, &x, &weight, 1e-6, &mut found);
                assert_eq!(found, expected, "{isa} {cols}");
                let mut in_place = x.clone();
                dispatch(isa, InPlace(&mut in_place, &weight));
                assert_eq!(in_place, expected, "{isa} {cols} in place");
            }
        }
    }

    struct InPlace<'a>(&'a mut [f32], &'a [f32]);

    impl Task for InPlace<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            rms_norm_in_place(simd, self.0, self.1, 1e-6);
        }
    }

    #[test]
    fn selected_rows_are_normalised_one_by_one() {
        let x: Vec<f32> = (0..5 * 32).map(|i| (i * 31 % 57) as f32 - 20.0).collect();
        let weight = [0.5; 32];
        let pool = Pool::new(2);
        let mut out = Activations::new(Isa::best(), 5, 32, ActivationKinds { int8: false, f32: true });
        for (rows, sources) in [(RowSelect::Rows(&[4, 0]), vec![4, 0]), (RowSelect::All(5), vec![0, 1, 2, 3, 4])] {
            rms_norm(&pool, Isa::best(), &x, rows, &weight, 1e-5, &mut out);
            assert_eq!(out.num_rows(), sources.len());
            for (row, source) in sources.into_iter().enumerate() {
                let (mut expected, mut found) = ([0.0; 32], [0.0; 32]);
                rms_norm_row(Isa::best(), &x[source * 32..][..32], &weight, 1e-5, &mut expected);
                out.copy_row(row, &mut found);
                assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn a_row_of_zeros_stays_zero() {
        let mut out = [1.0; 20];
        rms_norm_row(Isa::best(), &[0.0; 20], &[3.0; 20], 1e-5, &mut out);
        assert_eq!(out, [0.0; 20]);
    }
}
