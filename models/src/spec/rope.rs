//! [`RopeSpec`]: how positions turn heads, and how frequencies are stretched for long contexts.

use crate::error::LoadError;

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
    /// `LongRoPE` (Ding et al. 2024): divisors for contexts up to `original_len`, and others for longer ones. A context
    /// that grows past it is computed anew, as in transformers.
    LongRope {
        /// Divisors up to `original_len`, `[rotary_dim / 2]`.
        short: Vec<f32>,
        /// Divisors beyond, `[rotary_dim / 2]`.
        long: Vec<f32>,
        /// Context that the model was trained with.
        original_len: u32,
        /// Multiplies cosine and sine, in both.
        attention_factor: f64,
    },
}

impl RopeSpec {
    /// Angle per position of each pair, `[rotary_dim / 2]`.
    #[must_use]
    pub fn inv_freq(&self) -> Vec<f32> {
        self.frequencies(|pair, freq| self.scaled(pair, freq))
    }

    /// The same for contexts longer than [`RopeSpec::switch_len`], if they have others.
    #[must_use]
    pub fn long_inv_freq(&self) -> Option<Vec<f32>> {
        let RopeScaling::LongRope { long, .. } = &self.scaling else { return None };
        Some(self.frequencies(|pair, freq| freq / f64::from(long[pair])))
    }

    /// Tokens of a context beyond which other frequencies hold, for all of its tokens.
    #[must_use]
    pub fn switch_len(&self) -> Option<u32> {
        if let RopeScaling::LongRope { original_len, .. } = self.scaling { Some(original_len) } else { None }
    }

    /// Factor on cosine and sine; 1 but for `YaRN` and `LongRoPE`.
    #[must_use]
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor as f32
            }
            _ => 1.0,
        }
    }

    fn frequencies(&self, scale: impl Fn(usize, f64) -> f64) -> Vec<f32> {
        let base = |pair: usize| self.theta.powf(-((2 * pair) as f64) / self.rotary_dim as f64);
        (0..self.rotary_dim / 2).map(|pair| scale(pair, base(pair)) as f32).collect()
    }

    fn scaled(&self, pair: usize, freq: f64) -> f64 {
        match &self.scaling {
            RopeScaling::Default => freq,
            RopeScaling::Linear { factor } => freq / factor,
            RopeScaling::Divisors(divisors) | RopeScaling::LongRope { short: divisors, .. } => {
                freq / f64::from(divisors[pair])
            }
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
                let width = if high == low { 0.001 } else { high - low };
                let stretched = ((pair as f64 - low) / width).clamp(0.0, 1.0);
                stretched * freq / factor + (1.0 - stretched) * freq
            }
        }
    }

    /// Refuses numbers that no model has, for heads of `head_dim`.
    ///
    /// # Errors
    /// [`LoadError::Config`] naming the number.
    pub(crate) fn check(&self, head_dim: usize) -> Result<(), LoadError> {
        if !(2..=head_dim).contains(&self.rotary_dim) || !self.rotary_dim.is_multiple_of(2) {
            let reason = format!("{} is not an even number up to {head_dim}", self.rotary_dim);
            return Err(LoadError::config("rotary dimension", reason));
        }
        let refuse = |what: &str, value: f64| {
            Err(LoadError::config(format!("rope {what}"), format!("{value} is not a positive number")))
        };
        if !(self.theta.is_finite() && self.theta > 1.0) {
            return Err(LoadError::config("rope theta", format!("{} is not a number above 1", self.theta)));
        }
        let values: &[(&str, f64)] = match &self.scaling {
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
            RopeScaling::Divisors(divisors) => return self.check_divisors(divisors),
            RopeScaling::LongRope { short, long, original_len, attention_factor } => {
                self.check_divisors(short)?;
                self.check_divisors(long)?;
                &[("original context", f64::from(*original_len)), ("attention factor", *attention_factor)]
            }
        };
        match values.iter().find(|(_, value)| !(value.is_finite() && *value > 0.0)) {
            Some((what, value)) => refuse(what, *value),
            None => Ok(()),
        }
    }

    fn check_divisors(&self, divisors: &[f32]) -> Result<(), LoadError> {
        let (found, expected) = (divisors.len(), self.rotary_dim / 2);
        if found != expected {
            return Err(LoadError::config("rope", format!("{found} divisors for {expected} frequencies")));
        }
        match divisors.iter().find(|divisor| !(divisor.is_finite() && **divisor > 0.0)) {
            Some(divisor) => Err(LoadError::config("rope divisor", format!("{divisor} is not a positive number"))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
