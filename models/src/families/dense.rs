//! What the families have in common: a llama-like decoder, which each then changes.

use super::gguf::GgufConfig;
use super::hf::HfConfig;
use super::{GGUF_NAMES, tensor_name};
use crate::error::LoadError;
use crate::spec::{AttentionSpec, Biases, DecoderSpec, ExpertSpec, Gate, LayerSpec, NormSpec, QkNorm, RopeSpec};

/// What a config.json says in every family, with one rotary embedding and one window per layer.
pub(super) fn from_hf(
    config: &HfConfig,
    biases: Biases,
    windows: Vec<Option<u32>>,
    default_theta: f64,
) -> Result<DecoderSpec, LoadError> {
    config.refuse_unsupported()?;
    let num_heads = config.size("num_attention_heads")?;
    let max_positions = config.size("max_position_embeddings")?;
    let head_dim = config.head_dim()?;
    Ok(DecoderSpec {
        hidden_dim: config.size("hidden_size")?,
        num_heads,
        num_kv_heads: config.optional_size("num_key_value_heads")?.unwrap_or(num_heads),
        head_dim,
        ffn_dim: config.size("intermediate_size")?,
        vocab_size: config.size("vocab_size")?,
        max_position_embeddings: u32::try_from(max_positions).expect("a size is below 2^32"),
        layers: layers(windows),
        ropes: vec![config.rope(default_theta)?],
        norm_eps: config.float("rms_norm_eps")? as f32,
        norms: NormSpec::default(),
        qk_norm: QkNorm::None,
        attention: AttentionSpec::standard(head_dim),
        biases,
        gate: config.gate(&["hidden_act"], Gate::Silu)?,
        experts: None,
        embedding_scale: 1.0,
        residual_scale: 1.0,
        logits_divisor: 1.0,
        logits_softcap: None,
        tie_embeddings: config.flag("tie_word_embeddings")?,
    })
}

/// Biases of q, k, v and the attention's output by `attention_bias`, of the MLP by `mlp_bias`.
pub(super) fn biases_from_hf(config: &HfConfig) -> Result<Biases, LoadError> {
    let attention = config.flag("attention_bias")?;
    Ok(Biases { qkv: attention, attention_output: attention, mlp: config.flag("mlp_bias")? })
}

/// What GGUF metadata says in every architecture; experts must be asked for.
pub(super) fn from_gguf(config: &GgufConfig<'_>, windows: Vec<Option<u32>>) -> Result<DecoderSpec, LoadError> {
    match config.experts(true)? {
        Some(experts) => Err(LoadError::Unsupported(format!(
            "{} experts in a model of architecture '{}'",
            experts.num_experts,
            config.architecture()
        ))),
        None => any_from_gguf(config, windows),
    }
}

/// [`from_gguf`] with experts in the layers that have a router; `normalize` scales their shares to sum to 1.
pub(super) fn experts_from_gguf(
    config: &GgufConfig<'_>,
    windows: Vec<Option<u32>>,
    normalize: bool,
) -> Result<DecoderSpec, LoadError> {
    let spec = any_from_gguf(config, windows)?;
    let Some(experts) = config.experts(normalize)? else { return Ok(spec) };
    let has_router = |layer_idx| config.has_tensor(&tensor_name(GGUF_NAMES.experts.router, layer_idx, "weight"));
    Ok(with_experts(spec, experts, has_router))
}

fn any_from_gguf(config: &GgufConfig<'_>, windows: Vec<Option<u32>>) -> Result<DecoderSpec, LoadError> {
    let num_heads = config.size("attention.head_count")?;
    let max_positions = config.size("context_length")?;
    let head_dim = config.head_dim()?;
    let rope = config.rope(10_000.0)?;
    // The format has no key for biases: they are there or not.
    let has_bias = |stem: &str| config.has_tensor(&tensor_name(stem, 0, "bias"));
    Ok(DecoderSpec {
        hidden_dim: config.size("embedding_length")?,
        num_heads,
        num_kv_heads: config.optional_size("attention.head_count_kv")?.unwrap_or(num_heads),
        head_dim,
        ffn_dim: config.size("feed_forward_length")?,
        vocab_size: config.vocab_size(GGUF_NAMES.embedding)?,
        max_position_embeddings: u32::try_from(max_positions).expect("a size is below 2^32"),
        layers: layers(windows),
        ropes: vec![rope],
        norm_eps: config.float("attention.layer_norm_rms_epsilon")?,
        norms: NormSpec::default(),
        qk_norm: QkNorm::None,
        attention: AttentionSpec::standard(head_dim),
        biases: Biases {
            qkv: has_bias(GGUF_NAMES.q),
            attention_output: has_bias(GGUF_NAMES.attention_output),
            mlp: has_bias(GGUF_NAMES.up),
        },
        gate: Gate::Silu,
        experts: None,
        embedding_scale: 1.0,
        residual_scale: 1.0,
        logits_divisor: 1.0,
        logits_softcap: None,
        tie_embeddings: !config.has_tensor(&tensor_name(GGUF_NAMES.output, 0, "weight")),
    })
}

fn layers(windows: Vec<Option<u32>>) -> Vec<LayerSpec> {
    windows.into_iter().map(|window| LayerSpec { window, rope: Some(0), has_experts: false }).collect()
}

/// `spec` with experts in the layers that `has_experts` names.
pub(super) fn with_experts(
    mut spec: DecoderSpec,
    experts: ExpertSpec,
    has_experts: impl Fn(usize) -> bool,
) -> DecoderSpec {
    for (layer_idx, layer) in spec.layers.iter_mut().enumerate() {
        layer.has_experts = has_experts(layer_idx);
    }
    DecoderSpec { experts: Some(experts), ..spec }
}

/// `spec` with one rotary embedding for layers that see the whole context and another for those with a window.
pub(super) fn with_ropes(
    mut spec: DecoderSpec,
    full: RopeSpec,
    windowed: RopeSpec,
    is_windowed: &[bool],
) -> DecoderSpec {
    for (layer, is_windowed) in spec.layers.iter_mut().zip(is_windowed) {
        layer.rope = Some(usize::from(*is_windowed));
    }
    DecoderSpec { ropes: vec![full, windowed], ..spec }
}
