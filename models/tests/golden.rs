//! Golden models: tiny decoders whose logits and greedy tokens Hugging Face transformers computed.
//!
//! `golden/` here holds our own (see `golden/make_golden.py`); a larger set beside the repository is used where it is
//! there. Each model is run in one pass, cut in chunks and mixed with others: the numbers must be the reference's
//! within the tolerance, and the same bits however the work was cut.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

mod common;

use std::path::{Path, PathBuf};

use common::drive::{Driver, options};
use serde_json::Value;
use tokenmill_kernels::isa::Isa;
use tokenmill_models::runner::ModelRunner;
use tokenmill_models::{LoadOptions, Quantize, load};

/// Largest difference, as a share of the largest logit, where everything is computed in f32.
const EXACT: f32 = 1e-4;
/// Activations rounded to 8 bits in a model of random weights, where errors do not average out; a wrong rotation or a
/// missing norm is off by 0.3 to 1.
const ROUNDED: f32 = 0.25;
/// The same with experts: rounding may choose another one where two are close, which changes a row at will.
const ROUNDED_EXPERTS: f32 = 1.0;
/// Bound that the shared fixtures state for weights dequantized to f32.
const DEQUANTIZED: f32 = 1e-3;

/// One prompt with what the reference made of it.
struct Case {
    name: String,
    ids: Vec<u32>,
    last_logits: Vec<f32>,
    /// Per position, ids and logits; empty where the fixture has none.
    top: Vec<Vec<(u32, f32)>>,
    greedy: Vec<u32>,
    /// Smallest gap between the best two logits on the greedy path, as a share of the largest logit.
    margin: f32,
}

fn cases(path: &Path) -> Vec<Case> {
    let expected: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let of = |key: &str| expected[key].as_array().cloned().unwrap_or_default();
    let all = of("prompts").into_iter().chain(of("chat"));
    all.enumerate().map(|(i, case)| Case::parse(&case, i)).collect()
}

impl Case {
    fn parse(case: &Value, number: usize) -> Self {
        let ids = |value: &Value| -> Vec<u32> {
            value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
        };
        let floats = |value: &Value| -> Vec<f32> {
            value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
        };
        let top = match (&case["top20_ids"], &case["top20_logits"]) {
            (Value::Array(all_ids), Value::Array(all_logits)) => {
                let rows = all_ids.iter().zip(all_logits);
                rows.map(|(row_ids, logits)| ids(row_ids).into_iter().zip(floats(logits)).collect()).collect()
            }
            _ => Vec::new(),
        };
        Self {
            name: case["name"].as_str().map_or_else(|| format!("case {number}"), ToOwned::to_owned),
            ids: ids(&case["input_ids"]),
            last_logits: floats(&case["last_logits"]),
            top,
            greedy: ids(&case["greedy_ids"]),
            margin: case["greedy_min_margin"].as_f64().unwrap() as f32,
        }
    }
}

/// Runs every case of `expected` through the model at `path` and compares.
fn check(path: &Path, expected: &Path, options: &LoadOptions, tolerance: f32) {
    let mut driver =
        Driver::new(load(path, options).unwrap_or_else(|error| panic!("{}: {error}", path.display())).runner);
    for case in cases(expected) {
        let what = format!("{} {}", path.display(), case.name);
        let whole = driver.all_logits(&case.ids, &[case.ids.len()]);
        compare(whole.last().unwrap(), &case.last_logits, tolerance, &what);
        let scale = max_abs(&case.last_logits);
        for (position, top) in case.top.iter().enumerate() {
            for (id, logit) in top {
                let difference = (whole[position][*id as usize] - logit).abs();
                // The fixture rounds these to five digits.
                assert!(difference < tolerance * scale + 1e-4 * logit.abs(), "{what}: position {position}, id {id}");
            }
        }
        for chunk in [1, 7, 64] {
            let cut = driver.all_logits(&case.ids, &vec![chunk; case.ids.len().div_ceil(chunk)]);
            assert!(same_bits(&cut, &whole), "{what}: other bits in chunks of {chunk}");
        }
        if case.margin > 2.0 * tolerance {
            let found = driver.greedy(&case.ids, case.greedy.len());
            assert_eq!(found, case.greedy, "{what}: greedy tokens");
        }
    }
    check_mixed(&mut driver, &cases(expected), &path.display().to_string());
}

/// All prompts together in mixed batches, each cut another way, against each alone.
fn check_mixed(driver: &mut Driver<impl ModelRunner>, cases: &[Case], what: &str) {
    let prompts: Vec<&[u32]> = cases.iter().map(|case| &case.ids[..]).collect();
    let alone: Vec<Vec<f32>> = prompts.iter().map(|ids| driver.all_logits(ids, &[ids.len()]).pop().unwrap()).collect();
    for chunks in [[1, 7, 64, 5], [3, 100, 2, 1], [64, 64, 64, 64]] {
        let together = driver.last_logits_together(&prompts, &chunks);
        assert!(same_bits(&together, &alone), "{what}: other bits in a batch, chunks {chunks:?}");
    }
}

fn max_abs(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max, value| max.max(value.abs()))
}

fn compare(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: length of a row of logits");
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / max_abs(expected);
    assert!(worst < tolerance, "{what}: off by {worst:e} of the largest logit");
}

fn same_bits(a: &[Vec<f32>], b: &[Vec<f32>]) -> bool {
    let bits = |rows: &[Vec<f32>]| -> Vec<Vec<u32>> {
        rows.iter().map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
    };
    bits(a) == bits(b)
}

/// The models of `make_golden.py`, one of each family.
const OWN_MODELS: [&str; 14] = [
    "llama-biased",
    "qwen2-tied",
    "qwen3-sharded",
    "mistral-window",
    "mixtral",
    "qwen3_moe-mixed",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3-longrope",
    "smollm3",
    "granite",
    "olmo2",
    "olmoe-clipped",
];

fn own_models() -> [PathBuf; 14] {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    OWN_MODELS.map(|name| root.join(name))
}

/// Rounding may choose another expert.
fn rounded_tolerance(name: &str) -> f32 {
    let has_experts = ["moe", "mixtral"].iter().any(|part| name.contains(part));
    if has_experts { ROUNDED_EXPERTS } else { ROUNDED }
}

/// The folder of the larger set, if it is beside the repository.
fn shared() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden/models");
    if !path.is_dir() {
        skip(&format!("no larger golden set at {}", path.display()));
        return None;
    }
    Some(path)
}

#[expect(clippy::print_stderr, reason = "says why a test is skipped")]
fn skip(why: &str) {
    eprintln!("skipped: {why}");
}

const SHARED_MODELS: [&str; 13] = [
    "llama3-untied",
    "llama3-tied",
    "qwen2-tied",
    "qwen3",
    "mistral-swa",
    "qwen3-moe",
    "olmoe",
    "gemma2",
    "gemma3",
    "phi3",
    "smollm3",
    "granite",
    "olmo2",
];

#[test]
fn own_models_give_the_reference_results() {
    for dir in own_models() {
        check(&dir, &dir.join("expected.json"), &options(Quantize::None), EXACT);
    }
}

/// GGUF files of the same weights.
#[test]
fn own_gguf_files_give_the_reference_results() {
    let files: Vec<PathBuf> =
        own_models().iter().map(|dir| dir.join("model.gguf")).filter(|path| path.exists()).collect();
    assert_eq!(files.len(), 4, "{files:?}");
    for path in files {
        check(&path, &path.with_file_name("expected.json"), &options(Quantize::None), EXACT);
    }
}

/// One model has rows that are no whole blocks, which fall back to a float layout.
#[test]
fn own_models_stay_near_when_quantized() {
    for (dir, name) in own_models().iter().zip(OWN_MODELS) {
        check(dir, &dir.join("expected.json"), &options(Quantize::Q8_0), rounded_tolerance(name));
    }
}

#[test]
fn folders_give_the_reference_results() {
    let Some(root) = shared() else { return };
    for name in SHARED_MODELS {
        let dir = root.join(name);
        check(&dir, &dir.join("expected.json"), &options(Quantize::None), EXACT);
    }
}

/// Folders and GGUF files of one's own making, each with what the reference made of it in `expected.json`:
/// `TOKENMILL_GOLDEN=DIR cargo test -p tokenmill-models --test golden further`.
#[test]
#[expect(clippy::disallowed_methods, reason = "where a developer's own models are is no setting")]
fn further_models_give_the_reference_results() {
    let Some(root) = std::env::var_os("TOKENMILL_GOLDEN") else { return skip("TOKENMILL_GOLDEN is not set") };
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.sort();
    for dir in dirs.iter().filter(|dir| dir.join("expected.json").exists()) {
        for path in [dir.clone(), dir.join("model.gguf")].iter().filter(|path| path.exists()) {
            check(path, &dir.join("expected.json"), &options(Quantize::None), EXACT);
        }
    }
}

#[test]
fn the_other_layout_of_config_json_means_the_same() {
    let Some(root) = shared() else { return };
    for name in SHARED_MODELS {
        let dir = root.join(name);
        let copy = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.contains("safetensors") || name == "generation_config.json" {
                std::fs::copy(&path, copy.path().join(name)).unwrap();
            }
        }
        std::fs::copy(dir.join("config.alt.json"), copy.path().join("config.json")).unwrap();
        check(copy.path(), &dir.join("expected.json"), &options(Quantize::None), EXACT);
    }
}

#[test]
fn gguf_files_give_the_reference_results() {
    let Some(root) = shared() else { return };
    let mut num_files = 0;
    for name in SHARED_MODELS {
        for kind in ["bf16", "f16", "q8_0", "q4_0"] {
            let dir = root.join(name);
            let path = dir.join(format!("model-{kind}.gguf"));
            if path.exists() {
                let expected = dir.join(format!("expected-{kind}.gguf.json"));
                check(&path, &expected, &options(Quantize::None), DEQUANTIZED / 10.0);
                num_files += 1;
            }
        }
    }
    assert!(num_files >= 6, "{num_files} GGUF files");
}

/// Activations in 8 bits and weights as stored: near the reference, and still the same bits however it is cut.
#[test]
fn quantized_arithmetic_stays_near_and_does_not_depend_on_the_cut() {
    let Some(root) = shared() else { return };
    for (name, file) in [("llama3-untied", "q8_0"), ("llama3-untied", "q4_0"), ("qwen3", "q8_0")] {
        let dir = root.join(name);
        let path = dir.join(format!("model-{file}.gguf"));
        let expected = dir.join(format!("expected-{file}.gguf.json"));
        check(&path, &expected, &options(Quantize::Auto), ROUNDED);
    }
    for name in SHARED_MODELS {
        let dir = root.join(name);
        check(&dir, &dir.join("expected.json"), &options(Quantize::Q8_0), rounded_tolerance(name));
    }
}

#[test]
fn every_instruction_set_gives_the_reference_results() {
    for isa in Isa::available() {
        for dir in own_models() {
            // Small models stay exact by default; threads must not show either.
            let options = LoadOptions { isa, num_threads: 2, ..options(Quantize::Auto) };
            check(&dir, &dir.join("expected.json"), &options, EXACT);
        }
    }
}

/// The demo model answers as it does in transformers, to the end of every answer.
#[test]
fn the_demo_model_answers_like_the_reference() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo");
    let golden: Value = serde_json::from_slice(&std::fs::read(demo.join("golden.json")).unwrap()).unwrap();
    let mut driver = Driver::new(load(&demo.join("model"), &options(Quantize::Auto)).unwrap().runner);
    let ids = |value: &Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
    };
    for case in golden["cases"].as_array().unwrap() {
        let (input, output) = (ids(&case["input_ids"]), ids(&case["output_ids"]));
        assert_eq!(driver.greedy(&input, output.len()), output, "{}", case["name"]);
    }
}

/// The gateway refuses such a token; if one slips through, its step fails and the next one works.
#[test]
fn a_token_outside_the_vocabulary_fails_its_step_only() {
    let [path, ..] = own_models();
    let mut driver = Driver::new(load(&path, &options(Quantize::None)).unwrap().runner);
    let before = driver.all_logits(&[3, 4, 5], &[3]);
    assert!(driver.failure(&[3, 160, 5]).contains("token 160 of a vocabulary of 160"));
    assert!(same_bits(&driver.all_logits(&[3, 4, 5], &[3]), &before));
}
