//! Float layouts with AVX-512: 16 output channels in the lanes, one FMA chain an output.
//!
//! An FMA takes four cycles and one starts every cycle, so at least four chains must be under way: tiles of few rows
//! take several n-blocks at a time.

use std::arch::x86_64::{
    __m512, _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_slli_epi32,
};
use std::ops::Range;

use half::{bf16, f16};

use super::job::{Job, Sums};
use super::units::LANES;
use super::x86::{ahead, load_512, load_halves_256, prefetch_after, store_512};
use crate::activations::{FLOAT_COLS, FloatUnit, MAX_TILE_ROWS, Tile};

/// Rows up to which a tile takes several n-blocks.
const FEW_ROWS: usize = 3;
/// N-blocks that a tile of up to [`FEW_ROWS`] rows takes at a time.
const WIDE: usize = 4;

/// The sums of `$num_blocks` n-blocks and one tile. Each accumulator names its weights, its block and its row.
macro_rules! tile {
    ($name:ident, $unit:ty, $load:path; $num_blocks:literal x $num_rows:literal;
     $($weights:ident = $load_block:literal),+; $($acc:ident += $by:ident, $block:literal, $row:literal);+) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn $name<const AHEAD: usize>(units: [&[$unit]; $num_blocks], x: &[FloatUnit], sums: &mut [Sums; WIDE]) {
            $(let mut $acc = _mm512_setzero_ps();)+
            let x = x.as_chunks::<$num_rows>().0;
            let (chunks, tails) = (units.map(|u| u.as_chunks::<FLOAT_COLS>().0), units.map(|u| u.as_chunks::<FLOAT_COLS>().1));
            for (chunk_idx, x) in x.iter().enumerate().take(chunks[0].len()) {
                $(let $weights = &chunks[$load_block][chunk_idx]; prefetch_after::<AHEAD, _>($weights);)+
                for k in 0..FLOAT_COLS {
                    $(let $weights = $load(&$weights[k]);)+
                    $($acc = _mm512_fmadd_ps($by, _mm512_set1_ps(x[$row][k]), $acc);)+
                }
            }
            for k in 0..tails[0].len() {
                let x = &x[chunks[0].len()];
                $(let $weights = $load(&tails[$load_block][k]);)+
                $($acc = _mm512_fmadd_ps($by, _mm512_set1_ps(x[$row][k]), $acc);)+
            }
            $(store_512(&mut sums[$block].0[$row], $acc);)+
        }
    };
}

/// A kernel for one kind of unit: tile functions, and the loop over n-blocks and tiles.
macro_rules! kernel {
    ($name:ident, $tiles:ident, $unit:ty, $load:path) => {
        mod $tiles {
            use super::*;

            tile!(wide1, $unit, $load; 4 x 1; w0 = 0, w1 = 1, w2 = 2, w3 = 3;
                a += w0, 0, 0; b += w1, 1, 0; c += w2, 2, 0; d += w3, 3, 0);
            tile!(wide2, $unit, $load; 4 x 2; w0 = 0, w1 = 1, w2 = 2, w3 = 3;
                a += w0, 0, 0; b += w1, 1, 0; c += w2, 2, 0; d += w3, 3, 0;
                e += w0, 0, 1; f += w1, 1, 1; g += w2, 2, 1; h += w3, 3, 1);
            tile!(wide3, $unit, $load; 4 x 3; w0 = 0, w1 = 1, w2 = 2, w3 = 3;
                a += w0, 0, 0; b += w1, 1, 0; c += w2, 2, 0; d += w3, 3, 0;
                e += w0, 0, 1; f += w1, 1, 1; g += w2, 2, 1; h += w3, 3, 1;
                i += w0, 0, 2; j += w1, 1, 2; k0 += w2, 2, 2; l += w3, 3, 2);
            tile!(rows1, $unit, $load; 1 x 1; w = 0; a += w, 0, 0);
            tile!(rows2, $unit, $load; 1 x 2; w = 0; a += w, 0, 0; b += w, 0, 1);
            tile!(rows3, $unit, $load; 1 x 3; w = 0; a += w, 0, 0; b += w, 0, 1; c += w, 0, 2);
            tile!(rows4, $unit, $load; 1 x 4; w = 0; a += w, 0, 0; b += w, 0, 1; c += w, 0, 2; d += w, 0, 3);
            tile!(rows5, $unit, $load; 1 x 5; w = 0; a += w, 0, 0; b += w, 0, 1; c += w, 0, 2; d += w, 0, 3;
                e += w, 0, 4);
            tile!(rows6, $unit, $load; 1 x 6; w = 0; a += w, 0, 0; b += w, 0, 1; c += w, 0, 2; d += w, 0, 3;
                e += w, 0, 4; f += w, 0, 5);
            tile!(rows7, $unit, $load; 1 x 7; w = 0; a += w, 0, 0; b += w, 0, 1; c += w, 0, 2; d += w, 0, 3;
                e += w, 0, 4; f += w, 0, 5; g += w, 0, 6);
            tile!(rows8, $unit, $load; 1 x 8; w = 0; a += w, 0, 0; b += w, 0, 1; c += w, 0, 2; d += w, 0, 3;
                e += w, 0, 4; f += w, 0, 5; g += w, 0, 6; h += w, 0, 7);
            tile!(rows9, $unit, $load; 1 x 9; w = 0; a += w, 0, 0; b += w, 0, 1; c += w, 0, 2; d += w, 0, 3;
                e += w, 0, 4; f += w, 0, 5; g += w, 0, 6; h += w, 0, 7; i += w, 0, 8);
            tile!(rows10, $unit, $load; 1 x 10; w = 0; a += w, 0, 0; b += w, 0, 1; c += w, 0, 2; d += w, 0, 3;
                e += w, 0, 4; f += w, 0, 5; g += w, 0, 6; h += w, 0, 7; i += w, 0, 8; j += w, 0, 9);
            tile!(rows11, $unit, $load; 1 x 11; w = 0; a += w, 0, 0; b += w, 0, 1; c += w, 0, 2; d += w, 0, 3;
                e += w, 0, 4; f += w, 0, 5; g += w, 0, 6; h += w, 0, 7; i += w, 0, 8; j += w, 0, 9; k0 += w, 0, 10);
            tile!(rows12, $unit, $load; 1 x 12; w = 0; a += w, 0, 0; b += w, 0, 1; c += w, 0, 2; d += w, 0, 3;
                e += w, 0, 4; f += w, 0, 5; g += w, 0, 6; h += w, 0, 7; i += w, 0, 8; j += w, 0, 9; k0 += w, 0, 10;
                l += w, 0, 11);

            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            pub(super) fn any_rows<const AHEAD: usize>(
                num_rows: usize,
                units: &[$unit],
                x: &[FloatUnit],
                sums: &mut [Sums; WIDE],
            ) {
                const { assert!(MAX_TILE_ROWS == 12, "a function for each number of rows") };
                match num_rows {
                    1 => rows1::<AHEAD>([units], x, sums),
                    2 => rows2::<AHEAD>([units], x, sums),
                    3 => rows3::<AHEAD>([units], x, sums),
                    4 => rows4::<AHEAD>([units], x, sums),
                    5 => rows5::<AHEAD>([units], x, sums),
                    6 => rows6::<AHEAD>([units], x, sums),
                    7 => rows7::<AHEAD>([units], x, sums),
                    8 => rows8::<AHEAD>([units], x, sums),
                    9 => rows9::<AHEAD>([units], x, sums),
                    10 => rows10::<AHEAD>([units], x, sums),
                    11 => rows11::<AHEAD>([units], x, sums),
                    12 => rows12::<AHEAD>([units], x, sums),
                    _ => unreachable!("a tile of {num_rows} rows"),
                }
            }

            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            pub(super) fn few_rows(num_rows: usize, units: [&[$unit]; WIDE], x: &[FloatUnit], sums: &mut [Sums; WIDE]) {
                const { assert!(FEW_ROWS == 3, "a function for each number of rows") };
                match num_rows {
                    1 => wide1::<{ ahead::MANY_ROWS }>(units, x, sums),
                    2 => wide2::<{ ahead::MANY_ROWS }>(units, x, sums),
                    3 => wide3::<{ ahead::MANY_ROWS }>(units, x, sums),
                    _ => unreachable!("{num_rows} rows are not few"),
                }
            }
        }

        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        pub(super) fn $name(job: &Job<'_, $unit>, blocks: Range<usize>) {
            let mut sums = [const { Sums::ZERO }; WIDE];
            let mut blocks = blocks;
            let num_rows = job.x.num_rows();
            if num_rows <= FEW_ROWS {
                let tile = Tile { first_row: 0, num_rows };
                let x = job.x.float_tile(tile);
                while blocks.len() >= WIDE {
                    let first = blocks.start;
                    $tiles::few_rows(num_rows, std::array::from_fn(|i| job.block(first + i)), x, &mut sums);
                    for (i, sums) in sums.iter().enumerate() {
                        job.store(first + i, tile, sums);
                    }
                    blocks.start += WIDE;
                }
            }
            for block in blocks {
                let units = job.block(block);
                for tile in job.x.tiles() {
                    let x = job.x.float_tile(tile);
                    if tile.first_row > 0 {
                        $tiles::any_rows::<{ ahead::NONE }>(tile.num_rows, units, x, &mut sums);
                    } else {
                        $tiles::any_rows::<{ ahead::MANY_ROWS }>(tile.num_rows, units, x, &mut sums);
                    }
                    job.store(block, tile, &sums[0]);
                }
            }
        }
    };
}

kernel!(f32, f32_tiles, [f32; LANES], load_512);
kernel!(f16, f16_tiles, [f16; LANES], load_f16);
kernel!(bf16, bf16_tiles, [bf16; LANES], load_bf16);

#[inline]
#[target_feature(enable = "avx512f")]
fn load_f16(values: &[f16; LANES]) -> __m512 {
    _mm512_cvtph_ps(load_halves_256(values))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_bf16(values: &[bf16; LANES]) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(load_halves_256(values))))
}
