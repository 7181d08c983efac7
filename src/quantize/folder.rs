//! A Hugging Face folder as GGUF says it: keys, tensor names, the order of rows, rotary scaling.
//!
//! Only families whose every tensor has a counterpart of the same shape are translated; a tensor that is left over is an
//! error, never silently dropped.

use std::collections::HashSet;
use std::path::Path;

use serde_json::Value;
use tokenmill_models::families::{Family, find_hf, tensor_name};
use tokenmill_models::weights::Weights;
use tokenmill_models::weights::gguf_writer::GgufHeader;
use tokenmill_models::{LoadError, OpenModel};

use super::{Planned, QuantizeError, tokenizer};

/// Families whose folders can be translated.
const TRANSLATED: &[&str] = &["llama", "qwen2", "qwen3"];
/// Most bytes of a config.json.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Writes the keys of the folder at `dir` into `header` and lists its tensors in the order of the new file.
///
/// # Errors
/// [`QuantizeError::Translate`] naming what has no counterpart, or why the model cannot be read.
pub(super) fn translate(dir: &Path, weights: &Weights, header: &mut GgufHeader) -> Result<Vec<Planned>, QuantizeError> {
    let refuse = |reason: String| QuantizeError::Translate { path: dir.to_owned(), reason };
    // Everything that serving checks is checked: a model that could not be served is not worth writing.
    let model = OpenModel::open(dir)?;
    let family = find_hf(&model.architecture)?;
    if !TRANSLATED.contains(&family.name) {
        return Err(refuse(format!(
            "folders of the family {} are not translated to GGUF, only {}; use a GGUF file of this model",
            family.name,
            TRANSLATED.join(", ")
        )));
    }
    let architecture = family.gguf_architectures[0];
    let config = Config::read(dir, architecture)?;
    header.put_str("general.architecture", architecture);
    let name = dir.canonicalize().ok().and_then(|dir| dir.file_name().map(|name| name.to_string_lossy().into_owned()));
    header.put_str("general.name", &name.unwrap_or_else(|| architecture.to_owned()));
    let divisors = config.put_into(header)?;
    tokenizer::put_into(dir, header, &tokenizer::Ids { eos: &model.eos_token_ids, vocab_size: config.vocab_size()? })?;
    let mut plan = tensors(family, weights, &config).map_err(|error| match error {
        Untranslated::Tensor(name) => refuse(format!("tensor '{name}' has no counterpart in GGUF's {architecture}")),
        Untranslated::Other(error) => error,
    })?;
    if let Some(values) = divisors {
        let mut tensor = Planned::new("rope_freqs.weight", "rope_freqs.weight", &[values.len() as u64])?;
        tensor.values = Some(values);
        plan.push(tensor);
    }
    Ok(plan)
}

enum Untranslated {
    Tensor(String),
    Other(QuantizeError),
}

/// Every tensor under its new name.
fn tensors(family: &Family, weights: &Weights, config: &Config) -> Result<Vec<Planned>, Untranslated> {
    let (hf, gguf) = (&family.hf_tensors, &family.gguf_tensors);
    let (num_layers, heads) = (config.size("num_hidden_layers"), config.size("num_attention_heads"));
    let (num_layers, heads) = (num_layers.map_err(Untranslated::Other)?, heads.map_err(Untranslated::Other)?);
    let kv_heads = config.optional_size("num_key_value_heads").map_err(Untranslated::Other)?.unwrap_or(heads);
    let paired = |heads: usize| family.gguf_pairs_rows.then_some(heads);
    let stems = [
        (hf.attention_norm, gguf.attention_norm, None),
        (hf.q, gguf.q, paired(heads)),
        (hf.k, gguf.k, paired(kv_heads)),
        (hf.v, gguf.v, None),
        (hf.q_norm, gguf.q_norm, None),
        (hf.k_norm, gguf.k_norm, None),
        (hf.attention_output, gguf.attention_output, None),
        (hf.mlp_norm, gguf.mlp_norm, None),
        (hf.gate, gguf.gate, None),
        (hf.up, gguf.up, None),
        (hf.down, gguf.down, None),
    ];
    let whole = [(hf.embedding, gguf.embedding), (hf.final_norm, gguf.final_norm), (hf.output, gguf.output)];
    let is_tied = config.value("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false);
    let mut known = HashSet::new();
    let mut plan = Vec::new();
    let mut add = |from: &str, to: &str, layer: usize, heads: Option<usize>| {
        for suffix in ["weight", "bias"] {
            let source = tensor_name(from, layer, suffix);
            let Some(shape) = weights.shape(&source) else { continue };
            let planned = Planned::new(&tensor_name(to, layer, suffix), &source, shape.dims());
            let mut planned = planned.map_err(Untranslated::Other)?;
            planned.paired_heads = heads;
            known.insert(source);
            // A copy of the embedding would not be read.
            if !(is_tied && from == hf.output) {
                plan.push(planned);
            }
        }
        Ok::<_, Untranslated>(())
    };
    for (from, to) in whole {
        add(from, to, 0, None)?;
    }
    for layer in 0..num_layers {
        for (from, to, heads) in stems {
            add(from, to, layer, heads)?;
        }
    }
    // Computed by every reader; old checkpoints carry it.
    let is_derived = |name: &str| name.ends_with("rotary_emb.inv_freq");
    match weights.summaries().iter().find(|tensor| !known.contains(tensor.name) && !is_derived(tensor.name)) {
        Some(left) => Err(Untranslated::Tensor(left.name.to_owned())),
        None => Ok(plan),
    }
}

/// A config.json that serving has accepted.
struct Config {
    root: Value,
    architecture: &'static str,
}

impl Config {
    fn read(dir: &Path, architecture: &'static str) -> Result<Self, QuantizeError> {
        let path = dir.join("config.json");
        let io = |source| LoadError::Io { path: path.clone(), source };
        let size_bytes = std::fs::metadata(&path).map_err(io)?.len();
        if size_bytes > MAX_CONFIG_BYTES {
            let reason = format!("config.json has {size_bytes} bytes, more than {MAX_CONFIG_BYTES}");
            return Err(QuantizeError::Translate { path, reason });
        }
        let text = std::fs::read(&path).map_err(io)?;
        let root = serde_json::from_slice(&text)
            .map_err(|error| QuantizeError::Translate { path: path.clone(), reason: error.to_string() })?;
        Ok(Self { root, architecture })
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.root.get(key).filter(|value| !value.is_null())
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, QuantizeError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|size| u32::try_from(size).ok());
        let wrong = || LoadError::Config { key: key.to_owned(), reason: format!("found {value}, expected a size") };
        Ok(Some(size.ok_or_else(wrong)? as usize))
    }

    fn size(&self, key: &str) -> Result<usize, QuantizeError> {
        let missing = || LoadError::Config { key: key.to_owned(), reason: "is missing from config.json".to_owned() };
        Ok(self.optional_size(key)?.ok_or_else(missing)?)
    }

    fn vocab_size(&self) -> Result<usize, QuantizeError> {
        self.size("vocab_size")
    }

    /// Writes the keys; returns what the rotary frequencies are divided by if that is a tensor in GGUF.
    fn put_into(&self, header: &mut GgufHeader) -> Result<Option<Vec<f32>>, QuantizeError> {
        let architecture = self.architecture;
        let heads = self.size("num_attention_heads")?;
        let head_dim = match self.optional_size("head_dim")? {
            Some(head_dim) => head_dim,
            None => self.size("hidden_size")? / heads.max(1),
        };
        for (key, size) in [
            ("block_count", self.size("num_hidden_layers")?),
            ("context_length", self.size("max_position_embeddings")?),
            ("embedding_length", self.size("hidden_size")?),
            ("feed_forward_length", self.size("intermediate_size")?),
            ("attention.head_count", heads),
            ("attention.head_count_kv", self.optional_size("num_key_value_heads")?.unwrap_or(heads)),
            ("attention.key_length", head_dim),
            ("attention.value_length", head_dim),
            ("rope.dimension_count", head_dim),
            ("vocab_size", self.vocab_size()?),
        ] {
            header.put_u32(&format!("{architecture}.{key}"), u32::try_from(size).expect("sizes are below 2^32"));
        }
        let eps = self.value("rms_norm_eps").and_then(Value::as_f64).unwrap_or(1e-6);
        header.put_f32(&format!("{architecture}.attention.layer_norm_rms_epsilon"), eps as f32);
        self.put_rope(header, head_dim)
    }

    fn put_rope(&self, header: &mut GgufHeader, head_dim: usize) -> Result<Option<Vec<f32>>, QuantizeError> {
        let architecture = self.architecture;
        let rope = self.value("rope_parameters").or_else(|| self.value("rope_scaling"));
        let number = |key: &str| rope.and_then(|rope| rope.get(key)).and_then(Value::as_f64);
        let theta = number("rope_theta").or_else(|| self.value("rope_theta").and_then(Value::as_f64));
        let theta = theta.unwrap_or(10_000.0);
        header.put_f32(&format!("{architecture}.rope.freq_base"), theta as f32);
        let kind = rope.and_then(|rope| rope.get("rope_type").or_else(|| rope.get("type"))).and_then(Value::as_str);
        let refuse = |reason: String| LoadError::Config { key: "rope_parameters".to_owned(), reason };
        let required = |key: &str| number(key).ok_or_else(|| refuse(format!("{key} is missing")));
        match kind.unwrap_or("default") {
            "default" => Ok(None),
            "linear" => {
                header.put_str(&format!("{architecture}.rope.scaling.type"), "linear");
                header.put_f32(&format!("{architecture}.rope.scaling.factor"), required("factor")? as f32);
                Ok(None)
            }
            "llama3" => {
                let rule = Llama3 {
                    theta,
                    factor: required("factor")?,
                    low: required("low_freq_factor")?,
                    high: required("high_freq_factor")?,
                    original_len: required("original_max_position_embeddings")?,
                };
                Ok(Some(rule.divisors(head_dim)))
            }
            "yarn" => {
                // GGUF has no keys for these; with other values the file would be another model.
                let plain = [("beta_fast", 32.0), ("beta_slow", 1.0)];
                if let Some((key, _)) = plain.iter().find(|(key, usual)| number(key).is_some_and(|x| x != *usual)) {
                    return Err(refuse(format!("{key} of yarn has no counterpart in GGUF")).into());
                }
                let factor = required("factor")?;
                let usual_attention = 0.1 * factor.max(1.0).ln() + 1.0;
                let original_len = number("original_max_position_embeddings")
                    .or_else(|| self.value("max_position_embeddings").and_then(Value::as_f64));
                header.put_str(&format!("{architecture}.rope.scaling.type"), "yarn");
                header.put_f32(&format!("{architecture}.rope.scaling.factor"), factor as f32);
                if let Some(attention) = number("attention_factor") {
                    let factor = (attention / usual_attention) as f32;
                    header.put_f32(&format!("{architecture}.rope.scaling.attn_factor"), factor);
                }
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
                let original_len = original_len.unwrap_or_default() as u32;
                header.put_u32(&format!("{architecture}.rope.scaling.original_context_length"), original_len);
                Ok(None)
            }
            other => Err(refuse(format!("rope_type '{other}' has no counterpart in GGUF")).into()),
        }
    }
}

/// Llama 3's scaling of rotary frequencies, which GGUF holds as the divisors that follow from it.
struct Llama3 {
    theta: f64,
    factor: f64,
    low: f64,
    high: f64,
    original_len: f64,
}

impl Llama3 {
    /// Long waves are divided by the factor, short ones by 1, with a ramp between.
    fn divisors(&self, head_dim: usize) -> Vec<f32> {
        let divisor = |idx: usize| {
            let wave_len = std::f64::consts::TAU * self.theta.powf(2.0 * idx as f64 / head_dim as f64);
            if wave_len < self.original_len / self.high {
                1.0
            } else if wave_len > self.original_len / self.low {
                self.factor
            } else {
                let smooth = (self.original_len / wave_len - self.low) / (self.high - self.low);
                1.0 / ((1.0 - smooth) / self.factor + smooth)
            }
        };
        (0..head_dim / 2).map(|idx| divisor(idx) as f32).collect()
    }
}
