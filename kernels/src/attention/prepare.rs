//! [`prepare_qkv`]: what happens to a step's queries, keys and values before attention.

use super::HeadShape;
use crate::isa::Isa;
use crate::kv_cache::{KvCache, KvElement, KvType, KvWriter, Slot};
use crate::norm::rms_norm_in_place;
use crate::pool::Pool;
use crate::rope::{RopeTable, rotate_neox};
use crate::shared::SharedSlice;
use crate::simd::{Simd, Task, dispatch};
use half::f16;

/// Tokens that one thread takes at a time: a token costs about as much as handing it over.
const GRAIN: usize = 4;

/// Parameters of [`prepare_qkv`].
#[derive(Clone, Copy)]
pub struct QkvParams<'a> {
    /// Heads in a row.
    pub heads: HeadShape,
    /// Weights of the norm of queries before rotation: `[head_dim]` norms each head (Qwen3), `[num_heads * head_dim]`
    /// all of them together (`OLMo` 2).
    pub q_norm: Option<&'a [f32]>,
    /// The same for keys, `[head_dim]` or `[num_kv_heads * head_dim]`.
    pub k_norm: Option<&'a [f32]>,
    /// Added to the mean square in both norms.
    pub eps: f32,
    /// Queries, keys and values are cut to this magnitude after the norms, before rotation.
    pub clip: Option<f32>,
    /// Rotations of the step's tokens, unless the layer has none.
    pub rope: Option<&'a RopeTable>,
    /// `[num_tokens]`, where each token's K and V go. No two should be the same: which of them wins is undefined.
    pub slots: &'a [Slot],
    /// Layer of the cache.
    pub layer: usize,
}

/// Normalises (if asked to) and rotates the queries and keys of a step, and stores keys and values in the cache.
///
/// `qkv` is `[num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]`: queries, keys, values. Queries stay there, ready
/// for [`super::attend`]; so do keys and values, as stored but not rounded.
///
/// # Panics
/// When sizes of `qkv`, slots, rotations, norms and cache do not fit together, or a slot does not exist.
pub fn prepare_qkv(pool: &Pool, isa: Isa, qkv: &mut [f32], params: &QkvParams<'_>, kv: &mut KvCache) {
    let HeadShape { num_heads, num_kv_heads, head_dim } = params.heads;
    let num_tokens = params.slots.len();
    assert!(qkv.len() == num_tokens * params.heads.qkv_len(), "qkv of {num_tokens} tokens has {} values", qkv.len());
    if let Some(rope) = params.rope {
        assert!(rope.num_tokens() == num_tokens, "{} rotations, {num_tokens} tokens", rope.num_tokens());
        assert!(rope.rotary_dim() <= head_dim, "rotary_dim {} of {head_dim}", rope.rotary_dim());
    }
    let shape = kv.shape();
    assert!((shape.num_kv_heads, shape.head_dim) == (num_kv_heads, head_dim), "{num_heads} heads, cache {shape:?}");
    for (norm, heads) in [(params.q_norm, num_heads), (params.k_norm, num_kv_heads)] {
        let len = norm.map_or(head_dim, <[f32]>::len);
        assert!(len == head_dim || len == heads * head_dim, "a norm of {len} for {heads} heads of {head_dim}");
    }
    match kv.kv_type() {
        KvType::F32 => prepare::<f32>(pool, isa, qkv, params, kv),
        KvType::F16 => prepare::<f16>(pool, isa, qkv, params, kv),
        KvType::Int8 => prepare::<i8>(pool, isa, qkv, params, kv),
    }
}

fn prepare<E: KvElement>(pool: &Pool, isa: Isa, qkv: &mut [f32], params: &QkvParams<'_>, kv: &mut KvCache) {
    let row_len = params.heads.qkv_len();
    let writer = kv.writer::<E>(params.layer);
    let rows = SharedSlice::new(qkv);
    pool.for_each(params.slots.len(), GRAIN, |tokens| {
        // SAFETY: ranges of tokens that `for_each` hands out do not overlap.
        let rows = unsafe { rows.part(tokens.start * row_len..tokens.end * row_len) };
        dispatch(isa, Rows { rows, first_token: tokens.start, params, writer: &writer });
    });
}

/// Some consecutive tokens.
struct Rows<'a, E> {
    rows: &'a mut [f32],
    first_token: usize,
    params: &'a QkvParams<'a>,
    writer: &'a KvWriter<'a, E>,
}

impl<E: KvElement> Task for Rows<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let params = self.params;
        let HeadShape { num_heads, num_kv_heads, head_dim } = params.heads;
        for (i, row) in self.rows.chunks_exact_mut(params.heads.qkv_len()).enumerate() {
            let token_idx = self.first_token + i;
            let (qk, v) = row.split_at_mut((num_heads + num_kv_heads) * head_dim);
            let (q, k) = qk.split_at_mut(num_heads * head_dim);
            for (heads, norm) in [(&mut *q, params.q_norm), (&mut *k, params.k_norm)] {
                let Some(weight) = norm else { continue };
                for part in heads.chunks_exact_mut(weight.len()) {
                    rms_norm_in_place(simd, part, weight, params.eps);
                }
            }
            if let Some(limit) = params.clip {
                for x in q.iter_mut().chain(&mut *k).chain(&mut *v) {
                    *x = x.clamp(-limit, limit);
                }
            }
            if let Some(rope) = params.rope {
                let (cos, sin) = rope.row(token_idx);
                for head in q.chunks_exact_mut(head_dim).chain(k.chunks_exact_mut(head_dim)) {
                    rotate_neox(head, cos, sin);
                }
            }
            for (kv_head, (k, v)) in k.chunks_exact(head_dim).zip(v.chunks_exact(head_dim)).enumerate() {
                self.writer.write(simd, params.slots[token_idx], kv_head, k, v);
            }
        }
    }
}
