//! Damaged and hostile model files: each is a clear error, quickly, without a panic and without a large allocation.
#![expect(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

mod common;

use std::path::{Path, PathBuf};

use common::alloc::{Counting, measure};
use tokenmill_models::LoadError;
use tokenmill_models::weights::Weights;
use tokenmill_models::weights::gguf::{Gguf, Value};
use tokenmill_models::weights::safetensors::Safetensors;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Most that reading a hostile file may allocate.
const MAX_ALLOCATED_BYTES: usize = 16 << 20;

/// Builds a GGUF file piece by piece, right or wrong.
#[derive(Clone, Default)]
struct Writer {
    metadata: Vec<u8>,
    num_metadata: u64,
    tensors: Vec<u8>,
    num_tensors: u64,
    data_len: usize,
}

impl Writer {
    fn string(out: &mut Vec<u8>, text: &[u8]) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text);
    }

    fn raw(mut self, key: &str, type_id: u32, value: &[u8]) -> Self {
        Self::string(&mut self.metadata, key.as_bytes());
        self.metadata.extend(type_id.to_le_bytes());
        self.metadata.extend(value);
        self.num_metadata += 1;
        self
    }

    fn text(self, key: &str, value: &str) -> Self {
        let mut bytes = Vec::new();
        Self::string(&mut bytes, value.as_bytes());
        self.raw(key, 8, &bytes)
    }

    fn tensor(mut self, name: &str, dims: &[u64], type_id: u32, offset: u64) -> Self {
        Self::string(&mut self.tensors, name.as_bytes());
        self.tensors.extend(u32::try_from(dims.len()).unwrap().to_le_bytes());
        for dim in dims {
            self.tensors.extend(dim.to_le_bytes());
        }
        self.tensors.extend(type_id.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.num_tensors += 1;
        self
    }

    fn data(mut self, len: usize) -> Self {
        self.data_len = len;
        self
    }

    fn build(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend(self.num_tensors.to_le_bytes());
        out.extend(self.num_metadata.to_le_bytes());
        out.extend(&self.metadata);
        out.extend(&self.tensors);
        out.resize(out.len().next_multiple_of(32) + self.data_len, 0);
        out
    }
}

fn array(element: u32, len: u64, payload: &[u8]) -> Vec<u8> {
    [&element.to_le_bytes()[..], &len.to_le_bytes(), payload].concat()
}

fn write(dir: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn refused<T>(open: impl FnOnce() -> Result<T, LoadError>, named: &[&str]) {
    let (result, allocated) = measure(open);
    let error = result.err().unwrap_or_else(|| panic!("accepted, expected an error with {named:?}")).to_string();
    for part in named {
        assert!(error.contains(part), "'{error}' does not say '{part}'");
    }
    assert!(error.len() < 600, "a message of {} bytes", error.len());
    assert!(allocated.bytes < MAX_ALLOCATED_BYTES, "{allocated:?} for '{error}'");
}

fn gguf_refused(bytes: &[u8], named: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir, "model.gguf", bytes);
    refused(|| Gguf::open(&path), named);
}

#[test]
fn a_sound_file_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = array(8, 2, b"\x01\0\0\0\0\0\0\0a\x02\0\0\0\0\0\0\0bc");
    let file = Writer::default()
        .text("general.architecture", "llama")
        .raw("small", 4, &7_u32.to_le_bytes())
        .raw("wide", 10, &8_u64.to_le_bytes())
        .raw("negative", 5, &(-9_i32).to_le_bytes())
        .raw("eps", 6, &1e-5_f32.to_le_bytes())
        .raw("yes", 7, &[1])
        .raw("tokens", 9, &tokens)
        .tensor("b", &[4, 3], 0, 0)
        .tensor("a", &[32, 2], 8, 64)
        .data(64 + 68);
    let gguf = Gguf::open(&write(&dir, "m.gguf", &file.build())).unwrap();
    let metadata = gguf.metadata();
    assert_eq!(metadata.str("general.architecture").unwrap(), Some("llama"));
    assert_eq!((metadata.u32("small").unwrap(), metadata.u32("wide").unwrap()), (Some(7), Some(8)));
    assert_eq!(metadata.get("negative").and_then(Value::as_i64), Some(-9));
    assert_eq!((metadata.f32("eps").unwrap(), metadata.bool("yes").unwrap()), (Some(1e-5), Some(true)));
    let tokens = metadata.string_array("tokens").unwrap().unwrap();
    assert_eq!(tokens.strings().collect::<Vec<_>>(), ["a", "bc"]);
    assert_eq!(metadata.u32("absent").unwrap(), None);
    assert_eq!(gguf.tensor("b").unwrap().shape.dims(), [3, 4], "outermost first");
    let weights = Weights::Gguf(gguf);
    assert_eq!(weights.tensor("a").unwrap().bytes().len(), 68);
    for (key, named) in
        [("small", "small: found 7, expected a string"), ("tokens", "tokens: found an array of 2 strings")]
    {
        let Weights::Gguf(gguf) = &weights else { unreachable!() };
        assert!(gguf.metadata().str(key).unwrap_err().to_string().contains(named));
    }
    assert!(
        weights.matrix("b", 4, 3).unwrap_err().to_string().contains("tensor 'b' has shape [3, 4], expected [4, 3]")
    );
    assert!(weights.tensor("c").unwrap_err().to_string().contains("tensor 'c' is missing"));
}

#[test]
fn every_cut_of_a_gguf_file_is_refused() {
    let whole = Writer::default()
        .text("general.architecture", "llama")
        .raw("list", 9, &array(8, 1, b"\x01\0\0\0\0\0\0\0a"))
        .tensor("t", &[8], 0, 0)
        .data(32)
        .build();
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir, "whole.gguf", &whole);
    assert!(Gguf::open(&path).is_ok());
    for len in 0..whole.len() {
        let path = write(&dir, "cut.gguf", &whole[..len]);
        refused(|| Gguf::open(&path), &[]);
    }
}

#[test]
fn a_changed_byte_never_panics() {
    let whole = Writer::default()
        .text("general.architecture", "llama")
        .raw("general.alignment", 4, &32_u32.to_le_bytes())
        .raw("list", 9, &array(9, 1, &array(4, 1, &[1, 0, 0, 0])))
        .tensor("t", &[32, 2], 8, 0)
        .tensor("u", &[8], 0, 96)
        .data(128)
        .build();
    let dir = tempfile::tempdir().unwrap();
    for at in 0..whole.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            let path = write(&dir, "changed.gguf", &bytes);
            let (result, allocated) = measure(|| Gguf::open(&path));
            assert!(allocated.bytes < MAX_ALLOCATED_BYTES, "byte {at} = {value}: {allocated:?}");
            if let Ok(gguf) = result {
                // What was accepted can be read to the end.
                let read: usize =
                    gguf.metadata().iter().map(|(key, value)| key.len() + format!("{value:?}").len()).sum();
                assert!(read > 0);
                let names: Vec<String> = gguf.tensors().map(|(name, _)| name.to_owned()).collect();
                let weights = Weights::Gguf(gguf);
                for name in names {
                    if let Ok(tensor) = weights.tensor(&name) {
                        assert!(!tensor.bytes().is_empty());
                    }
                }
            }
        }
    }
}

#[test]
fn hostile_gguf_files_are_refused_by_name() {
    let sound = Writer::default();
    gguf_refused(b"", &["is empty"]);
    gguf_refused(b"PK\x03\x04 not a model at all", &["not a GGUF file"]);
    gguf_refused(b"GGUF\x01\0\0\0", &["version 1"]);
    gguf_refused(b"GGUF\0\0\0\x03", &["big-endian"]);
    let mut counts = b"GGUF\x03\0\0\0".to_vec();
    counts.extend(u64::MAX.to_le_bytes());
    counts.extend(0_u64.to_le_bytes());
    gguf_refused(&counts, &["18446744073709551615 tensors"]);
    let mut counts = b"GGUF\x03\0\0\0".to_vec();
    counts.extend(0_u64.to_le_bytes());
    counts.extend((1_u64 << 40).to_le_bytes());
    gguf_refused(&counts, &["1099511627776 metadata keys"]);

    let alignment = |value: u32| sound.clone().raw("general.alignment", 4, &value.to_le_bytes()).build();
    gguf_refused(&alignment(0), &["general.alignment is 0"]);
    gguf_refused(&alignment(48), &["general.alignment is 48"]);
    gguf_refused(
        &sound.clone().raw("general.alignment", 6, &[0; 4]).build(),
        &["general.alignment: found the float 0"],
    );

    gguf_refused(&sound.clone().raw("key", 13, &[]).build(), &["'key'", "13 is no known value type"]);
    gguf_refused(&sound.clone().raw("key", 7, &[2]).build(), &["'key'", "2 is no truth value"]);
    gguf_refused(&sound.clone().raw("key", 8, &[255; 8]).build(), &["'key'", "ends inside"]);
    gguf_refused(&sound.clone().raw("key", 8, b"\x01\0\0\0\0\0\0\0\xff").build(), &["'key'", "UTF-8"]);
    gguf_refused(&sound.clone().raw("key", 9, &array(4, u64::MAX, &[])).build(), &["'key'", "ends inside"]);
    gguf_refused(&sound.clone().raw("key", 9, &array(8, 1 << 60, &[0; 64])).build(), &["'key'", "ends inside"]);
    let mut nested = array(4, 0, &[]);
    for _ in 0..100 {
        nested = array(9, 1, &nested);
    }
    gguf_refused(&sound.clone().raw("key", 9, &nested).build(), &["'key'", "nested"]);
    let twice = sound.clone().text("key", "a").text("key", "b");
    gguf_refused(&twice.build(), &["'key' occurs twice"]);
}

#[test]
fn hostile_gguf_tensors_are_refused_by_name() {
    let tensor = |dims: &[u64], type_id: u32, offset: u64| {
        Writer::default().tensor("blk.0.x", dims, type_id, offset).data(256).build()
    };
    gguf_refused(&tensor(&[1 << 40, 1 << 40], 0, 0), &["'blk.0.x'", "too large"]);
    gguf_refused(&tensor(&[1 << 62, 4], 2, 0), &["'blk.0.x'", "too large"]);
    gguf_refused(&tensor(&[u64::MAX], 0, 0), &["'blk.0.x'", "too large"]);
    gguf_refused(&tensor(&[0, 4], 0, 0), &["'blk.0.x'", "dimension of 0"]);
    gguf_refused(&tensor(&[1; 5], 0, 0), &["'blk.0.x'", "5 dimensions"]);
    gguf_refused(&tensor(&[], 0, 0), &["'blk.0.x'", "0 dimensions"]);
    gguf_refused(&tensor(&[33], 8, 0), &["'blk.0.x'", "whole blocks of Q8_0"]);
    gguf_refused(&tensor(&[4], 4, 0), &["'blk.0.x'", "4 is no known tensor type"]);
    gguf_refused(&tensor(&[4], 0, 16), &["'blk.0.x'", "alignment 32"]);
    gguf_refused(&tensor(&[4], 0, 256), &["'blk.0.x'", "ends inside its data"]);
    gguf_refused(&tensor(&[4], 0, u64::MAX - 31), &["'blk.0.x'"]);
    gguf_refused(&tensor(&[65], 0, 0), &["'blk.0.x'", "ends inside its data"]);
    let overlapping = Writer::default().tensor("first", &[16], 0, 0).tensor("second", &[4], 0, 32).data(256);
    gguf_refused(&overlapping.build(), &["'second'", "overlaps that of 'first'"]);
    let twice = Writer::default().tensor("same", &[4], 0, 0).tensor("same", &[4], 0, 32).data(256);
    gguf_refused(&twice.build(), &["'same' occurs twice"]);

    let dir = tempfile::tempdir().unwrap();
    let unread = Writer::default().tensor("blk.0.x", &[256], 34, 0).data(256).build();
    let weights = Weights::open(&write(&dir, "tq1.gguf", &unread)).unwrap();
    refused(|| weights.tensor("blk.0.x"), &["'blk.0.x' is of type TQ1_0", "Q8_0"]);
}

fn safetensors(header: &str, data_len: usize) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.resize(out.len() + data_len, 0);
    out
}

fn safetensors_refused(bytes: &[u8], named: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "model.safetensors", bytes);
    refused(|| Safetensors::open(dir.path()), named);
}

#[test]
fn hostile_safetensors_are_refused_by_name() {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        safetensors(&format!(r#"{{"w": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}}}"#), 64)
    };
    let dir = tempfile::tempdir().unwrap();
    write(&dir, "model.safetensors", &entry("F32", "[2, 8]", "[0, 64]"));
    assert_eq!(Safetensors::open(dir.path()).unwrap().tensor("w").unwrap().shape.dims(), [2, 8]);

    safetensors_refused(&[1, 2, 3], &["ends inside the header's length"]);
    safetensors_refused(&[255; 64], &["header of 18446744073709551615 bytes"]);
    safetensors_refused(&safetensors("{", 0), &["header"]);
    safetensors_refused(&safetensors(&"[".repeat(100_000), 0), &["header"]);
    safetensors_refused(&safetensors("{} x", 0), &["header"]);
    safetensors_refused(&entry("F32", "[2, 8]", "[0, 64]")[..100], &["ends inside"]);
    safetensors_refused(&entry("F32", "[2, 9]", "[0, 72]"), &["'w'", "ends inside its data"]);
    safetensors_refused(&entry("F32", "[2, 8]", "[0, 60]"), &["'w'", "takes 64 bytes"]);
    safetensors_refused(&entry("F32", "[2, 8]", "[64, 0]"), &["'w'", "takes 64 bytes"]);
    safetensors_refused(&entry("F32", "[4294967296, 4294967296]", "[0, 0]"), &["'w'", "too large"]);
    safetensors_refused(&entry("Q3", "[2, 8]", "[0, 64]"), &["'w'", "'Q3' is no known tensor type"]);
    safetensors_refused(&entry("F32", "[1,1,1,1,1]", "[0, 4]"), &["'w'"]);
    safetensors_refused(&entry("F32", "[-1]", "[0, 4]"), &["'w'"]);
    let pair = |second: &str| {
        let first = r#""a": {"dtype": "U8", "shape": [40], "data_offsets": [0, 40]}"#;
        safetensors(&format!("{{{first}, {second}}}"), 64)
    };
    let overlapping = pair(r#""b": {"dtype": "U8", "shape": [40], "data_offsets": [24, 64]}"#);
    safetensors_refused(&overlapping, &["'b'", "overlaps that of 'a'"]);
    safetensors_refused(
        &pair(r#""a": {"dtype": "U8", "shape": [1], "data_offsets": [40, 41]}"#),
        &["'a' occurs twice"],
    );

    let many: Vec<String> = (0..40_000)
        .map(|i| format!(r#""{i}": {{"dtype": "U8", "shape": [1], "data_offsets": [{i}, {}]}}"#, i + 1))
        .collect();
    safetensors_refused(&safetensors(&format!("{{{}}}", many.join(",")), 40_000), &["more than"]);
}

#[test]
fn hostile_indexes_are_refused_by_name() {
    let open = |index: &str, named: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        write(&dir, "model.safetensors.index.json", index.as_bytes());
        let shard = safetensors(r#"{"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}"#, 4);
        write(&dir, "part-1.safetensors", &shard);
        if named.is_empty() {
            assert!(Safetensors::open(dir.path()).unwrap().tensor("w").is_some());
        } else {
            refused(|| Safetensors::open(dir.path()), named);
        }
    };
    open(r#"{"metadata": {}, "weight_map": {"w": "part-1.safetensors"}}"#, &[]);
    open("{}", &["weight_map"]);
    open(r#"{"weight_map": {"w": "../part-1.safetensors"}}"#, &["'w'", "not a plain file name"]);
    open(r#"{"weight_map": {"w": "/etc/passwd"}}"#, &["'w'", "not a plain file name"]);
    open(r#"{"weight_map": {"w": "part-2.safetensors"}}"#, &["cannot read", "part-2.safetensors"]);
    open(r#"{"weight_map": {"v": "part-1.safetensors"}}"#, &["'v'", "none of the shards"]);
    let dir = tempfile::tempdir().unwrap();
    refused(|| Safetensors::open(dir.path()), &["neither model.safetensors nor"]);
    refused(|| Weights::open(Path::new("/nowhere/at/all.gguf")), &["cannot read /nowhere/at/all.gguf"]);
}
