//! Mixtral: Mistral with experts; the shares of those chosen sum to 1. In GGUF it is called llama.

use super::gguf::GgufConfig;
use super::hf::HfConfig;
use super::{ExpertNames, Family, GGUF_NAMES, HF_NAMES, TensorNames, dense};
use crate::error::LoadError;
use crate::spec::{Biases, DecoderSpec};

pub(super) const FAMILY: Family = Family {
    name: "mixtral",
    hf_architectures: &["MixtralForCausalLM"],
    gguf_architectures: &[],
    from_hf,
    from_gguf,
    hf_tensors: NAMES,
    gguf_tensors: GGUF_NAMES,
    gguf_pairs_rows: true,
};

const NAMES: TensorNames = TensorNames {
    experts: ExpertNames {
        router: "model.layers.{}.block_sparse_moe.gate",
        gate: "model.layers.{}.block_sparse_moe.experts.{e}.w1",
        up: "model.layers.{}.block_sparse_moe.experts.{e}.w3",
        down: "model.layers.{}.block_sparse_moe.experts.{e}.w2",
        ..HF_NAMES.experts
    },
    ..HF_NAMES
};

fn from_hf(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    let spec = dense::from_hf(config, Biases::default(), config.windows_everywhere()?, 1_000_000.0)?;
    let experts = config.experts(spec.ffn_dim, true)?;
    Ok(dense::with_experts(spec, experts, |_| true))
}

fn from_gguf(config: &GgufConfig<'_>) -> Result<DecoderSpec, LoadError> {
    dense::experts_from_gguf(config, config.windows(|_| true)?, true)
}
