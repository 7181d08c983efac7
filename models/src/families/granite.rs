//! Granite: llama with factors on embeddings, scores, residuals and logits.

use super::gguf::GgufConfig;
use super::hf::HfConfig;
use super::{Family, GGUF_NAMES, HF_NAMES, dense};
use crate::error::LoadError;
use crate::spec::{AttentionSpec, DecoderSpec};

pub(super) const FAMILY: Family = Family {
    name: "granite",
    hf_architectures: &["GraniteForCausalLM"],
    gguf_architectures: &["granite"],
    from_hf,
    from_gguf,
    hf_tensors: HF_NAMES,
    gguf_tensors: GGUF_NAMES,
    gguf_pairs_rows: true,
};

fn from_hf(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    let spec = dense::from_hf(config, dense::biases_from_hf(config)?, config.full_layers()?, 10_000.0)?;
    let factor = |key: &str| Ok::<_, LoadError>(config.optional_float(key)?.unwrap_or(1.0) as f32);
    Ok(DecoderSpec {
        attention: AttentionSpec { scale: factor("attention_multiplier")?, ..spec.attention },
        embedding_scale: factor("embedding_multiplier")?,
        residual_scale: factor("residual_multiplier")?,
        logits_divisor: factor("logits_scaling")?,
        ..spec
    })
}

fn from_gguf(config: &GgufConfig<'_>) -> Result<DecoderSpec, LoadError> {
    let spec = dense::from_gguf(config, config.full_layers()?)?;
    // Older files write 0 for a factor that is not used.
    let factor = |key: &str| Ok::<_, LoadError>(config.optional_float(key)?.filter(|factor| *factor != 0.0));
    let attention_scale = factor("attention.scale")?.unwrap_or(spec.attention.scale);
    Ok(DecoderSpec {
        attention: AttentionSpec { scale: attention_scale, ..spec.attention },
        embedding_scale: factor("embedding_scale")?.unwrap_or(1.0),
        residual_scale: factor("residual_scale")?.unwrap_or(1.0),
        logits_divisor: factor("logit_scale")?.unwrap_or(1.0),
        ..spec
    })
}
