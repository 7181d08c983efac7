//! [`Job`]: one matmul as its kernel sees it.

use std::ops::Range;

use super::units::{LANES, Unit};
use super::{Place, Store};
use crate::activations::{Activations, MAX_TILE_ROWS, Tile};
use crate::shared::SharedSlice;

/// Computes a range of n-blocks for all rows. N-blocks outside, tiles of rows inside: weights are read from memory once.
pub(crate) type Kernel<U> = fn(&Job<'_, U>, Range<usize>);

/// A matmul; several threads compute disjoint ranges of n-blocks of it.
pub(crate) struct Job<'a, U: Unit> {
    pub(super) units: &'a [U],
    pub(super) units_per_block: usize,
    pub(super) x: &'a Activations,
    /// Output channels, and lengths of `bias` unless that is empty.
    pub(super) rows: usize,
    pub(super) bias: &'a [f32],
    pub(super) out: SharedSlice<'a, f32>,
    pub(super) place: Place,
}

/// Sums of a tile of rows and an n-block.
#[repr(align(64))]
pub(crate) struct Sums(pub(crate) [[f32; LANES]; MAX_TILE_ROWS]);

impl Sums {
    pub(crate) const ZERO: Sums = Sums([[0.0; LANES]; MAX_TILE_ROWS]);
}

impl<'a, U: Unit> Job<'a, U> {
    /// The weights of n-block `block`.
    #[inline(always)]
    pub(crate) fn block(&self, block: usize) -> &'a [U] {
        &self.units[block * self.units_per_block..][..self.units_per_block]
    }

    /// Adds the bias to the sums of `tile` and n-block `block`, and stores them. Each n-block belongs to one thread.
    #[inline(always)]
    pub(crate) fn store(&self, block: usize, tile: Tile, sums: &Sums) {
        let first = block * LANES;
        let width = LANES.min(self.rows - first);
        for (row, sums) in sums.0[..tile.num_rows].iter().enumerate() {
            let mut sums = *sums;
            if !self.bias.is_empty() {
                for (sum, bias) in sums.iter_mut().zip(&self.bias[first..first + width]) {
                    *sum += bias;
                }
            }
            let start = (tile.first_row + row) * self.place.stride + self.place.offset + first;
            // SAFETY: these columns belong to this n-block, which one thread computes.
            let out = unsafe { self.out.part(start..start + width) };
            if let Some(out) = out.as_mut_array::<LANES>() {
                store_lanes(out, &sums, self.place.store);
            } else {
                store_lanes(out, &sums[..width], self.place.store);
            }
        }
    }
}

#[inline(always)]
fn store_lanes(out: &mut [f32], sums: &[f32], store: Store) {
    match store {
        Store::Replace => out.copy_from_slice(sums),
        Store::Add => {
            for (out, sum) in out.iter_mut().zip(sums) {
                *out += sum;
            }
        }
    }
}
