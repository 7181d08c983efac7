//! `OLMo` 2: llama with norms after attention and MLP instead of before, and on all heads of q and k together.

use super::gguf::GgufConfig;
use super::hf::HfConfig;
use super::{Family, GGUF_NAMES, HF_POST_NORM_NAMES, dense};
use crate::error::LoadError;
use crate::spec::{Biases, DecoderSpec, NormSpec, QkNorm};

pub(super) const FAMILY: Family = Family {
    name: "olmo2",
    hf_architectures: &["Olmo2ForCausalLM"],
    gguf_architectures: &["olmo2"],
    from_hf,
    from_gguf,
    hf_tensors: HF_POST_NORM_NAMES,
    gguf_tensors: GGUF_NAMES,
    gguf_pairs_rows: false,
};

const NORMS: NormSpec = NormSpec { before: false, after: true, stored_less_one: false };

fn from_hf(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    let biases = Biases { mlp: false, ..dense::biases_from_hf(config)? };
    let spec = dense::from_hf(config, biases, config.full_layers()?, 10_000.0)?;
    Ok(DecoderSpec { norms: NORMS, qk_norm: QkNorm::AllHeads, ..spec })
}

fn from_gguf(config: &GgufConfig<'_>) -> Result<DecoderSpec, LoadError> {
    let spec = dense::from_gguf(config, config.full_layers()?)?;
    Ok(DecoderSpec { norms: NORMS, qk_norm: QkNorm::AllHeads, ..spec })
}
