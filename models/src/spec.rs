//! [`DecoderSpec`]: a decoder-only transformer as data.
//!
//! A family fills one in from its configuration; the forward pass reads nothing else. What a family can vary is a field
//! here, so a new family is a mapping and a new mechanism is one field and one branch.

mod rope;

pub use self::rope::{RopeScaling, RopeSpec};
pub use tokenmill_kernels::activation::Gate;

use crate::error::LoadError;

/// Largest value accepted for a width (hidden, feed-forward, rows of a projection).
const MAX_WIDTH: usize = 1 << 20;
/// Largest vocabulary accepted.
const MAX_VOCAB: usize = 1 << 22;
/// Most layers accepted.
pub(crate) const MAX_LAYERS: usize = 1024;
/// Most experts of a layer accepted.
const MAX_EXPERTS: usize = 4096;

/// What a decoder computes, with every size.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    /// Entries of a token's embedding.
    pub hidden_dim: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Entries of one head.
    pub head_dim: usize,
    /// Width of the gated MLP of layers without experts.
    pub ffn_dim: usize,
    /// Rows of the embedding and of the output projection.
    pub vocab_size: usize,
    /// Positions that the model was trained for.
    pub max_position_embeddings: u32,
    /// What differs between layers, first to last.
    pub layers: Vec<LayerSpec>,
    /// How positions turn heads; [`LayerSpec::rope`] picks one.
    pub ropes: Vec<RopeSpec>,
    /// Epsilon of every RMS norm.
    pub norm_eps: f32,
    /// Where norms stand and how their weights are stored.
    pub norms: NormSpec,
    /// The norm of q and k before the rotation.
    pub qk_norm: QkNorm,
    /// How scores become weights.
    pub attention: AttentionSpec,
    /// Which projections have a bias.
    pub biases: Biases,
    /// The function on the gate of every MLP and expert.
    pub gate: Gate,
    /// The experts of the layers that have them.
    pub experts: Option<ExpertSpec>,
    /// Multiplies embeddings.
    pub embedding_scale: f32,
    /// Multiplies what attention and MLP add to the residual stream.
    pub residual_scale: f32,
    /// Divides logits.
    pub logits_divisor: f32,
    /// Logits become `cap * tanh(logit / cap)`.
    pub logits_softcap: Option<f32>,
    /// Whether the output projection is the embedding.
    pub tie_embeddings: bool,
}

/// What differs between layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerSpec {
    /// A token sees itself and the `window - 1` tokens before it; the whole context if `None`.
    pub window: Option<u32>,
    /// Index into [`DecoderSpec::ropes`]; heads do not turn if `None`.
    pub rope: Option<usize>,
    /// Whether the MLP is [`DecoderSpec::experts`].
    pub has_experts: bool,
}

/// Where RMS norms stand and how their weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormSpec {
    /// The input of attention and of the MLP is normed.
    pub before: bool,
    /// The output of attention and of the MLP is normed, before it is added to the residual stream.
    pub after: bool,
    /// The files hold weights less 1 (Gemma in Hugging Face folders).
    pub stored_less_one: bool,
}

/// The RMS norm of q and k before the rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// There is none.
    None,
    /// Each head by itself (Qwen3).
    PerHead,
    /// All heads together (`OLMo` 2).
    AllHeads,
}

/// How scores become weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Factor of `q·k`.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// q, k and v are cut to this magnitude.
    pub clip_qkv: Option<f32>,
}

/// A mixture of experts: each token goes to the `num_active` experts that the router's softmax favours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertSpec {
    /// Experts of a layer.
    pub num_experts: usize,
    /// Experts that compute a token.
    pub num_active: usize,
    /// Width of one expert's gated MLP.
    pub ffn_dim: usize,
    /// Whether the shares of the chosen are scaled to sum to 1.
    pub normalize: bool,
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

impl Default for NormSpec {
    /// As in llama.
    fn default() -> Self {
        Self { before: true, after: false, stored_less_one: false }
    }
}

impl AttentionSpec {
    /// Scores divided by the root of the head's dimension, and nothing else.
    #[must_use]
    pub fn standard(head_dim: usize) -> Self {
        Self { scale: 1.0 / (head_dim as f32).sqrt(), softcap: None, clip_qkv: None }
    }
}

impl DecoderSpec {
    /// Transformer layers.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

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

    /// Tokens that a token sees at most, itself included; `None` if some layer sees the whole context.
    #[must_use]
    pub fn window(&self) -> Option<u32> {
        self.layers.iter().map(|layer| layer.window).max_by_key(|window| window.unwrap_or(u32::MAX)).flatten()
    }

    /// Tokens of a context beyond which keys and values have to be computed anew; see [`RopeSpec::switch_len`].
    #[must_use]
    pub fn switch_len(&self) -> Option<u32> {
        self.ropes.iter().find_map(RopeSpec::switch_len)
    }

    /// Whether the output of attention and MLP is changed before it is added to the residual stream.
    #[must_use]
    pub fn changes_outputs(&self) -> bool {
        self.norms.after || self.residual_scale != 1.0
    }

    /// Layers with experts.
    #[must_use]
    pub fn num_expert_layers(&self) -> usize {
        self.layers.iter().filter(|layer| layer.has_experts).count()
    }

    /// Weights in all, norms and biases included.
    #[must_use]
    pub fn num_params(&self) -> u64 {
        let [hidden, ffn, attention, kv] =
            [self.hidden_dim, self.ffn_dim, self.attention_dim(), self.kv_dim()].map(|dim| dim as u64);
        let qkv = self.qkv_dim() as u64;
        let vocab = self.vocab_size as u64;
        let bias = |has: bool, len: u64| if has { len } else { 0 };
        let qk_norm = match self.qk_norm {
            QkNorm::None => 0,
            QkNorm::PerHead => 2 * self.head_dim as u64,
            QkNorm::AllHeads => attention + kv,
        };
        let layer = hidden * (qkv + attention)
            + 2 * hidden * (u64::from(self.norms.before) + u64::from(self.norms.after))
            + qk_norm
            + bias(self.biases.qkv, qkv)
            + bias(self.biases.attention_output, hidden);
        let mlp = 3 * ffn * hidden + bias(self.biases.mlp, 2 * ffn + hidden);
        let experts = self.experts.map_or(0, |experts| {
            let (num, ffn) = (experts.num_experts as u64, experts.ffn_dim as u64);
            num * (3 * ffn * hidden + hidden)
        });
        let (num_layers, num_expert_layers) = (self.num_layers() as u64, self.num_expert_layers() as u64);
        let embeddings = vocab * hidden * if self.tie_embeddings { 1 } else { 2 };
        let mlps = num_expert_layers * experts + (num_layers - num_expert_layers) * mlp;
        num_layers * layer + mlps + embeddings + hidden
    }

    /// Multiplications of the layers' matrices for one token.
    #[must_use]
    pub fn layer_products(&self) -> u64 {
        let experts = self.experts.map_or(0, |e| e.num_experts + 3 * e.num_active * e.ffn_dim);
        let mlp = |layer: &LayerSpec| if layer.has_experts { experts } else { 3 * self.ffn_dim };
        let mlps: usize = self.layers.iter().map(mlp).sum();
        let attention = self.num_layers() * (self.qkv_dim() + self.attention_dim());
        (self.hidden_dim * (attention + mlps)) as u64
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
            ("number of layers", self.num_layers(), MAX_LAYERS),
            ("number of attention heads", self.num_heads, MAX_WIDTH),
            ("number of key-value heads", self.num_kv_heads, self.num_heads),
            ("head dimension", self.head_dim, MAX_WIDTH),
            ("intermediate size", self.ffn_dim, MAX_WIDTH),
            ("vocabulary size", self.vocab_size, MAX_VOCAB),
            ("maximum of positions", self.max_position_embeddings as usize, 1 << 30),
        ];
        check_sizes(&sizes)?;
        let refuse = |what: &str, reason: String| Err(LoadError::config(what, reason));
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let reason = format!("{} does not divide the {} attention heads", self.num_kv_heads, self.num_heads);
            return refuse("number of key-value heads", reason);
        }
        if self.qkv_dim() > 4 * MAX_WIDTH {
            return refuse("number of attention heads", format!("{} rows of q, k and v are too many", self.qkv_dim()));
        }
        if !self.head_dim.is_multiple_of(8) {
            return refuse("head dimension", format!("{} is not a multiple of 8", self.head_dim));
        }
        if !(self.norm_eps >= 0.0 && self.norm_eps < 1.0) {
            return refuse("norm epsilon", format!("{} is not between 0 and 1", self.norm_eps));
        }
        if let Some(experts) = self.experts {
            check_sizes(&[
                ("number of experts", experts.num_experts, MAX_EXPERTS),
                ("number of experts per token", experts.num_active, experts.num_experts),
                ("intermediate size of an expert", experts.ffn_dim, MAX_WIDTH),
            ])?;
        }
        if self.layers.iter().any(|layer| layer.window == Some(0)) {
            return refuse("sliding window", "0 tokens are none".to_owned());
        }
        self.check_factors()?;
        self.ropes.iter().try_for_each(|rope| rope.check(self.head_dim))
    }

    fn check_factors(&self) -> Result<(), LoadError> {
        let factors = [
            ("attention scale", Some(self.attention.scale)),
            ("soft cap of attention", self.attention.softcap),
            ("clip of q, k and v", self.attention.clip_qkv),
            ("embedding scale", Some(self.embedding_scale)),
            ("residual scale", Some(self.residual_scale)),
            ("logits divisor", Some(self.logits_divisor)),
            ("soft cap of logits", self.logits_softcap),
        ];
        let is_bad = |value: f32| !(value.is_finite() && value > 0.0);
        match factors.into_iter().find_map(|(what, value)| Some((what, value.filter(|value| is_bad(*value))?))) {
            Some((what, value)) => Err(LoadError::config(what, format!("{value} is not a positive number"))),
            None => Ok(()),
        }
    }
}

/// Refuses values that are 0 or above their limits.
fn check_sizes(sizes: &[(&str, usize, usize)]) -> Result<(), LoadError> {
    match sizes.iter().find(|(_, value, max)| !(1..=*max).contains(value)) {
        Some((what, value, max)) => Err(LoadError::config(*what, format!("{value} is not between 1 and {max}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A small valid spec for tests to vary.
    pub(crate) fn tiny() -> DecoderSpec {
        let rope = RopeSpec { theta: 10_000.0, rotary_dim: 16, scaling: RopeScaling::Default };
        DecoderSpec {
            hidden_dim: 64,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 16,
            ffn_dim: 96,
            vocab_size: 100,
            max_position_embeddings: 256,
            layers: vec![LayerSpec { rope: Some(0), ..LayerSpec::default() }; 2],
            ropes: vec![rope],
            norm_eps: 1e-5,
            norms: NormSpec::default(),
            qk_norm: QkNorm::None,
            attention: AttentionSpec::standard(16),
            biases: Biases::default(),
            gate: Gate::Silu,
            experts: None,
            embedding_scale: 1.0,
            residual_scale: 1.0,
            logits_divisor: 1.0,
            logits_softcap: None,
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
        check(|spec| spec.ropes[0].theta = 0.0, "rope theta");
        check(|spec| spec.ropes[0].rotary_dim = 18, "rotary dimension");
        check(|spec| spec.ropes[0].scaling = RopeScaling::Linear { factor: 0.0 }, "rope factor");
        check(|spec| spec.ropes[0].scaling = RopeScaling::Divisors(vec![1.0; 7]), "7 divisors for 8");
    }

    #[test]
    fn parameters_of_qwen2_half_a_billion() {
        let spec = DecoderSpec {
            hidden_dim: 896,
            layers: vec![LayerSpec { rope: Some(0), ..LayerSpec::default() }; 24],
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
