//! [`DecoderSpec`]: a decoder-only transformer as data.
//!
//! A family fills one in from its configuration; the forward pass reads nothing else. What a family can vary is a field
//! here, so a new family is a mapping and a new mechanism is one field and one branch.

use crate::error::LoadError;

/// Largest value accepted for a width (hidden, feed-forward, rows of a projection).
const MAX_WIDTH: usize = 1 << 20;
/// Largest vocabulary accepted.
const MAX_VOCAB: usize = 1 << 22;
/// Most layers accepted.
const MAX_LAYERS: usize = 1024;

/// What a decoder computes, with every size.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// Entries of a token's embedding.
    pub hidden_dim: usize,
    /// Transformer layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Entries of one head.
    pub head_dim: usize,
    /// Width of the gated MLP.
    pub ffn_dim: usize,
    /// Rows of the embedding and of the output projection.
    pub vocab_size: usize,
    /// Positions that the model was trained for.
    pub max_position_embeddings: u32,
    /// Epsilon of every RMS norm.
    pub norm_eps: f32,
    /// How positions turn heads.
    pub rope: RopeSpec,
    /// Whether q and k get an RMS norm per head before the rotation (qwen3).
    pub qk_norm: bool,
    /// Which projections have a bias.
    pub biases: Biases,
    /// Whether the output projection is the embedding.
    pub tie_embeddings: bool,
}

/// Which projections have a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// q, k and v.
    pub qkv: bool,
    /// The output of attention.
    pub attention_output: bool,
    /// gate, up and down.
    pub mlp: bool,
}

/// Rotary position embedding (Su et al. 2021), pairing dimension `i` with `i + rotary_dim / 2`.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Base of the frequencies.
    pub theta: f64,
    /// Dimensions of a head that turn.
    pub rotary_dim: usize,
    /// How the frequencies are stretched for contexts longer than trained.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are stretched. Names as in Hugging Face's `modeling_rope_utils.py`.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All by the same factor.
    Linear {
        /// Divides every frequency.
        factor: f64,
    },
    /// Llama 3.1: low frequencies by `factor`, high ones not, those between smoothly.
    Llama3 {
        /// Divides the low frequencies.
        factor: f64,
        /// Wavelengths above `original_len / low_freq_factor` are low.
        low_freq_factor: f64,
        /// Wavelengths below `original_len / high_freq_factor` are high.
        high_freq_factor: f64,
        /// Context that the model was trained with.
        original_len: f64,
    },
    /// `YaRN` (Peng et al. 2023): a ramp between dimensions, and a factor on the attention scores.
    Yarn {
        /// Divides the low frequencies.
        factor: f64,
        /// Rotations over the original context above which a dimension stays as it is.
        beta_fast: f64,
        /// Rotations below which it is divided in full.
        beta_slow: f64,
        /// Context that the model was trained with.
        original_len: f64,
        /// Multiplies cosine and sine.
        attention_factor: f64,
        /// Whether the ramp's ends are whole dimensions.
        truncate: bool,
    },
    /// Divides frequency `i` by entry `i` (the GGUF tensor `rope_freqs.weight`).
    Divisors(Vec<f32>),
}

impl RopeSpec {
    /// Angle per position of each pair, `[rotary_dim / 2]`.
    #[must_use]
    pub fn inv_freq(&self) -> Vec<f32> {
        let base = |pair: usize| self.theta.powf(-((2 * pair) as f64) / self.rotary_dim as f64);
        (0..self.rotary_dim / 2).map(|pair| self.scaled(pair, base(pair)) as f32).collect()
    }

    /// Factor on cosine and sine; 1 but for `YaRN`.
    #[must_use]
    pub fn attention_factor(&self) -> f32 {
        if let RopeScaling::Yarn { attention_factor, .. } = self.scaling { attention_factor as f32 } else { 1.0 }
    }

    fn scaled(&self, pair: usize, freq: f64) -> f64 {
        match &self.scaling {
            RopeScaling::Default => freq,
            RopeScaling::Linear { factor } => freq / factor,
            RopeScaling::Divisors(divisors) => freq / f64::from(divisors[pair]),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_len } => {
                let wavelength = std::f64::consts::TAU / freq;
                if wavelength < original_len / high_freq_factor {
                    freq
                } else if wavelength > original_len / low_freq_factor {
                    freq / factor
                } else {
                    let kept = (original_len / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - kept) * freq / factor + kept * freq
                }
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_len, truncate, .. } => {
                let dim_of = |rotations: f64| {
                    let turns = original_len / (rotations * std::f64::consts::TAU);
                    self.rotary_dim as f64 * turns.ln() / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (dim_of(*beta_fast), dim_of(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let low = low.max(0.0);
                let high = high.min(self.rotary_dim as f64 - 1.0);
                let width = if high > low { high - low } else { 0.001 };
                let stretched = ((pair as f64 - low) / width).clamp(0.0, 1.0);
                stretched * freq / factor + (1.0 - stretched) * freq
            }
        }
    }
}

impl DecoderSpec {
    /// Rows of the fused q, k and v projection.
    #[must_use]
    pub fn qkv_dim(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Entries of all query heads of a token.
    #[must_use]
    pub fn attention_dim(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Entries of all key heads of a token.
    #[must_use]
    pub fn kv_dim(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Weights in all, norms and biases included.
    #[must_use]
    pub fn num_params(&self) -> u64 {
        let [hidden, ffn, attention] = [self.hidden_dim, self.ffn_dim, self.attention_dim()].map(|dim| dim as u64);
        let qkv = self.qkv_dim() as u64;
        let vocab = self.vocab_size as u64;
        let bias = |has: bool, len: u64| if has { len } else { 0 };
        let layer = hidden * (qkv + attention + 3 * ffn + 2)
            + bias(self.qk_norm, 2 * self.head_dim as u64)
            + bias(self.biases.qkv, qkv)
            + bias(self.biases.attention_output, hidden)
            + bias(self.biases.mlp, 2 * ffn + hidden);
        let embeddings = vocab * hidden * if self.tie_embeddings { 1 } else { 2 };
        self.num_layers as u64 * layer + embeddings + hidden
    }

    /// Multiplications of the layers' matrices for one token.
    #[must_use]
    pub fn layer_products(&self) -> u64 {
        let per_layer = self.hidden_dim * (self.qkv_dim() + self.attention_dim() + 3 * self.ffn_dim);
        self.num_layers as u64 * per_layer as u64
    }

    /// Multiplications of the output projection for one row of logits.
    #[must_use]
    pub fn output_products(&self) -> u64 {
        self.vocab_size as u64 * self.hidden_dim as u64
    }

    /// Refuses sizes that no model has, so that products of them cannot overflow later.
    ///
    /// # Errors
    /// [`LoadError::Config`] naming the size.
    pub fn check(&self) -> Result<(), LoadError> {
        let sizes = [
            ("hidden size", self.hidden_dim, MAX_WIDTH),
            ("number of layers", self.num_layers, MAX_LAYERS),
            ("number of attention heads", self.num_heads, MAX_WIDTH),
            ("number of key-value heads", self.num_kv_heads, self.num_heads),
            ("head dimension", self.head_dim, MAX_WIDTH),
            ("intermediate size", self.ffn_dim, MAX_WIDTH),
            ("vocabulary size", self.vocab_size, MAX_VOCAB),
            ("maximum of positions", self.max_position_embeddings as usize, 1 << 30),
            ("rotary dimension", self.rope.rotary_dim, self.head_dim),
        ];
        for (what, value, max) in sizes {
            if !(1..=max).contains(&value) {
                return Err(LoadError::config(what, format!("{value} is not between 1 and {max}")));
            }
        }
        let refuse = |what: &str, reason: String| Err(LoadError::config(what, reason));
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let reason = format!("{} does not divide the {} attention heads", self.num_kv_heads, self.num_heads);
            return refuse("number of key-value heads", reason);
        }
        if self.qkv_dim() > 4 * MAX_WIDTH {
            return refuse("number of attention heads", format!("{} rows of q, k and v are too many", self.qkv_dim()));
        }
        if !self.head_dim.is_multiple_of(8) || !self.rope.rotary_dim.is_multiple_of(2) {
            let reason = format!("{} (rotary {}) is not a multiple of 8", self.head_dim, self.rope.rotary_dim);
            return refuse("head dimension", reason);
        }
        if self.rope.rotary_dim != self.head_dim {
            let (rotary, head) = (self.rope.rotary_dim, self.head_dim);
            return Err(LoadError::Unsupported(format!("rotation of {rotary} of a head's {head} dimensions")));
        }
        if !(self.norm_eps >= 0.0 && self.norm_eps < 1.0) {
            return refuse("norm epsilon", format!("{} is not between 0 and 1", self.norm_eps));
        }
        self.check_rope()
    }

    fn check_rope(&self) -> Result<(), LoadError> {
        let refuse = |what: &str, value: f64| {
            Err(LoadError::config(format!("rope {what}"), format!("{value} is not a positive number")))
        };
        if !(self.rope.theta.is_finite() && self.rope.theta > 1.0) {
            return Err(LoadError::config("rope theta", format!("{} is not a number above 1", self.rope.theta)));
        }
        let values: &[(&str, f64)] = match &self.rope.scaling {
            RopeScaling::Default => &[],
            RopeScaling::Linear { factor } => &[("factor", *factor)],
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_len } => &[
                ("factor", *factor),
                ("low_freq_factor", *low_freq_factor),
                ("high_freq_factor minus low_freq_factor", high_freq_factor - low_freq_factor),
                ("original context", *original_len),
            ],
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_len, attention_factor, .. } => &[
                ("factor", *factor),
                ("beta_fast", *beta_fast),
                ("beta_slow", *beta_slow),
                ("original context", *original_len),
                ("attention factor", *attention_factor),
            ],
            RopeScaling::Divisors(divisors) => {
                if divisors.len() != self.rope.rotary_dim / 2 {
                    let (found, expected) = (divisors.len(), self.rope.rotary_dim / 2);
                    return Err(LoadError::config("rope", format!("{found} divisors for {expected} frequencies")));
                }
                return match divisors.iter().find(|d| !(d.is_finite() && **d > 0.0)) {
                    Some(divisor) => refuse("divisor", f64::from(*divisor)),
                    None => Ok(()),
                };
            }
        };
        match values.iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
            Some((what, value)) => refuse(what, *value),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small valid spec for tests to vary.
    pub(crate) fn tiny() -> DecoderSpec {
        DecoderSpec {
            hidden_dim: 64,
            num_layers: 2,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 16,
            ffn_dim: 96,
            vocab_size: 100,
            max_position_embeddings: 256,
            norm_eps: 1e-5,
            rope: RopeSpec { theta: 10_000.0, rotary_dim: 16, scaling: RopeScaling::Default },
            qk_norm: false,
            biases: Biases::default(),
            tie_embeddings: true,
        }
    }

    #[test]
    fn sizes_that_no_model_has_are_refused_by_name() {
        assert!(tiny().check().is_ok());
        let check = |edit: fn(&mut DecoderSpec), named: &str| {
            let mut spec = tiny();
            edit(&mut spec);
            let error = spec.check().unwrap_err().to_string();
            assert!(error.contains(named), "{error} does not name {named}");
        };
        check(|spec| spec.hidden_dim = 0, "hidden size");
        check(|spec| spec.num_kv_heads = 3, "key-value heads");
        check(|spec| spec.num_kv_heads = 8, "key-value heads");
        check(|spec| spec.head_dim = 20, "head dimension");
        check(|spec| spec.vocab_size = usize::MAX, "vocabulary size");
        check(|spec| spec.norm_eps = f32::NAN, "norm epsilon");
        check(|spec| spec.rope.theta = 0.0, "rope theta");
        check(|spec| spec.rope.rotary_dim = 8, "rotation of 8");
        check(|spec| spec.rope.scaling = RopeScaling::Linear { factor: 0.0 }, "rope factor");
        check(|spec| spec.rope.scaling = RopeScaling::Divisors(vec![1.0; 7]), "7 divisors for 8");
    }

    const LLAMA3_REFERENCE: [(usize, f32); 6] = [
        (28, 3.211_446e-3),
        (29, 2.166_570_6e-3),
        (31, 8.567_515e-4),
        (33, 3.126_936_5e-4),
        (34, 1.785_078e-4),
        (35, 9.556_212e-5),
    ];

    #[test]
    fn llama3_scaling_keeps_high_and_divides_low_frequencies() {
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_len: 8192.0 };
        let plain = RopeSpec { theta: 500_000.0, rotary_dim: 128, scaling: RopeScaling::Default };
        let unscaled = plain.inv_freq();
        let scaled = RopeSpec { scaling, ..plain };
        let scaled = scaled.inv_freq();
        assert_eq!(unscaled[0].to_bits(), scaled[0].to_bits());
        assert!((scaled[63] * 8.0 / unscaled[63] - 1.0).abs() < 1e-6);
        // On the ramp: values of transformers 5.23, `_compute_llama3_parameters`.
        for (pair, expected) in LLAMA3_REFERENCE {
            assert!((scaled[pair] / expected - 1.0).abs() < 1e-5, "pair {pair}: {} is not {expected}", scaled[pair]);
        }
    }

    #[test]
    fn parameters_of_qwen2_half_a_billion() {
        let spec = DecoderSpec {
            hidden_dim: 896,
            num_layers: 24,
            num_heads: 14,
            num_kv_heads: 2,
            head_dim: 64,
            ffn_dim: 4864,
            vocab_size: 151_936,
            biases: Biases { qkv: true, ..Biases::default() },
            ..tiny()
        };
        assert_eq!(spec.num_params(), 494_032_768);
    }
}
