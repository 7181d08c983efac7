//! Integer layouts with AVX-512 VNNI.
//!
//! A tile keeps the eight weight registers of a block of 32 columns, and an accumulator for each row. `vpdpbusd` takes
//! an unsigned and a signed operand: weights have 128 (or 8, 16, 32) added, and the integer sum starts from what that adds
//! too much, computed when the row was quantized. Per row and block: 8 dots, a conversion, a multiplication and an FMA;
//! one FMA more where weights have minima, two more operations where a block has two scales.
//!
//! Rows are written out by a macro: LLVM leaves a loop over more than eight rows rolled, with accumulators in memory.

use std::arch::x86_64::{
    __m512, __m512i, _mm512_and_si512, _mm512_broadcast_i32x4, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps,
    _mm512_cvtepu8_epi32, _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_mul_ps,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_epi8,
    _mm512_slli_epi16, _mm512_srli_epi16, _mm512_ternarylogic_epi32,
};
use std::ops::Range;

use super::job::{Job, Sums};
use super::super_units::{MinScales, NUM_BLOCKS, Q4KUnit, Q5KUnit, Q6KUnit};
use super::units::{HighBlock, Iq4Unit, LANES, Q4Unit, Q5Unit, Q8Unit};
use super::x86::{
    ahead, load_bytes_128, load_bytes_512, load_halves_256, prefetch_after, prefetch_part_after, store_512,
};
use crate::activations::{Int8Unit, MAX_TILE_ROWS};
use crate::quant::IQ4_TABLE;

/// Sums over units of two blocks with a scale for each channel and block.
macro_rules! add_blocks {
    ($units:ident, $x:ident, $ahead:ident, $weights:path, $init:ident; $num_rows:literal: $($acc:ident = $row:literal),+) => {
        for (unit, x) in $units.iter().zip($x.as_chunks::<$num_rows>().0) {
            for block in 0..2 {
                prefetch_part_after::<$ahead, 2, _>(unit, block);
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
    };
}

/// Sums over super-blocks whose blocks have a scale and a minimum each.
macro_rules! add_min_blocks {
    ($units:ident, $x:ident, $ahead:ident, $weights:path, $init:ident; $num_rows:literal: $($acc:ident = $row:literal),+) => {
        for (unit, x) in $units.iter().zip($x.as_chunks::<{ NUM_BLOCKS / 2 * $num_rows }>().0) {
            prefetch_after::<$ahead, _>(&unit.scales);
            for (pair, x) in x.as_chunks::<$num_rows>().0.iter().enumerate() {
                for block in 0..2 {
                    prefetch_after::<$ahead, _>(&unit.blocks[2 * pair + block]);
                    let weights = $weights(&unit.blocks[2 * pair + block]);
                    let (weight_scales, mins) = scales_and_mins(&unit.scales, 2 * pair + block);
                    $(
                        let mut sum = _mm512_setzero_si512();
                        for j in 0..8 {
                            sum = _mm512_dpbusd_epi32(sum, weights[j], _mm512_set1_epi32(x[$row].words[8 * block + j]));
                        }
                        let scales = _mm512_mul_ps(weight_scales, _mm512_set1_ps(x[$row].scales[block]));
                        $acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scales, $acc);
                        $acc = _mm512_fnmadd_ps(mins, _mm512_set1_ps(x[$row].$init[block]), $acc);
                    )+
                }
            }
        }
    };
}

/// Sums over super-blocks whose blocks have a scale for each sixteenth.
macro_rules! add_sixteenths {
    ($units:ident, $x:ident, $ahead:ident, $weights:path, $init:ident; $num_rows:literal: $($acc:ident = $row:literal),+) => {
        for (unit, x) in $units.iter().zip($x.as_chunks::<{ NUM_BLOCKS / 2 * $num_rows }>().0) {
            prefetch_after::<$ahead, _>(&unit.scales);
            let scale = _mm512_cvtph_ps(load_halves_256(&unit.scale));
            for (pair, x) in x.as_chunks::<$num_rows>().0.iter().enumerate() {
                for block in 0..2 {
                    let b = 2 * pair + block;
                    prefetch_after::<$ahead, _>(&unit.blocks[b]);
                    let weights = $weights(&unit.blocks[b]);
                    let first = _mm512_mul_ps(scale, signed_bytes(&unit.scales[2 * b]));
                    let second = _mm512_mul_ps(scale, signed_bytes(&unit.scales[2 * b + 1]));
                    $(
                        let [mut low, mut high] = x[$row].$init[block].map(|init| _mm512_set1_epi32(init));
                        for j in 0..4 {
                            low = _mm512_dpbusd_epi32(low, weights[j], _mm512_set1_epi32(x[$row].words[8 * block + j]));
                        }
                        for j in 4..8 {
                            high = _mm512_dpbusd_epi32(high, weights[j], _mm512_set1_epi32(x[$row].words[8 * block + j]));
                        }
                        let both = _mm512_mul_ps(_mm512_cvtepi32_ps(high), second);
                        let both = _mm512_fmadd_ps(_mm512_cvtepi32_ps(low), first, both);
                        $acc = _mm512_fmadd_ps(both, _mm512_set1_ps(x[$row].scales[block]), $acc);
                    )+
                }
            }
        }
    };
}

/// The sums of one n-block and one tile, with the given accumulators and the rows they stand for.
macro_rules! tile {
    ($name:ident, $unit:ty, $add:ident, $weights:path, $init:ident; $num_rows:literal: $($acc:ident = $row:literal),+) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        fn $name<const AHEAD: usize>(units: &[$unit], x: &[Int8Unit], sums: &mut Sums) {
            $(let mut $acc = _mm512_setzero_ps();)+
            $add!(units, x, AHEAD, $weights, $init; $num_rows: $($acc = $row),+);
            $(store_512(&mut sums.0[$row], $acc);)+
        }
    };
}

/// A kernel for one kind of unit: a tile function for each number of rows, and the loop over n-blocks and tiles.
macro_rules! kernel {
    ($name:ident, $tiles:ident, $unit:ty, $add:ident, $weights:path, $init:ident, $few:ident) => {
        mod $tiles {
            use super::*;

            tile!(rows1, $unit, $add, $weights, $init; 1: a = 0);
            tile!(rows2, $unit, $add, $weights, $init; 2: a = 0, b = 1);
            tile!(rows3, $unit, $add, $weights, $init; 3: a = 0, b = 1, c = 2);
            tile!(rows4, $unit, $add, $weights, $init; 4: a = 0, b = 1, c = 2, d = 3);
            tile!(rows5, $unit, $add, $weights, $init; 5: a = 0, b = 1, c = 2, d = 3, e = 4);
            tile!(rows6, $unit, $add, $weights, $init; 6: a = 0, b = 1, c = 2, d = 3, e = 4, f = 5);
            tile!(rows7, $unit, $add, $weights, $init; 7: a = 0, b = 1, c = 2, d = 3, e = 4, f = 5, g = 6);
            tile!(rows8, $unit, $add, $weights, $init; 8: a = 0, b = 1, c = 2, d = 3, e = 4, f = 5, g = 6, h = 7);
            tile!(rows9, $unit, $add, $weights, $init;
                9: a = 0, b = 1, c = 2, d = 3, e = 4, f = 5, g = 6, h = 7, i = 8);
            tile!(rows10, $unit, $add, $weights, $init;
                10: a = 0, b = 1, c = 2, d = 3, e = 4, f = 5, g = 6, h = 7, i = 8, j = 9);
            tile!(rows11, $unit, $add, $weights, $init;
                11: a = 0, b = 1, c = 2, d = 3, e = 4, f = 5, g = 6, h = 7, i = 8, j = 9, k = 10);
            tile!(rows12, $unit, $add, $weights, $init;
                12: a = 0, b = 1, c = 2, d = 3, e = 4, f = 5, g = 6, h = 7, i = 8, j = 9, k = 10, l = 11);

            /// Up to three rows wait for memory, so their weights are fetched to L1 in one way or the other. Such a tile is the
            /// only one.
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
            pub(super) fn few_rows(num_rows: usize, units: &[$unit], x: &[Int8Unit], sums: &mut Sums) {
                match num_rows {
                    1 => rows1::<{ ahead::$few }>(units, x, sums),
                    2 => rows2::<{ ahead::$few }>(units, x, sums),
                    3 => rows3::<{ ahead::$few }>(units, x, sums),
                    _ => unreachable!("{num_rows} rows are many"),
                }
            }

            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
            pub(super) fn many_rows<const AHEAD: usize>(
                num_rows: usize,
                units: &[$unit],
                x: &[Int8Unit],
                sums: &mut Sums,
            ) {
                const { assert!(MAX_TILE_ROWS == 12, "a function for each number of rows") };
                match num_rows {
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
                    if tile.num_rows <= 3 {
                        $tiles::few_rows(tile.num_rows, units, x, &mut sums);
                    } else if tile.first_row > 0 {
                        $tiles::many_rows::<{ ahead::NONE }>(tile.num_rows, units, x, &mut sums);
                    } else {
                        $tiles::many_rows::<{ ahead::MANY_ROWS }>(tile.num_rows, units, x, &mut sums);
                    }
                    job.store(block, tile, &sums);
                }
            }
        }
    };
}

kernel!(q8, q8_tiles, Q8Unit, add_blocks, q8_weights, q8_init, FEW_ROWS);
kernel!(q4, q4_tiles, Q4Unit, add_blocks, q4_weights, q4_init, FEW_ROWS);
kernel!(q5, q5_tiles, Q5Unit, add_blocks, q5_weights, q5_init, FEW_ROWS_TWICE);
kernel!(iq4, iq4_tiles, Iq4Unit, add_blocks, iq4_weights, q8_init, FEW_ROWS);
kernel!(q4_k, q4_k_tiles, Q4KUnit, add_min_blocks, nibbles, sums, FEW_ROWS_TWICE);
kernel!(q5_k, q5_k_tiles, Q5KUnit, add_min_blocks, q5_k_weights, sums, FEW_ROWS_TWICE);
kernel!(q6_k, q6_k_tiles, Q6KUnit, add_sixteenths, q6_k_weights, q6_init, FEW_ROWS_TWICE);

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

/// Four bits of each weight; register `j` holds columns `4 * j ..`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn nibbles([a, b, c, d]: &[[u8; 64]; 4]) -> [__m512i; 8] {
    let low_half = _mm512_set1_epi8(15);
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

/// `low | high & mask`.
#[inline]
#[target_feature(enable = "avx512f")]
fn with_bits(low: __m512i, high: __m512i, mask: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0xf8>(low, high, mask)
}

/// The weights of a block with 8 added.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q4_weights(unit: &Q4Unit, block: usize) -> [__m512i; 8] {
    nibbles(&unit.lines[block])
}

/// What the nibbles of a block stand for with 128 added.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn iq4_weights(unit: &Iq4Unit, block: usize) -> [__m512i; 8] {
    /// The table with 128 added.
    const TABLE: [u8; 16] = {
        let mut table = [0; 16];
        let mut i = 0;
        while i < 16 {
            table[i] = IQ4_TABLE[i].cast_unsigned() ^ 0x80;
            i += 1;
        }
        table
    };
    let table = _mm512_broadcast_i32x4(load_bytes_128(&TABLE));
    let [a, b, c, d, e, f, g, h] = nibbles(&unit.lines[block]);
    [
        _mm512_shuffle_epi8(table, a),
        _mm512_shuffle_epi8(table, b),
        _mm512_shuffle_epi8(table, c),
        _mm512_shuffle_epi8(table, d),
        _mm512_shuffle_epi8(table, e),
        _mm512_shuffle_epi8(table, f),
        _mm512_shuffle_epi8(table, g),
        _mm512_shuffle_epi8(table, h),
    ]
}

/// The weights of a block with 16 added.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q5_weights(unit: &Q5Unit, block: usize) -> [__m512i; 8] {
    five_bits(&unit.blocks[block].lines, &unit.blocks[block].high)
}

/// Five bits of each weight.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q5_k_weights(block: &HighBlock<1>) -> [__m512i; 8] {
    five_bits(&block.lines, &block.high)
}

/// Nibbles and, from bit `j` of the fifth line, the bit above those of register `j`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn five_bits(lines: &[[u8; 64]; 4], [high]: &[[u8; 64]; 1]) -> [__m512i; 8] {
    let (high, bit) = (load_bytes_512(high), _mm512_set1_epi8(16));
    let [a, b, c, d, e, f, g, h] = nibbles(lines);
    [
        with_bits(a, _mm512_slli_epi16::<4>(high), bit),
        with_bits(b, _mm512_slli_epi16::<3>(high), bit),
        with_bits(c, _mm512_slli_epi16::<2>(high), bit),
        with_bits(d, _mm512_slli_epi16::<1>(high), bit),
        with_bits(e, high, bit),
        with_bits(f, _mm512_srli_epi16::<1>(high), bit),
        with_bits(g, _mm512_srli_epi16::<2>(high), bit),
        with_bits(h, _mm512_srli_epi16::<3>(high), bit),
    ]
}

/// The weights of a block with 32 added: nibbles and two bits above them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q6_k_weights(block: &HighBlock<2>) -> [__m512i; 8] {
    let bits = _mm512_set1_epi8(0x30);
    let [first, second] = [load_bytes_512(&block.high[0]), load_bytes_512(&block.high[1])];
    let [a, b, c, d, e, f, g, h] = nibbles(&block.lines);
    [
        with_bits(a, _mm512_slli_epi16::<4>(first), bits),
        with_bits(b, _mm512_slli_epi16::<2>(first), bits),
        with_bits(c, first, bits),
        with_bits(d, _mm512_srli_epi16::<2>(first), bits),
        with_bits(e, _mm512_slli_epi16::<4>(second), bits),
        with_bits(f, _mm512_slli_epi16::<2>(second), bits),
        with_bits(g, second, bits),
        with_bits(h, _mm512_srli_epi16::<2>(second), bits),
    ]
}

/// Scales and minima of block `b`; exact.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn scales_and_mins(scales: &MinScales, b: usize) -> (__m512, __m512) {
    let bytes = |bytes| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load_bytes_128::<u8>(bytes)));
    let scale = _mm512_cvtph_ps(load_halves_256(&scales.scale));
    let min = _mm512_cvtph_ps(load_halves_256(&scales.min));
    (_mm512_mul_ps(scale, bytes(&scales.scales[b])), _mm512_mul_ps(min, bytes(&scales.mins[b])))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn signed_bytes(bytes: &[i8; LANES]) -> __m512 {
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_bytes_128(bytes)))
}
