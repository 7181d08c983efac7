//! Qwen3, dense: no biases, but an RMS norm on every head of q and k.

use super::gguf::GgufConfig;
use super::hf::HfConfig;
use super::{Family, GGUF_NAMES, HF_NAMES, dense};
use crate::error::LoadError;
use crate::spec::{Biases, DecoderSpec, QkNorm};

pub(super) const FAMILY: Family = Family {
    name: "qwen3",
    hf_architectures: &["Qwen3ForCausalLM"],
    gguf_architectures: &["qwen3"],
    from_hf,
    from_gguf,
    hf_tensors: HF_NAMES,
    gguf_tensors: GGUF_NAMES,
    gguf_pairs_rows: false,
};

fn from_hf(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    let config = &config.with_defaults(&[("head_dim", 128.into())]);
    let biases = Biases { mlp: false, ..dense::biases_from_hf(config)? };
    let spec = dense::from_hf(config, biases, config.windows_of_qwen()?, 10_000.0)?;
    Ok(DecoderSpec { qk_norm: QkNorm::PerHead, ..spec })
}

fn from_gguf(config: &GgufConfig<'_>) -> Result<DecoderSpec, LoadError> {
    Ok(DecoderSpec { qk_norm: QkNorm::PerHead, ..dense::from_gguf(config, config.full_layers()?)? })
}
