//! Gemma 2: Gemma with norms after attention and MLP, soft caps, and a window on every other layer.

use super::gguf::GgufConfig;
use super::hf::HfConfig;
use super::{Family, GGUF_NAMES, HF_POST_NORM_NAMES, dense};
use crate::error::LoadError;
use crate::spec::{AttentionSpec, DecoderSpec, Gate, NormSpec};

pub(super) const FAMILY: Family = Family {
    name: "gemma2",
    hf_architectures: &["Gemma2ForCausalLM"],
    gguf_architectures: &["gemma2"],
    from_hf,
    from_gguf,
    hf_tensors: HF_POST_NORM_NAMES,
    gguf_tensors: GGUF_NAMES,
    gguf_pairs_rows: false,
};

/// Layers of the model whose queries are scaled by another number than the head's dimension; GGUF files do not say so.
const WIDE_SCALE_LAYERS: usize = 46;

fn from_hf(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    let config = &config.with_defaults(&[
        ("head_dim", 256.into()),
        ("tie_word_embeddings", true.into()),
        ("sliding_window", 4096.into()),
        ("query_pre_attn_scalar", 256.into()),
        ("attn_logit_softcapping", 50.0.into()),
        ("final_logit_softcapping", 30.0.into()),
        ("hidden_act", "gelu_pytorch_tanh".into()),
    ]);
    let windows = config.windows(|layer_idx| layer_idx % 2 == 0)?;
    let spec = dense::from_hf(config, dense::biases_from_hf(config)?, windows, 10_000.0)?;
    let norms = NormSpec { before: true, after: true, stored_less_one: true };
    Ok(from_parts(spec, norms, Numbers::from_hf(config)?))
}

fn from_gguf(config: &GgufConfig<'_>) -> Result<DecoderSpec, LoadError> {
    let spec = dense::from_gguf(config, config.windows(|layer_idx| layer_idx % 2 == 0)?)?;
    let numbers = Numbers {
        attention_softcap: config.optional_float("attn_logit_softcapping")?.or(Some(50.0)),
        logits_softcap: config.optional_float("final_logit_softcapping")?.or(Some(30.0)),
        ..Numbers::from_gguf(config, &spec, WIDE_SCALE_LAYERS)?
    };
    Ok(from_parts(spec, NormSpec { after: true, ..NormSpec::default() }, numbers))
}

/// What Gemma 2 and 3 can set beside sizes.
#[derive(Clone, Copy)]
pub(super) struct Numbers {
    gate: Gate,
    attention_scale: f32,
    pub(super) attention_softcap: Option<f32>,
    logits_softcap: Option<f32>,
}

impl Numbers {
    pub(super) fn from_hf(config: &HfConfig) -> Result<Self, LoadError> {
        let float = |key: &str| Ok::<_, LoadError>(config.optional_float(key)?.map(|value| value as f32));
        Ok(Self {
            gate: config.gate(&["hidden_activation"], Gate::GeluTanh)?,
            attention_scale: config.float("query_pre_attn_scalar")?.powf(-0.5) as f32,
            attention_softcap: float("attn_logit_softcapping")?,
            logits_softcap: float("final_logit_softcapping")?,
        })
    }

    /// Without soft caps on scores. Models of `wide_scale_layers` layers divide by what the heads share of the hidden
    /// dimension.
    pub(super) fn from_gguf(
        config: &GgufConfig<'_>,
        spec: &DecoderSpec,
        wide_scale_layers: usize,
    ) -> Result<Self, LoadError> {
        let is_wide = spec.num_layers() == wide_scale_layers;
        let dim = if is_wide { spec.hidden_dim / spec.num_heads.max(1) } else { spec.head_dim };
        let attention_scale = config.optional_float("attention.scale")?;
        Ok(Self {
            gate: Gate::GeluTanh,
            attention_scale: attention_scale.unwrap_or(1.0 / (dim as f32).sqrt()),
            attention_softcap: None,
            logits_softcap: config.optional_float("final_logit_softcapping")?,
        })
    }
}

/// `spec` with what Gemma 2 and 3 add to Gemma.
pub(super) fn from_parts(spec: DecoderSpec, norms: NormSpec, numbers: Numbers) -> DecoderSpec {
    let Numbers { gate, attention_scale, attention_softcap, logits_softcap } = numbers;
    let attention = AttentionSpec { scale: attention_scale, softcap: attention_softcap, clip_qkv: None };
    let embedding_scale = (spec.hidden_dim as f32).sqrt();
    DecoderSpec { norms, gate, attention, logits_softcap, embedding_scale, ..spec }
}
