//! [`PackedMatrix`]: a weight matrix in the order in which its kernel reads it.

use half::{bf16, f16};

use super::job::Kernel;
use super::super_units::{Q4KUnit, Q5KUnit, Q6KUnit};
use super::units::{Iq4Unit, LANES, Q4Unit, Q5Unit, Q8Unit, Unit};
use super::{Layout, dispatch};
use crate::activations::ActivationKind;
use crate::aligned::AlignedVec;
use crate::isa::Isa;
use crate::pool::Pool;
use crate::quant::{Format, QuantMatrix};
use crate::shared::SharedSlice;

/// Rows of a [`PackedMatrix`] that come from one matrix of a file.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The matrix.
    pub matrix: QuantMatrix<'a>,
    /// Row `i` of the part is row `row_order[i]` of the matrix; in the order of the file if `None`.
    pub row_order: Option<&'a [u32]>,
}

impl<'a> Part<'a> {
    /// A whole matrix, in the order of its file.
    #[must_use]
    pub fn new(matrix: QuantMatrix<'a>) -> Self {
        Self { matrix, row_order: None }
    }

    fn rows(&self) -> usize {
        self.row_order.map_or(self.matrix.rows(), <[u32]>::len)
    }
}

/// An immutable weight matrix `[rows, cols]`, packed for the kernels of one instruction set.
pub struct PackedMatrix {
    rows: usize,
    cols: usize,
    pub(super) weights: Weights,
    /// `[rows]`, or empty.
    pub(super) bias: Vec<f32>,
}

/// The packed weights and the kernel that multiplies with them, chosen once.
pub(super) enum Weights {
    Q8(Blocks<Q8Unit>),
    Q4(Blocks<Q4Unit>),
    Q5(Blocks<Q5Unit>),
    Iq4(Blocks<Iq4Unit>),
    Q4K(Blocks<Q4KUnit>),
    Q5K(Blocks<Q5KUnit>),
    Q6K(Blocks<Q6KUnit>),
    F32(Blocks<[f32; LANES]>),
    F16(Blocks<[f16; LANES]>),
    BF16(Blocks<[bf16; LANES]>),
}

/// Units of all n-blocks, `[rows / 16][units_per_block]`; channels and columns past the end are zero.
pub(super) struct Blocks<U: Unit> {
    pub(super) units: AlignedVec<U>,
    pub(super) units_per_block: usize,
    pub(super) kernel: Kernel<U>,
}

impl PackedMatrix {
    /// Stacks the rows of `parts` and packs them as `layout`. Values of another format are converted on the way, a row
    /// at a time, so there is never a second copy of the matrix.
    ///
    /// # Panics
    /// When there are no parts, their rows differ in length, `cols` is not whole blocks of the layout's format, or a row
    /// order names a row that is not there.
    #[must_use]
    pub fn pack(isa: Isa, pool: &Pool, parts: &[Part<'_>], layout: Layout) -> PackedMatrix {
        let cols = parts.first().expect("a matrix has parts").matrix.cols();
        assert!(parts.iter().all(|part| part.matrix.cols() == cols), "stacked matrices have rows of one length");
        assert!(layout.native_format().row_bytes(cols).is_some(), "{layout:?} cannot hold rows of {cols} values");
        let weights = match layout {
            Layout::Q8 => Weights::Q8(Blocks::pack(pool, parts, dispatch::q8(isa))),
            Layout::Q4 => Weights::Q4(Blocks::pack(pool, parts, dispatch::q4(isa))),
            Layout::Q5 => Weights::Q5(Blocks::pack(pool, parts, dispatch::q5(isa))),
            Layout::Iq4 => Weights::Iq4(Blocks::pack(pool, parts, dispatch::iq4(isa))),
            Layout::Q4K => Weights::Q4K(Blocks::pack(pool, parts, dispatch::q4_k(isa))),
            Layout::Q5K => Weights::Q5K(Blocks::pack(pool, parts, dispatch::q5_k(isa))),
            Layout::Q6K => Weights::Q6K(Blocks::pack(pool, parts, dispatch::q6_k(isa))),
            Layout::F32 => Weights::F32(Blocks::pack(pool, parts, dispatch::f32(isa))),
            Layout::F16 => Weights::F16(Blocks::pack(pool, parts, dispatch::f16(isa))),
            Layout::BF16 => Weights::BF16(Blocks::pack(pool, parts, dispatch::bf16(isa))),
        };
        PackedMatrix { rows: parts.iter().map(Part::rows).sum(), cols, weights, bias: Vec::new() }
    }

    /// Bytes that a matrix `[rows, cols]` takes when packed as `layout`, its bias excepted.
    #[must_use]
    pub fn size_bytes_for(rows: usize, cols: usize, layout: Layout) -> usize {
        fn unit<U: Unit>() -> (usize, usize) {
            (U::COLS, size_of::<U>())
        }
        let (unit_cols, unit_bytes) = match layout {
            Layout::Q8 => unit::<Q8Unit>(),
            Layout::Q4 => unit::<Q4Unit>(),
            Layout::Q5 => unit::<Q5Unit>(),
            Layout::Iq4 => unit::<Iq4Unit>(),
            Layout::Q4K => unit::<Q4KUnit>(),
            Layout::Q5K => unit::<Q5KUnit>(),
            Layout::Q6K => unit::<Q6KUnit>(),
            Layout::F32 => unit::<[f32; LANES]>(),
            Layout::F16 => unit::<[f16; LANES]>(),
            Layout::BF16 => unit::<[bf16; LANES]>(),
        };
        rows.div_ceil(LANES) * cols.div_ceil(unit_cols) * unit_bytes
    }

    /// Adds `bias`, `[rows]`, to every row of every product.
    ///
    /// # Panics
    /// When it has another length.
    #[must_use]
    pub fn with_bias(mut self, bias: Vec<f32>) -> Self {
        assert_eq!(bias.len(), self.rows, "a bias has a value for each of {} rows", self.rows);
        self.bias = bias;
        self
    }

    /// Output channels.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input channels.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How the weights are packed.
    #[must_use]
    pub fn layout(&self) -> Layout {
        match self.weights {
            Weights::Q8(_) => Layout::Q8,
            Weights::Q4(_) => Layout::Q4,
            Weights::Q5(_) => Layout::Q5,
            Weights::Iq4(_) => Layout::Iq4,
            Weights::Q4K(_) => Layout::Q4K,
            Weights::Q5K(_) => Layout::Q5K,
            Weights::Q6K(_) => Layout::Q6K,
            Weights::F32(_) => Layout::F32,
            Weights::F16(_) => Layout::F16,
            Weights::BF16(_) => Layout::BF16,
        }
    }

    /// Bytes of the packed weights.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        Self::size_bytes_for(self.rows, self.cols, self.layout())
    }

    /// The form of activations that [`super::matmul`] reads for this matrix.
    #[must_use]
    pub fn activation_kind(&self) -> ActivationKind {
        self.layout().activation_kind()
    }

    /// The values of one row, exactly as packed, `out` being `[cols]`; for a matrix that is also the embedding table.
    ///
    /// # Panics
    /// When there is no such row or `out` has another length.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of a matrix of {} rows", self.rows);
        assert_eq!(out.len(), self.cols, "a row has {} values", self.cols);
        match &self.weights {
            Weights::Q8(blocks) => blocks.unpack(row, out),
            Weights::Q4(blocks) => blocks.unpack(row, out),
            Weights::Q5(blocks) => blocks.unpack(row, out),
            Weights::Iq4(blocks) => blocks.unpack(row, out),
            Weights::Q4K(blocks) => blocks.unpack(row, out),
            Weights::Q5K(blocks) => blocks.unpack(row, out),
            Weights::Q6K(blocks) => blocks.unpack(row, out),
            Weights::F32(blocks) => blocks.unpack(row, out),
            Weights::F16(blocks) => blocks.unpack(row, out),
            Weights::BF16(blocks) => blocks.unpack(row, out),
        }
    }
}

impl<U: Unit> Blocks<U> {
    fn pack(pool: &Pool, parts: &[Part<'_>], kernel: Kernel<U>) -> Self {
        let cols = parts[0].matrix.cols();
        let rows: usize = parts.iter().map(Part::rows).sum();
        let num_blocks = rows.div_ceil(LANES);
        let units_per_block = cols.div_ceil(U::COLS);
        let mut units = AlignedVec::zeroed(num_blocks * units_per_block);
        let shared = SharedSlice::new(&mut units);
        pool.for_each(num_blocks, 8, |blocks| {
            let mut scratch = Scratch::default();
            for block in blocks {
                // SAFETY: an n-block is packed by one thread.
                let units = unsafe { shared.part(block * units_per_block..(block + 1) * units_per_block) };
                for lane in 0..LANES.min(rows - block * LANES) {
                    let (matrix, row) = find_row(parts, block * LANES + lane);
                    U::pack(scratch.row_as(U::FORMAT, matrix, row), lane, units);
                }
            }
        });
        Self { units, units_per_block, kernel }
    }

    fn unpack(&self, row: usize, out: &mut [f32]) {
        let units = &self.units[row / LANES * self.units_per_block..][..self.units_per_block];
        U::unpack(units, row % LANES, out);
    }
}

/// The matrix and its row that become row `row` of the stack.
fn find_row<'a>(parts: &[Part<'a>], mut row: usize) -> (QuantMatrix<'a>, usize) {
    for part in parts {
        if row < part.rows() {
            let source = part.row_order.map_or(row, |order| order[row] as usize);
            return (part.matrix, source);
        }
        row -= part.rows();
    }
    unreachable!("the stack has as many rows as its parts");
}

/// Memory to convert a row.
#[derive(Default)]
struct Scratch {
    values: Vec<f32>,
    bytes: Vec<u8>,
}

impl Scratch {
    /// The row in `format`: the file's own bytes if it has that format already.
    fn row_as<'s>(&'s mut self, format: Format, matrix: QuantMatrix<'s>, row: usize) -> &'s [u8] {
        if matrix.format() == format {
            return matrix.row(row);
        }
        self.values.resize(matrix.cols(), 0.0);
        self.bytes.resize(format.row_bytes(matrix.cols()).expect("checked when packing began"), 0);
        matrix.convert_row(row, format, &mut self.values, &mut self.bytes);
        &self.bytes
    }
}
