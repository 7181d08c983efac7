//! Operations of a step must not allocate: a counting allocator watches them.
#![allow(unsafe_code, reason = "a global allocator is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use tokenmill_kernels::activation::silu_mul;
use tokenmill_kernels::activations::{ActivationKinds, Activations};
use tokenmill_kernels::attention::{
    AttentionParams, AttentionScratch, AttentionSeq, HeadShape, QkvParams, attend, prepare_qkv,
};
use tokenmill_kernels::isa::Isa;
use tokenmill_kernels::kv_cache::{KvCache, KvShape, KvType, Slot};
use tokenmill_kernels::logits::{self, TopK};
use tokenmill_kernels::norm::{RowSelect, rms_norm};
use tokenmill_kernels::pool::Pool;
use tokenmill_kernels::rope::RopeTable;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands everything to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const HEADS: HeadShape = HeadShape { num_heads: 6, num_kv_heads: 2, head_dim: 32 };
const MAX_TOKENS: usize = 40;

/// Everything that a layer reads and writes.
struct Layer {
    pool: Pool,
    kv: KvCache,
    rope: RopeTable,
    scratch: AttentionScratch,
    qkv: Vec<f32>,
    out: Vec<f32>,
    normed: Activations,
    keys: Vec<f32>,
    top_k: TopK,
}

impl Layer {
    /// One step of everything.
    fn step(&mut self, seqs: &[AttentionSeq], positions: &[u32], slots: &[Slot], tables: &[u32]) {
        let isa = Isa::best();
        self.rope.set_positions(positions);
        let qkv = &mut self.qkv[..positions.len() * HEADS.qkv_len()];
        let params = QkvParams {
            heads: HEADS,
            q_norm: None,
            k_norm: None,
            eps: 1e-6,
            clip: None,
            rope: Some(&self.rope),
            slots,
            layer: 0,
        };
        prepare_qkv(&self.pool, isa, qkv, &params, &mut self.kv);
        let (window, softcap) = (Some(50), None);
        let params =
            AttentionParams { heads: HEADS, scale: 0.2, window, softcap, seqs, block_tables: tables, layer: 0 };
        let out = &mut self.out[..positions.len() * 192];
        attend(&self.pool, isa, qkv, &params, &self.kv, &mut self.scratch, out);
        rms_norm(&self.pool, isa, out, RowSelect::Rows(&[0]), &[1.0; 192], 1e-6, &mut self.normed);
        silu_mul(&self.pool, isa, &self.keys[..2 * 192 * 3], &mut self.normed);
        let (mut ids, mut values) = ([0; 50], [0.0; 50]);
        let max = logits::max(isa, &self.keys);
        assert!(logits::sum_exp(isa, &self.keys, max, 1.0) > 0.0);
        assert!(logits::argmax(isa, &self.keys).is_some());
        logits::collect_above(isa, &self.keys, max - 1.0, &mut ids, &mut values);
        self.top_k.select(isa, &self.keys, &mut ids, &mut values);
        self.kv.copy_block(0, 7, 20);
    }
}

#[test]
fn a_step_does_not_allocate() {
    let shape = KvShape { num_layers: 1, num_blocks: 24, num_kv_heads: 2, head_dim: 32 };
    let mut layer = Layer {
        pool: Pool::new(2),
        kv: KvCache::new(shape, KvType::F16),
        rope: RopeTable::new(MAX_TOKENS, &[0.1; 16], 1.0),
        scratch: AttentionScratch::new(HEADS, 2, MAX_TOKENS, 1024),
        qkv: vec![0.5; MAX_TOKENS * HEADS.qkv_len()],
        out: vec![0.0; MAX_TOKENS * 192],
        normed: Activations::new(Isa::best(), MAX_TOKENS, 192, ActivationKinds { int8: true, f32: true }),
        keys: (0..5000_u32).map(|i| (i * 7919 % 5000) as f32 / 100.0).collect(),
        top_k: TopK::new(5000),
    };
    let tables: Vec<u32> = (0..24).collect();
    // One decode that is split into spans, one short decode, one prefill.
    let split = [AttentionSeq { tokens: 0..1, blocks: 0..16, context_len: 1000 }];
    let mixed = [
        AttentionSeq { tokens: 0..1, blocks: 0..2, context_len: 70 },
        AttentionSeq { tokens: 1..33, blocks: 8..9, context_len: 50 },
    ];
    let positions: Vec<u32> = [69].into_iter().chain(18..50).collect();
    let slots: Vec<Slot> = positions.iter().map(|p| Slot { block: 8 + p / 64, offset: p % 64 }).collect();
    for round in 0..6 {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        layer.step(&split, &[999], &[Slot { block: 15, offset: 39 }], &tables);
        layer.step(&mixed, &positions, &slots, &tables);
        // The first round may set up what lives as long as the process, in the standard library for one.
        if round > 0 {
            assert_eq!(ALLOCATIONS.load(Ordering::Relaxed), before, "allocations in round {round}");
        }
    }
}
