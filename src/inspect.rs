//! `tokenmill inspect`: what a model is, what it would take, and what stands in the way of serving it.
//!
//! Opens and checks the files, loads nothing.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use crate::prompt::{ChatTemplate, Tokenizer};
use serde_json::{Map, Value, json};
use tokenmill_models::spec::{DecoderSpec, RopeScaling};
use tokenmill_models::weights::Weights;
use tokenmill_models::{Estimate, LoadError, ModelSource, OpenModel, Quantize, estimate};

/// Shortest context for which memory is worked out; it doubles as far as the model has positions.
const SHORTEST_CONTEXT: u32 = 4_096;
/// Most bytes of a `tokenizer_config.json` that is looked into.
const MAX_TOKENIZER_CONFIG_BYTES: u64 = 16 << 20;

/// Why there is nothing to report.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The files are missing or damaged.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The report could not be written.
    #[error("cannot write the report: {0}")]
    Write(#[from] std::io::Error),
    /// The report could not be turned into JSON.
    #[error("cannot write the report: {0}")]
    Json(#[from] serde_json::Error),
}

/// Tensors of one type.
#[derive(Default)]
struct Tensors {
    num_tensors: u64,
    num_elements: u64,
    size_bytes: u64,
    is_supported: bool,
}

/// Inspects the model at `path` as it would be loaded with `quantize` and writes the report to `out`.
///
/// A model that cannot be served is reported with the reason, not an error.
///
/// # Errors
/// See [`InspectError`].
pub fn run(path: &Path, quantize: Quantize, json: bool, out: &mut impl Write) -> Result<(), InspectError> {
    let report = report(path, quantize)?;
    if json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        write_text(out, &report)?;
    }
    Ok(())
}

/// The report, in the order in which it is printed.
fn report(path: &Path, quantize: Quantize) -> Result<Value, InspectError> {
    let mut report = Map::new();
    report.insert("path".to_owned(), json!(path.display().to_string()));
    let (model, problem) = match OpenModel::open(path) {
        Ok(model) => (Some(model), None),
        // A file that cannot be read has nothing more to say; one that cannot be served still has tensors.
        Err(error @ (LoadError::Io { .. } | LoadError::NotAModel { .. } | LoadError::Damaged { .. })) => {
            return Err(error.into());
        }
        Err(error) => (None, Some(error.to_string())),
    };
    let estimated = model.as_ref().map(|model| estimate(model, quantize)).transpose();
    let (estimated, problem) = match estimated {
        Ok(estimated) => (estimated, problem),
        Err(error) => (None, Some(error.to_string())),
    };
    let weights = if model.is_none() { Some(Weights::open(path)?) } else { None };
    let source = match (&model, &weights) {
        (Some(model), _) => model.source.clone(),
        (None, Some(Weights::Gguf(gguf))) => ModelSource::Gguf(gguf.metadata().clone()),
        (None, _) => ModelSource::Folder { dir: path.to_owned() },
    };
    let reasons: Vec<String> = problem.into_iter().chain(text_problem(&source)).collect();
    report.insert("supported".to_owned(), json!(reasons.is_empty()));
    if !reasons.is_empty() {
        report.insert("reason".to_owned(), json!(reasons.join("; ")));
    }
    match (&model, &weights) {
        (Some(model), _) => {
            describe(&mut report, model, path);
            report.insert("tensors".to_owned(), tensors(&model.weights));
        }
        (None, weights) => {
            identify(&mut report, &source, path);
            report.insert("tensors".to_owned(), weights.as_ref().map(tensors).unwrap_or_default());
        }
    }
    if let (Some(model), Some(estimated)) = (&model, estimated) {
        report.insert("memory".to_owned(), memory(&model.spec, estimated));
    }
    Ok(Value::Object(report))
}

/// Why text cannot go in or come out, if it cannot.
fn text_problem(source: &ModelSource) -> Option<String> {
    let tokenizer = match source {
        ModelSource::Folder { dir } => Tokenizer::from_folder(dir),
        ModelSource::Gguf(metadata) => Tokenizer::from_gguf(metadata),
    };
    match tokenizer {
        // A model without a template completes text, and says so when it is asked to chat.
        Ok(tokenizer) if tokenizer.chat_templates().is_empty() => None,
        Ok(tokenizer) => ChatTemplate::from_tokenizer(&tokenizer).err().map(|error| error.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

/// What the files say of a model that nothing here can open.
fn identify(report: &mut Map<String, Value>, source: &ModelSource, path: &Path) {
    let mut set = |key: &str, value: Value| report.insert(key.to_owned(), value);
    match source {
        ModelSource::Gguf(metadata) => {
            let text = |key: &str| metadata.str(key).ok().flatten().map(ToOwned::to_owned);
            set("architecture", json!(text("general.architecture")));
            set("name", json!(text("general.name")));
        }
        ModelSource::Folder { dir } => {
            let config_path = dir.join("config.json");
            let size_bytes = std::fs::metadata(&config_path).map_or(u64::MAX, |metadata| metadata.len());
            let text = (size_bytes <= MAX_TOKENIZER_CONFIG_BYTES).then(|| std::fs::read(config_path).ok()).flatten();
            let config: Value = text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
            set("architecture", config["architectures"][0].clone());
        }
    }
    set("tokenizer", json!(tokenizer(source)));
    set("chat_template", json!(chat_template(source, path)));
}

fn describe(report: &mut Map<String, Value>, model: &OpenModel, path: &Path) {
    let spec = &model.spec;
    let mut set = |key: &str, value: Value| report.insert(key.to_owned(), value);
    set("family", json!(model.family.name));
    set("architecture", json!(model.architecture));
    set("parameters", json!(spec.num_params()));
    set("layers", json!(spec.num_layers()));
    set("hidden_size", json!(spec.hidden_dim));
    set("intermediate_size", json!(spec.ffn_dim));
    set("attention_heads", json!(spec.num_heads));
    set("kv_heads", json!(spec.num_kv_heads));
    set("head_dim", json!(spec.head_dim));
    set("vocabulary", json!(spec.vocab_size));
    set("positions", json!(spec.max_position_embeddings));
    set("rope", json!(describe_rope(spec)));
    if let Some(experts) = spec.experts {
        set("experts", json!(format!("{} of {} per token", experts.num_active, experts.num_experts)));
    }
    if let Some(window) = spec.layers.iter().find_map(|layer| layer.window) {
        let num_windowed = spec.layers.iter().filter(|layer| layer.window.is_some()).count();
        set("window", json!(format!("{window} tokens in {num_windowed} of {} layers", spec.num_layers())));
    }
    set("tied_embeddings", json!(spec.tie_embeddings));
    set("end_tokens", json!(model.eos_token_ids));
    set("bos_token", json!(model.bos_token_id));
    set("tokenizer", json!(tokenizer(&model.source)));
    set("chat_template", json!(chat_template(&model.source, path)));
}

fn describe_rope(spec: &DecoderSpec) -> String {
    let scaling = match &spec.ropes[0].scaling {
        RopeScaling::Default => "not scaled".to_owned(),
        RopeScaling::Linear { factor } => format!("linear, factor {factor}"),
        RopeScaling::Llama3 { factor, original_len, .. } => {
            format!("llama3, factor {factor} of {original_len} positions")
        }
        RopeScaling::Yarn { factor, original_len, .. } => format!("yarn, factor {factor} of {original_len} positions"),
        RopeScaling::LongRope { original_len, .. } => {
            format!("longrope, two sets of frequencies around {original_len}")
        }
        RopeScaling::Divisors(_) => "scaled by rope_freqs.weight".to_owned(),
    };
    format!("theta {}, {scaling}", spec.ropes[0].theta)
}

/// What the tokenizer is made of.
fn tokenizer(source: &ModelSource) -> String {
    match source {
        ModelSource::Folder { dir } if dir.join("tokenizer.json").exists() => "tokenizer.json".to_owned(),
        ModelSource::Folder { dir } if dir.join("tokenizer.model").exists() => {
            "tokenizer.model alone, which is not supported: convert it to tokenizer.json".to_owned()
        }
        ModelSource::Folder { .. } => "missing: add tokenizer.json".to_owned(),
        ModelSource::Gguf(metadata) => {
            let text = |key: &str| metadata.str(key).ok().flatten().map(ToOwned::to_owned);
            match (text("tokenizer.ggml.model"), text("tokenizer.ggml.pre")) {
                (None, _) => "missing from the metadata".to_owned(),
                (Some(model), None) => format!("GGUF {model}"),
                (Some(model), Some(pre)) => format!("GGUF {model}, splitting rule {pre}"),
            }
        }
    }
}

/// Where the chat template is, if there is one.
fn chat_template(source: &ModelSource, path: &Path) -> Option<String> {
    match source {
        ModelSource::Gguf(metadata) => {
            let template = metadata.str("tokenizer.chat_template").ok().flatten();
            template.map(|_| "tokenizer.chat_template".to_owned())
        }
        ModelSource::Folder { .. } => {
            if path.join("chat_template.jinja").exists() {
                return Some("chat_template.jinja".to_owned());
            }
            let config_path = path.join("tokenizer_config.json");
            let size_bytes = std::fs::metadata(&config_path).ok()?.len();
            if size_bytes > MAX_TOKENIZER_CONFIG_BYTES {
                return None;
            }
            let config: Value = serde_json::from_slice(&std::fs::read(config_path).ok()?).ok()?;
            config.get("chat_template").filter(|template| !template.is_null())?;
            Some("tokenizer_config.json".to_owned())
        }
    }
}

/// Tensors by type.
fn tensors(weights: &Weights) -> Value {
    let mut by_type: BTreeMap<&str, Tensors> = BTreeMap::new();
    for tensor in weights.summaries() {
        let entry = by_type.entry(tensor.type_name).or_default();
        entry.num_tensors += 1;
        entry.num_elements += tensor.num_elements;
        entry.size_bytes += tensor.size_bytes;
        entry.is_supported = tensor.is_supported;
    }
    let rows = by_type.into_iter().map(|(type_name, tensors)| {
        json!({
            "type": type_name,
            "tensors": tensors.num_tensors,
            "elements": tensors.num_elements,
            "bytes": tensors.size_bytes,
            "supported": tensors.is_supported,
        })
    });
    Value::Array(rows.collect())
}

/// Weights, and what one sequence of several lengths takes beside them.
fn memory(spec: &DecoderSpec, estimated: Estimate) -> Value {
    let longest = spec.max_position_embeddings;
    let doubling = std::iter::successors(Some(SHORTEST_CONTEXT), |len| len.checked_mul(2));
    let mut lengths: Vec<u32> = doubling.take_while(|len| *len < longest).collect();
    lengths.push(longest);
    let contexts = lengths.into_iter().map(|len| {
        let kv_bytes = u64::from(len) * estimated.kv_bytes_per_token;
        json!({"tokens": len, "kv_bytes": kv_bytes, "total_bytes": kv_bytes + estimated.weights_bytes})
    });
    json!({
        "layout": estimated.layout,
        "weights_bytes": estimated.weights_bytes,
        "kv_type": format!("{:?}", estimated.kv_type),
        "kv_bytes_per_token": estimated.kv_bytes_per_token,
        "contexts": contexts.collect::<Vec<_>>(),
    })
}

fn write_text(out: &mut impl Write, report: &Value) -> std::io::Result<()> {
    let mib = |value: &Value| value.as_u64().unwrap_or_default() as f64 / f64::from(1 << 20);
    for (key, value) in report.as_object().into_iter().flatten() {
        let label = key.replace('_', " ");
        match value {
            Value::Null => writeln!(out, "{label:<18} none")?,
            Value::Bool(truth) => writeln!(out, "{label:<18} {}", if *truth { "yes" } else { "no" })?,
            Value::String(text) => writeln!(out, "{label:<18} {text}")?,
            Value::Array(rows) if key == "tensors" => {
                for row in rows {
                    let note = if row["supported"] == true { "" } else { "  (not supported)" };
                    let (kind, count) = (row["type"].as_str().unwrap_or_default(), &row["tensors"]);
                    writeln!(out, "{label:<18} {count} of type {kind}, {:.1} MiB{note}", mib(&row["bytes"]))?;
                }
            }
            Value::Object(memory) => {
                let (layout, kv_type) = (memory["layout"].as_str(), memory["kv_type"].as_str());
                let (layout, kv_type) = (layout.unwrap_or_default(), kv_type.unwrap_or_default());
                writeln!(out, "{label:<18} weights {:.0} MiB as {layout}", mib(&memory["weights_bytes"]))?;
                for row in memory["contexts"].as_array().into_iter().flatten() {
                    let (kv, total) = (mib(&row["kv_bytes"]), mib(&row["total_bytes"]));
                    let tokens = &row["tokens"];
                    writeln!(
                        out,
                        "{label:<18} {tokens} tokens: KV {kv:.0} MiB as {kv_type}, with weights {total:.0} MiB"
                    )?;
                }
            }
            other => writeln!(out, "{label:<18} {other}")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenmill_kernels::quant::Format;
    use tokenmill_models::weights::gguf_writer::GgufHeader;

    fn golden(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tests/golden").join(name)
    }

    #[test]
    fn a_model_is_described_as_it_would_be_loaded() {
        let report = report(&golden("qwen2-tied"), Quantize::Q8_0).unwrap();
        // The folder has weights alone.
        assert!(report["reason"].as_str().unwrap().contains("tokenizer.json"), "{}", report["reason"]);
        assert_eq!((&report["family"], &report["layers"]), (&json!("qwen2"), &json!(2)));
        assert_eq!(report["tensors"][0]["type"], "F16");
        assert_eq!(report["memory"]["layout"], "Q8_0");
        // K and V of two heads of 16 in f16, two layers.
        assert_eq!(report["memory"]["kv_bytes_per_token"], 2 * 2 * 16 * 2 * 2);
        assert_eq!(report["memory"]["contexts"].as_array().unwrap().len(), 1, "no more than it has positions");
        let mut text = Vec::new();
        run(&golden("qwen2-tied"), Quantize::Auto, false, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("yarn, factor 4") && text.contains("supported          no"), "{text}");
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/model");
        let mut text = Vec::new();
        run(&demo, Quantize::Auto, false, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("supported          yes") && text.contains("4096 tokens: KV"), "{text}");
    }

    #[test]
    fn contexts_double_up_to_what_the_model_has() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(golden("qwen2-tied").join(name), dir.path().join(name)).unwrap();
        }
        let path = dir.path().join("config.json");
        let config = std::fs::read_to_string(&path).unwrap();
        let long = r#""max_position_embeddings": 20000"#;
        std::fs::write(&path, config.replace(r#""max_position_embeddings": 256"#, long)).unwrap();
        let report = report(dir.path(), Quantize::Auto).unwrap();
        let contexts = report["memory"]["contexts"].as_array().unwrap().iter();
        assert_eq!(contexts.map(|row| row["tokens"].as_u64().unwrap()).collect::<Vec<_>>(), [4096, 8192, 16384, 20000]);
    }

    #[test]
    fn a_file_that_cannot_be_served_still_says_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("other.gguf");
        let mut header = GgufHeader::new();
        header.put_str("general.architecture", "mamba");
        header.put_str("general.name", "Somebody's Mamba");
        header.put_str("tokenizer.ggml.model", "rwkv");
        header.declare("token_embd.weight", &[2, 256], Format::Q6_K).unwrap();
        let mut writer = header.start(std::fs::File::create(&path).unwrap()).unwrap();
        writer.write(&[0; 420]).unwrap();
        writer.finish().unwrap();
        let report = report(&path, Quantize::Auto).unwrap();
        assert_eq!((&report["architecture"], &report["name"]), (&json!("mamba"), &json!("Somebody's Mamba")));
        assert_eq!((&report["tokenizer"], &report["tensors"][0]["type"]), (&json!("GGUF rwkv"), &json!("Q6_K")));
        let reason = report["reason"].as_str().unwrap();
        assert!(reason.contains("architecture 'mamba'") && reason.contains("tokenizer"), "{reason}");
    }

    #[test]
    fn what_is_not_supported_is_reported_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(golden("llama-biased").join(name), dir.path().join(name)).unwrap();
        }
        let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
        std::fs::write(dir.path().join("config.json"), config.replace("LlamaFor", "MambaFor")).unwrap();
        let report = report(dir.path(), Quantize::Auto).unwrap();
        assert_eq!(report["supported"], false);
        assert!(report["reason"].as_str().unwrap().contains("MambaForCausalLM"));
        assert_eq!(report["tensors"][0]["type"], "BF16");
        assert!(run(Path::new("/nowhere.gguf"), Quantize::Auto, true, &mut Vec::new()).is_err());
    }
}
