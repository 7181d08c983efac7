//! `SmolLM3`: llama in which every fourth layer does not turn its heads.

use super::gguf::GgufConfig;
use super::hf::HfConfig;
use super::{Family, GGUF_NAMES, HF_NAMES, dense};
use crate::error::LoadError;
use crate::spec::DecoderSpec;

pub(super) const FAMILY: Family = Family {
    name: "smollm3",
    hf_architectures: &["SmolLM3ForCausalLM"],
    gguf_architectures: &["smollm3"],
    from_hf,
    from_gguf,
    hf_tensors: HF_NAMES,
    gguf_tensors: GGUF_NAMES,
    gguf_pairs_rows: true,
};

/// Every so many layers do not turn, unless the configuration says otherwise.
const DEFAULT_INTERVAL: usize = 4;

fn from_hf(config: &HfConfig) -> Result<DecoderSpec, LoadError> {
    let config = &config.with_defaults(&[("tie_word_embeddings", true.into())]);
    let interval = config.optional_size("no_rope_layer_interval")?.unwrap_or(DEFAULT_INTERVAL).max(1);
    // The list says where heads do turn, whatever its name.
    let turns: Vec<bool> = match config.per_layer("no_rope_layers")? {
        Some(list) => list.iter().map(|entry| entry.as_i64() != Some(0)).collect(),
        None => (1..=config.num_layers()?).map(|number| !number.is_multiple_of(interval)).collect(),
    };
    let windows = if config.flag("use_sliding_window")? {
        config.windows(|layer_idx| !turns[layer_idx])?
    } else {
        vec![None; turns.len()]
    };
    let spec = dense::from_hf(config, dense::biases_from_hf(config)?, windows, 2_000_000.0)?;
    Ok(with_turns(spec, |layer_idx| turns[layer_idx]))
}

fn from_gguf(config: &GgufConfig<'_>) -> Result<DecoderSpec, LoadError> {
    let spec = dense::from_gguf(config, config.full_layers()?)?;
    Ok(with_turns(spec, |layer_idx| !(layer_idx + 1).is_multiple_of(DEFAULT_INTERVAL)))
}

fn with_turns(mut spec: DecoderSpec, turns: impl Fn(usize) -> bool) -> DecoderSpec {
    for (layer_idx, layer) in spec.layers.iter_mut().enumerate() {
        layer.rope = layer.rope.filter(|_| turns(layer_idx));
    }
    spec
}
