//! [`Activations`]: rows of a step as the matmuls that follow want to read them.
//!
//! A row is written once, by the operator that produces it (norm, SwiGLU, attention), and quantized on the way. Rows
//! are grouped in tiles of up to [`MAX_TILE_ROWS`], which a matmul kernel holds in registers together; inside a tile
//! the rows take turns every 64 columns, so that one pointer with constant displacements reaches all of them:
//!
//! ```text
//! tile 0: row 0 [0..64] | row 1 [0..64] | row 2 [0..64] | row 0 [64..128] | row 1 [64..128] | …   then tile 1
//! ```
//!
//! Where a row lies never changes its numbers.

use std::ops::Range;

use crate::aligned::{AlignedVec, Plain};
use crate::isa::Isa;
use crate::pool::{MAX_THREADS, Pool};
use crate::shared::SharedSlice;

mod quantize;

use quantize::quantize_row;

/// Most rows in a tile: eight weight registers and these accumulators still fit 32 registers.
pub(crate) const MAX_TILE_ROWS: usize = 12;
/// Rows that a tile is meant to have; more than a dozen rows are cut into tiles near this size.
const TILE_ROWS: usize = 8;
/// Columns in an [`Int8Unit`].
pub(crate) const INT8_COLS: usize = 64;
/// Columns in a [`FloatUnit`].
pub(crate) const FLOAT_COLS: usize = 16;
/// Columns that share a scale.
const BLOCK_LEN: usize = 32;

/// Which forms of its rows an [`Activations`] keeps; the union of what the matmuls that read it want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActivationKinds {
    /// Blocks of 32 signed bytes with a scale, for [`ActivationKind::Int8`] matrices.
    pub int8: bool,
    /// Single precision, for [`ActivationKind::F32`] matrices.
    pub f32: bool,
}

/// The form of activations that a packed matrix reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationKind {
    /// Blocks of 32 signed bytes with a scale.
    Int8,
    /// Single precision.
    F32,
}

/// 64 columns of one row: two blocks of 32 signed bytes. Two cache lines, so that rows written by two threads share none.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Int8Unit {
    /// Word `8 * block + j` holds columns `4 * j ..` of the block, the first in the lowest byte; each in -127..=127.
    pub(crate) words: [i32; 16],
    pub(crate) scales: [f32; 2],
    /// `-128 * sum of the block`: what to start from when the weights have 128 added.
    pub(crate) q8_init: [i32; 2],
    /// `-8 * sum of the block`: what to start from when the weights have 8 added.
    pub(crate) q4_init: [i32; 2],
    /// `-16 * sum of the block`: what to start from when the weights have 16 added.
    pub(crate) q5_init: [i32; 2],
    /// `-32 * sum of a sixteenth`, two in each block: what to start from when the weights have 32 added.
    pub(crate) q6_init: [[i32; 2]; 2],
    /// Scale times sum of the block: what a minimum that is taken from every weight is multiplied by.
    pub(crate) sums: [f32; 2],
    padding: [i32; 2],
}

// SAFETY: plain numbers without implicit padding (64 + 4 * 8 + 16 + 8 + 8 bytes), valid for every bit pattern.
unsafe impl Plain for Int8Unit {}

/// 16 columns of one row.
pub(crate) type FloatUnit = [f32; FLOAT_COLS];

/// Rows that a matmul kernel computes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tile {
    pub(crate) first_row: usize,
    /// 1 to [`MAX_TILE_ROWS`].
    pub(crate) num_rows: usize,
}

/// Rows of activations, `[num_rows, cols]`, in one or two forms; the memory is allocated once.
pub struct Activations {
    isa: Isa,
    max_rows: usize,
    num_rows: usize,
    cols: usize,
    /// `cols.div_ceil(64)` units a row; empty if not kept.
    int8: AlignedVec<Int8Unit>,
    /// `cols.div_ceil(16)` units a row; empty if not kept.
    float: AlignedVec<FloatUnit>,
    /// A row of f32 for each thread, padded with zeros to whole units.
    scratch: AlignedVec<f32>,
}

impl Activations {
    /// Room for `max_rows` rows of `cols` values; no rows yet.
    #[must_use]
    pub fn new(isa: Isa, max_rows: usize, cols: usize, kinds: ActivationKinds) -> Self {
        let len = |wanted: bool, unit_cols: usize| if wanted { max_rows * cols.div_ceil(unit_cols) } else { 0 };
        Self {
            isa,
            max_rows,
            num_rows: 0,
            cols,
            int8: AlignedVec::zeroed(len(kinds.int8, INT8_COLS)),
            float: AlignedVec::zeroed(len(kinds.f32, FLOAT_COLS)),
            scratch: AlignedVec::zeroed(MAX_THREADS * cols.next_multiple_of(INT8_COLS)),
        }
    }

    /// Rows of the last [`Activations::fill`].
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Values in a row.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Rows that there is room for.
    #[must_use]
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Whether rows are kept in this form.
    #[must_use]
    pub fn has(&self, kind: ActivationKind) -> bool {
        match kind {
            ActivationKind::Int8 => !self.int8.is_empty() || self.max_rows * self.cols == 0,
            ActivationKind::F32 => !self.float.is_empty() || self.max_rows * self.cols == 0,
        }
    }

    /// Replaces all rows: `produce(row, out)` writes row `row` to `out`, `[cols]`, on any thread of the pool. What
    /// `out` holds before is unspecified.
    ///
    /// # Panics
    /// When there is no room for `num_rows`.
    pub fn fill(&mut self, pool: &Pool, num_rows: usize, produce: impl Fn(usize, &mut [f32]) + Sync) {
        assert!(num_rows <= self.max_rows, "{num_rows} rows of activations, room for {}", self.max_rows);
        self.num_rows = num_rows;
        let (cols, padded) = (self.cols, self.cols.next_multiple_of(INT8_COLS));
        let quantize = quantize_row(self.isa);
        let num_units = self.units_per_row();
        let (keep_int8, keep_float) = (!self.int8.is_empty(), !self.float.is_empty());
        let (int8, float) = (SharedSlice::new(&mut self.int8), SharedSlice::new(&mut self.float));
        let scratch = SharedSlice::new(&mut self.scratch);
        pool.for_each_on(num_rows, 1, |thread_idx, rows| {
            // SAFETY: each thread takes its own row of scratch.
            let values = unsafe { scratch.part(thread_idx * padded..(thread_idx + 1) * padded) };
            for row in rows {
                produce(row, &mut values[..cols]);
                if keep_int8 {
                    let mut units = RowUnits::new(&int8, num_rows, row, num_units.int8);
                    quantize(values, &mut units);
                }
                if keep_float {
                    let mut units = RowUnits::new(&float, num_rows, row, num_units.float);
                    for (unit_idx, values) in values.as_chunks::<FLOAT_COLS>().0[..num_units.float].iter().enumerate() {
                        *units.unit(unit_idx) = *values;
                    }
                }
            }
        });
    }

    /// Copies row `row` to `out`, `[cols]`: as it was produced if f32 rows are kept, else what its bytes stand for.
    ///
    /// # Panics
    /// When there is no such row or `out` has another length.
    pub fn copy_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.num_rows, "row {row} of {}", self.num_rows);
        assert_eq!(out.len(), self.cols, "a row has {} values", self.cols);
        let num_units = self.units_per_row();
        let tile = tile_of_row(self.num_rows, row);
        let of_row = row - tile.first_row;
        if !self.float.is_empty() {
            let units = self.float_tile(tile).iter().skip(of_row).step_by(tile.num_rows);
            for (out, unit) in out.chunks_mut(FLOAT_COLS).zip(units.take(num_units.float)) {
                out.copy_from_slice(&unit[..out.len()]);
            }
            return;
        }
        let units = self.int8_tile(tile).iter().skip(of_row).step_by(tile.num_rows);
        for (out, unit) in out.chunks_mut(INT8_COLS).zip(units.take(num_units.int8)) {
            for (i, value) in out.iter_mut().enumerate() {
                *value = f32::from(unit.column(i)) * unit.scales[i / BLOCK_LEN];
            }
        }
    }

    /// The tiles that the rows are cut into.
    pub(crate) fn tiles(&self) -> impl Iterator<Item = Tile> + use<> {
        let num_rows = self.num_rows;
        (0..num_tiles(num_rows)).map(move |tile_idx| tile(num_rows, tile_idx))
    }

    /// The bytes of a tile: `[cols / 64][rows of the tile]`.
    pub(crate) fn int8_tile(&self, tile: Tile) -> &[Int8Unit] {
        let num_units = self.units_per_row().int8;
        &self.int8[tile.first_row * num_units..][..tile.num_rows * num_units]
    }

    /// The f32 values of a tile: `[cols / 16][rows of the tile]`.
    pub(crate) fn float_tile(&self, tile: Tile) -> &[FloatUnit] {
        let num_units = self.units_per_row().float;
        &self.float[tile.first_row * num_units..][..tile.num_rows * num_units]
    }

    fn units_per_row(&self) -> NumUnits {
        NumUnits { int8: self.cols.div_ceil(INT8_COLS), float: self.cols.div_ceil(FLOAT_COLS) }
    }
}

#[derive(Clone, Copy)]
struct NumUnits {
    int8: usize,
    float: usize,
}

impl Int8Unit {
    /// The byte of column `col`, in 0..64.
    pub(crate) fn column(&self, col: usize) -> i8 {
        let bytes = self.words[col / 4].to_le_bytes();
        bytes[col % 4].cast_signed()
    }
}

/// A dozen rows are one tile; more are cut evenly into tiles of about eight.
fn num_tiles(num_rows: usize) -> usize {
    ((num_rows + TILE_ROWS / 2 - 1) / TILE_ROWS).max(num_rows.min(1))
}

fn tile(num_rows: usize, tile_idx: usize) -> Tile {
    let num_tiles = num_tiles(num_rows);
    let (small, num_large) = (num_rows / num_tiles, num_rows % num_tiles);
    let first_row = tile_idx * small + tile_idx.min(num_large);
    Tile { first_row, num_rows: small + usize::from(tile_idx < num_large) }
}

fn tile_of_row(num_rows: usize, row: usize) -> Tile {
    let num_tiles = num_tiles(num_rows);
    let (small, num_large) = (num_rows / num_tiles, num_rows % num_tiles);
    let in_large = num_large * (small + 1);
    let tile_idx = if row < in_large { row / (small + 1) } else { num_large + (row - in_large) / small };
    tile(num_rows, tile_idx)
}

/// The places of one row's units among those of its tile.
struct RowUnits<'a, T> {
    units: &'a SharedSlice<'a, T>,
    places: Range<usize>,
    stride: usize,
}

impl<'a, T> RowUnits<'a, T> {
    fn new(units: &'a SharedSlice<'a, T>, num_rows: usize, row: usize, num_units: usize) -> Self {
        let tile = tile_of_row(num_rows, row);
        let start = tile.first_row * num_units;
        let places = start + row - tile.first_row..start + tile.num_rows * num_units;
        Self { units, places, stride: tile.num_rows }
    }

    /// Where to write unit `unit_idx` of the row.
    #[inline(always)]
    fn unit(&mut self, unit_idx: usize) -> &mut T {
        let place = self.places.start + unit_idx * self.stride;
        debug_assert!(place < self.places.end);
        // SAFETY: a row is filled by one thread, and the places of two rows are disjoint.
        let place = unsafe { self.units.part(place..place + 1) };
        &mut place[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: ActivationKinds = ActivationKinds { int8: true, f32: true };
    const INT8: ActivationKinds = ActivationKinds { int8: true, f32: false };

    fn noise(seed: usize) -> f32 {
        let hash = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((hash >> 40) as f32 / 8_388_608.0 - 1.0) * 3.0
    }

    #[test]
    fn tiles_are_even_and_cover_every_row_once() {
        for num_rows in 0..=300 {
            let mut next = 0;
            for tile_idx in 0..num_tiles(num_rows) {
                let tile = tile(num_rows, tile_idx);
                assert_eq!(tile.first_row, next, "{num_rows}");
                assert!((1..=MAX_TILE_ROWS).contains(&tile.num_rows), "{num_rows}");
                for row in tile.first_row..tile.first_row + tile.num_rows {
                    assert_eq!(tile_of_row(num_rows, row), tile);
                }
                next += tile.num_rows;
            }
            assert_eq!(next, num_rows);
        }
    }

    #[test]
    fn rows_come_back_whatever_the_number_of_rows_and_threads() {
        let isa = Isa::best();
        for cols in [32, 64, 96, 896] {
            for num_rows in [1, 2, 7, 12, 13, 17, 33] {
                let produce = |row: usize, out: &mut [f32]| {
                    for (i, x) in out.iter_mut().enumerate() {
                        *x = noise(row * 1000 + i);
                    }
                };
                let mut exact = Activations::new(isa, 40, cols, BOTH);
                let mut bytes = Activations::new(Isa::SCALAR, 40, cols, INT8);
                exact.fill(&Pool::new(3), num_rows, produce);
                bytes.fill(&Pool::new(1), num_rows, produce);
                assert_eq!(exact.int8[..num_rows * cols.div_ceil(64)], bytes.int8[..num_rows * cols.div_ceil(64)]);
                let (mut expected, mut got) = (vec![0.0; cols], vec![0.0; cols]);
                for row in 0..num_rows {
                    produce(row, &mut expected);
                    exact.copy_row(row, &mut got);
                    assert_eq!(got, expected);
                    bytes.copy_row(row, &mut got);
                    for (got, expected) in got.iter().zip(&expected) {
                        assert!((got - expected).abs() < 3.0 / 127.0, "{got} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_isa_quantizes_extremes_alike() {
        let specials = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            1e-45,
            1e-40,
            3.8e-6,
            7.6e-6,
            1e-3,
            127.0,
            126.5,
            8.4e6,
            1e30,
            f32::MAX,
            f32::INFINITY,
            f32::NAN,
        ];
        for (first, value) in specials.into_iter().enumerate() {
            for second in specials {
                let mut values = [0.0; INT8_COLS];
                for (i, x) in values.iter_mut().enumerate() {
                    *x = if i % 5 == 0 { value } else { noise(first * 64 + i) * second };
                }
                let mut rows = Isa::available().map(|isa| {
                    let mut rows = Activations::new(isa, 1, INT8_COLS, INT8);
                    rows.fill(&Pool::new(1), 1, |_, out| out.copy_from_slice(&values));
                    let unit = rows.int8[0];
                    (
                        unit.words,
                        unit.q8_init,
                        unit.q4_init,
                        unit.scales.map(|s| if s.is_nan() { 0 } else { s.to_bits() }),
                    )
                });
                let best = rows.next().unwrap();
                assert!(rows.all(|row| row == best), "{value} {second}");
            }
        }
    }
}
