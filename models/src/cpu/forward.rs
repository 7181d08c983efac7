//! The forward pass: embed, layers, logits. One function for every family; what differs is in the spec.
//!
//! Every row is computed from its own inputs alone, so neither the batch nor the cut of a prefill shows in a result.

use tokenmill_kernels::activation::silu_mul_row;
use tokenmill_kernels::activations::Activations;
use tokenmill_kernels::attention::{AttentionParams, AttentionSeq, QkvParams, attend, prepare_qkv};
use tokenmill_kernels::isa::Isa;
use tokenmill_kernels::kv_cache::{BLOCK_SIZE, KvCache, Slot};
use tokenmill_kernels::matmul::{Place, Store, matmul};
use tokenmill_kernels::norm::rms_norm_row;
use tokenmill_kernels::pool::Pool;

use super::arena::{Arena, MLP_TOKENS, head_shape};
use super::weights::{LayerWeights, ModelWeights};
use crate::runner::{Batch, Logits};
use crate::spec::DecoderSpec;

/// What a step works with.
pub(super) struct Step<'a> {
    pub(super) isa: Isa,
    pub(super) pool: &'a Pool,
    pub(super) spec: &'a DecoderSpec,
    pub(super) weights: &'a ModelWeights,
    pub(super) kv: &'a mut KvCache,
    pub(super) arena: &'a mut Arena,
}

impl Step<'_> {
    /// Runs `batch`; see [`crate::runner::ModelRunner::forward`].
    pub(super) fn run(&mut self, batch: &Batch, logits: &mut Logits) {
        for copy in &batch.copies {
            self.kv.copy_block(copy.from.0, copy.to.0, copy.num_tokens as usize);
        }
        self.set_up(batch);
        let num_wanted = self.arena.wanted.len();
        let out = logits.reset(num_wanted);
        let num_layers = self.weights.layers.len();
        let mut num_rows = batch.tokens.len();
        for (layer_idx, layer) in self.weights.layers.iter().enumerate() {
            self.write_kv(layer, layer_idx, num_rows);
            if layer_idx + 1 == num_layers {
                // Nothing reads the other rows any more: their keys and values are stored.
                self.keep_wanted_queries(batch);
            }
            self.attend(layer_idx, num_rows);
            if layer_idx + 1 == num_layers {
                self.compact_wanted();
                num_rows = num_wanted;
            }
            if num_rows == 0 {
                return;
            }
            self.add_attention(layer, num_rows);
            self.add_mlp(layer, num_rows);
        }
        self.output(num_rows, out);
    }

    /// Embeds the tokens and notes where everything lies.
    fn set_up(&mut self, batch: &Batch) {
        let arena = &mut *self.arena;
        let hidden = self.spec.hidden_dim;
        for (token, row) in batch.tokens.iter().zip(arena.residual.chunks_exact_mut(hidden)) {
            self.weights.embedding.dequantize_row(*token as usize, row);
        }
        arena.rope.set_positions(&batch.positions);
        arena.block_tables.clear();
        arena.block_tables.extend(batch.block_tables.iter().map(|block| block.0));
        arena.slots.clear();
        arena.seqs.clear();
        arena.wanted.clear();
        for seq in &batch.seqs {
            let tokens = seq.tokens.start as usize..seq.tokens.end as usize;
            let blocks = seq.blocks.start as usize..seq.blocks.end as usize;
            for position in &batch.positions[tokens.clone()] {
                let position = *position as usize;
                let block = arena.block_tables[blocks.clone()][position / BLOCK_SIZE];
                let offset = u32::try_from(position % BLOCK_SIZE).expect("a block is small");
                arena.slots.push(Slot { block, offset });
            }
            let num_logits = seq.num_logits as usize;
            assert!(num_logits <= tokens.len(), "{num_logits} rows of logits of {} tokens", tokens.len());
            arena.wanted.extend(tokens.end - num_logits..tokens.end);
            arena.seqs.push(AttentionSeq { tokens, blocks, context_len: seq.context_len as usize });
        }
        assert_eq!(arena.slots.len(), batch.tokens.len(), "the sequences cover the batch");
    }

    /// Computes q, k and v, and stores k and v.
    fn write_kv(&mut self, layer: &LayerWeights, layer_idx: usize, num_rows: usize) {
        let arena = &mut *self.arena;
        norm_rows(
            self.isa,
            self.pool,
            self.spec.norm_eps,
            &arena.residual,
            &layer.attention_norm,
            num_rows,
            &mut arena.normed,
        );
        let qkv = &mut arena.qkv[..num_rows * self.spec.qkv_dim()];
        layer.qkv.apply(self.pool, &arena.normed, qkv, Store::Replace);
        let params = QkvParams {
            heads: head_shape(self.spec),
            q_norm: layer.q_norm.as_deref(),
            k_norm: layer.k_norm.as_deref(),
            eps: self.spec.norm_eps,
            rope: &arena.rope,
            slots: &arena.slots,
            layer: layer_idx,
        };
        prepare_qkv(self.pool, self.isa, qkv, &params, self.kv);
    }

    /// Narrows every sequence to the tokens whose logits are wanted.
    fn keep_wanted_queries(&mut self, batch: &Batch) {
        for (seq, wanted) in self.arena.seqs.iter_mut().zip(&batch.seqs) {
            seq.tokens.start = seq.tokens.end - wanted.num_logits as usize;
        }
        self.arena.seqs.retain(|seq| !seq.tokens.is_empty());
    }

    fn attend(&mut self, layer_idx: usize, num_rows: usize) {
        let arena = &mut *self.arena;
        let params = AttentionParams {
            heads: head_shape(self.spec),
            scale: 1.0 / (self.spec.head_dim as f32).sqrt(),
            seqs: &arena.seqs,
            block_tables: &arena.block_tables,
            layer: layer_idx,
        };
        let qkv = &arena.qkv[..num_rows * self.spec.qkv_dim()];
        let out = &mut arena.attended[..num_rows * self.spec.attention_dim()];
        attend(self.pool, self.isa, qkv, &params, self.kv, &mut arena.scratch, out);
    }

    /// Moves the rows whose logits are wanted to the front.
    fn compact_wanted(&mut self) {
        let Arena { residual, attended, wanted, .. } = &mut *self.arena;
        let (hidden, attention) = (self.spec.hidden_dim, self.spec.attention_dim());
        // `wanted` ascends, so no row is overwritten before it has moved.
        for (to, from) in wanted.iter().enumerate().filter(|(to, from)| to != *from) {
            residual.copy_within(from * hidden..(from + 1) * hidden, to * hidden);
            attended.copy_within(from * attention..(from + 1) * attention, to * attention);
        }
    }

    fn add_attention(&mut self, layer: &LayerWeights, num_rows: usize) {
        let Arena { residual, attended, attention, .. } = &mut *self.arena;
        let width = self.spec.attention_dim();
        attention.fill(self.pool, num_rows, |row, out| out.copy_from_slice(&attended[row * width..][..width]));
        let residual = &mut residual[..num_rows * self.spec.hidden_dim];
        layer.attention_output.apply(self.pool, attention, residual, Store::Add);
    }

    fn add_mlp(&mut self, layer: &LayerWeights, num_rows: usize) {
        let Arena { residual, normed, gate_up, mlp, .. } = &mut *self.arena;
        let (hidden, ffn) = (self.spec.hidden_dim, self.spec.ffn_dim);
        for residual in residual[..num_rows * hidden].chunks_mut(MLP_TOKENS * hidden) {
            let num_rows = residual.len() / hidden;
            norm_rows(self.isa, self.pool, self.spec.norm_eps, residual, &layer.mlp_norm, num_rows, normed);
            let gate_up = &mut gate_up[..num_rows * 2 * ffn];
            layer.gate_up.apply(self.pool, normed, gate_up, Store::Replace);
            mlp.fill(self.pool, num_rows, |row, out| silu_mul_row(self.isa, &gate_up[row * 2 * ffn..][..2 * ffn], out));
            layer.down.apply(self.pool, mlp, residual, Store::Add);
        }
    }

    /// Turns the wanted rows, which are in front by now, into logits. A row that is not finite stays so and fails its own
    /// sequence when it is sampled; its neighbours do not notice.
    fn output(&mut self, num_rows: usize, logits: &mut [f32]) {
        let arena = &mut *self.arena;
        norm_rows(
            self.isa,
            self.pool,
            self.spec.norm_eps,
            &arena.residual,
            &self.weights.final_norm,
            num_rows,
            &mut arena.normed,
        );
        matmul(self.pool, self.weights.output(), &arena.normed, logits, Place::rows_of(self.spec.vocab_size));
    }
}

/// RMS norm of the first `num_rows` rows of `x` into `out`.
fn norm_rows(isa: Isa, pool: &Pool, eps: f32, x: &[f32], weight: &[f32], num_rows: usize, out: &mut Activations) {
    let width = weight.len();
    out.fill(pool, num_rows, |row, out| rms_norm_row(isa, &x[row * width..][..width], weight, eps, out));
}
