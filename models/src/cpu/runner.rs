//! [`CpuRunner`]: a decoder on the CPU kernels.

use tokenmill_kernels::isa::Isa;
use tokenmill_kernels::kv_cache::KvCache;
use tokenmill_kernels::pool::Pool;

use super::arena::Arena;
use super::forward::Step;
use super::weights::ModelWeights;
use crate::runner::{Batch, Geometry, Logits, ModelRunner, RunnerError};
use crate::spec::DecoderSpec;

/// A decoder with its weights, KV cache, buffers and threads. Made by [`crate::load`].
pub struct CpuRunner {
    pub(super) isa: Isa,
    pub(super) pool: Pool,
    pub(super) spec: DecoderSpec,
    pub(super) weights: ModelWeights,
    pub(super) kv: KvCache,
    pub(super) arena: Arena,
    pub(super) geometry: Geometry,
}

impl CpuRunner {
    /// What the model computes.
    #[must_use]
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }
}

impl ModelRunner for CpuRunner {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// # Panics
    /// When `batch` breaks the contract: more tokens or sequences than the geometry allows, a block that does not exist.
    /// A token outside the vocabulary, which a client might have sent, is an error.
    fn forward(&mut self, batch: &Batch, logits: &mut Logits) -> Result<(), RunnerError> {
        let geometry = self.geometry;
        let (num_tokens, num_seqs) = (batch.tokens.len(), batch.seqs.len());
        assert!(num_tokens <= geometry.max_batch_tokens as usize, "{num_tokens} tokens in a step");
        assert!(num_seqs <= geometry.max_batch_seqs as usize, "{num_seqs} sequences in a step");
        if let Some(token) = batch.tokens.iter().find(|token| **token >= geometry.vocab_size) {
            return Err(RunnerError::Backend(format!("token {token} of a vocabulary of {}", geometry.vocab_size)));
        }
        let Self { isa, pool, spec, weights, kv, arena, .. } = self;
        Step { isa: *isa, pool, spec, weights, kv, arena }.run(batch, logits);
        Ok(())
    }
}
