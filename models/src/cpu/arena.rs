//! [`Arena`]: every buffer of a forward pass, sized once from the geometry.

use tokenmill_kernels::activations::{ActivationKinds, Activations};
use tokenmill_kernels::aligned::AlignedVec;
use tokenmill_kernels::attention::{AttentionScratch, AttentionSeq, HeadShape};
use tokenmill_kernels::isa::Isa;
use tokenmill_kernels::kv_cache::Slot;
use tokenmill_kernels::rope::RopeTable;

use super::experts::ExpertArena;
use super::weights::BufferKinds;
use crate::runner::Geometry;
use crate::spec::{DecoderSpec, RopeSpec};

/// Tokens that pass through the MLP at a time. Its intermediate rows are the widest of all; this many still stay in a
/// shared cache, and are enough for the matmuls to be bound by arithmetic.
pub(super) const MLP_TOKENS: usize = 128;

/// Buffers of the forward pass; `max_tokens` and `max_seqs` are those of the geometry.
pub(super) struct Arena {
    /// The residual stream, `[max_tokens, hidden_dim]`.
    pub(super) residual: AlignedVec<f32>,
    /// Normed rows for qkv and the output projection, `[max_tokens, hidden_dim]`.
    pub(super) normed: Activations,
    /// `[max_tokens, qkv_dim]`
    pub(super) qkv: AlignedVec<f32>,
    /// Weighted values of all heads, `[max_tokens, attention_dim]`.
    pub(super) attended: AlignedVec<f32>,
    /// The same, as the output projection reads it.
    pub(super) attention: Activations,
    /// `[MLP_TOKENS, 2 * ffn_dim]`; empty if every layer has experts.
    pub(super) gate_up: AlignedVec<f32>,
    /// `[MLP_TOKENS, ffn_dim]`; empty if every layer has experts.
    pub(super) mlp: Activations,
    /// What attention or MLP add to the residual stream, where that is not done at once, `[max_tokens, hidden_dim]`.
    pub(super) branch: AlignedVec<f32>,
    /// One row of it, normed.
    pub(super) branch_row: Vec<f32>,
    /// Buffers of the layers with experts, if there are any.
    pub(super) experts: Option<ExpertArena>,
    /// Rotations of the step's positions, for each rotary embedding.
    pub(super) ropes: Vec<RopeTable>,
    /// `[max_tokens]`
    pub(super) slots: Vec<Slot>,
    /// `[max_seqs]`
    pub(super) seqs: Vec<AttentionSeq>,
    /// Every block table of the step, end to end.
    pub(super) block_tables: Vec<u32>,
    /// Rows whose logits are wanted, ascending, `[max_logits_rows]`.
    pub(super) wanted: Vec<usize>,
    pub(super) scratch: AttentionScratch,
}

/// What [`Arena`] is sized by.
#[derive(Clone, Copy)]
pub(super) struct ArenaSize<'a> {
    pub(super) spec: &'a DecoderSpec,
    pub(super) geometry: Geometry,
    pub(super) kinds: BufferKinds,
    pub(super) num_threads: usize,
}

impl Arena {
    pub(super) fn new(isa: Isa, size: ArenaSize<'_>) -> Self {
        let ArenaSize { spec, geometry, kinds, num_threads } = size;
        let max_tokens = geometry.max_batch_tokens as usize;
        let max_seqs = geometry.max_batch_seqs as usize;
        let mlp_tokens = if size.has_dense_layers() { size.mlp_tokens() } else { 0 };
        let branch_rows = if size.has_branch() { max_tokens } else { 0 };
        let max_blocks = max_seqs * geometry.num_blocks_for(geometry.max_model_len) as usize;
        let max_context = geometry.max_model_len as usize;
        Self {
            residual: AlignedVec::zeroed(max_tokens * spec.hidden_dim),
            normed: Activations::new(isa, max_tokens, spec.hidden_dim, kinds.normed),
            qkv: AlignedVec::zeroed(max_tokens * spec.qkv_dim()),
            attended: AlignedVec::zeroed(max_tokens * spec.attention_dim()),
            attention: Activations::new(isa, max_tokens, spec.attention_dim(), kinds.attention),
            gate_up: AlignedVec::zeroed(mlp_tokens * 2 * spec.ffn_dim),
            mlp: Activations::new(isa, mlp_tokens, spec.ffn_dim, kinds.mlp),
            branch: AlignedVec::zeroed(branch_rows * spec.hidden_dim),
            branch_row: vec![0.0; spec.hidden_dim],
            experts: spec.experts.map(|experts| ExpertArena::new(isa, size, experts)),
            ropes: spec.ropes.iter().map(|rope| rope_table(rope, max_tokens)).collect(),
            slots: Vec::with_capacity(max_tokens),
            seqs: Vec::with_capacity(max_seqs),
            block_tables: Vec::with_capacity(max_blocks),
            wanted: Vec::with_capacity(geometry.max_logits_rows as usize),
            scratch: AttentionScratch::new(head_shape(spec), num_threads, max_tokens, max_context),
        }
    }
}

impl ArenaSize<'_> {
    pub(super) fn mlp_tokens(&self) -> usize {
        MLP_TOKENS.min(self.geometry.max_batch_tokens as usize)
    }

    fn has_dense_layers(&self) -> bool {
        self.spec.num_expert_layers() < self.spec.num_layers()
    }

    fn has_branch(&self) -> bool {
        self.spec.changes_outputs() || self.spec.experts.is_some()
    }

    /// Bytes that the arena and the logits take, to within a few per cent and a few megabytes.
    pub(super) fn size_bytes(&self) -> u64 {
        let ArenaSize { spec, geometry, kinds, .. } = *self;
        let (tokens, mlp_tokens) = (u64::from(geometry.max_batch_tokens), self.mlp_tokens() as u64);
        let dense_tokens = if self.has_dense_layers() { mlp_tokens } else { 0 };
        let branch_dim = if self.has_branch() { spec.hidden_dim } else { 0 };
        let rotary_dims: usize = spec.ropes.iter().map(|rope| rope.rotary_dim).sum();
        f32_rows(tokens, spec.hidden_dim + spec.qkv_dim() + spec.attention_dim() + rotary_dims + branch_dim)
            + f32_rows(dense_tokens, 2 * spec.ffn_dim)
            + activation_bytes(tokens, spec.hidden_dim, kinds.normed)
            + activation_bytes(tokens, spec.attention_dim(), kinds.attention)
            + activation_bytes(dense_tokens, spec.ffn_dim, kinds.mlp)
            + spec.experts.map_or(0, |experts| ExpertArena::size_bytes(self, experts))
            + f32_rows(u64::from(geometry.max_logits_rows), spec.vocab_size)
    }
}

/// Bytes of rows of f32.
pub(super) fn f32_rows(num_rows: u64, width: usize) -> u64 {
    num_rows * width as u64 * 4
}

/// Bytes of [`Activations`].
pub(super) fn activation_bytes(num_rows: u64, width: usize, kinds: ActivationKinds) -> u64 {
    // 96 bytes for each 64 columns of int8, see `kernels::activations`.
    let int8 = if kinds.int8 { width.div_ceil(64) as u64 * 96 } else { 0 };
    num_rows * int8 + if kinds.f32 { f32_rows(num_rows, width) } else { 0 }
}

fn rope_table(rope: &RopeSpec, max_tokens: usize) -> RopeTable {
    let table = RopeTable::new(max_tokens, &rope.inv_freq(), rope.attention_factor());
    match rope.long_inv_freq() {
        Some(long) => table.with_long(long),
        None => table,
    }
}

impl BufferKinds {
    /// The kinds for a model whose matrices all read `kind`.
    #[cfg(test)]
    pub(super) fn uniform(kind: tokenmill_kernels::activations::ActivationKind) -> Self {
        use tokenmill_kernels::activations::ActivationKind::{F32, Int8};
        let kinds = ActivationKinds { int8: kind == Int8, f32: kind == F32 };
        Self { normed: kinds, attention: kinds, mlp: kinds, expert_input: kinds, expert_mlp: kinds }
    }
}

/// The heads of an attention layer, as the kernels want to know them.
pub(super) fn head_shape(spec: &DecoderSpec) -> HeadShape {
    HeadShape { num_heads: spec.num_heads, num_kv_heads: spec.num_kv_heads, head_dim: spec.head_dim }
}
