use super::*;
use crate::prompt::{Special, Tokenizer};
use std::process::Command;
use tokenmill_kernels::isa::Isa;
use tokenmill_kernels::quant::QuantMatrix;
use tokenmill_models::runner::{Batch, BatchSeq, BlockId, Logits, ModelRunner, SeqId};
use tokenmill_models::weights::gguf::{Gguf, GgufTensor};
use tokenmill_models::{LoadOptions, LoadedModel, Quantize, load};

/// A vocabulary smaller than the smallest model's: letters, digits and some merges.
const TOKENIZER: &str = r##"{
    "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
    "added_tokens": [{"id": 100, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
                      "normalized": false, "special": true}],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
              "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": VOCAB,
              "merges": ["l l", "1 2", "12 3", "Ġ =", "= 4"]}
}"##;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A golden model of ours with a tokenizer beside it.
fn golden(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(repository().join("models/tests/golden").join(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let pieces = ('!'..='~').map(String::from).chain(["ll", "12", "123", "Ġ", "Ġ=", "=4"].map(str::to_owned));
    let vocab: serde_json::Map<_, _> = pieces.zip(0..).map(|(piece, id)| (piece, serde_json::json!(id))).collect();
    let text = TOKENIZER.replace("VOCAB", &serde_json::Value::Object(vocab).to_string());
    std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"eos_token": "<|end|>", "chat_template": "{{ x }}"}"#)
        .unwrap();
    dir
}

/// A file whose rows are whole super-blocks: 24 layers of some matrices with noise in them.
fn super_blocks(path: &Path) {
    let mut header = GgufHeader::new();
    header.put_str("general.architecture", "llama");
    header.put_u32("general.alignment", 32);
    header.put_strs("some.texts", &["a".to_owned(), "b".to_owned()]);
    let mut shapes = vec![("token_embd.weight".to_owned(), vec![8, 512]), ("output.weight".to_owned(), vec![8, 256])];
    for layer in 0..24 {
        for stem in ["attn_q", "attn_v", "ffn_down"] {
            shapes.push((format!("blk.{layer}.{stem}.weight"), vec![4, 256]));
        }
        shapes.push((format!("blk.{layer}.attn_norm.weight"), vec![256]));
    }
    for (name, shape) in &shapes {
        header.declare(name, shape, Format::F32).unwrap();
    }
    let mut writer = header.start(File::create(path).unwrap()).unwrap();
    let mut state = 1_u64;
    for (_, shape) in &shapes {
        for _ in 0..shape.iter().product::<usize>() {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            writer.write(&((state >> 40) as f32 / 8_388_608.0 - 1.0).to_le_bytes()).unwrap();
        }
    }
    writer.finish().unwrap();
}

fn options(source: &Path, out: &Path, target: Target) -> QuantizeOptions {
    QuantizeOptions { source: source.to_owned(), out: out.to_owned(), target, force: false, num_threads: 3 }
}

fn run(source: &Path, out: &Path, target: Target) -> QuantizeReport {
    let mut num_told = 0;
    let report = quantize(&options(source, out, target), &mut |progress| {
        assert_eq!(progress.tensor_idx, num_told);
        num_told += 1;
    })
    .unwrap();
    assert_eq!(num_told, report.num_tensors);
    assert_eq!(std::fs::metadata(out).unwrap().len(), report.file_bytes);
    report
}

fn open(path: &Path, quantize: Quantize) -> LoadedModel {
    let options = LoadOptions {
        isa: Isa::best(),
        num_threads: 1,
        quantize,
        kv_type: None,
        memory_bytes: 256 << 20,
        max_model_len: Some(64),
        max_batch_tokens: 64,
        max_batch_seqs: 1,
    };
    load(path, &options).unwrap()
}

/// Logits after some tokens.
fn logits(model: &mut LoadedModel) -> Vec<f32> {
    let geometry = model.runner.geometry();
    let (mut batch, mut logits) = (Batch::with_capacity(&geometry), Logits::with_capacity(&geometry));
    batch.tokens.extend((0..20).map(|idx| idx * 7 % 90));
    batch.positions.extend(0..20);
    batch.block_tables.push(BlockId(0));
    batch.seqs.push(BatchSeq {
        id: SeqId(0),
        tokens: 0..20,
        blocks: 0..1,
        context_len: 20,
        num_logits: 1,
        is_long: false,
    });
    model.runner.forward(&batch, &mut logits).unwrap();
    logits.row_mut(0).to_vec()
}

/// Largest difference as a share of the largest value.
fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    a.iter().zip(b).fold(0.0f32, |max, (a, b)| max.max((a - b).abs())) / largest
}

#[test]
fn a_translated_folder_computes_what_the_folder_does() {
    let out = tempfile::tempdir().unwrap();
    let demo = repository().join("demo/model");
    for name in ["llama-biased", "qwen2-tied", "qwen3-sharded", "demo"] {
        let golden = (name != "demo").then(|| golden(name));
        let folder = golden.as_ref().map_or(demo.as_path(), |dir| dir.path());
        let file = out.path().join(format!("{name}.gguf"));
        run(folder, &file, Target::Q8_0);
        let (mut before, mut after) = (open(folder, Quantize::Q8_0), open(&file, Quantize::Auto));
        let difference = difference(&logits(&mut before), &logits(&mut after));
        assert!(difference < 1e-5, "{name}: {difference}");
        // In a GGUF file tokens whose text ends a turn count too.
        let (ends, more) = (&before.info.eos_token_ids, &after.info.eos_token_ids);
        assert!(ends.iter().all(|id| more.contains(id)), "{name}: {ends:?} {more:?}");
        let tokenizers = [
            Tokenizer::from_folder(folder).unwrap(),
            Tokenizer::from_gguf(Gguf::open(&file).unwrap().metadata()).unwrap(),
        ];
        for text in ["Hello, who are you?", "12345 = all<|end|><|im_end|>", "  caf\u{e9}\n\n"] {
            let [folder, file] = tokenizers.each_ref().map(|t| t.encode(text, Special::Parse, true).unwrap());
            assert_eq!(folder, file, "{name}: {text:?}");
        }
        assert_eq!(tokenizers[0].chat_templates(), tokenizers[1].chat_templates(), "{name}");
    }
}

#[test]
fn a_file_keeps_its_metadata_and_gets_the_mixture() {
    let dir = tempfile::tempdir().unwrap();
    let [source, eight, four] = ["source", "8", "4"].map(|name| dir.path().join(name));
    super_blocks(&source);
    run(&source, &eight, Target::Q8_0);
    assert_eq!(run(&eight, &four, Target::Q4KM).num_fallbacks, 0);
    let [source, eight, four] = [source, eight, four].map(|path| Gguf::open(&path).unwrap());
    for (file, number) in [(&eight, 7), (&four, 15)] {
        assert_eq!(file.metadata().u32("general.file_type").unwrap(), Some(number));
        assert_eq!(file.metadata().u32("general.quantization_version").unwrap(), Some(2));
        assert_eq!(file.metadata().get("general.alignment"), None, "it is 32 again");
        assert_eq!(file.metadata().get("some.texts"), source.metadata().get("some.texts"));
        assert_eq!(file.metadata().len(), 4);
    }
    for (name, format, count) in
        [("attn_q", "Q4_K", 24), ("attn_v", "Q6_K", 12), ("ffn_down", "Q4_K", 12), ("norm", "F32", 24)]
    {
        let is_so = |(found, tensor): &(&str, &GgufTensor)| found.contains(name) && tensor.type_name == format;
        assert_eq!(four.tensors().filter(is_so).count(), count, "{name} as {format}");
    }
    assert_eq!(four.tensor("output.weight").unwrap().type_name, "Q6_K");
    assert_eq!(four.tensor("token_embd.weight").unwrap().type_name, "Q4_K");
    let values = |file: &Gguf, name: &str| {
        let tensor = file.tensor(name).unwrap();
        let dims: Vec<usize> = tensor.shape.dims().iter().map(|dim| usize::try_from(*dim).unwrap()).collect();
        let data = &file.file_of(tensor).bytes()[tensor.data.clone()];
        let matrix = QuantMatrix::new(tensor.format.unwrap(), dims[0], dims[1], data).unwrap();
        let mut row = vec![0.0; dims[1]];
        matrix.dequantize_row(dims[0] - 1, &mut row);
        row
    };
    for (name, limit) in [("blk.3.attn_q.weight", 0.08), ("output.weight", 0.03)] {
        let off = difference(&values(&source, name), &values(&four, name));
        assert!(off < limit, "{name}: {off}");
    }
}

#[test]
fn four_bits_change_little() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, four) = (repository().join("demo/model"), dir.path().join("4.gguf"));
    let report = run(&folder, &four, Target::Q4KM);
    assert!(report.num_fallbacks > 0 && report.file_bytes < report.source_bytes / 2);
    let (mut before, mut after) = (open(&folder, Quantize::None), open(&four, Quantize::Auto));
    let difference = difference(&logits(&mut before), &logits(&mut after));
    assert!(difference < 0.2, "the logits change by {difference}");
}

#[test]
fn nothing_is_overwritten_or_left_in_pieces() {
    let (dir, golden) = (tempfile::tempdir().unwrap(), golden("qwen2-tied"));
    let out = dir.path().join("there.gguf");
    std::fs::write(&out, "mine").unwrap();
    let fail = |options: &QuantizeOptions| quantize(options, &mut |_| {}).unwrap_err().to_string();
    let refused = fail(&options(golden.path(), &out, Target::Q8_0));
    assert!(refused.contains("--force") && std::fs::read(&out).unwrap() == b"mine", "{refused}");
    quantize(&QuantizeOptions { force: true, ..options(golden.path(), &out, Target::Q8_0) }, &mut |_| {}).unwrap();
    assert!(Gguf::open(&out).is_ok());

    // A NaN in the middle of the data: the last tensor of the file is large enough to hold it.
    let mut bytes = std::fs::read(golden.path().join("model.safetensors")).unwrap();
    let middle = (bytes.len() / 2) & !1;
    bytes[middle..middle + 2].copy_from_slice(&[0xff, 0x7f]);
    std::fs::write(golden.path().join("model.safetensors"), bytes).unwrap();
    let failed = fail(&options(golden.path(), &dir.path().join("nan.gguf"), Target::Q8_0));
    assert!(failed.contains("holds NaN in row") && failed.contains("tensor 'model."), "{failed}");
    let nowhere = fail(&options(&repository().join("demo/model"), &dir.path().join("no/such.gguf"), Target::Q8_0));
    assert!(nowhere.contains("bytes are needed"), "{nowhere}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only the file that was there");
}

#[test]
fn what_gguf_cannot_say_is_refused() {
    let out = tempfile::tempdir().unwrap();
    let refuse = |edit: &dyn Fn(&Path), named: &str| {
        let golden = golden("qwen2-tied");
        edit(golden.path());
        let error = quantize(&options(golden.path(), &out.path().join("x.gguf"), Target::Q8_0), &mut |_| {});
        let error = error.unwrap_err().to_string();
        assert!(error.contains(named), "'{error}' does not say '{named}'");
    };
    let replace = |dir: &Path, file: &str, from: &str, to: &str| {
        let text = std::fs::read_to_string(dir.join(file)).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(dir.join(file), text.replace(from, to)).unwrap();
    };
    refuse(
        &|dir| replace(dir, "tokenizer.json", r#""use_regex": true},"#, r#""use_regex": false},"#),
        "splitting rule",
    );
    refuse(&|dir| replace(dir, "tokenizer.json", r#""id": 100"#, r#""id": 100000"#), "100000");
    refuse(
        &|dir| replace(dir, "config.json", r#""rope_type": "yarn""#, r#""rope_type": "yarn", "beta_fast": 64"#),
        "beta_fast",
    );
    refuse(&|dir| std::fs::remove_file(dir.join("tokenizer.json")).unwrap(), "tokenizer.json");
}

/// Python's `gguf` package reads what is written and means the same by it, where it is installed.
#[test]
fn the_reference_reader_agrees() {
    const SCRIPT: &str = "
import sys
from gguf import GGUFReader
from gguf.quants import dequantize
reader = GGUFReader(sys.argv[1])
print(len(reader.fields))
for tensor in reader.tensors:
    values = dequantize(tensor.data, tensor.tensor_type).reshape(-1)
    print(tensor.name, tensor.tensor_type.name, *(int(n) for n in reversed(tensor.shape)), '|',
          *(float(x).hex() for x in values[-40:]))
";
    let python = concat!(env!("CARGO_MANIFEST_DIR"), "/target/sdk/venv/bin/python");
    let has_package = Command::new(python).args(["-c", "import gguf"]).output().is_ok_and(|out| out.status.success());
    if !has_package {
        #[expect(clippy::print_stderr, reason = "says why a test is skipped")]
        {
            eprintln!("skipped: {python} has no package gguf; tests/sdk/install installs it");
        }
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let matrices = dir.path().join("matrices.gguf");
    super_blocks(&matrices);
    let demo = repository().join("demo/model");
    for (source, target) in
        [(&demo, Target::Q8_0), (&demo, Target::Q4_0), (&demo, Target::Q4KM), (&matrices, Target::Q4KM)]
    {
        let path = dir.path().join("out.gguf");
        quantize(&QuantizeOptions { force: true, ..options(source, &path, target) }, &mut |_| {}).unwrap();
        let out = Command::new(python).args(["-c", SCRIPT]).arg(&path).output().unwrap();
        let (text, errors) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{errors}");
        let gguf = Gguf::open(&path).unwrap();
        assert_eq!(text.lines().count(), 1 + gguf.tensors().count());
        for line in text.lines().skip(1) {
            let (head, values) = line.split_once(" | ").unwrap();
            let mut words = head.split(' ');
            let name = words.next().unwrap();
            let tensor = gguf.tensor(name).unwrap();
            assert_eq!(words.next(), Some(tensor.type_name), "{name}");
            let dims: Vec<u64> = words.map(|dim| dim.parse().unwrap()).collect();
            assert_eq!(tensor.shape.dims(), dims, "{name}");
            let (cols, rows) =
                (usize::try_from(*dims.last().unwrap()).unwrap(), dims.iter().rev().skip(1).product::<u64>());
            let rows = usize::try_from(rows).unwrap();
            let data = &gguf.file_of(tensor).bytes()[tensor.data.clone()];
            let mut row = vec![0.0; cols];
            QuantMatrix::new(tensor.format.unwrap(), rows, cols, data).unwrap().dequantize_row(rows - 1, &mut row);
            let expected: Vec<String> = values.split(' ').map(str::to_owned).collect();
            assert_eq!(expected.len(), 40.min(cols * rows), "{name}");
            for (ours, theirs) in row[cols.saturating_sub(40)..].iter().zip(&expected[expected.len() - cols.min(40)..])
            {
                assert!((ours - from_hex(theirs)).abs() <= ours.abs() * 1e-6, "{name}: {ours} {theirs}");
            }
        }
    }
}

/// A number as Python's `float.hex` writes it.
fn from_hex(text: &str) -> f32 {
    let (sign, text) = text.strip_prefix('-').map_or((1.0, text), |rest| (-1.0, rest));
    let (digits, exponent) = text.trim_start_matches("0x").split_once('p').unwrap();
    let mantissa = u64::from_str_radix(&digits.replace('.', ""), 16).unwrap() as f64;
    let scale = 4 * (digits.len() - digits.find('.').map_or(digits.len(), |at| at + 1));
    let scale = i32::try_from(scale).unwrap();
    (sign * mantissa * 2f64.powi(exponent.parse::<i32>().unwrap() - scale)) as f32
}
