//! Matrix products: activations times packed weights.
//!
//! [`PackedMatrix::pack`] arranges weights once, [`matmul`] multiplies. Every kernel equals the scalar reference bit for
//! bit, so a row's result depends on nothing but the row and the weights.

use crate::activations::{ActivationKind, Activations};
use crate::pool::Pool;
use crate::quant::Format;
use crate::shared::SharedSlice;

#[cfg(target_arch = "x86_64")]
mod avx2_float;
#[cfg(target_arch = "x86_64")]
mod avx2_int8;
#[cfg(target_arch = "x86_64")]
mod avx2_super;
#[cfg(target_arch = "x86_64")]
mod avx512_float;
#[cfg(target_arch = "x86_64")]
mod avx512_int8;
mod dispatch;
mod job;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_float;
#[cfg(target_arch = "aarch64")]
mod neon_int8;
#[cfg(target_arch = "aarch64")]
mod neon_units;
mod packed;
mod scalar;
mod super_units;
#[cfg(test)]
mod tests;
mod units;
#[cfg(target_arch = "x86_64")]
mod x86;

use job::Job;
use packed::{Blocks, Weights};
pub use packed::{PackedMatrix, Part};
use units::{LANES, Unit};

/// How weights are packed for the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Blocks of 32 signed bytes with an f16 scale: exactly the values of [`Format::Q8_0`].
    Q8,
    /// Blocks of 32 values of 4 bits with an f16 scale: exactly the values of [`Format::Q4_0`].
    Q4,
    /// Blocks of 32 values of 5 bits with an f16 scale: exactly the values of [`Format::Q5_0`].
    Q5,
    /// Blocks of 32 values of 4 bits from a table with an f16 scale: exactly the values of [`Format::IQ4_NL`].
    Iq4,
    /// Super-blocks of 4 bits with minima: exactly the values of [`Format::Q4_K`].
    Q4K,
    /// Super-blocks of 5 bits with minima: exactly the values of [`Format::Q5_K`].
    Q5K,
    /// Super-blocks of 6 bits with a scale for each sixteenth: exactly the values of [`Format::Q6_K`].
    Q6K,
    /// Single precision.
    F32,
    /// Half precision, multiplied in single.
    F16,
    /// Brain floating point, multiplied in single.
    BF16,
}

impl Layout {
    /// Every layout.
    pub const ALL: [Layout; 10] = [
        Layout::Q8,
        Layout::Q4,
        Layout::Q5,
        Layout::Iq4,
        Layout::Q4K,
        Layout::Q5K,
        Layout::Q6K,
        Layout::F32,
        Layout::F16,
        Layout::BF16,
    ];

    /// The file format with exactly these values.
    #[must_use]
    pub fn native_format(self) -> Format {
        match self {
            Layout::Q8 => Format::Q8_0,
            Layout::Q4 => Format::Q4_0,
            Layout::Q5 => Format::Q5_0,
            Layout::Iq4 => Format::IQ4_NL,
            Layout::Q4K => Format::Q4_K,
            Layout::Q5K => Format::Q5_K,
            Layout::Q6K => Format::Q6_K,
            Layout::F32 => Format::F32,
            Layout::F16 => Format::F16,
            Layout::BF16 => Format::BF16,
        }
    }

    /// The name used in logs, `inspect` and benches.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.native_format().info().name
    }

    /// The form of activations that it is multiplied with.
    #[must_use]
    pub fn activation_kind(self) -> ActivationKind {
        match self {
            Layout::F32 | Layout::F16 | Layout::BF16 => ActivationKind::F32,
            _ => ActivationKind::Int8,
        }
    }
}

/// What becomes of the numbers in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// They are overwritten.
    Replace,
    /// The product is added to them: the residual stream.
    Add,
}

/// Where a product lies in its output: row `r` starts at `r * stride + offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Values from a row to the next.
    pub stride: usize,
    /// Values before the product in each row.
    pub offset: usize,
    /// What becomes of what is there.
    pub store: Store,
}

impl Place {
    /// Rows of exactly the product, overwritten.
    #[must_use]
    pub fn rows_of(stride: usize) -> Self {
        Self { stride, offset: 0, store: Store::Replace }
    }
}

/// `out[r, ..] = x[r, ..] · Wᵀ (+ bias)`: the product of every row of `x` with every row of `weights`, at `place`.
///
/// Splits output channels over the pool and allocates nothing.
///
/// # Panics
/// When `x` has other columns than `weights` or not the form that it reads, or `out` is too short.
pub fn matmul(pool: &Pool, weights: &PackedMatrix, x: &Activations, out: &mut [f32], place: Place) {
    assert_eq!(x.cols(), weights.cols(), "activations have as many columns as the weights");
    assert!(x.has(weights.activation_kind()), "activations are kept as {:?}", weights.activation_kind());
    assert!(place.offset + weights.rows() <= place.stride, "{} columns fit {place:?}", weights.rows());
    if x.num_rows() == 0 {
        return;
    }
    let end = (x.num_rows() - 1) * place.stride + place.offset + weights.rows();
    assert!(end <= out.len(), "{} rows at {place:?} end at {end}, not {}", x.num_rows(), out.len());
    match &weights.weights {
        Weights::Q8(blocks) => multiply(pool, weights, blocks, x, out, place),
        Weights::Q4(blocks) => multiply(pool, weights, blocks, x, out, place),
        Weights::Q5(blocks) => multiply(pool, weights, blocks, x, out, place),
        Weights::Iq4(blocks) => multiply(pool, weights, blocks, x, out, place),
        Weights::Q4K(blocks) => multiply(pool, weights, blocks, x, out, place),
        Weights::Q5K(blocks) => multiply(pool, weights, blocks, x, out, place),
        Weights::Q6K(blocks) => multiply(pool, weights, blocks, x, out, place),
        Weights::F32(blocks) => multiply(pool, weights, blocks, x, out, place),
        Weights::F16(blocks) => multiply(pool, weights, blocks, x, out, place),
        Weights::BF16(blocks) => multiply(pool, weights, blocks, x, out, place),
    }
}

fn multiply<U: Unit>(
    pool: &Pool,
    weights: &PackedMatrix,
    blocks: &Blocks<U>,
    x: &Activations,
    out: &mut [f32],
    place: Place,
) {
    let job = Job {
        units: &blocks.units,
        units_per_block: blocks.units_per_block,
        x,
        rows: weights.rows(),
        bias: &weights.bias,
        out: SharedSlice::new(out),
        place,
    };
    let num_blocks = weights.rows().div_ceil(LANES);
    pool.for_each(num_blocks, grain(pool, num_blocks, &job), |range| (blocks.kernel)(&job, range));
}

/// N-blocks that a thread takes at a time: some 20 µs of work, and enough pieces to share evenly.
fn grain<U: Unit>(pool: &Pool, num_blocks: usize, job: &Job<'_, U>) -> usize {
    /// Weight bytes, times rows once arithmetic is the limit, that take about that long.
    const WORK: usize = 256 << 10;
    const ROWS_PER_READ: usize = 8;
    let block_bytes = job.units_per_block * size_of::<U>();
    let work = block_bytes * job.x.num_rows().div_ceil(ROWS_PER_READ);
    (WORK / work.max(1)).min(num_blocks / (4 * pool.num_threads())).max(1)
}
