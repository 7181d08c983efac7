//! [`HfConfig`] and [`GgufConfig`]: typed access to the two kinds of configuration, with what all families share.

use serde_json::{Map, Value};

use crate::error::LoadError;
use crate::spec::{RopeScaling, RopeSpec};
use crate::weights::Weights;
use crate::weights::gguf::{Gguf, GgufMetadata};

/// A Hugging Face config.json, in the layout of transformers 4 or 5.
#[derive(Clone, Debug)]
pub struct HfConfig {
    root: Map<String, Value>,
}

impl HfConfig {
    /// Parses the text of a config.json.
    ///
    /// # Errors
    /// [`LoadError::Config`] when it is not a JSON object.
    pub fn parse(text: &[u8]) -> Result<Self, LoadError> {
        let root = serde_json::from_slice(text).map_err(|error| LoadError::config("config.json", error.to_string()))?;
        Ok(Self { root })
    }

    /// The first entry of `architectures`.
    ///
    /// # Errors
    /// [`LoadError::Config`] when there is none.
    pub fn architecture(&self) -> Result<&str, LoadError> {
        let first = self.root.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
        first.ok_or_else(|| LoadError::config("architectures", "is missing from config.json"))
    }

    /// The value of `key`; null counts as missing.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.root.get(key).filter(|value| !value.is_null())
    }

    /// `key` as a size.
    ///
    /// # Errors
    /// [`LoadError::Config`] when it is missing or no such number; the other getters alike.
    pub fn size(&self, key: &str) -> Result<usize, LoadError> {
        self.optional_size(key)?.ok_or_else(|| LoadError::config(key, "is missing from config.json"))
    }

    /// `key` as a size, if it is there.
    ///
    /// # Errors
    /// As [`HfConfig::size`].
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|size| u32::try_from(size).ok()).map(|size| size as usize);
        size.map(Some).ok_or_else(|| wrong_type(key, value, "a whole number below 2^32"))
    }

    /// `key` as a float.
    ///
    /// # Errors
    /// As [`HfConfig::size`].
    pub fn float(&self, key: &str) -> Result<f64, LoadError> {
        let value = self.get(key).ok_or_else(|| LoadError::config(key, "is missing from config.json"))?;
        value.as_f64().ok_or_else(|| wrong_type(key, value, "a number"))
    }

    /// `key` as a truth value, false if missing.
    ///
    /// # Errors
    /// As [`HfConfig::size`].
    pub fn flag(&self, key: &str) -> Result<bool, LoadError> {
        let Some(value) = self.get(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| wrong_type(key, value, "true or false"))
    }

    /// Entries of one head: `head_dim`, or what the heads share of the hidden size.
    ///
    /// # Errors
    /// As [`HfConfig::size`].
    pub fn head_dim(&self) -> Result<usize, LoadError> {
        if let Some(head_dim) = self.optional_size("head_dim")? {
            return Ok(head_dim);
        }
        let (hidden, heads) = (self.size("hidden_size")?, self.size("num_attention_heads")?);
        if heads == 0 || !hidden.is_multiple_of(heads) {
            let reason = format!("{heads} does not divide hidden_size {hidden}");
            return Err(LoadError::config("num_attention_heads", reason));
        }
        Ok(hidden / heads)
    }

    /// Refuses what no family here computes: another activation, quantized checkpoints, windowed attention.
    ///
    /// # Errors
    /// [`LoadError::Unsupported`] naming the key.
    pub fn refuse_unsupported(&self) -> Result<(), LoadError> {
        let act = self.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
        if act != "silu" {
            return Err(LoadError::Unsupported(format!("hidden_act '{act}'")));
        }
        if let Some(quantization) = self.get("quantization_config") {
            let method = quantization.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
            let advice = "use the unquantized weights with --quantize, or a GGUF file";
            return Err(LoadError::Unsupported(format!("quantization_config of method '{method}'; {advice}")));
        }
        if let Some(layer_types) = self.get("layer_types") {
            let types = layer_types.as_array().ok_or_else(|| wrong_type("layer_types", layer_types, "a list"))?;
            let other = types.iter().find(|kind| kind.as_str() != Some("full_attention"));
            if let Some(other) = other {
                return Err(LoadError::Unsupported(format!("layer_types with {other}")));
            }
        }
        Ok(())
    }

    /// Refuses a sliding window that would change a result: one that is on and shorter than the context.
    ///
    /// # Errors
    /// [`LoadError::Unsupported`] naming the key.
    pub fn refuse_sliding_window(&self) -> Result<(), LoadError> {
        if !self.flag("use_sliding_window")? {
            return Ok(());
        }
        let Some(window) = self.optional_size("sliding_window")? else { return Ok(()) };
        // The first `max_window_layers` layers attend to everything.
        let full_layers = self.optional_size("max_window_layers")?.unwrap_or(0);
        if window >= self.size("max_position_embeddings")? || full_layers >= self.size("num_hidden_layers")? {
            return Ok(());
        }
        Err(LoadError::Unsupported(format!("use_sliding_window with sliding_window {window}")))
    }

    /// Rotary embedding from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4).
    ///
    /// # Errors
    /// [`LoadError::Config`] or [`LoadError::Unsupported`], naming the key.
    pub fn rope(&self, default_theta: f64) -> Result<RopeSpec, LoadError> {
        let head_dim = self.head_dim()?;
        let rope = RopeFields::of(self)?;
        let theta = match rope.optional("rope_theta")? {
            Some(theta) => theta,
            None if self.get("rope_theta").is_some() => self.float("rope_theta")?,
            None => default_theta,
        };
        let partial = match rope.optional("partial_rotary_factor")? {
            Some(factor) => factor,
            None if self.get("partial_rotary_factor").is_some() => self.float("partial_rotary_factor")?,
            None => 1.0,
        };
        if !(0.0..=1.0).contains(&partial) {
            return Err(LoadError::config("partial_rotary_factor", format!("{partial} is not between 0 and 1")));
        }
        let rotary_dim = (head_dim as f64 * partial) as usize;
        Ok(RopeSpec { theta, rotary_dim, scaling: rope.scaling()? })
    }
}

/// `rope_parameters` or `rope_scaling`, whichever is there.
struct RopeFields<'a> {
    config: &'a HfConfig,
    key: &'static str,
    fields: Option<&'a Map<String, Value>>,
}

impl<'a> RopeFields<'a> {
    fn of(config: &'a HfConfig) -> Result<Self, LoadError> {
        let key = if config.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
        let Some(value) = config.get(key) else { return Ok(Self { config, key, fields: None }) };
        let fields = value.as_object().ok_or_else(|| wrong_type(key, value, "an object"))?;
        Ok(Self { config, key, fields: Some(fields) })
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.fields?.get(name).filter(|value| !value.is_null())
    }

    fn optional(&self, name: &str) -> Result<Option<f64>, LoadError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.as_f64();
        number.map(Some).ok_or_else(|| wrong_type(&format!("{}.{name}", self.key), value, "a number"))
    }

    fn required(&self, name: &str) -> Result<f64, LoadError> {
        self.optional(name)?.ok_or_else(|| LoadError::config(format!("{}.{name}", self.key), "is missing"))
    }

    fn scaling(&self) -> Result<RopeScaling, LoadError> {
        // Older checkpoints say `type`.
        let kind = self.get("rope_type").or_else(|| self.get("type"));
        match kind.map_or(Some("default"), Value::as_str) {
            Some("default") => Ok(RopeScaling::Default),
            Some("linear") => Ok(RopeScaling::Linear { factor: self.required("factor")? }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: self.required("factor")?,
                low_freq_factor: self.required("low_freq_factor")?,
                high_freq_factor: self.required("high_freq_factor")?,
                original_len: self.required("original_max_position_embeddings")?,
            }),
            Some("yarn") => self.yarn(),
            _ => {
                let kind = kind.expect("a missing type is the default");
                Err(LoadError::Unsupported(format!("{}.rope_type {kind}", self.key)))
            }
        }
    }

    fn yarn(&self) -> Result<RopeScaling, LoadError> {
        let factor = self.required("factor")?;
        let original_len = match self.optional("original_max_position_embeddings")? {
            Some(len) => len,
            None => self.config.float("max_position_embeddings")?,
        };
        let attention_factor = match self.optional("attention_factor")? {
            Some(attention_factor) => attention_factor,
            None => match (self.optional("mscale")?, self.optional("mscale_all_dim")?) {
                (Some(scale), Some(all)) if scale != 0.0 && all != 0.0 => {
                    yarn_attention(factor, scale) / yarn_attention(factor, all)
                }
                _ => yarn_attention(factor, 1.0),
            },
        };
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: self.optional("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.optional("beta_slow")?.unwrap_or(1.0),
            original_len,
            attention_factor,
            truncate: self.get("truncate").and_then(Value::as_bool).unwrap_or(true),
        })
    }
}

/// The attention factor that the authors of `YaRN` fitted (Peng et al. 2023, eq. 22).
fn yarn_attention(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 }
}

fn wrong_type(key: &str, value: &Value, wanted: &str) -> LoadError {
    let text: String = value.to_string().chars().take(60).collect();
    LoadError::config(key, format!("found {text}, expected {wanted}"))
}

/// The metadata of a GGUF file seen from one architecture: keys are without its prefix.
pub struct GgufConfig<'a> {
    weights: &'a Weights,
    metadata: &'a GgufMetadata,
    architecture: &'a str,
}

impl<'a> GgufConfig<'a> {
    /// The configuration of `gguf`, which `weights` wraps.
    ///
    /// # Errors
    /// [`LoadError::Config`] when it names no architecture.
    pub fn new(weights: &'a Weights, gguf: &'a Gguf) -> Result<Self, LoadError> {
        let metadata = gguf.metadata();
        let architecture = metadata.str("general.architecture")?;
        let architecture = architecture.ok_or_else(|| LoadError::config("general.architecture", "is missing"))?;
        Ok(Self { weights, metadata, architecture })
    }

    /// The value of `general.architecture`.
    #[must_use]
    pub fn architecture(&self) -> &'a str {
        self.architecture
    }

    /// Whether the file has the tensor `name`.
    #[must_use]
    pub fn has_tensor(&self, name: &str) -> bool {
        self.weights.contains(name)
    }

    /// The values of a small vector of the file.
    ///
    /// # Errors
    /// As [`Weights::vector`].
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        self.weights.vector(name, len)
    }

    /// `key` as a size.
    ///
    /// # Errors
    /// [`LoadError::Config`] when it is missing or no such number; the other getters alike.
    pub fn size(&self, key: &str) -> Result<usize, LoadError> {
        let missing = || LoadError::config(self.full(key), "is missing from the file's metadata");
        self.optional_size(key)?.ok_or_else(missing)
    }

    /// `key` as a size, if it is there.
    ///
    /// # Errors
    /// As [`GgufConfig::size`].
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>, LoadError> {
        Ok(self.metadata.u32(&self.full(key))?.map(|size| size as usize))
    }

    /// `key` as a float, if it is there.
    ///
    /// # Errors
    /// As [`GgufConfig::size`].
    pub fn optional_float(&self, key: &str) -> Result<Option<f32>, LoadError> {
        self.metadata.f32(&self.full(key))
    }

    /// `key` as a float.
    ///
    /// # Errors
    /// As [`GgufConfig::size`].
    pub fn float(&self, key: &str) -> Result<f32, LoadError> {
        let missing = || LoadError::config(self.full(key), "is missing from the file's metadata");
        self.optional_float(key)?.ok_or_else(missing)
    }

    /// Rows of the embedding.
    ///
    /// # Errors
    /// [`LoadError::Tensor`] when there is no such matrix.
    pub fn vocab_size(&self, embedding: &str) -> Result<usize, LoadError> {
        let name = format!("{embedding}.weight");
        let shape = self.weights.shape(&name).ok_or_else(|| LoadError::tensor(&name, "is missing from the file"))?;
        match shape.dims() {
            [rows, _] => Ok(usize::try_from(*rows).unwrap_or(usize::MAX)),
            _ => Err(LoadError::tensor(&name, format!("has shape {shape}, expected a matrix"))),
        }
    }

    /// Entries of one head: `attention.key_length`, or what the heads share of the hidden size.
    ///
    /// # Errors
    /// As [`GgufConfig::size`]; also when values have another length than keys.
    pub fn head_dim(&self) -> Result<usize, LoadError> {
        let (hidden, heads) = (self.size("embedding_length")?, self.size("attention.head_count")?);
        let shared = hidden.checked_div(heads).unwrap_or(0);
        let key_len = self.optional_size("attention.key_length")?.unwrap_or(shared);
        let value_len = self.optional_size("attention.value_length")?.unwrap_or(shared);
        if key_len != value_len {
            return Err(LoadError::Unsupported(format!(
                "keys of {key_len} and values of {value_len} entries per head"
            )));
        }
        Ok(key_len)
    }

    /// Refuses what no family here computes: mixtures of experts and windowed attention.
    ///
    /// # Errors
    /// [`LoadError::Unsupported`] naming the key.
    pub fn refuse_unsupported(&self) -> Result<(), LoadError> {
        if let Some(experts) = self.optional_size("expert_count")?.filter(|experts| *experts > 0) {
            return Err(LoadError::Unsupported(format!("{} of {experts}", self.full("expert_count"))));
        }
        let context = self.size("context_length")?;
        let window = self.optional_size("attention.sliding_window")?;
        match window.filter(|window| (1..context).contains(window)) {
            Some(window) => {
                Err(LoadError::Unsupported(format!("{} of {window}", self.full("attention.sliding_window"))))
            }
            None => Ok(()),
        }
    }

    /// Rotary embedding from the `rope.` keys and the tensor `rope_freqs.weight`.
    ///
    /// # Errors
    /// [`LoadError::Config`], [`LoadError::Tensor`] or [`LoadError::Unsupported`], naming the key or tensor.
    pub fn rope(&self, default_theta: f32) -> Result<RopeSpec, LoadError> {
        let theta = self.optional_float("rope.freq_base")?.unwrap_or(default_theta).into();
        let rotary_dim = match self.optional_size("rope.dimension_count")? {
            Some(dim) => dim,
            None => self.head_dim()?,
        };
        if self.has_tensor("rope_freqs.weight") {
            let scaling = RopeScaling::Divisors(self.vector("rope_freqs.weight", rotary_dim / 2)?);
            return Ok(RopeSpec { theta, rotary_dim, scaling });
        }
        let key = self.full("rope.scaling.type");
        let scaling = match self.metadata.str(&key)? {
            None | Some("none") => match self.optional_float("rope.scale_linear")? {
                // What files had before `rope.scaling`.
                Some(factor) => RopeScaling::Linear { factor: factor.into() },
                None => RopeScaling::Default,
            },
            Some("linear") => RopeScaling::Linear { factor: self.float("rope.scaling.factor")?.into() },
            Some("yarn") => self.yarn()?,
            Some(other) => {
                let other: String = other.chars().take(60).collect();
                return Err(LoadError::Unsupported(format!("{key} '{other}'")));
            }
        };
        Ok(RopeSpec { theta, rotary_dim, scaling })
    }

    fn yarn(&self) -> Result<RopeScaling, LoadError> {
        let factor = f64::from(self.float("rope.scaling.factor")?);
        let attention = self.optional_float("rope.scaling.attn_factor")?.map_or(1.0, f64::from);
        let original_len = self.optional_size("rope.scaling.original_context_length")?;
        let original_len = original_len.map_or_else(|| self.size("context_length"), Ok)?;
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_len: original_len as f64,
            attention_factor: attention * yarn_attention(factor, 1.0),
            truncate: true,
        })
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> HfConfig {
        HfConfig::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn both_layouts_of_rope_settings_mean_the_same() {
        let old = config(
            r#"{"head_dim": 64, "rope_theta": 500000, "rope_scaling": {"rope_type": "llama3", "factor": 8,
            "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}}"#,
        );
        let new = config(
            r#"{"head_dim": 64, "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000, "factor": 8,
            "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}}"#,
        );
        assert_eq!(old.rope(10_000.0).unwrap(), new.rope(10_000.0).unwrap());
        let oldest = config(r#"{"head_dim": 64, "rope_scaling": {"type": "linear", "factor": 2.5}}"#);
        let expected = RopeSpec { theta: 10_000.0, rotary_dim: 64, scaling: RopeScaling::Linear { factor: 2.5 } };
        assert_eq!(oldest.rope(10_000.0).unwrap(), expected);
    }

    #[test]
    fn errors_name_the_key() {
        let check = |text: &str, read: fn(&HfConfig) -> Result<(), LoadError>, named: &str| {
            let error = read(&config(text)).unwrap_err().to_string();
            assert!(error.contains(named), "'{error}' does not name {named}");
        };
        check("{}", |c| c.size("hidden_size").map(drop), "hidden_size: is missing");
        check(r#"{"hidden_size": "64"}"#, |c| c.size("hidden_size").map(drop), "hidden_size: found \"64\"");
        check(r#"{"hidden_size": -1}"#, |c| c.size("hidden_size").map(drop), "hidden_size: found -1");
        check(r#"{"hidden_act": "gelu"}"#, HfConfig::refuse_unsupported, "hidden_act 'gelu'");
        check(r#"{"quantization_config": {"quant_method": "gptq"}}"#, HfConfig::refuse_unsupported, "gptq");
        check(r#"{"layer_types": ["sliding_attention"]}"#, HfConfig::refuse_unsupported, "sliding_attention");
        let dynamic = r#"{"head_dim": 64, "rope_scaling": {"type": "dynamic", "factor": 2}}"#;
        check(dynamic, |c| c.rope(1e4).map(drop), "rope_scaling.rope_type \"dynamic\"");
        let cut = r#"{"head_dim": 64, "rope_parameters": {"rope_type": "llama3", "factor": 2}}"#;
        check(cut, |c| c.rope(1e4).map(drop), "rope_parameters.low_freq_factor: is missing");
    }

    #[test]
    fn a_sliding_window_is_refused_only_where_it_would_act() {
        let check = |extra: &str, is_fine: bool| {
            let text = format!(
                r#"{{"max_position_embeddings": 1000, "num_hidden_layers": 4, "sliding_window": 100, {extra}}}"#
            );
            assert_eq!(config(&text).refuse_sliding_window().is_ok(), is_fine, "{extra}");
        };
        check(r#""use_sliding_window": false"#, true);
        check(r#""use_sliding_window": true, "max_window_layers": 4"#, true);
        check(r#""use_sliding_window": true, "max_window_layers": 2"#, false);
    }

    /// Values of transformers 5.23 `_compute_yarn_parameters` for theta 1e6, 64 dimensions, factor 4, 32768 positions.
    #[test]
    fn yarn_is_the_reference() {
        let rope = config(
            r#"{"head_dim": 64, "max_position_embeddings": 131072, "rope_parameters": {"rope_type": "yarn",
            "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 32768}}"#,
        )
        .rope(1e4)
        .unwrap();
        assert!((rope.attention_factor() - 1.138_629_4).abs() < 1e-6);
        let found = rope.inv_freq();
        for (pair, expected) in YARN_REFERENCE {
            assert!((found[*pair] / expected - 1.0).abs() < 1e-5, "pair {pair}: {} is not {expected}", found[*pair]);
        }
    }
    const YARN_REFERENCE: &[(usize, f32)] = &[
        (0, 1.0),
        (14, 1.778_530_3e-3),
        (16, 5.833_333_7e-4),
        (18, 1.757_068_7e-4),
        (20, 4.445_698_5e-5),
        (31, 3.849_816_3e-7),
    ];
}
