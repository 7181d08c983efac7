//! The inner product of attention: a few rows of broadcast values against rows of lanes in a page.
//!
//! ```text
//! out[r, 16 t ..] = start[r] * out[r, 16 t ..] + sum over i of a[r, i] * b[i * step + t * tile_step ..][..16]
//! ```
//!
//! Scores are this with `i` over channels and lanes over tokens, the weighted sum of values with `i` over tokens and
//! lanes over channels. Each lane is one chain of fused multiply-adds with `i` ascending, so that its bits do not depend
//! on how rows and lanes are gathered into tiles.

use crate::kv_cache::KvElement;
use crate::simd::{LANES, Simd, Task};

/// Operands of [`accumulate`]; strides and steps in elements.
pub(super) struct Operands<'a, E> {
    /// Rows of broadcast values.
    pub(super) a: &'a [f32],
    pub(super) a_stride: usize,
    /// Values per row of `a` that are used.
    pub(super) len: usize,
    pub(super) b: &'a [E],
    pub(super) b_step: usize,
    pub(super) b_tile_step: usize,
    pub(super) out: &'a mut [f32],
    pub(super) out_stride: usize,
    /// Factor of what is in `out`, per row; `None` starts from 0.
    pub(super) start: Option<&'a [f32]>,
    pub(super) prefetch: Prefetch,
}

/// Cache lines to ask for on the way, `lines_per_step` for each `i`.
#[derive(Clone, Copy)]
pub(super) struct Prefetch {
    pub(super) address: *const u8,
    pub(super) lines_per_step: usize,
}

impl Prefetch {
    pub(super) const NONE: Prefetch = Prefetch { address: std::ptr::null(), lines_per_step: 0 };
}

/// Most tiles of lanes that `rows` rows can have at once: 1, 2 or 4.
#[inline(always)]
pub(super) fn max_tiles<S: Simd>(rows: usize) -> usize {
    match S::MAX_ACCUMULATORS / rows {
        0..2 => 1,
        2..4 => 2,
        _ => 4,
    }
}

/// Computes `rows` rows (1 to [`Simd::MAX_ROWS`]) of `tiles` tiles (1, 2 or 4, at most [`max_tiles`]).
#[inline(always)]
pub(super) fn accumulate<S: Simd, E: KvElement>(simd: S, rows: usize, tiles: usize, operands: Operands<'_, E>) {
    macro_rules! by_shape {
        ($($r:literal)*) => {
            match (rows, tiles) {
                $(
                    ($r, 1) => simd.call(Tile::<E, $r, 1>(operands)),
                    ($r, 2) => simd.call(Tile::<E, $r, 2>(operands)),
                    ($r, 4) => simd.call(Tile::<E, $r, 4>(operands)),
                )*
                _ => unreachable!("a tile of {rows} by {tiles}"),
            }
        };
    }
    by_shape!(1 2 3 4 5 6 7);
}

struct Tile<'a, E, const R: usize, const T: usize>(Operands<'a, E>);

impl<E: KvElement, const R: usize, const T: usize> Task for Tile<'_, E, R, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // Known at compile time: shapes that an instruction set never asks for cost no code.
        if R > S::MAX_ROWS || T > max_tiles::<S>(R) {
            unreachable!("a tile of {R} by {T}");
        }
        let Operands { a, a_stride, len, b, b_step, b_tile_step, out, out_stride, start, prefetch } = self.0;
        if len == 0 {
            return;
        }
        assert!((R - 1) * a_stride + len <= a.len(), "rows of a");
        assert!((len - 1) * b_step + (T - 1) * b_tile_step + LANES <= b.len(), "tiles of b");
        let mut sums = [[simd.splat(0.0); T]; R];
        if let Some(start) = start {
            for r in 0..R {
                let (tiles, _) = out[r * out_stride..][..T * LANES].as_chunks::<LANES>();
                for t in 0..T {
                    sums[r][t] = simd.mul(simd.load(&tiles[t]), simd.splat(start[r]));
                }
            }
        }
        for i in 0..len {
            let mut lanes = [simd.splat(0.0); T];
            for t in 0..T {
                // SAFETY: within `b` for every `i` and `t`, by the second assertion above.
                let tile = unsafe { b.as_ptr().add(i * b_step + t * b_tile_step) };
                // SAFETY: as above.
                lanes[t] = E::load(simd, unsafe { &*tile.cast::<[E; LANES]>() });
            }
            for r in 0..R {
                // SAFETY: within `a` for every `r` and `i`, by the first assertion above.
                let x = simd.splat(*unsafe { a.get_unchecked(r * a_stride + i) });
                for t in 0..T {
                    sums[r][t] = simd.fma(x, lanes[t], sums[r][t]);
                }
            }
            for line in 0..prefetch.lines_per_step {
                simd.prefetch(prefetch.address.wrapping_add((i * prefetch.lines_per_step + line) * 64));
            }
        }
        for r in 0..R {
            let (tiles, _) = out[r * out_stride..][..T * LANES].as_chunks_mut::<LANES>();
            for t in 0..T {
                simd.store(sums[r][t], &mut tiles[t]);
            }
        }
    }
}
