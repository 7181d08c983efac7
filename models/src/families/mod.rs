//! Model families: which architectures are known, and how each one's configuration becomes a [`DecoderSpec`].
//!
//! A family is a row of [`FAMILIES`]: the names that files call it by, two functions that read a configuration, and the
//! names of its tensors. Adding one is a file beside this and a row in the table.

mod dense;
mod gemma;
mod gemma2;
mod gemma3;
pub mod gguf;
mod granite;
pub mod hf;
mod llama;
mod mistral;
mod mixtral;
mod olmo2;
mod olmoe;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
pub mod rope;
mod smollm3;

use self::gguf::GgufConfig;
use self::hf::HfConfig;
use crate::error::LoadError;
use crate::spec::DecoderSpec;

/// One model family.
#[derive(Debug)]
pub struct Family {
    /// The name in messages and documents.
    pub name: &'static str,
    /// Values of `architectures` in config.json.
    pub hf_architectures: &'static [&'static str],
    /// Values of `general.architecture` in GGUF.
    pub gguf_architectures: &'static [&'static str],
    /// Reads a Hugging Face configuration.
    pub from_hf: fn(&HfConfig) -> Result<DecoderSpec, LoadError>,
    /// Reads GGUF metadata.
    pub from_gguf: fn(&GgufConfig<'_>) -> Result<DecoderSpec, LoadError>,
    /// Tensor names in Hugging Face folders.
    pub hf_tensors: TensorNames,
    /// Tensor names in GGUF files.
    pub gguf_tensors: TensorNames,
    /// Whether GGUF files hold q and k rows so that neighbouring rows rotate together (llama.cpp's "norm" rope).
    pub gguf_pairs_rows: bool,
}

/// Every family that can be served.
pub const FAMILIES: &[Family] = &[
    llama::FAMILY,
    mistral::FAMILY,
    mixtral::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen3_moe::FAMILY,
    gemma::FAMILY,
    gemma2::FAMILY,
    gemma3::FAMILY,
    phi3::FAMILY,
    smollm3::FAMILY,
    granite::FAMILY,
    olmo2::FAMILY,
    olmoe::FAMILY,
];

/// Names of a decoder's tensors without `.weight` or `.bias`; `{}` stands for the layer, `{e}` for the expert.
///
/// Some files hold matrices side by side in one tensor; `qkv`, `gate_up` and the stacks of experts are looked for where
/// the tensors of their parts are missing.
#[derive(Clone, Copy, Debug)]
pub struct TensorNames {
    /// `[vocab_size, hidden_dim]`
    pub embedding: &'static str,
    /// `[hidden_dim]`, where the input of attention is normed
    pub attention_norm: &'static str,
    /// `[num_heads * head_dim, hidden_dim]`
    pub q: &'static str,
    /// `[num_kv_heads * head_dim, hidden_dim]`
    pub k: &'static str,
    /// `[num_kv_heads * head_dim, hidden_dim]`
    pub v: &'static str,
    /// q, k and v in one
    pub qkv: &'static str,
    /// `[head_dim]`, or of all heads, where q is normed
    pub q_norm: &'static str,
    /// `[head_dim]`, or of all heads, where k is normed
    pub k_norm: &'static str,
    /// `[hidden_dim, num_heads * head_dim]`
    pub attention_output: &'static str,
    /// `[hidden_dim]`, where the output of attention is normed
    pub attention_post_norm: &'static str,
    /// `[hidden_dim]`, where the input of the MLP is normed
    pub mlp_norm: &'static str,
    /// `[ffn_dim, hidden_dim]`
    pub gate: &'static str,
    /// `[ffn_dim, hidden_dim]`
    pub up: &'static str,
    /// gate and up in one
    pub gate_up: &'static str,
    /// `[hidden_dim, ffn_dim]`
    pub down: &'static str,
    /// The experts of a layer.
    pub experts: ExpertNames,
    /// `[hidden_dim]`, where the output of the MLP is normed
    pub mlp_post_norm: &'static str,
    /// `[hidden_dim]`
    pub final_norm: &'static str,
    /// `[vocab_size, hidden_dim]`, unless tied
    pub output: &'static str,
}

/// Names of a mixture of experts.
#[derive(Clone, Copy, Debug)]
pub struct ExpertNames {
    /// `[num_experts, hidden_dim]`
    pub router: &'static str,
    /// `[ffn_dim, hidden_dim]`, a tensor for each expert
    pub gate: &'static str,
    /// `[ffn_dim, hidden_dim]`
    pub up: &'static str,
    /// `[hidden_dim, ffn_dim]`
    pub down: &'static str,
    /// `[num_experts, ffn_dim, hidden_dim]`
    pub all_gate: &'static str,
    /// `[num_experts, ffn_dim, hidden_dim]`
    pub all_up: &'static str,
    /// `[num_experts, 2 * ffn_dim, hidden_dim]`: gate and up in one
    pub all_gate_up: &'static str,
    /// `[num_experts, hidden_dim, ffn_dim]`
    pub all_down: &'static str,
}

/// The names that llama's modelling code introduced and most families kept.
pub const HF_NAMES: TensorNames = TensorNames {
    embedding: "model.embed_tokens",
    attention_norm: "model.layers.{}.input_layernorm",
    q: "model.layers.{}.self_attn.q_proj",
    k: "model.layers.{}.self_attn.k_proj",
    v: "model.layers.{}.self_attn.v_proj",
    qkv: "model.layers.{}.self_attn.qkv_proj",
    q_norm: "model.layers.{}.self_attn.q_norm",
    k_norm: "model.layers.{}.self_attn.k_norm",
    attention_output: "model.layers.{}.self_attn.o_proj",
    attention_post_norm: "model.layers.{}.post_self_attn_layernorm",
    mlp_norm: "model.layers.{}.post_attention_layernorm",
    gate: "model.layers.{}.mlp.gate_proj",
    up: "model.layers.{}.mlp.up_proj",
    gate_up: "model.layers.{}.mlp.gate_up_proj",
    down: "model.layers.{}.mlp.down_proj",
    experts: ExpertNames {
        router: "model.layers.{}.mlp.gate",
        gate: "model.layers.{}.mlp.experts.{e}.gate_proj",
        up: "model.layers.{}.mlp.experts.{e}.up_proj",
        down: "model.layers.{}.mlp.experts.{e}.down_proj",
        all_gate: "model.layers.{}.mlp.experts.gate_proj",
        all_up: "model.layers.{}.mlp.experts.up_proj",
        all_gate_up: "model.layers.{}.mlp.experts.gate_up_proj",
        all_down: "model.layers.{}.mlp.experts.down_proj",
    },
    mlp_post_norm: "model.layers.{}.post_feedforward_layernorm",
    final_norm: "model.norm",
    output: "lm_head",
};

/// Of families that norm what attention and MLP add (Gemma 2 and 3, `OLMo` 2): `post_attention_layernorm` means what it
/// says there.
pub const HF_POST_NORM_NAMES: TensorNames = TensorNames {
    attention_post_norm: "model.layers.{}.post_attention_layernorm",
    mlp_norm: "model.layers.{}.pre_feedforward_layernorm",
    ..HF_NAMES
};

/// The names that GGUF gives to the same tensors in every architecture.
pub const GGUF_NAMES: TensorNames = TensorNames {
    embedding: "token_embd",
    attention_norm: "blk.{}.attn_norm",
    q: "blk.{}.attn_q",
    k: "blk.{}.attn_k",
    v: "blk.{}.attn_v",
    qkv: "blk.{}.attn_qkv",
    q_norm: "blk.{}.attn_q_norm",
    k_norm: "blk.{}.attn_k_norm",
    attention_output: "blk.{}.attn_output",
    attention_post_norm: "blk.{}.post_attention_norm",
    mlp_norm: "blk.{}.ffn_norm",
    gate: "blk.{}.ffn_gate",
    up: "blk.{}.ffn_up",
    gate_up: "blk.{}.ffn_up",
    down: "blk.{}.ffn_down",
    experts: ExpertNames {
        router: "blk.{}.ffn_gate_inp",
        gate: "blk.{}.ffn_gate.{e}",
        up: "blk.{}.ffn_up.{e}",
        down: "blk.{}.ffn_down.{e}",
        all_gate: "blk.{}.ffn_gate_exps",
        all_up: "blk.{}.ffn_up_exps",
        all_gate_up: "blk.{}.ffn_gate_up_exps",
        all_down: "blk.{}.ffn_down_exps",
    },
    mlp_post_norm: "blk.{}.post_ffw_norm",
    final_norm: "output_norm",
    output: "output",
};

/// `stem` of layer `layer_idx` with `.suffix`.
#[must_use]
pub fn tensor_name(stem: &str, layer_idx: usize, suffix: &str) -> String {
    format!("{}.{suffix}", stem.replace("{}", &layer_idx.to_string()))
}

/// `stem` of expert `expert_idx`; the layer is left to [`tensor_name`].
#[must_use]
pub fn expert_stem(stem: &str, expert_idx: usize) -> String {
    stem.replace("{e}", &expert_idx.to_string())
}

/// The family of a Hugging Face architecture such as `LlamaForCausalLM`.
///
/// # Errors
/// [`LoadError::Unsupported`] with the list of those that are known.
pub fn find_hf(architecture: &str) -> Result<&'static Family, LoadError> {
    let found = FAMILIES.iter().find(|family| family.hf_architectures.contains(&architecture));
    found.ok_or_else(|| unknown(architecture, |family| family.hf_architectures))
}

/// The family of a GGUF architecture such as `llama`.
///
/// # Errors
/// As [`find_hf`].
pub fn find_gguf(architecture: &str) -> Result<&'static Family, LoadError> {
    let found = FAMILIES.iter().find(|family| family.gguf_architectures.contains(&architecture));
    found.ok_or_else(|| unknown(architecture, |family| family.gguf_architectures))
}

fn unknown(architecture: &str, names: fn(&Family) -> &'static [&'static str]) -> LoadError {
    let known: Vec<&str> = FAMILIES.iter().flat_map(names).copied().collect();
    let architecture: String = architecture.chars().take(100).collect();
    LoadError::Unsupported(format!("architecture '{architecture}'; known are {}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_to_one_family() {
        for family in FAMILIES {
            for name in family.hf_architectures {
                assert_eq!(find_hf(name).unwrap().name, family.name);
            }
            for name in family.gguf_architectures {
                assert_eq!(find_gguf(name).unwrap().name, family.name);
            }
        }
        let error = find_hf("MambaForCausalLM").err().unwrap().to_string();
        assert!(error.contains("MambaForCausalLM") && error.contains("Qwen3ForCausalLM"), "{error}");
    }

    #[test]
    fn layer_numbers_go_into_names() {
        assert_eq!(tensor_name(HF_NAMES.q, 12, "bias"), "model.layers.12.self_attn.q_proj.bias");
        assert_eq!(tensor_name(GGUF_NAMES.output, 0, "weight"), "output.weight");
        let stem = expert_stem(HF_NAMES.experts.down, 3);
        assert_eq!(tensor_name(&stem, 12, "weight"), "model.layers.12.mlp.experts.3.down_proj.weight");
    }
}
