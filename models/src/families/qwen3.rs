//! Qwen3, dense: no biases, but an RMS norm on every head of q and k.

use super::config::{GgufConfig, HfConfig};
use super::llama::{dense_from_gguf, dense_from_hf};
use super::{Family, GGUF_NAMES, HF_NAMES};
use crate::error::LoadError;
use crate::spec::{Biases, DecoderSpec};

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
    config.refuse_sliding_window()?;
    let attention_bias = config.flag("attention_bias")?;
    let biases = Biases { qkv: attention_bias, attention_output: attention_bias, mlp: false };
    Ok(DecoderSpec { qk_norm: true, ..dense_from_hf(config, biases)? })
}

fn from_gguf(config: &GgufConfig<'_>) -> Result<DecoderSpec, LoadError> {
    Ok(DecoderSpec { qk_norm: true, ..dense_from_gguf(config, Biases::default())? })
}
