//! [`OpenModel`]: a model's files opened and understood, nothing loaded yet.
//!
//! What `load` starts from and what `inspect` prints: family, spec, weights, special tokens.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::LoadError;
use crate::families::gguf::GgufConfig;
use crate::families::hf::HfConfig;
use crate::families::{Family, TensorNames, find_gguf, find_hf};
use crate::runner::TokenId;
use crate::spec::DecoderSpec;
use crate::weights::Weights;
use crate::weights::gguf::{Gguf, GgufMetadata};
use crate::weights::safetensors::read_limited;

/// Most bytes of a config.json; those of published models have a few thousand.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Pieces that end a turn or a document in published vocabularies. GGUF has one key for the end of a sequence, but most
/// chat models stop at a second token too; the list is that of llama.cpp, as far as it is unambiguous.
const END_PIECES: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<EOT>",
    "</s>",
];
/// `tokenizer.ggml.token_type` of a control token.
const CONTROL_TOKEN: i64 = 3;

/// A model whose files have been opened and checked.
#[derive(Debug)]
pub struct OpenModel {
    /// The family.
    pub family: &'static Family,
    /// The architecture as the files spell it.
    pub architecture: String,
    /// What the model computes.
    pub spec: DecoderSpec,
    /// Its tensors.
    pub weights: Weights,
    /// Where tokenizer and chat template are to be found.
    pub source: ModelSource,
    /// Tokens after which generation ends, ascending.
    pub eos_token_ids: Vec<TokenId>,
    /// The token that begins a sequence, if there is one.
    pub bos_token_id: Option<TokenId>,
    /// How the model's authors sample.
    pub generation: GenerationDefaults,
}

/// Where a model's tokenizer and chat template are.
#[derive(Clone, Debug)]
pub enum ModelSource {
    /// A Hugging Face folder.
    Folder {
        /// The folder.
        dir: PathBuf,
    },
    /// A GGUF file; its metadata holds both.
    Gguf(GgufMetadata),
}

/// Sampling parameters from `generation_config.json`; each only where its authors set it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Mass of the nucleus.
    pub top_p: Option<f32>,
    /// Candidates kept.
    pub top_k: Option<u32>,
    /// Smallest share of the best candidate's probability.
    pub min_p: Option<f32>,
    /// Divides the logits of what was said already.
    pub repetition_penalty: Option<f32>,
}

impl OpenModel {
    /// Opens the GGUF file or Hugging Face folder at `path`.
    ///
    /// # Errors
    /// Any [`LoadError`] but [`LoadError::DoesNotFit`].
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let model = if path.is_dir() { open_folder(path)? } else { open_gguf(path)? };
        model.spec.check()?;
        Ok(model)
    }

    /// Names of the tensors in this kind of file.
    #[must_use]
    pub fn tensor_names(&self) -> &'static TensorNames {
        match self.weights {
            Weights::Gguf(_) => &self.family.gguf_tensors,
            Weights::Folder(_) => &self.family.hf_tensors,
        }
    }

    /// Whether q and k rows are stored in pairs and must be put in order.
    #[must_use]
    pub fn pairs_rows(&self) -> bool {
        matches!(self.weights, Weights::Gguf(_)) && self.family.gguf_pairs_rows
    }
}

fn open_folder(dir: &Path) -> Result<OpenModel, LoadError> {
    let config = HfConfig::parse(&read_limited(&dir.join("config.json"), MAX_CONFIG_BYTES)?)?;
    let architecture = config.architecture()?.to_owned();
    let family = find_hf(&architecture)?;
    let spec = (family.from_hf)(&config)?;
    let weights = Weights::open(dir)?;
    let generation_path = dir.join("generation_config.json");
    let generation_config = if generation_path.exists() {
        let text = read_limited(&generation_path, MAX_CONFIG_BYTES)?;
        serde_json::from_slice(&text).map_err(|error| LoadError::config("generation_config.json", error.to_string()))?
    } else {
        Value::Null
    };
    let mut eos_token_ids = token_ids(config.get("eos_token_id"));
    eos_token_ids.extend(token_ids(generation_config.get("eos_token_id")));
    Ok(OpenModel {
        family,
        architecture,
        weights,
        source: ModelSource::Folder { dir: dir.to_owned() },
        eos_token_ids: sorted(eos_token_ids, &spec),
        bos_token_id: token_ids(config.get("bos_token_id")).first().copied(),
        generation: generation_defaults(&generation_config),
        spec,
    })
}

fn open_gguf(path: &Path) -> Result<OpenModel, LoadError> {
    let gguf = Gguf::open(path)?;
    let weights = Weights::Gguf(gguf.clone());
    let config = GgufConfig::new(&weights, &gguf)?;
    let architecture = config.architecture().to_owned();
    let family = find_gguf(&architecture)?;
    let spec = (family.from_gguf)(&config)?;
    let metadata = gguf.metadata();
    Ok(OpenModel {
        family,
        architecture,
        eos_token_ids: sorted(gguf_end_tokens(metadata)?, &spec),
        bos_token_id: metadata.u32("tokenizer.ggml.bos_token_id")?,
        generation: GenerationDefaults::default(),
        source: ModelSource::Gguf(metadata.clone()),
        spec,
        weights,
    })
}

/// The ids that GGUF metadata names, and control tokens whose text ends a turn.
fn gguf_end_tokens(metadata: &GgufMetadata) -> Result<Vec<TokenId>, LoadError> {
    let mut ids = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        ids.extend(metadata.u32(&format!("tokenizer.ggml.{key}"))?);
    }
    let pieces = metadata.string_array("tokenizer.ggml.tokens")?;
    let types = metadata.array("tokenizer.ggml.token_type")?;
    if let (Some(pieces), Some(types)) = (pieces, types) {
        for (id, (piece, kind)) in (0..).zip(pieces.strings().zip(types.iter())) {
            if kind.as_i64() == Some(CONTROL_TOKEN) && END_PIECES.contains(&piece) {
                ids.push(id);
            }
        }
    }
    Ok(ids)
}

/// A token id or a list of them; anything else is none.
fn token_ids(value: Option<&Value>) -> Vec<TokenId> {
    let one = |value: &Value| value.as_u64().and_then(|id| TokenId::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
        Some(value) => one(value).into_iter().collect(),
        None => Vec::new(),
    }
}

fn sorted(mut ids: Vec<TokenId>, spec: &DecoderSpec) -> Vec<TokenId> {
    ids.sort_unstable();
    ids.dedup();
    ids.retain(|id| (*id as usize) < spec.vocab_size);
    ids
}

fn generation_defaults(config: &Value) -> GenerationDefaults {
    let float = |key: &str| config.get(key).and_then(Value::as_f64).map(|value| value as f32);
    let repetition_penalty = float("repetition_penalty");
    // Without `do_sample` the other values are leftovers that transformers ignores too.
    if config.get("do_sample").and_then(Value::as_bool) != Some(true) {
        return GenerationDefaults { repetition_penalty, ..GenerationDefaults::default() };
    }
    GenerationDefaults {
        temperature: float("temperature"),
        top_p: float("top_p"),
        top_k: config.get("top_k").and_then(Value::as_u64).and_then(|value| u32::try_from(value).ok()),
        min_p: float("min_p"),
        repetition_penalty,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_ids_are_a_number_or_a_list() {
        assert_eq!(token_ids(Some(&serde_json::json!(7))), [7]);
        assert_eq!(token_ids(Some(&serde_json::json!([7, 8, -1, null]))), [7, 8]);
        assert!(token_ids(Some(&Value::Null)).is_empty());
    }

    #[test]
    fn values_that_transformers_ignores_are_ignored() {
        let config = serde_json::json!({"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05});
        let expected = GenerationDefaults { repetition_penalty: Some(1.05), ..GenerationDefaults::default() };
        assert_eq!(generation_defaults(&config), expected);
        let config = serde_json::json!({"do_sample": true, "temperature": 0.7, "top_k": 20});
        let expected = GenerationDefaults { temperature: Some(0.7), top_k: Some(20), ..GenerationDefaults::default() };
        assert_eq!(generation_defaults(&config), expected);
    }
}
