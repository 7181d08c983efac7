//! Gemma: GELU, embeddings scaled by the root of their width, norm weights that files hold less 1.

use super::gguf::GgufConfig;
use super::hf::HfConfig;
use super::{Family, GGUF_NAMES, HF_NAMES, dense};
use crate::error::LoadError;
use crate::spec::{DecoderSpec, Gate, NormSpec};

pub(super) const FAMILY: Family = Family {
    name: "gemma",
    hf_architectures: &["GemmaForCausalLM"],
    gguf_architectures: &["gemma"],
    from_hf,
    from_gguf,
    hf_tensors: HF_NAMES,
    gguf_tensors: GGUF_NAMES,
    gguf_pairs_rows: false,
};

fn from_hf(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    let config = &config.with_defaults(&[("head_dim", 256.into()), ("tie_word_embeddings", true.into())]);
    // The first releases said `gelu` and meant the approximation.
    let config = &config.replacing("hidden_act", "gelu", "gelu_pytorch_tanh");
    let gate = config.gate(&["hidden_act"], Gate::GeluTanh)?;
    let spec = dense::from_hf(config, dense::biases_from_hf(config)?, config.full_layers()?, 10_000.0)?;
    let norms = NormSpec { stored_less_one: true, ..spec.norms };
    Ok(DecoderSpec { gate, norms, embedding_scale: (spec.hidden_dim as f32).sqrt(), ..spec })
}

fn from_gguf(config: &GgufConfig<'_>) -> Result<DecoderSpec, LoadError> {
    let spec = dense::from_gguf(config, config.full_layers()?)?;
    Ok(DecoderSpec { gate: Gate::GeluTanh, embedding_scale: (spec.hidden_dim as f32).sqrt(), ..spec })
}
