//! Attention against a plain softmax in `f64`, and against itself for every cut of the work.

use super::*;
use crate::kv_cache::{KvShape, Slot};
use crate::rope::RopeTable;

const MAX_TOKENS: usize = 320;
const MAX_CONTEXT: usize = 1024;
const EPS: f32 = 1e-6;

/// A layer of attention with everything it needs.
struct Layer {
    isa: Isa,
    pool: Pool,
    heads: HeadShape,
    has_norm: bool,
    window: Option<usize>,
    softcap: Option<f32>,
    kv: KvCache,
    rope: RopeTable,
    scratch: AttentionScratch,
    /// `[num_tokens, qkv_len]` of the last step, after `prepare_qkv`.
    qkv: Vec<f32>,
}

/// One sequence's part of a step.
#[derive(Clone)]
struct Slice<'a> {
    seq_id: u32,
    positions: Range<usize>,
    blocks: &'a [u32],
}

fn noise(seq_id: u32, position: usize, i: usize) -> f32 {
    let mut x = seq_id.wrapping_mul(0x9e37_79b9) ^ (position as u32).wrapping_mul(0x85eb_ca6b) ^ (i as u32 + 1);
    for _ in 0..2 {
        x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
        x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    }
    (x >> 8) as f32 / (1 << 23) as f32 - 1.0
}

impl Layer {
    fn new(isa: Isa, num_threads: usize, heads: HeadShape, kv_type: KvType) -> Self {
        let inv_freq: Vec<f32> = (0..heads.head_dim / 2).map(|i| 100_f32.powf(-(i as f32) / 16.0)).collect();
        let shape =
            KvShape { num_layers: 2, num_blocks: 40, num_kv_heads: heads.num_kv_heads, head_dim: heads.head_dim };
        Self {
            isa,
            pool: Pool::new(num_threads),
            heads,
            has_norm: heads.head_dim == 128,
            window: None,
            softcap: None,
            kv: KvCache::new(shape, kv_type),
            rope: RopeTable::new(MAX_TOKENS, &inv_freq, 1.0),
            scratch: AttentionScratch::new(heads, num_threads, MAX_TOKENS, MAX_CONTEXT),
            qkv: Vec::new(),
        }
    }

    fn scale(&self) -> f32 {
        2.0 / (self.heads.head_dim as f32).sqrt()
    }

    /// Runs one step; the result is `[num_tokens, num_heads * head_dim]`.
    fn step(&mut self, slices: &[Slice<'_>]) -> Vec<f32> {
        let (mut positions, mut slots, mut seqs, mut tables) = (vec![], vec![], vec![], vec![]);
        self.qkv.clear();
        for slice in slices {
            let start = slots.len();
            for position in slice.positions.clone() {
                self.qkv.extend((0..self.heads.qkv_len()).map(|i| noise(slice.seq_id, position, i)));
                positions.push(position as u32);
                let block = slice.blocks[position / BLOCK_SIZE];
                slots.push(Slot { block, offset: (position % BLOCK_SIZE) as u32 });
            }
            seqs.push(AttentionSeq {
                tokens: start..slots.len(),
                blocks: tables.len()..tables.len() + slice.blocks.len(),
                context_len: slice.positions.end,
            });
            tables.extend(slice.blocks);
        }
        self.rope.set_positions(&positions);
        let norm: Vec<f32> = (0..self.heads.head_dim).map(|i| 1.0 + noise(0, 0, i) * 0.1).collect();
        let norm = self.has_norm.then_some(&norm[..]);
        let params = QkvParams {
            heads: self.heads,
            q_norm: norm,
            k_norm: norm,
            eps: EPS,
            clip: None,
            rope: Some(&self.rope),
            slots: &slots,
            layer: 1,
        };
        prepare_qkv(&self.pool, self.isa, &mut self.qkv, &params, &mut self.kv);
        let mut out = vec![f32::NAN; slots.len() * self.heads.num_heads * self.heads.head_dim];
        let scale = self.scale();
        let (window, softcap) = (self.window, self.softcap);
        let params =
            AttentionParams { heads: self.heads, scale, window, softcap, seqs: &seqs, block_tables: &tables, layer: 1 };
        attend(&self.pool, self.isa, &self.qkv, &params, &self.kv, &mut self.scratch, &mut out);
        out
    }

    /// What the cache makes of a key or value.
    fn stored(&self, x: &[f32]) -> Vec<f64> {
        let max = x.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        let round = |x: &f32| match self.kv.kv_type() {
            KvType::F32 => *x,
            KvType::F16 => f16::from_f32(*x).to_f32(),
            KvType::Int8 => (x / (max / 127.0)).round_ties_even() * (max / 127.0),
        };
        x.iter().map(|x| f64::from(round(x))).collect()
    }

    /// Compares the last step, which was one whole sequence, with a softmax in `f64`.
    fn check_against_f64(&self, out: &[f32], rows: impl Iterator<Item = usize>) {
        let HeadShape { num_heads, num_kv_heads, head_dim } = self.heads;
        let tokens: Vec<&[f32]> = self.qkv.chunks(self.heads.qkv_len()).collect();
        let part = |head: usize| head * head_dim..(head + 1) * head_dim;
        let stored = |head: usize| tokens.iter().map(|t| self.stored(&t[part(head)])).collect::<Vec<_>>();
        let keys: Vec<_> = (0..num_kv_heads).map(|kv_head| stored(num_heads + kv_head)).collect();
        let values: Vec<_> = (0..num_kv_heads).map(|kv_head| stored(num_heads + num_kv_heads + kv_head)).collect();
        for row in rows {
            for head in 0..num_heads {
                let kv_head = head / self.heads.group();
                let q = &tokens[row][part(head)];
                let dot = |k: &Vec<f64>| q.iter().zip(k).map(|(q, k)| f64::from(*q) * k).sum::<f64>();
                let start = (row + 1).saturating_sub(self.window.unwrap_or(usize::MAX));
                let mut scores: Vec<f64> =
                    keys[kv_head][start..=row].iter().map(|k| dot(k) * f64::from(self.scale())).collect();
                if let Some(cap) = self.softcap.map(f64::from) {
                    scores.iter_mut().for_each(|score| *score = cap * (*score / cap).tanh());
                }
                let values = &values[kv_head][start..];
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for d in 0..head_dim {
                    let exact: f64 = weights.iter().zip(values).map(|(w, v)| w * v[d]).sum::<f64>() / sum;
                    let found = f64::from(out[(row * num_heads + head) * head_dim + d]);
                    // Values are below 2 in size; rounding adds up to a few units in the seventh digit.
                    assert!((found - exact).abs() <= 3e-6, "{:?} row {row} head {head}: {found}, {exact}", self.heads);
                }
            }
        }
    }
}

fn heads(group: usize, num_kv_heads: usize, head_dim: usize) -> HeadShape {
    HeadShape { num_heads: group * num_kv_heads, num_kv_heads, head_dim }
}

/// All combinations that matter, not all there are.
fn cases() -> Vec<(HeadShape, KvType)> {
    let mut cases = Vec::new();
    for head_dim in [8, 16, 32, 64, 80, 96, 128] {
        cases.push((heads(2, 2, head_dim), KvType::F16));
    }
    for group in [1, 3, 4, 7, 9] {
        cases.push((heads(group, 1, 64), KvType::F16));
    }
    for kv_type in [KvType::F32, KvType::Int8] {
        cases.push((heads(3, 2, 32), kv_type));
        cases.push((heads(7, 1, 64), kv_type));
        cases.push((heads(2, 1, 24), kv_type));
    }
    cases
}

const BLOCKS: [u32; 5] = [17, 3, 39, 0, 22];
const EDGES: [usize; 14] = [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 256, 257, 299, 300];

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_context_matches_a_plain_softmax_and_every_isa_has_the_same_bits() {
    for (heads, kv_type) in cases() {
        let whole = [Slice { seq_id: 1, positions: 0..300, blocks: &BLOCKS }];
        let mut layer = Layer::new(Isa::best(), 2, heads, kv_type);
        let expected = layer.step(&whole);
        layer.check_against_f64(&expected, EDGES.iter().map(|context| context - 1));
        for isa in Isa::available().skip(1) {
            let found = Layer::new(isa, 1, heads, kv_type).step(&whole);
            assert_eq!(bits(&found), bits(&expected), "{isa} {heads:?} {kv_type:?}");
        }
    }
}

#[test]
fn every_cut_of_a_prefill_gives_the_rows_of_one_pass() {
    for isa in Isa::available().filter(|isa| *isa != Isa::SCALAR) {
        for (heads, kv_type) in cases() {
            let slice = |positions| Slice { seq_id: 7, positions, blocks: &BLOCKS };
            let expected = Layer::new(isa, 1, heads, kv_type).step(&[slice(0..300)]);
            for chunk in [1, 7, 64, 100, 299] {
                let mut layer = Layer::new(isa, 2, heads, kv_type);
                let mut found = Vec::new();
                for start in (0..300).step_by(chunk) {
                    found.extend(layer.step(&[slice(start..300.min(start + chunk))]));
                }
                assert!(bits(&found) == bits(&expected), "{isa} {heads:?} {kv_type:?} by {chunk}");
            }
        }
    }
}

/// Blocks that lie before every window are given as ones that do not exist.
#[test]
fn windows_and_soft_caps_match_a_plain_softmax_and_no_cut_shows() {
    const GONE: u32 = u32::MAX;
    for (heads, window) in [(heads(2, 1, 16), 1), (heads(3, 2, 32), 16), (heads(7, 1, 64), 100), (heads(2, 2, 24), 64)]
    {
        let with_window = |isa, num_threads, softcap| {
            let mut layer = Layer::new(isa, num_threads, heads, KvType::F32);
            (layer.window, layer.softcap) = (Some(window), softcap);
            layer
        };
        for softcap in [None, Some(0.7)] {
            let mut layer = with_window(Isa::best(), 2, softcap);
            let expected = layer.step(&[Slice { seq_id: 3, positions: 0..300, blocks: &BLOCKS }]);
            layer.check_against_f64(&expected, 0..300);
            for isa in Isa::available() {
                for chunk in [1, 7, 64, 150] {
                    let mut layer = with_window(isa, 2, softcap);
                    let mut found = Vec::new();
                    for start in (0_usize..300).step_by(chunk) {
                        let mut blocks = BLOCKS;
                        blocks[..(start + 1).saturating_sub(window) / BLOCK_SIZE].fill(GONE);
                        let positions = start..300.min(start + chunk);
                        found.extend(layer.step(&[Slice { seq_id: 3, positions, blocks: &blocks }]));
                    }
                    assert!(bits(&found) == bits(&expected), "{isa} {heads:?} {window} by {chunk}");
                }
            }
        }
    }
}

/// Spans of a long context, one thread or several, with a window over some of them.
#[test]
fn windows_over_several_spans_split_over_threads_give_the_same_bits() {
    let blocks: Vec<u32> = (0..16).map(|i| i * 7 % 40).collect();
    let slice = |positions| [Slice { seq_id: 5, positions, blocks: &blocks }];
    let mut layers = [1, 3].map(|threads| Layer::new(Isa::best(), threads, heads(2, 1, 64), KvType::F16));
    for layer in &mut layers {
        layer.window = Some(520);
        for start in (0..1000).step_by(250) {
            layer.step(&slice(start..start + 250));
        }
    }
    let mut whole = Vec::new();
    for position in 1000..1010 {
        let [one, three] = layers.each_mut().map(|layer| bits(&layer.step(&slice(position..position + 1))));
        assert!(one == three, "position {position}");
        whole.extend(one);
    }
    assert!(bits(&layers[1].step(&slice(1000..1010))) == whole);
}

#[test]
fn long_contexts_split_over_threads_give_the_same_bits() {
    let blocks: Vec<u32> = (0..16).map(|i| i * 7 % 40).collect();
    for group in [1, 7] {
        let heads = heads(group, 1, 64);
        let slice = |positions| [Slice { seq_id: 5, positions, blocks: &blocks }];
        let mut layers = [1, 2, 3].map(|threads| Layer::new(Isa::best(), threads, heads, KvType::F16));
        for start in (0..1000).step_by(250) {
            for layer in &mut layers {
                layer.step(&slice(start..start + 250));
            }
        }
        for position in 1000..1010 {
            let [one, two, three] = layers.each_mut().map(|layer| bits(&layer.step(&slice(position..position + 1))));
            assert!(one == two && two == three, "group {group} position {position}");
        }
        let mut layer = Layer::new(Isa::best(), 2, heads, KvType::F16);
        for start in (0..750).step_by(250) {
            layer.step(&slice(start..start + 250));
        }
        let prefill = layer.step(&slice(750..1010));
        let decode = layers[1].step(&slice(1009..1010));
        assert_eq!(bits(&decode), bits(&prefill[prefill.len() - decode.len()..]));
    }
}

#[test]
fn a_row_ignores_its_neighbours_threads_and_blocks() {
    let (a_blocks, b_blocks, c_blocks) = ([5, 9, 1], [2, 30], [33, 8, 12]);
    for (heads, kv_type) in [(heads(7, 2, 64), KvType::F16), (heads(3, 3, 16), KvType::Int8)] {
        let alone = |seq_id, cuts: &[usize], blocks: &[u32]| {
            let mut layer = Layer::new(Isa::best(), 1, heads, kv_type);
            let mut last = Vec::new();
            for cut in cuts.windows(2) {
                last = layer.step(&[Slice { seq_id, positions: cut[0]..cut[1], blocks }]);
            }
            last
        };
        let mut expected = alone(1, &[0, 150, 151], &[0, 1, 2]);
        expected.extend(alone(2, &[0, 60, 100], &[3, 4]));
        expected.extend(alone(3, &[0, 129], &[5, 6, 7]));
        for num_threads in [1, 2, 4] {
            let mut layer = Layer::new(Isa::best(), num_threads, heads, kv_type);
            layer.step(&[
                Slice { seq_id: 1, positions: 0..150, blocks: &a_blocks },
                Slice { seq_id: 2, positions: 0..60, blocks: &b_blocks },
            ]);
            let found = layer.step(&[
                Slice { seq_id: 1, positions: 150..151, blocks: &a_blocks },
                Slice { seq_id: 2, positions: 60..100, blocks: &b_blocks },
                Slice { seq_id: 3, positions: 0..129, blocks: &c_blocks },
            ]);
            assert!(bits(&found) == bits(&expected), "{heads:?} {num_threads}");
        }
    }
}

#[test]
fn a_copied_block_serves_as_its_original() {
    for kv_type in [KvType::F32, KvType::F16, KvType::Int8] {
        let mut layer = Layer::new(Isa::best(), 2, heads(4, 2, 32), kv_type);
        layer.step(&[Slice { seq_id: 1, positions: 0..100, blocks: &[4, 5] }]);
        let expected = layer.step(&[Slice { seq_id: 1, positions: 100..101, blocks: &[4, 5] }]);
        // Stale contents beyond the copy must not matter.
        layer.step(&[Slice { seq_id: 9, positions: 0..64, blocks: &[11] }]);
        layer.kv.copy_block(5, 11, 36);
        let found = layer.step(&[Slice { seq_id: 1, positions: 100..101, blocks: &[4, 11] }]);
        assert_eq!(bits(&found), bits(&expected), "{kv_type:?}");
    }
}

#[test]
fn norms_over_all_heads_clips_and_layers_without_rotation() {
    let heads = heads(2, 1, 8);
    let mut kv = KvCache::new(KvShape { num_layers: 1, num_blocks: 1, num_kv_heads: 1, head_dim: 8 }, KvType::F32);
    let mut qkv: Vec<f32> = (0..32).map(|i| i as f32 - 10.0).collect();
    let mean = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
    let (q_rms, k_rms) = (mean(&qkv[..16]).sqrt(), mean(&qkv[16..24]).sqrt());
    let before = qkv.clone();
    let slots = [Slot { block: 0, offset: 0 }];
    let (q_norm, k_norm) = ([2.0; 16], [1.0; 8]);
    let params = QkvParams {
        heads,
        q_norm: Some(&q_norm),
        k_norm: Some(&k_norm),
        eps: 0.0,
        clip: Some(1.5),
        rope: None,
        slots: &slots,
        layer: 0,
    };
    prepare_qkv(&Pool::new(1), Isa::best(), &mut qkv, &params, &mut kv);
    for (i, (found, x)) in qkv.iter().zip(before).enumerate() {
        let normed = match i {
            0..16 => x / q_rms * 2.0,
            16..24 => x / k_rms,
            _ => x,
        };
        assert!((found - normed.clamp(-1.5, 1.5)).abs() < 1e-6, "{i}: {found}, not {normed} within 1.5");
    }
}

#[test]
fn what_is_not_finite_stays_in_the_rows_that_see_it() {
    let heads = heads(2, 1, 16);
    for kv_type in [KvType::F32, KvType::F16, KvType::Int8] {
        let mut clean = Layer::new(Isa::best(), 1, heads, kv_type);
        let blocks = [1, 2];
        let slices = |end| [Slice { seq_id: 1, positions: 0..end, blocks: &blocks }];
        let expected = clean.step(&slices(70));
        let mut layer = Layer::new(Isa::best(), 1, heads, kv_type);
        layer.step(&slices(70));
        // Poisons V of position 66, as if it had been computed so.
        let mut qkv = layer.qkv[66 * heads.qkv_len()..][..heads.qkv_len()].to_vec();
        qkv[3 * 16 + 5] = f32::INFINITY;
        let slots = [Slot { block: 2, offset: 2 }];
        let mut rope = RopeTable::new(1, &[], 1.0);
        rope.set_positions(&[66]);
        let (eps, slots) = (EPS, &slots);
        let params =
            QkvParams { heads, q_norm: None, k_norm: None, eps, clip: None, rope: Some(&rope), slots, layer: 1 };
        prepare_qkv(&layer.pool, layer.isa, &mut qkv, &params, &mut layer.kv);
        let seqs = [AttentionSeq { tokens: 0..70, blocks: 0..2, context_len: 70 }];
        let (scale, seqs) = (layer.scale(), &seqs);
        let (window, softcap, block_tables) = (None, None, &blocks);
        let params = AttentionParams { heads, scale, window, softcap, seqs, block_tables, layer: 1 };
        let mut found = vec![0.0; expected.len()];
        attend(&layer.pool, layer.isa, &layer.qkv, &params, &layer.kv, &mut layer.scratch, &mut found);
        assert_eq!(bits(&found[..66 * 32]), bits(&expected[..66 * 32]), "{kv_type:?}");
        for row in 66..70 {
            assert!(!found[row * 32 + 5].is_finite(), "{kv_type:?} {row}");
        }
    }
}
