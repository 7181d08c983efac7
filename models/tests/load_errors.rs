//! Models whose files are sound but do not go together: each is refused with the name of what is wrong.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

mod common;

use std::path::{Path, PathBuf};

use common::drive::options;
use serde_json::{Map, Value, json};
use tokenmill_models::{LoadOptions, Quantize, load};

/// A copy of one of the golden folders that can be spoiled.
struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    fn copy_of(name: &str) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(source).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn edit_config(self, edit: impl FnOnce(&mut Map<String, Value>)) -> Self {
        let mut config: Value = serde_json::from_slice(&std::fs::read(self.path("config.json")).unwrap()).unwrap();
        edit(config.as_object_mut().unwrap());
        std::fs::write(self.path("config.json"), config.to_string()).unwrap();
        self
    }

    /// Renames a tensor in the header, to a name of the same length.
    fn rename_tensor(self, from: &str, to: &str) -> Self {
        assert_eq!(from.len(), to.len());
        let mut bytes = std::fs::read(self.path("model.safetensors")).unwrap();
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        std::fs::write(self.path("model.safetensors"), bytes).unwrap();
        self
    }

    fn refused(&self, options: &LoadOptions, named: &[&str]) {
        let error = load(self.dir.path(), options).err().unwrap_or_else(|| panic!("accepted, expected {named:?}"));
        let error = error.to_string();
        for part in named {
            assert!(error.contains(part), "'{error}' does not say '{part}'");
        }
    }
}

fn exact() -> LoadOptions {
    options(Quantize::None)
}

#[test]
fn tensors_that_are_missing_or_of_another_shape_are_named() {
    let q = "model.layers.1.self_attn.q_proj.weight";
    let folder = Folder::copy_of("llama-biased").rename_tensor(q, &q.replace("q_proj", "x_proj"));
    folder.refused(&exact(), &[q, "is missing"]);
    let bias = "model.layers.0.mlp.down_proj.bias";
    let folder = Folder::copy_of("llama-biased").rename_tensor(bias, &bias.replace("down", "dawn"));
    folder.refused(&exact(), &[bias, "is missing"]);
    let folder = Folder::copy_of("llama-biased").edit_config(|config| {
        config.insert("intermediate_size".to_owned(), json!(96));
    });
    folder.refused(&exact(), &["mlp.gate_proj.weight", "shape [64, 64], expected [96, 64]"]);
    let folder = Folder::copy_of("llama-biased").edit_config(|config| {
        config.insert("num_hidden_layers".to_owned(), json!(3));
    });
    folder.refused(&exact(), &["model.layers.2.", "is missing"]);
    let folder = Folder::copy_of("llama-biased").edit_config(|config| {
        config.insert("attention_bias".to_owned(), json!(false));
    });
    folder.refused(&exact(), &["q_proj.bias", "llama model does not have"]);
}

#[test]
fn configurations_that_are_not_served_say_why() {
    let check = |name: &str, key: &str, value: Value, named: &[&str]| {
        let folder = Folder::copy_of(name).edit_config(|config| {
            config.insert(key.to_owned(), value);
        });
        folder.refused(&exact(), named);
    };
    check("qwen2-tied", "architectures", json!(["MambaForCausalLM"]), &["MambaForCausalLM", "LlamaForCausalLM"]);
    check("qwen2-tied", "architectures", json!([]), &["architectures", "missing"]);
    check("qwen2-tied", "hidden_act", json!("relu"), &["hidden_act \"relu\""]);
    check("qwen2-tied", "hidden_size", json!("64"), &["hidden_size", "found \"64\""]);
    check("qwen2-tied", "num_key_value_heads", json!(3), &["key-value heads", "3 does not divide"]);
    check("qwen2-tied", "num_attention_heads", json!(0), &["attention heads"]);
    check("qwen2-tied", "hidden_size", json!(u32::MAX), &["hidden size"]);
    let sliding = json!(["sliding_attention", "full_attention"]);
    check("llama-biased", "layer_types", sliding, &["layer_types", "sliding_attention"]);
    check("qwen3-sharded", "rope_parameters", json!({"rope_type": "proportional"}), &["proportional"]);
    check("gemma3", "vision_config", json!({"model_type": "siglip"}), &["vision_config", "pictures"]);
    check("gemma3", "use_bidirectional_attention", json!(true), &["use_bidirectional_attention"]);
    check("mixtral", "num_experts_per_tok", json!(5), &["experts per token", "5 is not between 1 and 4"]);
    check("mixtral", "num_local_experts", json!(5), &["block_sparse_moe.gate.weight", "expected [5, 32]"]);
    check("mistral-window", "sliding_window", json!(0), &["sliding window"]);
    let folder = Folder::copy_of("qwen2-tied");
    std::fs::write(folder.path("config.json"), "{").unwrap();
    folder.refused(&exact(), &["config.json"]);
    std::fs::remove_file(folder.path("config.json")).unwrap();
    folder.refused(&exact(), &["cannot read", "config.json"]);
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_read() {
    let folder = Folder::copy_of("qwen2-tied");
    folder.refused(&LoadOptions { memory_bytes: 1 << 20, ..exact() }, &["needs at least", "may use 1 MiB", "--memory"]);
    folder.refused(&LoadOptions { max_model_len: Some(257), ..exact() }, &["257", "256 positions", "--ctx"]);
    folder.refused(&LoadOptions { num_threads: 1000, ..exact() }, &["1000 threads"]);
}

#[test]
fn special_tokens_and_sampling_defaults_are_read() {
    let loaded = load(Folder::copy_of("llama-biased").dir.path(), &exact()).unwrap();
    assert_eq!(loaded.info.eos_token_ids, [0, 2], "of both files");
    assert_eq!(loaded.info.bos_token_id, Some(1));
    assert_eq!((loaded.info.generation.temperature, loaded.info.generation.top_p), (Some(0.6), Some(0.9)));
    assert_eq!((loaded.info.family, loaded.info.layout, loaded.info.max_model_len), ("llama", "BF16", 256));
}
