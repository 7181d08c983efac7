//! The forward pass: embed, layers, logits. One function for every family; what differs is in the spec.
//!
//! Every row is computed from its own inputs alone, so neither the batch nor the cut of a prefill shows in a result.

use tokenmill_kernels::activation::{gated_row, softcap_all};
use tokenmill_kernels::activations::Activations;
use tokenmill_kernels::attention::{AttentionParams, AttentionSeq, QkvParams, attend, prepare_qkv};
use tokenmill_kernels::isa::Isa;
use tokenmill_kernels::kv_cache::{BLOCK_SIZE, KvCache, Slot};
use tokenmill_kernels::matmul::{PackedMatrix, Place, Store, matmul};
use tokenmill_kernels::norm::rms_norm_row;
use tokenmill_kernels::pool::Pool;

use super::arena::{Arena, MLP_TOKENS, head_shape};
use super::experts::Experts;
use super::weights::{GatedMlp, LayerWeights, MlpWeights, ModelWeights};
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
            scale(row, self.spec.embedding_scale);
        }
        for rope in &mut arena.ropes {
            rope.set_positions(&batch.positions);
        }
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
            if seq.is_long {
                for rope in &mut arena.ropes {
                    rope.set_long(tokens.start, &batch.positions[tokens.clone()]);
                }
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
        let norm = RowNorm { isa: self.isa, eps: self.spec.norm_eps, weight: layer.norms.attention.as_deref() };
        norm.apply(self.pool, &arena.residual, num_rows, &mut arena.normed);
        let qkv = &mut arena.qkv[..num_rows * self.spec.qkv_dim()];
        layer.qkv.apply(self.pool, &arena.normed, qkv, Store::Replace);
        let params = QkvParams {
            heads: head_shape(self.spec),
            q_norm: layer.norms.q.as_deref(),
            k_norm: layer.norms.k.as_deref(),
            eps: self.spec.norm_eps,
            clip: self.spec.attention.clip_qkv,
            rope: self.spec.layers[layer_idx].rope.map(|rope| &arena.ropes[rope]),
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
            scale: self.spec.attention.scale,
            window: self.spec.layers[layer_idx].window.map(|window| window as usize),
            softcap: self.spec.attention.softcap,
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
        let Arena { residual, attended, attention, branch, .. } = &mut *self.arena;
        let (width, hidden) = (self.spec.attention_dim(), self.spec.hidden_dim);
        attention.fill(self.pool, num_rows, |row, out| out.copy_from_slice(&attended[row * width..][..width]));
        if self.spec.changes_outputs() {
            layer.attention_output.apply(self.pool, attention, &mut branch[..num_rows * hidden], Store::Replace);
            self.add_branch(layer.norms.attention_post.as_deref(), 0, num_rows);
        } else {
            layer.attention_output.apply(self.pool, attention, &mut residual[..num_rows * hidden], Store::Add);
        }
    }

    fn add_mlp(&mut self, layer: &LayerWeights, num_rows: usize) {
        match &layer.mlp {
            MlpWeights::Dense(mlp) => {
                for first_row in (0..num_rows).step_by(MLP_TOKENS) {
                    self.add_dense(layer, mlp, first_row, MLP_TOKENS.min(num_rows - first_row));
                }
            }
            MlpWeights::Experts { router, experts } => self.add_experts(layer, router, experts, num_rows),
        }
    }

    fn add_dense(&mut self, layer: &LayerWeights, weights: &GatedMlp, first_row: usize, num_rows: usize) {
        let Arena { residual, normed, gate_up, mlp, branch, .. } = &mut *self.arena;
        let (isa, gate, hidden, ffn) = (self.isa, self.spec.gate, self.spec.hidden_dim, self.spec.ffn_dim);
        let residual = &mut residual[first_row * hidden..][..num_rows * hidden];
        let norm = RowNorm { isa, eps: self.spec.norm_eps, weight: layer.norms.mlp.as_deref() };
        norm.apply(self.pool, residual, num_rows, normed);
        let gate_up = &mut gate_up[..num_rows * 2 * ffn];
        weights.gate_up.apply(self.pool, normed, gate_up, Store::Replace);
        mlp.fill(self.pool, num_rows, |row, out| gated_row(isa, gate, &gate_up[row * 2 * ffn..][..2 * ffn], out));
        if self.spec.changes_outputs() {
            weights.down.apply(self.pool, mlp, &mut branch[..num_rows * hidden], Store::Replace);
            self.add_branch(layer.norms.mlp_post.as_deref(), first_row, num_rows);
        } else {
            weights.down.apply(self.pool, mlp, residual, Store::Add);
        }
    }

    fn add_experts(&mut self, layer: &LayerWeights, router: &PackedMatrix, experts: &[GatedMlp], num_rows: usize) {
        let Arena { residual, normed, branch, experts: arena, .. } = &mut *self.arena;
        let norm = RowNorm { isa: self.isa, eps: self.spec.norm_eps, weight: layer.norms.mlp.as_deref() };
        norm.apply(self.pool, residual, num_rows, normed);
        let arena = arena.as_mut().expect("a model with experts has buffers for them");
        let with = Experts { isa: self.isa, pool: self.pool, gate: self.spec.gate, router, experts };
        arena.run(with, normed, &mut branch[..num_rows * self.spec.hidden_dim]);
        self.add_branch(layer.norms.mlp_post.as_deref(), 0, num_rows);
    }

    /// Adds the first `num_rows` rows of `branch` to those of the residual stream from `first_row`, normed and scaled.
    fn add_branch(&mut self, norm: Option<&[f32]>, first_row: usize, num_rows: usize) {
        let Arena { residual, branch, branch_row, .. } = &mut *self.arena;
        let hidden = self.spec.hidden_dim;
        let residual = residual[first_row * hidden..].chunks_exact_mut(hidden);
        for (residual, branch) in residual.zip(branch[..num_rows * hidden].chunks_exact(hidden)) {
            match norm {
                Some(weight) => rms_norm_row(self.isa, branch, weight, self.spec.norm_eps, branch_row),
                None => branch_row.copy_from_slice(branch),
            }
            for (residual, x) in residual.iter_mut().zip(&*branch_row) {
                *residual += x * self.spec.residual_scale;
            }
        }
    }

    /// Turns the wanted rows, which are in front by now, into logits. A row that is not finite stays so and fails its own
    /// sequence when it is sampled; its neighbours do not notice.
    fn output(&mut self, num_rows: usize, logits: &mut [f32]) {
        let Arena { residual, normed, .. } = &mut *self.arena;
        let norm = RowNorm { isa: self.isa, eps: self.spec.norm_eps, weight: Some(&self.weights.final_norm) };
        norm.apply(self.pool, residual, num_rows, normed);
        matmul(self.pool, self.weights.output(), normed, logits, Place::rows_of(self.spec.vocab_size));
        if self.spec.logits_divisor != 1.0 {
            logits.iter_mut().for_each(|logit| *logit /= self.spec.logits_divisor);
        }
        if let Some(cap) = self.spec.logits_softcap {
            softcap_all(self.pool, self.isa, logits, cap);
        }
    }
}

/// Multiplies a row.
fn scale(row: &mut [f32], factor: f32) {
    if factor != 1.0 {
        row.iter_mut().for_each(|x| *x *= factor);
    }
}

/// How rows are normed on their way into a matmul; without a weight they go in as they are.
#[derive(Clone, Copy)]
struct RowNorm<'a> {
    isa: Isa,
    eps: f32,
    weight: Option<&'a [f32]>,
}

impl RowNorm<'_> {
    /// The first `num_rows` rows of `x`, which has as many columns as `out`.
    fn apply(&self, pool: &Pool, x: &[f32], num_rows: usize, out: &mut Activations) {
        let width = out.cols();
        out.fill(pool, num_rows, |row, out| {
            let x = &x[row * width..][..width];
            match self.weight {
                Some(weight) => rms_norm_row(self.isa, x, weight, self.eps, out),
                None => out.copy_from_slice(x),
            }
        });
    }
}
