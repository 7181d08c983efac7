//! Integer layouts with AVX-512 VNNI.
//!
//! A tile keeps the eight weight registers of a block of 32 columns, and an accumulator for each row. `vpdpbusd` takes
//! an unsigned and a signed operand: weights have 128 (or 8) added, and the integer sum starts from what that adds too
//! much, computed when the row was quantized. Per row and block: 8 dots, a conversion, a multiplication and an FMA.
//!
//! Rows are written out by a macro: LLVM leaves a loop over more than eight rows rolled, with accumulators in memory.

use std::arch::x86_64::{
    __m512i, _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps,
    _mm512_mul_ps, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_srli_epi16,
};
use std::ops::Range;

use super::job::{Job, Sums};
use super::units::{Q4Unit, Q8Unit};
use super::x86::{ahead, load_bytes_512, load_halves_256, prefetch_after, store_512};
use crate::activations::{Int8Unit, MAX_TILE_ROWS};

/// Rows up to which weights are fetched to L1.
const FEW_ROWS: usize = 3;

/// The sums of one n-block and one tile, with the given accumulators and the rows they stand for.
macro_rules! tile {
    ($name:ident, $unit:ty, $weights:path, $init:ident; $num_rows:literal: $($acc:ident = $row:literal),+) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        fn $name<const AHEAD: usize>(units: &[$unit], x: &[Int8Unit], sums: &mut Sums) {
            $(let mut $acc = _mm512_setzero_ps();)+
            for (unit, x) in units.iter().zip(x.as_chunks::<$num_rows>().0) {
                prefetch_after::<AHEAD, _>(unit);
                for block in 0..2 {
                    let weights = $weights(unit, block);
                    let weight_scales = _mm512_cvtph_ps(load_halves_256(&unit.scales[block]));
                    $(
                        let mut sum = _mm512_set1_epi32(x[$row].$init[block]);
                        for j in 0..8 {
                            sum = _mm512_dpbusd_epi32(sum, weights[j], _mm512_set1_epi32(x[$row].words[8 * block + j]));
                        }
                        let scales = _mm512_mul_ps(weight_scales, _mm512_set1_ps(x[$row].scales[block]));
                        $acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scales, $acc);
                    )+
                }
            }
            $(store_512(&mut sums.0[$row], $acc);)+
        }
    };
}

/// A kernel for one kind of unit: a tile function for each number of rows, and the loop over n-blocks and tiles.
macro_rules! kernel {
    ($name:ident, $tiles:ident, $unit:ty, $weights:path, $init:ident) => {
        mod $tiles {
            use super::*;

            tile!(rows1, $unit, $weights, $init; 1: a = 0);
            tile!(rows2, $unit, $weights, $init; 2: a = 0, b = 1);
            tile!(rows3, $unit, $weights, $init; 3: a = 0, b = 1, c = 2);
            tile!(rows4, $unit, $weights, $init; 4: a = 0, b = 1, c = 2, d = 3);
            tile!(rows5, $unit, $weights, $init; 5: a = 0, b = 1, c = 2, d = 3, e = 4);
            tile!(rows6, $unit, $weights, $init; 6: a = 0, b = 1, c = 2, d = 3, e = 4, f = 5);
            tile!(rows7, $unit, $weights, $init; 7: a = 0, b = 1, c = 2, d = 3, e = 4, f = 5, g = 6);
            tile!(rows8, $unit, $weights, $init; 8: a = 0, b = 1, c = 2, d = 3, e = 4, f = 5, g = 6, h = 7);
            tile!(rows9, $unit, $weights, $init; 9: a = 0, b = 1, c = 2, d = 3, e = 4, f = 5, g = 6, h = 7, i = 8);
            tile!(rows10, $unit, $weights, $init;
                10: a = 0, b = 1, c = 2, d = 3, e = 4, f = 5, g = 6, h = 7, i = 8, j = 9);
            tile!(rows11, $unit, $weights, $init;
                11: a = 0, b = 1, c = 2, d = 3, e = 4, f = 5, g = 6, h = 7, i = 8, j = 9, k = 10);
            tile!(rows12, $unit, $weights, $init;
                12: a = 0, b = 1, c = 2, d = 3, e = 4, f = 5, g = 6, h = 7, i = 8, j = 9, k = 10, l = 11);

            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
            pub(super) fn any_rows<const AHEAD: usize>(
                num_rows: usize,
                units: &[$unit],
                x: &[Int8Unit],
                sums: &mut Sums,
            ) {
                const { assert!(MAX_TILE_ROWS == 12, "a function for each number of rows") };
                match num_rows {
                    1 => rows1::<AHEAD>(units, x, sums),
                    2 => rows2::<AHEAD>(units, x, sums),
                    3 => rows3::<AHEAD>(units, x, sums),
                    4 => rows4::<AHEAD>(units, x, sums),
                    5 => rows5::<AHEAD>(units, x, sums),
                    6 => rows6::<AHEAD>(units, x, sums),
                    7 => rows7::<AHEAD>(units, x, sums),
                    8 => rows8::<AHEAD>(units, x, sums),
                    9 => rows9::<AHEAD>(units, x, sums),
                    10 => rows10::<AHEAD>(units, x, sums),
                    11 => rows11::<AHEAD>(units, x, sums),
                    12 => rows12::<AHEAD>(units, x, sums),
                    _ => unreachable!("a tile of {num_rows} rows"),
                }
            }
        }

        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        pub(super) fn $name(job: &Job<'_, $unit>, blocks: Range<usize>) {
            for block in blocks {
                let units = job.block(block);
                for tile in job.x.tiles() {
                    let mut sums = Sums::ZERO;
                    let x = job.x.int8_tile(tile);
                    if tile.first_row > 0 {
                        $tiles::any_rows::<{ ahead::NONE }>(tile.num_rows, units, x, &mut sums);
                    } else if tile.num_rows <= FEW_ROWS {
                        $tiles::any_rows::<{ ahead::FEW_ROWS }>(tile.num_rows, units, x, &mut sums);
                    } else {
                        $tiles::any_rows::<{ ahead::MANY_ROWS }>(tile.num_rows, units, x, &mut sums);
                    }
                    job.store(block, tile, &sums);
                }
            }
        }
    };
}

kernel!(q8, q8_tiles, Q8Unit, q8_weights, q8_init);
kernel!(q4, q4_tiles, Q4Unit, q4_weights, q4_init);

/// The weights of a block with 128 added; register `j` holds columns `4 * j ..`.
#[inline]
#[target_feature(enable = "avx512f")]
fn q8_weights(unit: &Q8Unit, block: usize) -> [__m512i; 8] {
    let lines = &unit.lines[block];
    [
        load_bytes_512(&lines[0]),
        load_bytes_512(&lines[1]),
        load_bytes_512(&lines[2]),
        load_bytes_512(&lines[3]),
        load_bytes_512(&lines[4]),
        load_bytes_512(&lines[5]),
        load_bytes_512(&lines[6]),
        load_bytes_512(&lines[7]),
    ]
}

/// The weights of a block with 8 added; register `j` holds columns `4 * j ..`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q4_weights(unit: &Q4Unit, block: usize) -> [__m512i; 8] {
    let low_half = _mm512_set1_epi8(15);
    let [a, b, c, d] = &unit.lines[block];
    let [a, b, c, d] = [load_bytes_512(a), load_bytes_512(b), load_bytes_512(c), load_bytes_512(d)];
    [
        _mm512_and_si512(a, low_half),
        _mm512_and_si512(b, low_half),
        _mm512_and_si512(c, low_half),
        _mm512_and_si512(d, low_half),
        _mm512_and_si512(_mm512_srli_epi16::<4>(a), low_half),
        _mm512_and_si512(_mm512_srli_epi16::<4>(b), low_half),
        _mm512_and_si512(_mm512_srli_epi16::<4>(c), low_half),
        _mm512_and_si512(_mm512_srli_epi16::<4>(d), low_half),
    ]
}
