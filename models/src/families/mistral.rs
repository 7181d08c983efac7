//! Mistral: llama with a sliding window on every layer, in some versions. In GGUF it is called llama.

use super::gguf::GgufConfig;
use super::hf::HfConfig;
use super::{Family, GGUF_NAMES, HF_NAMES, dense};
use crate::error::LoadError;
use crate::spec::{Biases, DecoderSpec};

pub(super) const FAMILY: Family = Family {
    name: "mistral",
    hf_architectures: &["MistralForCausalLM"],
    gguf_architectures: &[],
    from_hf,
    from_gguf,
    hf_tensors: HF_NAMES,
    gguf_tensors: GGUF_NAMES,
    gguf_pairs_rows: true,
};

fn from_hf(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    dense::from_hf(config, Biases::default(), config.windows_everywhere()?, 10_000.0)
}

fn from_gguf(config: &GgufConfig<'_>) -> Result<DecoderSpec, LoadError> {
    dense::from_gguf(config, config.windows(|_| true)?)
}
