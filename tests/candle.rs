//! candle as a second oracle: the same folders through candle-transformers' models and through ours.
//!
//! transformers' own figures (tests/golden.rs) are for short prompts of tiny models. Here the prompts are as long as the demo
//! model's context allows, cut into chunks on our side, and every logit of the last token is compared.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

#[path = "../models/tests/common/drive.rs"]
#[expect(dead_code, reason = "a part of it is enough here")]
mod drive;

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, qwen2, qwen3};
use drive::{Driver, options};
use serde_json::{Value, json};
use tokenmill_models::runner::ModelRunner;
use tokenmill_models::{LoadOptions, Quantize, load};

/// Largest difference, as a share of the largest logit. Both sides compute in f32, in other orders.
const TOLERANCE: f32 = 1e-4;

/// One prompt in, the logits after its last token out.
type Reference = Box<dyn FnMut(&Tensor) -> candle_core::Result<Tensor>>;

/// The configuration in the flat layout that candle reads.
fn config(folder: &Path) -> Value {
    let mut config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    if let Some(rope) = config["rope_parameters"].as_object().cloned() {
        config["rope_theta"] = rope["rope_theta"].clone();
        if rope["rope_type"] != "default" {
            config["rope_scaling"] = Value::Object(rope);
        }
    }
    // candle wants a number here, and masks by it even where the window is off.
    if config["sliding_window"].is_null() && config["model_type"] == "qwen2" {
        config["sliding_window"] = json!(1 << 20);
    }
    config
}

fn weights(folder: &Path) -> VarBuilder<'static> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu).unwrap()
}

fn reference(folder: &Path) -> Reference {
    let (config, weights) = (config(folder), weights(folder));
    match config["model_type"].as_str().unwrap() {
        "llama" => {
            let config: llama::LlamaConfig = serde_json::from_value(config).unwrap();
            let config = config.into_config(false);
            let model = llama::Llama::load(weights, &config).unwrap();
            Box::new(move |ids| {
                let mut cache = llama::Cache::new(true, DType::F32, &config, &Device::Cpu)?;
                model.forward(ids, 0, &mut cache)
            })
        }
        "qwen2" => {
            let mut model = qwen2::ModelForCausalLM::new(&serde_json::from_value(config).unwrap(), weights).unwrap();
            Box::new(move |ids| {
                model.clear_kv_cache();
                model.forward(ids, 0)
            })
        }
        "qwen3" => {
            let mut model = qwen3::ModelForCausalLM::new(&serde_json::from_value(config).unwrap(), weights).unwrap();
            Box::new(move |ids| {
                model.clear_kv_cache();
                model.forward(ids, 0)
            })
        }
        other => panic!("no reference for {other}"),
    }
}

/// Ids that no seed repeats soon.
fn prompt(len: usize, vocab_size: u32) -> Vec<u32> {
    let mut state = 12345u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocab_size
    };
    (0..len).map(|_| next()).collect()
}

fn compare(folder: &Path, lengths: &[usize]) {
    let mut reference = reference(folder);
    let options = LoadOptions { max_batch_seqs: 1, ..options(Quantize::None) };
    let runner = load(folder, &options).unwrap().runner;
    let vocab_size = runner.geometry().vocab_size;
    let mut driver = Driver::new(runner);
    for len in lengths {
        let ids = prompt(*len, vocab_size);
        let input = Tensor::new(ids.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let expected: Vec<f32> = reference(&input).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let [found] = driver.last_logits_together(&[&ids], &[100; 4]).try_into().unwrap();
        assert_eq!(found.len(), expected.len(), "{}", folder.display());
        let scale = expected.iter().fold(0.0f32, |max, logit| max.max(logit.abs()));
        let worst = found.iter().zip(&expected).fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
        assert!(worst <= TOLERANCE * scale, "{} at {len} tokens: off by {worst} of {scale}", folder.display());
    }
}

#[test]
fn the_demo_model_at_every_length() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/model");
    compare(&folder, &[1, 2, 63, 64, 65, 257, 1000, 2500]);
}

/// Writes a model of random weights in `folder`: 3 layers, 4 heads that share 2 of keys and values.
fn make(folder: &Path, model_type: &str, architecture: &str, extra: &Value) {
    const HIDDEN: usize = 64;
    const KV: usize = 32;
    const FFN: usize = 160;
    const VOCAB: usize = 300;
    let is_qwen = model_type == "qwen2";
    let mut tensors = HashMap::new();
    let mut add = |name: String, dims: &[usize], mean: f64| {
        // Spread so that each row's result is about as large as its input.
        let spread = 1.0 / (dims[dims.len() - 1] as f64).sqrt();
        let spread = if dims.len() == 1 { 0.2 } else { spread };
        tensors.insert(name, Tensor::randn(mean, spread, dims, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap());
    };
    add("model.embed_tokens.weight".to_owned(), &[VOCAB, HIDDEN], 0.0);
    add("model.norm.weight".to_owned(), &[HIDDEN], 1.0);
    if !is_qwen {
        add("lm_head.weight".to_owned(), &[VOCAB, HIDDEN], 0.0);
    }
    for layer in 0..3 {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        add(name("input_layernorm.weight"), &[HIDDEN], 1.0);
        add(name("post_attention_layernorm.weight"), &[HIDDEN], 1.0);
        for (part, rows) in [("q", HIDDEN), ("k", KV), ("v", KV)] {
            add(name(&format!("self_attn.{part}_proj.weight")), &[rows, HIDDEN], 0.0);
            if is_qwen {
                add(name(&format!("self_attn.{part}_proj.bias")), &[rows], 0.0);
            }
        }
        add(name("self_attn.o_proj.weight"), &[HIDDEN, HIDDEN], 0.0);
        add(name("mlp.gate_proj.weight"), &[FFN, HIDDEN], 0.0);
        add(name("mlp.up_proj.weight"), &[FFN, HIDDEN], 0.0);
        add(name("mlp.down_proj.weight"), &[HIDDEN, FFN], 0.0);
    }
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
    let mut config = json!({
        "architectures": [architecture], "model_type": model_type, "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB,
        "max_position_embeddings": 1024, "max_window_layers": 3, "use_sliding_window": false, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "tie_word_embeddings": is_qwen, "torch_dtype": "float32",
    });
    config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn a_llama_with_stretched_frequencies_and_a_qwen2_with_biases() {
    let llama = json!({"rope_theta": 10000.0, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    }});
    let qwen2 = json!({"rope_theta": 1_000_000.0});
    let models = [("llama", "LlamaForCausalLM", llama), ("qwen2", "Qwen2ForCausalLM", qwen2)];
    for (model_type, architecture, extra) in models {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path(), model_type, architecture, &extra);
        compare(folder.path(), &[1, 17, 64, 200, 900]);
    }
}
