//! Qwen2 and Qwen2.5: llama with biases on q, k and v.

use super::gguf::GgufConfig;
use super::hf::HfConfig;
use super::{Family, GGUF_NAMES, HF_NAMES, dense};
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

fn from_hf(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    let biases = Biases { qkv: true, attention_output: false, mlp: false };
    dense::from_hf(config, biases, config.windows_of_qwen()?, 10_000.0)
}

fn from_gguf(config: &GgufConfig<'_>) -> Result<DecoderSpec, LoadError> {
    dense::from_gguf(config, config.full_layers()?)
}
