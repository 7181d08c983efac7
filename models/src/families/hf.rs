//! [`HfConfig`]: typed access to a config.json, with what all families share. Rotary settings are in `rope`.

use serde_json::{Map, Value};

use crate::error::LoadError;
use crate::spec::{ExpertSpec, Gate, MAX_LAYERS};

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

    /// This configuration with `defaults` for keys that are not in it; null is a value here.
    #[must_use]
    pub fn with_defaults(&self, defaults: &[(&str, Value)]) -> Self {
        let mut root = self.root.clone();
        for (key, value) in defaults {
            root.entry(*key).or_insert_with(|| value.clone());
        }
        Self { root }
    }

    /// This configuration with `new` for the value of `key` where that is `old`.
    #[must_use]
    pub fn replacing(&self, key: &str, old: &str, new: &str) -> Self {
        let mut root = self.root.clone();
        if let Some(value) = root.get_mut(key).filter(|value| *value == old) {
            *value = new.into();
        }
        Self { root }
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

    /// `key` as a float, if it is there.
    ///
    /// # Errors
    /// As [`HfConfig::size`].
    pub fn optional_float(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.get(key).map(|_| self.float(key)).transpose()
    }

    /// `key` as a truth value, false if missing.
    ///
    /// # Errors
    /// As [`HfConfig::size`].
    pub fn flag(&self, key: &str) -> Result<bool, LoadError> {
        self.flag_or(key, false)
    }

    /// `key` as a truth value, `default` if missing.
    ///
    /// # Errors
    /// As [`HfConfig::size`].
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool, LoadError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| wrong_type(key, value, "true or false"))
    }

    /// `key` as a list with an entry per layer, if it is there.
    ///
    /// # Errors
    /// As [`HfConfig::size`]; also when the list is shorter than the model.
    pub fn per_layer(&self, key: &str) -> Result<Option<&[Value]>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let num_layers = self.num_layers()?;
        let list = value.as_array().and_then(|list| list.get(..num_layers));
        list.map(Some).ok_or_else(|| wrong_type(key, value, "a list with an entry for each layer"))
    }

    /// `num_hidden_layers`, small enough to make a list of them.
    ///
    /// # Errors
    /// As [`HfConfig::size`].
    pub fn num_layers(&self) -> Result<usize, LoadError> {
        check_layers("num_hidden_layers", self.size("num_hidden_layers")?)
    }

    /// The window of each layer: `sliding_window` where `layer_types` says so, or where `default` does if there is no
    /// such list.
    ///
    /// # Errors
    /// As [`HfConfig::size`], and [`LoadError::Unsupported`] naming a type that is neither sliding nor full attention.
    pub fn windows(&self, default: impl Fn(usize) -> bool) -> Result<Vec<Option<u32>>, LoadError> {
        let window = self.optional_size("sliding_window")?;
        let of = |is_sliding: bool| match window {
            Some(window) if is_sliding => self.useful_window(window),
            _ => Ok(None),
        };
        let Some(types) = self.per_layer("layer_types")? else {
            return (0..self.num_layers()?).map(|layer_idx| of(default(layer_idx))).collect();
        };
        let each = types.iter().map(|kind| match kind.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") => of(true),
            _ => Err(LoadError::Unsupported(format!("layer_types with {kind}"))),
        });
        each.collect()
    }

    /// `sliding_window` on every layer, if it is set.
    ///
    /// # Errors
    /// As [`HfConfig::size`].
    pub fn windows_everywhere(&self) -> Result<Vec<Option<u32>>, LoadError> {
        let window = match self.optional_size("sliding_window")? {
            Some(window) => self.useful_window(window)?,
            None => None,
        };
        Ok(vec![window; self.num_layers()?])
    }

    /// No windows, in a family that has none.
    ///
    /// # Errors
    /// [`LoadError::Unsupported`] naming `layer_types` when it does.
    pub fn full_layers(&self) -> Result<Vec<Option<u32>>, LoadError> {
        let other = self.per_layer("layer_types")?.and_then(|all| all.iter().find(|x| *x != "full_attention"));
        match other {
            Some(other) => Err(LoadError::Unsupported(format!("layer_types with {other}"))),
            None => Ok(vec![None; self.num_layers()?]),
        }
    }

    /// Windows as in Qwen2 and Qwen3: if `use_sliding_window` is on, in the layers that `layer_types` names, else in those
    /// from `max_window_layers` on.
    ///
    /// # Errors
    /// As [`HfConfig::size`].
    pub fn windows_of_qwen(&self) -> Result<Vec<Option<u32>>, LoadError> {
        if !self.flag("use_sliding_window")? {
            return Ok(vec![None; self.num_layers()?]);
        }
        let first = self.optional_size("max_window_layers")?.unwrap_or(28);
        self.windows(|layer_idx| layer_idx >= first)
    }

    /// The experts, each `ffn_dim` wide; `normalize` says whether the shares of those chosen are scaled to sum to 1.
    ///
    /// # Errors
    /// As [`HfConfig::size`].
    pub fn experts(&self, ffn_dim: usize, normalize: bool) -> Result<ExpertSpec, LoadError> {
        let num_experts = match self.optional_size("num_local_experts")? {
            Some(num_experts) => num_experts,
            None => self.size("num_experts")?,
        };
        Ok(ExpertSpec { num_experts, num_active: self.size("num_experts_per_tok")?, ffn_dim, normalize })
    }

    /// `window`, unless the context is never longer.
    fn useful_window(&self, window: usize) -> Result<Option<u32>, LoadError> {
        let max_positions = self.size("max_position_embeddings")?;
        Ok(u32::try_from(window).ok().filter(|_| window < max_positions))
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

    /// Refuses what no family here computes: parts that do not belong to a text decoder, checkpoints quantized in other
    /// ways than by a factor on 8-bit floats.
    ///
    /// # Errors
    /// [`LoadError::Unsupported`] naming the key.
    pub fn refuse_unsupported(&self) -> Result<(), LoadError> {
        for (key, what) in [
            ("vision_config", "pictures"),
            ("audio_config", "sound"),
            ("kv_lora_rank", "multi-head latent attention"),
            ("quantization_config", "quantized weights"),
        ] {
            let Some(value) = self.get(key) else { continue };
            let method = value.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
            match key {
                "quantization_config" if method == "fp8" => {}
                "quantization_config" => {
                    let advice = "use the unquantized weights with --quantize, or a GGUF file";
                    return Err(LoadError::Unsupported(format!("quantization_config of method '{method}'; {advice}")));
                }
                _ => return Err(LoadError::Unsupported(format!("{key} ({what})"))),
            }
        }
        if self.flag("use_bidirectional_attention")? {
            return Err(LoadError::Unsupported("use_bidirectional_attention".to_owned()));
        }
        Ok(())
    }

    /// The function on the gate: the first of `keys` that is there, or `default`.
    ///
    /// # Errors
    /// [`LoadError::Unsupported`] naming the function.
    pub fn gate(&self, keys: &[&str], default: Gate) -> Result<Gate, LoadError> {
        let Some((key, value)) = keys.iter().find_map(|key| Some((key, self.get(key)?))) else { return Ok(default) };
        match value.as_str() {
            Some("silu" | "swish") => Ok(Gate::Silu),
            Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Gate::GeluTanh),
            _ => Err(LoadError::Unsupported(format!("{key} {value}"))),
        }
    }
}

/// `num_layers`, if a list of so many is no burden.
pub(super) fn check_layers(key: &str, num_layers: usize) -> Result<usize, LoadError> {
    if num_layers > MAX_LAYERS {
        return Err(LoadError::config(key, format!("{num_layers} is not between 1 and {MAX_LAYERS}")));
    }
    Ok(num_layers)
}

pub(super) fn wrong_type(key: &str, value: &Value, wanted: &str) -> LoadError {
    let text: String = value.to_string().chars().take(60).collect();
    LoadError::config(key, format!("found {text}, expected {wanted}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> HfConfig {
        HfConfig::parse(text.as_bytes()).unwrap()
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
        check(r#"{"num_hidden_layers": 4000000000}"#, |c| c.num_layers().map(drop), "num_hidden_layers: 4000000000");
        let gate = |c: &HfConfig| c.gate(&["hidden_activation", "hidden_act"], Gate::Silu).map(drop);
        check(r#"{"hidden_act": "relu"}"#, gate, "hidden_act \"relu\"");
        check(r#"{"quantization_config": {"quant_method": "gptq"}}"#, HfConfig::refuse_unsupported, "gptq");
        check(r#"{"vision_config": {}}"#, HfConfig::refuse_unsupported, "vision_config (pictures)");
        check(r#"{"kv_lora_rank": 512}"#, HfConfig::refuse_unsupported, "multi-head latent attention");
        let windows = |c: &HfConfig| c.windows(|_| false).map(drop);
        check(r#"{"num_hidden_layers": 1, "layer_types": ["chunked_attention"]}"#, windows, "chunked_attention");
        check(r#"{"num_hidden_layers": 2, "layer_types": ["full_attention"]}"#, windows, "an entry for each layer");
    }

    #[test]
    fn windows_follow_the_list_of_types_or_the_rule_and_end_with_the_context() {
        let windows = |extra: &str| {
            let text = format!(r#"{{"max_position_embeddings": 1000, "num_hidden_layers": 3, {extra}}}"#);
            config(&text).windows(|layer_idx| layer_idx > 0).unwrap()
        };
        assert_eq!(windows(r#""sliding_window": 100"#), [None, Some(100), Some(100)]);
        assert_eq!(windows(r#""sliding_window": 1000"#), [None; 3], "no context is longer");
        assert_eq!(windows(r#""sliding_window": null"#), [None; 3]);
        let types = r#""layer_types": ["sliding_attention", "full_attention", "sliding_attention"]"#;
        assert_eq!(windows(&format!(r#""sliding_window": 7, {types}"#)), [Some(7), None, Some(7)]);
    }
}
