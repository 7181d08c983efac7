//! `OLMoE`: experts in every layer, and a norm on all heads of q and k together.

use super::gguf::GgufConfig;
use super::hf::HfConfig;
use super::{Family, GGUF_NAMES, HF_NAMES, dense};
use crate::error::LoadError;
use crate::spec::{AttentionSpec, Biases, DecoderSpec, QkNorm};

pub(super) const FAMILY: Family = Family {
    name: "olmoe",
    hf_architectures: &["OlmoeForCausalLM"],
    gguf_architectures: &["olmoe"],
    from_hf,
    from_gguf,
    hf_tensors: HF_NAMES,
    gguf_tensors: GGUF_NAMES,
    gguf_pairs_rows: false,
};

fn from_hf(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    let biases = Biases { mlp: false, ..dense::biases_from_hf(config)? };
    let spec = dense::from_hf(config, biases, config.full_layers()?, 10_000.0)?;
    let experts = config.experts(spec.ffn_dim, config.flag("norm_topk_prob")?)?;
    let clip_qkv = config.optional_float("clip_qkv")?.map(|limit| limit as f32);
    let attention = AttentionSpec { clip_qkv, ..spec.attention };
    let spec = dense::with_experts(spec, experts, |_| true);
    Ok(DecoderSpec { attention, qk_norm: QkNorm::AllHeads, ..spec })
}

fn from_gguf(config: &GgufConfig<'_>) -> Result<DecoderSpec, LoadError> {
    let spec = dense::experts_from_gguf(config, config.full_layers()?, false)?;
    let attention = AttentionSpec { clip_qkv: config.optional_float("attention.clamp_kqv")?, ..spec.attention };
    Ok(DecoderSpec { attention, qk_norm: QkNorm::AllHeads, ..spec })
}
