//! Llama 2 and 3.x, and the many models of the same architecture.

use super::config::{GgufConfig, HfConfig};
use super::{Family, GGUF_NAMES, HF_NAMES};
use crate::error::LoadError;
use crate::spec::{Biases, DecoderSpec};

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
    let attention_bias = config.flag("attention_bias")?;
    let biases = Biases { qkv: attention_bias, attention_output: attention_bias, mlp: config.flag("mlp_bias")? };
    dense_from_hf(config, biases)
}

fn from_gguf(config: &GgufConfig<'_>) -> Result<DecoderSpec, LoadError> {
    // The format has no key for biases: they are there or not.
    let biases = Biases {
        qkv: config.has_tensor("blk.0.attn_q.bias"),
        attention_output: config.has_tensor("blk.0.attn_output.bias"),
        mlp: config.has_tensor("blk.0.ffn_up.bias"),
    };
    dense_from_gguf(config, biases)
}

/// What llama and its dense descendants have in common in config.json.
pub(super) fn dense_from_hf(config: &HfConfig, biases: Biases) -> Result<DecoderSpec, LoadError> {
    config.refuse_unsupported()?;
    let num_heads = config.size("num_attention_heads")?;
    let max_positions = config.size("max_position_embeddings")?;
    let norm_eps = config.float("rms_norm_eps")? as f32;
    Ok(DecoderSpec {
        hidden_dim: config.size("hidden_size")?,
        num_layers: config.size("num_hidden_layers")?,
        num_heads,
        num_kv_heads: config.optional_size("num_key_value_heads")?.unwrap_or(num_heads),
        head_dim: config.head_dim()?,
        ffn_dim: config.size("intermediate_size")?,
        vocab_size: config.size("vocab_size")?,
        max_position_embeddings: u32::try_from(max_positions).expect("a size is below 2^32"),
        norm_eps,
        rope: config.rope(10_000.0)?,
        qk_norm: false,
        biases,
        tie_embeddings: config.flag("tie_word_embeddings")?,
    })
}

/// What llama and its dense descendants have in common in GGUF.
pub(super) fn dense_from_gguf(config: &GgufConfig<'_>, biases: Biases) -> Result<DecoderSpec, LoadError> {
    config.refuse_unsupported()?;
    let num_heads = config.size("attention.head_count")?;
    let max_positions = config.size("context_length")?;
    Ok(DecoderSpec {
        hidden_dim: config.size("embedding_length")?,
        num_layers: config.size("block_count")?,
        num_heads,
        num_kv_heads: config.optional_size("attention.head_count_kv")?.unwrap_or(num_heads),
        head_dim: config.head_dim()?,
        ffn_dim: config.size("feed_forward_length")?,
        vocab_size: config.vocab_size(GGUF_NAMES.embedding)?,
        max_position_embeddings: u32::try_from(max_positions).expect("a size is below 2^32"),
        norm_eps: config.float("attention.layer_norm_rms_epsilon")?,
        rope: config.rope(10_000.0)?,
        qk_norm: false,
        biases,
        tie_embeddings: !config.has_tensor("output.weight"),
    })
}
