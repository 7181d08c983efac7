//! [`ModelWeights`]: every weight of a decoder, packed for the kernels. `plan` decides what they are, `pack` reads them.

use tokenmill_kernels::activations::{ActivationKinds, Activations};
use tokenmill_kernels::matmul::{PackedMatrix, Place, Store, matmul};
use tokenmill_kernels::pool::Pool;

/// The weights of a decoder, packed.
pub(super) struct ModelWeights {
    /// `[vocab_size, hidden_dim]`
    pub(super) embedding: PackedMatrix,
    pub(super) layers: Vec<LayerWeights>,
    /// `[hidden_dim]`
    pub(super) final_norm: Vec<f32>,
    /// `[vocab_size, hidden_dim]`; none if it is the embedding.
    pub(super) output: Option<PackedMatrix>,
}

/// The weights of one layer. Norms are `[hidden_dim]`, those of q and k `[head_dim]` or of all heads.
pub(super) struct LayerWeights {
    pub(super) norms: LayerNorms,
    /// `[qkv_dim, hidden_dim]`
    pub(super) qkv: Projection,
    /// `[hidden_dim, attention_dim]`
    pub(super) attention_output: Projection,
    pub(super) mlp: MlpWeights,
}

/// The norms of one layer, those that it has.
pub(super) struct LayerNorms {
    pub(super) attention: Option<Vec<f32>>,
    pub(super) q: Option<Vec<f32>>,
    pub(super) k: Option<Vec<f32>>,
    pub(super) attention_post: Option<Vec<f32>>,
    pub(super) mlp: Option<Vec<f32>>,
    pub(super) mlp_post: Option<Vec<f32>>,
}

/// What follows attention in a layer.
pub(super) enum MlpWeights {
    Dense(GatedMlp),
    Experts {
        /// `[num_experts, hidden_dim]`
        router: PackedMatrix,
        /// `[num_experts]`
        experts: Vec<GatedMlp>,
    },
}

/// A gated MLP: a layer's own, or one expert's.
pub(super) struct GatedMlp {
    /// `[2 * ffn_dim, hidden_dim]`
    pub(super) gate_up: Projection,
    /// `[hidden_dim, ffn_dim]`
    pub(super) down: Projection,
}

/// Matrices that read the same rows, their products side by side; one matrix unless layouts differ.
pub(super) struct Projection {
    pub(super) matrices: Vec<PackedMatrix>,
    pub(super) rows: usize,
}

impl ModelWeights {
    /// The matrix that turns hidden states into logits, `[vocab_size, hidden_dim]`.
    pub(super) fn output(&self) -> &PackedMatrix {
        self.output.as_ref().unwrap_or(&self.embedding)
    }
}

impl Projection {
    /// `out[r, ..rows] = x[r, :] · Wᵀ`, or added to it; rows of `out` are contiguous.
    pub(super) fn apply(&self, pool: &Pool, x: &Activations, out: &mut [f32], store: Store) {
        let mut offset = 0;
        for matrix in &self.matrices {
            matmul(pool, matrix, x, out, Place { stride: self.rows, offset, store });
            offset += matrix.rows();
        }
    }
}

/// Forms of activations that each buffer has to keep.
#[derive(Clone, Copy)]
pub(super) struct BufferKinds {
    /// Input of qkv, gate, up, the router and the output projection.
    pub(super) normed: ActivationKinds,
    /// Input of the attention's output projection.
    pub(super) attention: ActivationKinds,
    /// Input of the down projection.
    pub(super) mlp: ActivationKinds,
    /// Input of the experts' gate and up.
    pub(super) expert_input: ActivationKinds,
    /// Input of the experts' down projection.
    pub(super) expert_mlp: ActivationKinds,
}
