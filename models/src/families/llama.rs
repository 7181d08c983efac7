//! Llama 2 and 3.x, and the many models of the same architecture.

use super::gguf::GgufConfig;
use super::hf::HfConfig;
use super::{Family, GGUF_NAMES, HF_NAMES, dense};
use crate::error::LoadError;
use crate::spec::DecoderSpec;

pub(super) const FAMILY: Family = Family {
    name: "llama",
    hf_architectures: &["LlamaForCausalLM"],
    gguf_architectures: &["llama"],
    from_hf,
    from_gguf,
    hf_tensors: HF_NAMES,
    gguf_tensors: GGUF_NAMES,
    gguf_pairs_rows: true,
};

fn from_hf(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    dense::from_hf(config, dense::biases_from_hf(config)?, config.full_layers()?, 10_000.0)
}

/// GGUF calls Mistral and Mixtral llama as well: files with a window, and files with experts.
fn from_gguf(config: &GgufConfig<'_>) -> Result<DecoderSpec, LoadError> {
    dense::experts_from_gguf(config, config.windows(|_| true)?, true)
}
