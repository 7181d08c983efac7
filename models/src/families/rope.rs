//! Rotary settings of both kinds of configuration, as a [`RopeSpec`].

use serde_json::{Map, Value};

use super::gguf::GgufConfig;
use super::hf::{HfConfig, wrong_type};
use crate::error::LoadError;
use crate::spec::{RopeScaling, RopeSpec};

impl HfConfig {
    /// Rotary embedding from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4).
    ///
    /// # Errors
    /// [`LoadError::Config`] or [`LoadError::Unsupported`], naming the key.
    pub fn rope(&self, default_theta: f64) -> Result<RopeSpec, LoadError> {
        RopeFields::of(self)?.rope("rope_theta", default_theta)
    }

    /// Rotary embedding of the layers of one type, from that type's part of `rope_parameters`; else, for full attention,
    /// from `rope_theta` and `rope_scaling`, and for sliding attention from `rope_local_base_freq`.
    ///
    /// # Errors
    /// As [`HfConfig::rope`].
    pub fn rope_of_layers(&self, are_sliding: bool, default_theta: f64) -> Result<RopeSpec, LoadError> {
        let (kind, theta_key) =
            if are_sliding { ("sliding_attention", "rope_local_base_freq") } else { ("full_attention", "rope_theta") };
        if let Some(value) = self.get("rope_parameters").and_then(|all| all.get(kind)).filter(|value| !value.is_null())
        {
            return RopeFields::new(self, format!("rope_parameters.{kind}"), value)?.rope(theta_key, default_theta);
        }
        match self.get("rope_scaling").filter(|_| !are_sliding) {
            Some(value) => RopeFields::new(self, "rope_scaling".to_owned(), value)?.rope(theta_key, default_theta),
            None => RopeFields { config: self, key: String::new(), fields: None }.rope(theta_key, default_theta),
        }
    }
}

/// `rope_parameters`, one of its parts, or `rope_scaling`, whichever is there.
struct RopeFields<'a> {
    config: &'a HfConfig,
    key: String,
    fields: Option<&'a Map<String, Value>>,
}

impl<'a> RopeFields<'a> {
    fn of(config: &'a HfConfig) -> Result<Self, LoadError> {
        let key = if config.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
        match config.get(key) {
            Some(value) => Self::new(config, key.to_owned(), value),
            None => Ok(Self { config, key: key.to_owned(), fields: None }),
        }
    }

    fn new(config: &'a HfConfig, key: String, value: &'a Value) -> Result<Self, LoadError> {
        let fields = value.as_object().ok_or_else(|| wrong_type(&key, value, "an object"))?;
        Ok(Self { config, key, fields: Some(fields) })
    }

    fn rope(&self, theta_key: &str, default_theta: f64) -> Result<RopeSpec, LoadError> {
        let here_or_above = |name: &str, key: &str| match self.optional(name)? {
            Some(value) => Ok(Some(value)),
            None => self.config.optional_float(key),
        };
        let theta = here_or_above("rope_theta", theta_key)?.unwrap_or(default_theta);
        let partial = here_or_above("partial_rotary_factor", "partial_rotary_factor")?.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&partial) {
            return Err(LoadError::config("partial_rotary_factor", format!("{partial} is not between 0 and 1")));
        }
        let rotary_dim = (self.config.head_dim()? as f64 * partial) as usize;
        Ok(RopeSpec { theta, rotary_dim, scaling: self.scaling()? })
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

    fn divisors(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let key = format!("{}.{name}", self.key);
        let value = self.get(name).ok_or_else(|| LoadError::config(&key, "is missing"))?;
        let numbers = value.as_array().and_then(|list| list.iter().map(|x| x.as_f64().map(|x| x as f32)).collect());
        numbers.ok_or_else(|| wrong_type(&key, value, "a list of numbers"))
    }

    /// Context that the model was trained with: beside the rotary settings if it is there, else in them.
    fn original_len(&self) -> Result<f64, LoadError> {
        let key = "original_max_position_embeddings";
        if let Some(len) = self.config.optional_float(key)? {
            return Ok(len);
        }
        match self.optional(key)? {
            Some(len) => Ok(len),
            None => self.config.float("max_position_embeddings"),
        }
    }

    /// How many times longer contexts are now than in training.
    fn factor(&self) -> Result<f64, LoadError> {
        match self.optional("factor")? {
            Some(factor) => Ok(factor),
            None => Ok(self.config.float("max_position_embeddings")? / self.original_len()?),
        }
    }

    fn scaling(&self) -> Result<RopeScaling, LoadError> {
        // Older checkpoints say `type`.
        let kind = self.get("rope_type").or_else(|| self.get("type"));
        let has_lists = self.get("short_factor").is_some();
        match kind.map_or(Some("default"), Value::as_str) {
            // `dynamic` stretches contexts beyond `max_position_embeddings`, which are not served.
            Some("default" | "dynamic") => Ok(RopeScaling::Default),
            Some("linear") => Ok(RopeScaling::Linear { factor: self.required("factor")? }),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: self.required("factor")?,
                low_freq_factor: self.required("low_freq_factor")?,
                high_freq_factor: self.required("high_freq_factor")?,
                original_len: self.original_len()?,
            }),
            Some("longrope" | "su") => self.longrope(),
            // What the first checkpoints of Phi 3 called it.
            Some("yarn") if has_lists => self.longrope(),
            Some("yarn") => self.yarn(),
            _ => {
                let kind = kind.expect("a missing type is the default");
                Err(LoadError::Unsupported(format!("{}.rope_type {kind}", self.key)))
            }
        }
    }

    fn yarn(&self) -> Result<RopeScaling, LoadError> {
        let factor = self.factor()?;
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
            original_len: self.original_len()?,
            attention_factor,
            truncate: self.get("truncate").and_then(Value::as_bool).unwrap_or(true),
        })
    }

    fn longrope(&self) -> Result<RopeScaling, LoadError> {
        let (factor, original_len) = (self.factor()?, self.original_len()?);
        let attention_factor = match self.optional("attention_factor")? {
            Some(attention_factor) => attention_factor,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original_len.ln()).sqrt(),
        };
        let (short, long) = (self.divisors("short_factor")?, self.divisors("long_factor")?);
        Ok(RopeScaling::LongRope { short, long, original_len: original_len as u32, attention_factor })
    }
}

/// The attention factor that the authors of `YaRN` fitted (Peng et al. 2023, eq. 22).
fn yarn_attention(factor: f64, scale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 }
}

impl GgufConfig<'_> {
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
        if self.has_tensor("rope_factors_long.weight") {
            return Ok(RopeSpec { theta, rotary_dim, scaling: self.longrope(rotary_dim / 2)? });
        }
        if self.has_tensor("rope_freqs.weight") {
            let scaling = RopeScaling::Divisors(self.vector("rope_freqs.weight", rotary_dim / 2)?);
            return Ok(RopeSpec { theta, rotary_dim, scaling });
        }
        let key = self.full("rope.scaling.type");
        let scaling = match self.optional_str("rope.scaling.type")? {
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
            beta_fast: self.optional_float("rope.scaling.yarn_beta_fast")?.map_or(32.0, f64::from),
            beta_slow: self.optional_float("rope.scaling.yarn_beta_slow")?.map_or(1.0, f64::from),
            original_len: original_len as f64,
            attention_factor: attention * yarn_attention(factor, 1.0),
            truncate: true,
        })
    }

    fn longrope(&self, num_pairs: usize) -> Result<RopeScaling, LoadError> {
        let original_len = self.optional_size("rope.scaling.original_context_length")?;
        let original_len = original_len.map_or_else(|| self.size("context_length"), Ok)?;
        Ok(RopeScaling::LongRope {
            short: self.vector("rope_factors_short.weight", num_pairs)?,
            long: self.vector("rope_factors_long.weight", num_pairs)?,
            original_len: original_len as u32,
            attention_factor: self.optional_float("rope.scaling.attn_factor")?.unwrap_or(1.0).into(),
        })
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
        let check = |text: &str, named: &str| {
            let error = config(text).rope(1e4).unwrap_err().to_string();
            assert!(error.contains(named), "'{error}' does not name {named}");
        };
        let unknown = r#"{"head_dim": 64, "rope_scaling": {"type": "proportional", "factor": 2}}"#;
        check(unknown, "rope_scaling.rope_type \"proportional\"");
        let cut = r#"{"head_dim": 64, "rope_parameters": {"rope_type": "llama3", "factor": 2}}"#;
        check(cut, "rope_parameters.low_freq_factor: is missing");
        let cut =
            r#"{"head_dim": 64, "max_position_embeddings": 9, "rope_scaling": {"type": "su", "short_factor": 1}}"#;
        check(cut, "rope_scaling.short_factor: found 1, expected a list of numbers");
    }

    #[test]
    fn layers_of_two_types_turn_by_two_bases_in_both_layouts() {
        let old = config(
            r#"{"head_dim": 16, "rope_theta": 1000000, "rope_local_base_freq": 5000,
            "rope_scaling": {"rope_type": "linear", "factor": 8}}"#,
        );
        let new = config(
            r#"{"head_dim": 16, "rope_parameters": {"full_attention": {"rope_theta": 1000000, "rope_type": "linear",
            "factor": 8}, "sliding_attention": {"rope_theta": 5000, "rope_type": "default"}}}"#,
        );
        for config in [old, new] {
            let full = config.rope_of_layers(false, 1.0).unwrap();
            assert_eq!((full.theta, full.scaling), (1e6, RopeScaling::Linear { factor: 8.0 }));
            let sliding = config.rope_of_layers(true, 1.0).unwrap();
            assert_eq!((sliding.theta, sliding.scaling), (5e3, RopeScaling::Default));
        }
    }

    /// Numbers of transformers 5.23 `_compute_longrope_parameters`.
    #[test]
    fn longrope_has_two_lists_and_a_factor_by_the_growth_of_the_context() {
        let rope = config(
            r#"{"head_dim": 8, "partial_rotary_factor": 0.5, "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096, "rope_scaling": {"type": "longrope", "short_factor": [1, 2],
            "long_factor": [4, 8]}}"#,
        )
        .rope(1e4)
        .unwrap();
        assert_eq!((rope.switch_len(), rope.rotary_dim), (Some(4096), 4));
        assert!((rope.attention_factor() - 1.190_238).abs() < 1e-6);
        assert_eq!(rope.inv_freq(), [1.0, 0.005]);
        assert_eq!(rope.long_inv_freq().unwrap(), [0.25, 0.00125]);
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
