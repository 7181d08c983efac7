//! Whole models whose configuration or tensors are wrong: loading each ends with a message that names key or tensor, within
//! a second, with little memory. And models in several files, whole and damaged.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::alloc::{Counting, measure};
use tokenmill_kernels::isa::Isa;
use tokenmill_kernels::quant::Format;
use tokenmill_models::weights::Weights;
use tokenmill_models::weights::gguf::Gguf;
use tokenmill_models::weights::gguf_writer::GgufHeader;
use tokenmill_models::{LoadError, LoadOptions, Quantize, load};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MAX_ALLOCATED_BYTES: usize = 16 << 20;
const MAX_TIME: Duration = Duration::from_secs(1);
/// Enough for the sound model.
const MEMORY_BYTES: u64 = 128 << 20;

/// A value of a metadata key.
#[derive(Clone, Debug)]
enum Entry {
    Number(u32),
    Negative(i32),
    Float(f32),
    Text(&'static str),
}

/// A tensor: name, shape (outermost first), format.
type Tensor = (String, Vec<usize>, Format);

/// A tiny llama as GGUF describes it.
struct Model {
    entries: Vec<(&'static str, Entry)>,
    tensors: Vec<Tensor>,
}

impl Model {
    fn sound() -> Self {
        let number = Entry::Number;
        let entries = vec![
            ("general.architecture", Entry::Text("llama")),
            ("llama.block_count", number(2)),
            ("llama.context_length", number(64)),
            ("llama.embedding_length", number(32)),
            ("llama.feed_forward_length", number(64)),
            ("llama.attention.head_count", number(2)),
            ("llama.attention.head_count_kv", number(1)),
            ("llama.attention.key_length", number(16)),
            ("llama.attention.value_length", number(16)),
            ("llama.rope.dimension_count", number(16)),
            ("llama.attention.layer_norm_rms_epsilon", Entry::Float(1e-5)),
            ("llama.rope.freq_base", Entry::Float(1e4)),
        ];
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[usize]| tensors.push((name, shape.to_vec(), Format::F32));
        add("token_embd.weight".to_owned(), &[48, 32]);
        for layer in 0..2 {
            for (stem, shape) in [
                ("attn_norm", &[32][..]),
                ("attn_q", &[32, 32]),
                ("attn_k", &[16, 32]),
                ("attn_v", &[16, 32]),
                ("attn_output", &[32, 32]),
                ("ffn_norm", &[32]),
                ("ffn_gate", &[64, 32]),
                ("ffn_up", &[64, 32]),
                ("ffn_down", &[32, 64]),
            ] {
                add(format!("blk.{layer}.{stem}.weight"), shape);
            }
        }
        add("output_norm.weight".to_owned(), &[32]);
        Self { entries, tensors }
    }

    fn write(&self, path: &Path) {
        write(path, &self.entries, &self.tensors, |_| {});
    }
}

/// Writes entries, what `more` adds, and tensors of zeros.
fn write(path: &Path, entries: &[(&str, Entry)], tensors: &[Tensor], more: impl FnOnce(&mut GgufHeader)) {
    let mut header = GgufHeader::new();
    for (key, entry) in entries {
        match entry {
            Entry::Number(number) => header.put_u32(key, *number),
            Entry::Negative(number) => header.put_raw(key, 5, &number.to_le_bytes()),
            Entry::Float(float) => header.put_f32(key, *float),
            Entry::Text(text) => header.put_str(key, text),
        }
    }
    more(&mut header);
    for (name, shape, format) in tensors {
        header.declare(name, shape, *format).unwrap();
    }
    let mut writer = header.start(std::fs::File::create(path).unwrap()).unwrap();
    for (_, shape, format) in tensors {
        let (cols, outer) = shape.split_last().unwrap();
        writer.write(&vec![0; format.row_bytes(*cols).unwrap() * outer.iter().product::<usize>()]).unwrap();
    }
    writer.finish().unwrap();
}

fn open(path: &Path) -> Result<(), LoadError> {
    let options = LoadOptions {
        isa: Isa::SCALAR,
        num_threads: 1,
        quantize: Quantize::Auto,
        kv_type: None,
        memory_bytes: MEMORY_BYTES,
        max_model_len: None,
        max_batch_tokens: 16,
        max_batch_seqs: 2,
    };
    load(path, &options).map(drop)
}

/// Loads the model and returns the message, if it is refused.
fn attempt(model: &Model, dir: &Path) -> Option<String> {
    let path = dir.join("model.gguf");
    model.write(&path);
    let started = Instant::now();
    let (result, allocated) = measure(|| open(&path));
    assert!(started.elapsed() < MAX_TIME, "{:?}", started.elapsed());
    let message = result.err()?.to_string();
    assert!(allocated.bytes < MAX_ALLOCATED_BYTES, "{allocated:?} for '{message}'");
    Some(message)
}

#[test]
fn a_sound_model_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(attempt(&Model::sound(), dir.path()), None);
}

#[test]
fn wrong_keys_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let sound = Model::sound();
    let mut num_refused = 0;
    for (key_idx, (key, entry)) in sound.entries.iter().enumerate() {
        let wrong = [
            Entry::Number(0),
            Entry::Number(3),
            Entry::Number(0x7fff_ffff),
            Entry::Number(u32::MAX),
            Entry::Negative(-1),
            Entry::Float(f32::NAN),
            Entry::Float(-1.0),
            Entry::Text("many"),
        ];
        let edits = wrong.into_iter().map(Some).chain([None]);
        for edit in edits {
            let mut model = Model::sound();
            match &edit {
                Some(entry) => model.entries[key_idx].1 = entry.clone(),
                None => drop(model.entries.remove(key_idx)),
            }
            let message = attempt(&model, dir.path());
            // A wrong number of one key may be noticed at another, or at a tensor; a wrong type is noticed where it is.
            let same_type =
                edit.as_ref().is_none_or(|edit| std::mem::discriminant(edit) == std::mem::discriminant(entry));
            let Some(message) = message else {
                assert!(same_type, "{key} as {edit:?} was accepted");
                continue;
            };
            num_refused += 1;
            let short = key.trim_start_matches("llama.");
            let named = message.contains(short) || message.contains("tensor '") || message.contains("memory");
            assert!(named || same_type && message.len() > 20, "{key} as {edit:?}: {message}");
            assert!(same_type || message.contains(short) || message.contains("many"), "{key} as {edit:?}: {message}");
        }
    }
    assert!(num_refused > 70, "only {num_refused} were refused");
}

#[test]
fn wrong_tensors_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for tensor_idx in 0..Model::sound().tensors.len() {
        let refused = |edit: &dyn Fn(&mut Model)| {
            let mut model = Model::sound();
            let name = model.tensors[tensor_idx].0.clone();
            edit(&mut model);
            let message = attempt(&model, dir.path()).unwrap_or_else(|| panic!("a wrong {name} was accepted"));
            // Without the gate, the tensor beside it is taken for both.
            let beside = name.replace("ffn_gate", "ffn_up");
            assert!(message.contains(&name) || message.contains(&beside), "{name}: {message}");
        };
        refused(&|model| drop(model.tensors.remove(tensor_idx)));
        refused(&|model| model.tensors[tensor_idx].1.push(2));
        refused(&|model| model.tensors[tensor_idx].1 = vec![7]);
        refused(&|model| *model.tensors[tensor_idx].1.last_mut().unwrap() = 31);
        let shape = Model::sound().tensors[tensor_idx].1.clone();
        if shape.len() == 2 && shape[0] != shape[1] {
            refused(&|model| model.tensors[tensor_idx].1.reverse());
        }
    }
}

/// Writes the sound model in `num_parts` files and returns the path of each.
fn write_parts(dir: &Path, num_parts: usize, more: impl Fn(usize, &mut GgufHeader)) -> Vec<PathBuf> {
    let model = Model::sound();
    let parts = model.tensors.chunks(model.tensors.len().div_ceil(num_parts)).enumerate();
    let paths = parts.map(|(part_idx, tensors)| {
        let path = dir.join(format!("tiny-{:05}-of-{num_parts:05}.gguf", part_idx + 1));
        let entries = if part_idx == 0 { &model.entries[..] } else { &[] };
        write(&path, entries, tensors, |header| more(part_idx, header));
        path
    });
    paths.collect()
}

/// `split.no` and `split.count` are 16 bits wide in files.
fn put_split(header: &mut GgufHeader, part_idx: usize, num_parts: usize) {
    for (key, value) in [("split.no", part_idx), ("split.count", num_parts)] {
        header.put_raw(key, 2, &u16::try_from(value).unwrap().to_le_bytes());
    }
    header.put_raw("split.tensors.count", 5, &20_i32.to_le_bytes());
}

#[test]
fn a_model_in_parts_is_opened_by_any_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let paths = write_parts(dir.path(), 3, |part_idx, header| put_split(header, part_idx, 3));
    for path in &paths {
        open(path).unwrap();
        let gguf = Gguf::open(path).unwrap();
        assert_eq!((gguf.tensors().count(), gguf.path()), (20, paths[0].as_path()));
        let last = gguf.tensor("output_norm.weight").unwrap();
        assert_eq!(gguf.file_of(last).path(), paths[2]);
        assert_eq!(Weights::Gguf(gguf).tensor("output_norm.weight").unwrap().bytes().len(), 128);
    }
}

#[test]
fn damaged_parts_are_refused_by_name() {
    let refused = |more: &dyn Fn(usize, &mut GgufHeader), change: &dyn Fn(&[PathBuf]), named: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let paths = write_parts(dir.path(), 3, more);
        change(&paths);
        let message = Gguf::open(&paths[1]).err().map(|error| error.to_string()).unwrap();
        for part in named {
            assert!(message.contains(part), "'{message}' does not say '{part}'");
        }
    };
    let sound = |part_idx: usize, header: &mut GgufHeader| put_split(header, part_idx, 3);
    let nothing = |_: &[PathBuf]| {};
    let copied = |paths: &[PathBuf]| {
        std::fs::copy(&paths[1], &paths[2]).unwrap();
    };
    refused(&sound, &|paths| std::fs::remove_file(&paths[2]).unwrap(), &["part 3 is missing", "00003-of-00003.gguf"]);
    refused(&sound, &copied, &["00003-of-00003.gguf", "it is part 2 of 3"]);
    let cut = |paths: &[PathBuf]| std::fs::write(&paths[2], b"GGUF\x03\0\0\0").unwrap();
    refused(&sound, &cut, &["00003-of-00003.gguf", "ends inside"]);
    refused(&|_, header| put_split(header, 1, 3), &nothing, &["00001-of-00003.gguf", "it is part 2 of 3"]);
    refused(&|_, header| put_split(header, 3, 3), &nothing, &["split.no 3"]);
    refused(&|part_idx, header| put_split(header, part_idx, 9000), &nothing, &["split.count 9000"]);
    refused(&|part_idx, header| put_split(header, part_idx, 4), &nothing, &["00002-of-00004.gguf"]);
    let dropped = |paths: &[PathBuf]| {
        write(&paths[2], &[], &[], |header| put_split(header, 2, 3));
    };
    refused(&sound, &dropped, &["split.tensors.count is 20", "hold 14"]);
    let twice = |paths: &[PathBuf]| {
        let (same, rest) = (("token_embd.weight".to_owned(), vec![4], Format::F32), 5);
        let mut tensors = vec![same];
        tensors.extend((0..rest).map(|idx| (format!("other.{idx}"), vec![4], Format::F32)));
        write(&paths[2], &[], &tensors, |header| put_split(header, 2, 3));
    };
    refused(&sound, &twice, &["'token_embd.weight' occurs twice"]);
}
