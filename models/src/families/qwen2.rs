//! Qwen2 and Qwen2.5: llama with biases on q, k and v.

use super::config::{GgufConfig, HfConfig};
use super::llama::{dense_from_gguf, dense_from_hf};
use super::{Family, GGUF_NAMES, HF_NAMES};
use crate::error::LoadError;
use crate::spec::{Biases, DecoderSpec};

pub(super) const FAMILY: Family = Family {
    name: "qwen2",
    hf_architectures: &["Qwen2ForCausalLM"],
    gguf_architectures: &["qwen2"],
    from_hf,
    from_gguf,
    hf_tensors: HF_NAMES,
    gguf_tensors: GGUF_NAMES,
    gguf_pairs_rows: false,
};

const BIASES: Biases = Biases { qkv: true, attention_output: false, mlp: false };

fn from_hf(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    config.refuse_sliding_window()?;
    dense_from_hf(config, BIASES)
}

fn from_gguf(config: &GgufConfig<'_>) -> Result<DecoderSpec, LoadError> {
    dense_from_gguf(config, BIASES)
}
