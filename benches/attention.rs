//! Attention, norms, activation and logits, one thread.
//!
//! Names are operation/shape/instruction set. Decode is given in bytes of KV cache per second, prefill in pairs of
//! query and key per second.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use tokenmill_kernels::activation::silu_mul_row;
use tokenmill_kernels::attention::{
    AttentionParams, AttentionScratch, AttentionSeq, HeadShape, QkvParams, attend, prepare_qkv,
};
use tokenmill_kernels::isa::Isa;
use tokenmill_kernels::kv_cache::{BLOCK_SIZE, KvCache, KvShape, KvType, Slot};
use tokenmill_kernels::logits::{self, TopK};
use tokenmill_kernels::norm::rms_norm_row;
use tokenmill_kernels::pool::Pool;
use tokenmill_kernels::rope::RopeTable;

/// Heads of small models: Qwen2.5-0.5B, Llama-3.2-1B, SmolLM2-135M, Qwen3-0.6B.
const HEADS: [HeadShape; 4] = [
    HeadShape { num_heads: 14, num_kv_heads: 2, head_dim: 64 },
    HeadShape { num_heads: 32, num_kv_heads: 8, head_dim: 64 },
    HeadShape { num_heads: 9, num_kv_heads: 3, head_dim: 64 },
    HeadShape { num_heads: 16, num_kv_heads: 8, head_dim: 128 },
];
/// Vocabulary of Qwen2.5.
const VOCAB_SIZE: usize = 151_936;
const CONTEXT: usize = 1024;

fn noise(len: usize) -> Vec<f32> {
    let mut state = 1_u32;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

fn isas() -> impl Iterator<Item = Isa> {
    Isa::available().filter(|isa| *isa != Isa::SCALAR)
}

/// A layer whose cache is filled, with `num_layers` caches to walk through so that pages come from memory.
struct Layer {
    heads: HeadShape,
    pool: Pool,
    kv: KvCache,
    tables: Vec<u32>,
    scratch: AttentionScratch,
    qkv: Vec<f32>,
    out: Vec<f32>,
}

impl Layer {
    fn new(isa: Isa, heads: HeadShape, kv_type: KvType, num_seqs: usize, num_layers: usize) -> Self {
        let num_blocks = num_seqs * CONTEXT / BLOCK_SIZE;
        let shape = KvShape { num_layers, num_blocks, num_kv_heads: heads.num_kv_heads, head_dim: heads.head_dim };
        let mut kv = KvCache::new(shape, kv_type);
        let pool = Pool::new(1);
        let mut rope = RopeTable::new(BLOCK_SIZE, &vec![0.01; heads.head_dim / 2], 1.0);
        rope.set_positions(&(0..64).collect::<Vec<u32>>());
        let mut qkv = noise(BLOCK_SIZE * heads.qkv_len());
        for layer in 0..num_layers {
            for block in 0..num_blocks as u32 {
                let slots: Vec<Slot> = (0..64).map(|offset| Slot { block, offset }).collect();
                let params = QkvParams {
                    heads,
                    q_norm: None,
                    k_norm: None,
                    eps: 1e-6,
                    clip: None,
                    rope: Some(&rope),
                    slots: &slots,
                    layer,
                };
                prepare_qkv(&pool, isa, &mut qkv, &params, &mut kv);
            }
        }
        // Odd steps through a power of two visit every block in a scattered order.
        let tables = (0..num_blocks as u32).map(|i| i * 37 % num_blocks as u32).collect();
        let scratch = AttentionScratch::new(heads, 1, BLOCK_SIZE, CONTEXT);
        let out = vec![0.0; BLOCK_SIZE * heads.num_heads * heads.head_dim];
        Self { heads, pool, kv, tables, scratch, qkv, out }
    }

    fn attend(&mut self, isa: Isa, seqs: &[AttentionSeq], layer: usize) {
        let num_tokens = seqs.iter().map(|seq| seq.tokens.len()).sum::<usize>();
        let heads = self.heads;
        let (window, softcap) = (None, None);
        let params = AttentionParams { heads, scale: 0.125, window, softcap, seqs, block_tables: &self.tables, layer };
        let out = &mut self.out[..num_tokens * heads.num_heads * heads.head_dim];
        let qkv = &self.qkv[..num_tokens * heads.qkv_len()];
        attend(&self.pool, isa, qkv, &params, &self.kv, &mut self.scratch, out);
    }
}

fn name(heads: HeadShape, kv_type: KvType) -> String {
    format!("{}x{}x{} {kv_type:?}", heads.num_heads, heads.num_kv_heads, heads.head_dim)
}

fn decode(c: &mut Criterion) {
    for (label, num_seqs, num_layers) in [("hot", 1, 1), ("cold", 8, 8)] {
        let mut group = c.benchmark_group(format!("decode {label}"));
        let types = [(HEADS[0], KvType::F32), (HEADS[0], KvType::Int8)];
        for (heads, kv_type) in HEADS.into_iter().map(|heads| (heads, KvType::F16)).chain(types) {
            for isa in isas() {
                let mut layer = Layer::new(isa, heads, kv_type, num_seqs, num_layers);
                let blocks = CONTEXT / BLOCK_SIZE;
                let seqs: Vec<AttentionSeq> = (0..num_seqs)
                    .map(|i| AttentionSeq {
                        tokens: i..i + 1,
                        blocks: i * blocks..(i + 1) * blocks,
                        context_len: CONTEXT,
                    })
                    .collect();
                let bytes = KvCache::size_bytes(layer.kv.shape(), kv_type) / num_layers;
                group.throughput(Throughput::Bytes(bytes as u64));
                let mut layer_idx = 0;
                group.bench_function(BenchmarkId::new(name(heads, kv_type), isa), |b| {
                    b.iter(|| {
                        layer.attend(isa, &seqs, layer_idx);
                        layer_idx = (layer_idx + 1) % num_layers;
                    });
                });
            }
        }
    }
}

fn prefill(c: &mut Criterion) {
    let mut group = c.benchmark_group("prefill 64 rows at 1024");
    for heads in HEADS {
        for isa in isas() {
            let mut layer = Layer::new(isa, heads, KvType::F16, 1, 1);
            let seqs = [AttentionSeq { tokens: 0..64, blocks: 0..CONTEXT / BLOCK_SIZE, context_len: CONTEXT }];
            let pairs: usize = (CONTEXT - 63..=CONTEXT).sum::<usize>() * heads.num_heads;
            group.throughput(Throughput::Elements(pairs as u64));
            group.bench_function(BenchmarkId::new(name(heads, KvType::F16), isa), |b| {
                b.iter(|| layer.attend(isa, &seqs, 0));
            });
        }
    }
}

fn elementwise(c: &mut Criterion) {
    let mut group = c.benchmark_group("elementwise");
    let (x, weight, gate_up) = (noise(896), noise(896), noise(2 * 4864));
    let mut out = vec![0.0; 4864];
    for isa in isas() {
        group.bench_function(BenchmarkId::new("rms_norm 896", isa), |b| {
            b.iter(|| rms_norm_row(isa, black_box(&x), &weight, 1e-6, &mut out[..896]));
        });
        group.bench_function(BenchmarkId::new("silu_mul 4864", isa), |b| {
            b.iter(|| silu_mul_row(isa, black_box(&gate_up), &mut out));
        });
    }
}

fn sampling(c: &mut Criterion) {
    let mut group = c.benchmark_group("logits 151936");
    let row: Vec<f32> = noise(VOCAB_SIZE).iter().map(|x| x * 10.0).collect();
    let (mut ids, mut values) = (vec![0; VOCAB_SIZE], vec![0.0; VOCAB_SIZE]);
    let mut top_k = TopK::new(VOCAB_SIZE);
    group.throughput(Throughput::Bytes(4 * VOCAB_SIZE as u64));
    for isa in isas() {
        let max = logits::max(isa, &row);
        group.bench_function(BenchmarkId::new("argmax", isa), |b| b.iter(|| logits::argmax(isa, black_box(&row))));
        group.bench_function(BenchmarkId::new("sum_exp", isa), |b| {
            b.iter(|| logits::sum_exp(isa, black_box(&row), max, 1.0));
        });
        group.bench_function(BenchmarkId::new("collect_above 2 %", isa), |b| {
            b.iter(|| logits::collect_above(isa, black_box(&row), max - 0.4, &mut ids, &mut values));
        });
        for k in [20, 1000] {
            group.bench_function(BenchmarkId::new(format!("top {k}"), isa), |b| {
                b.iter(|| top_k.select(isa, black_box(&row), &mut ids[..k], &mut values[..k]));
            });
        }
    }
}

criterion_group!(benches, decode, prefill, elementwise, sampling);
criterion_main!(benches);
