//! Gemma 3, the text part: Gemma 2 with norms on q and k instead of a soft cap on scores, and with a rotary embedding of
//! their own for the layers that have a window.

use super::gemma2::{Numbers, from_parts};
use super::gguf::GgufConfig;
use super::hf::HfConfig;
use super::{Family, GGUF_NAMES, HF_POST_NORM_NAMES, dense};
use crate::error::LoadError;
use crate::spec::{DecoderSpec, NormSpec, QkNorm, RopeScaling, RopeSpec};

pub(super) const FAMILY: Family = Family {
    name: "gemma3",
    hf_architectures: &["Gemma3ForCausalLM"],
    gguf_architectures: &["gemma3"],
    from_hf,
    from_gguf,
    hf_tensors: HF_POST_NORM_NAMES,
    gguf_tensors: GGUF_NAMES,
    gguf_pairs_rows: false,
};

/// Every so many layers see the whole context, unless the configuration says otherwise.
const DEFAULT_PATTERN: usize = 6;
/// As in [`super::gemma2`].
const WIDE_SCALE_LAYERS: usize = 62;

fn from_hf(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    let config = &config.with_defaults(&[
        ("head_dim", 256.into()),
        ("tie_word_embeddings", true.into()),
        ("sliding_window", 4096.into()),
        ("query_pre_attn_scalar", 256.into()),
        ("hidden_act", "gelu_pytorch_tanh".into()),
    ]);
    let pattern = config.optional_size("sliding_window_pattern")?.unwrap_or(DEFAULT_PATTERN).max(1);
    let is_default_sliding = |layer_idx: usize| !(layer_idx + 1).is_multiple_of(pattern);
    let is_sliding: Vec<bool> = match config.per_layer("layer_types")? {
        Some(types) => types.iter().map(|kind| kind.as_str() == Some("sliding_attention")).collect(),
        None => (0..config.num_layers()?).map(is_default_sliding).collect(),
    };
    let windows = config.windows(is_default_sliding)?;
    let (full, sliding) = (config.rope_of_layers(false, 1e6)?, config.rope_of_layers(true, 1e4)?);
    let spec = dense::from_hf(config, dense::biases_from_hf(config)?, windows, 1e6)?;
    // Soft caps on scores are in the configuration, but Gemma 3 does not apply them.
    let mut numbers = Numbers::from_hf(config)?;
    numbers.attention_softcap = None;
    let spec = from_parts(spec, NormSpec { before: true, after: true, stored_less_one: true }, numbers);
    Ok(DecoderSpec { qk_norm: QkNorm::PerHead, ..dense::with_ropes(spec, full, sliding, &is_sliding) })
}

fn from_gguf(config: &GgufConfig<'_>) -> Result<DecoderSpec, LoadError> {
    let pattern = config.optional_size("attention.sliding_window_pattern")?.unwrap_or(DEFAULT_PATTERN).max(1);
    let is_sliding: Vec<bool> =
        (0..config.num_layers()?).map(|layer_idx| !(layer_idx + 1).is_multiple_of(pattern)).collect();
    let spec = dense::from_gguf(config, config.windows(|layer_idx| is_sliding[layer_idx])?)?;
    let full = config.rope(1e6)?;
    let sliding = RopeSpec {
        theta: config.optional_float("rope.freq_base_swa")?.unwrap_or(1e4).into(),
        rotary_dim: full.rotary_dim,
        scaling: RopeScaling::Default,
    };
    let numbers = Numbers::from_gguf(config, &spec, WIDE_SCALE_LAYERS)?;
    let spec = from_parts(spec, NormSpec { after: true, ..NormSpec::default() }, numbers);
    Ok(DecoderSpec { qk_norm: QkNorm::PerHead, ..dense::with_ropes(spec, full, sliding, &is_sliding) })
}
