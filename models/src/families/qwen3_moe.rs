//! Qwen3 with experts, in every layer or in some.

use serde_json::Value;

use super::gguf::GgufConfig;
use super::hf::HfConfig;
use super::{Family, GGUF_NAMES, HF_NAMES, dense};
use crate::error::LoadError;
use crate::spec::{Biases, DecoderSpec, QkNorm};

pub(super) const FAMILY: Family = Family {
    name: "qwen3_moe",
    hf_architectures: &["Qwen3MoeForCausalLM"],
    gguf_architectures: &["qwen3moe"],
    from_hf,
    from_gguf,
    hf_tensors: HF_NAMES,
    gguf_tensors: GGUF_NAMES,
    gguf_pairs_rows: false,
};

fn from_hf(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    let biases = Biases { mlp: false, ..dense::biases_from_hf(config)? };
    let windows =
        if config.flag("use_sliding_window")? { config.windows_everywhere()? } else { config.full_layers()? };
    let spec = dense::from_hf(config, biases, windows, 10_000.0)?;
    let experts = config.experts(config.size("moe_intermediate_size")?, config.flag("norm_topk_prob")?)?;
    let step = config.optional_size("decoder_sparse_step")?.unwrap_or(1).max(1);
    let dense_layers = config.get("mlp_only_layers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let is_dense = |layer_idx: usize| dense_layers.iter().any(|idx| idx.as_u64() == Some(layer_idx as u64));
    let spec =
        dense::with_experts(spec, experts, |layer_idx| !is_dense(layer_idx) && (layer_idx + 1).is_multiple_of(step));
    Ok(DecoderSpec { qk_norm: QkNorm::PerHead, ..spec })
}

fn from_gguf(config: &GgufConfig<'_>) -> Result<DecoderSpec, LoadError> {
    let spec = dense::experts_from_gguf(config, config.full_layers()?, true)?;
    Ok(DecoderSpec { qk_norm: QkNorm::PerHead, ..spec })
}
