//! [`Safetensors`]: the weights of a Hugging Face folder, in one `model.safetensors` or in shards.
//!
//! A file is 8 bytes of header length, a JSON header, then the data. The header is parsed piece by piece into small
//! tables and every offset is checked against the file before anything uses it.
//! The format: <https://github.com/huggingface/safetensors#format>.

use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use tokenmill_kernels::quant::Format;

use super::mmap::MappedFile;
use super::shape::Shape;
use crate::error::LoadError;

/// Most bytes of a header or index; those of the largest published models take about 4 MB.
const MAX_HEADER_BYTES: u64 = 8 << 20;
/// Most tensors of one file and of all shards together.
const MAX_TENSORS: usize = 32_768;
/// Most shards of one model.
const MAX_SHARDS: usize = 1024;

/// Name of the only file of a small model.
const SINGLE_FILE: &str = "model.safetensors";
/// Name of the file that lists the shards of a large one.
const INDEX_FILE: &str = "model.safetensors.index.json";

/// The tensors of a folder.
#[derive(Debug)]
pub struct Safetensors {
    shards: Vec<MappedFile>,
    /// Sorted by name.
    tensors: Vec<StoredTensor>,
}

/// Where one tensor of a [`Safetensors`] lies.
#[derive(Debug)]
pub struct StoredTensor {
    /// The tensor's name.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Shape,
    /// `None` for a type that no kernel here can read.
    pub format: Option<Format>,
    /// The type as the file calls it.
    pub type_name: &'static str,
    /// Bytes of the shard.
    pub data: Range<usize>,
    shard_idx: usize,
}

impl Safetensors {
    /// Whether `dir` holds weights in this form.
    #[must_use]
    pub fn is_in(dir: &Path) -> bool {
        dir.join(SINGLE_FILE).exists() || dir.join(INDEX_FILE).exists()
    }

    /// Maps and checks the weights of the folder `dir`.
    ///
    /// # Errors
    /// [`LoadError::Io`], [`LoadError::NotAModel`] or, naming the file and tensor, [`LoadError::Damaged`].
    pub fn open(dir: &Path) -> Result<Self, LoadError> {
        let index_path = dir.join(INDEX_FILE);
        let mut out = Self { shards: Vec::new(), tensors: Vec::new() };
        if dir.join(SINGLE_FILE).exists() {
            out.add_shard(&dir.join(SINGLE_FILE))?;
        } else if index_path.exists() {
            let index = read_index(&index_path)?;
            for shard in &index.shards {
                out.add_shard(&dir.join(shard))?;
            }
            out.sort(dir)?;
            if let Some(name) = index.tensors.iter().find(|name| out.tensor(name).is_none()) {
                let reason = format!("tensor '{name}' is listed but is in none of the shards");
                return Err(LoadError::damaged(&index_path, reason));
            }
            return Ok(out);
        } else {
            let reason = format!("found neither {SINGLE_FILE} nor {INDEX_FILE} in it");
            return Err(LoadError::NotAModel { path: dir.to_owned(), reason });
        }
        out.sort(dir)?;
        Ok(out)
    }

    /// Every tensor, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = &StoredTensor> {
        self.tensors.iter()
    }

    /// The tensor called `name`.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&StoredTensor> {
        let found = self.tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name)).ok()?;
        Some(&self.tensors[found])
    }

    /// The mapped file that `tensor`'s range refers to.
    #[must_use]
    pub fn file(&self, tensor: &StoredTensor) -> &MappedFile {
        &self.shards[tensor.shard_idx]
    }

    fn add_shard(&mut self, path: &Path) -> Result<(), LoadError> {
        let file = MappedFile::open(path)?;
        let shard_idx = self.shards.len();
        let entries = read_header(&file)?;
        if self.tensors.len() + entries.len() > MAX_TENSORS {
            return Err(LoadError::damaged(path, format!("more than {MAX_TENSORS} tensors")));
        }
        self.tensors.extend(entries.into_iter().map(|entry| StoredTensor { shard_idx, ..entry }));
        self.shards.push(file);
        Ok(())
    }

    fn sort(&mut self, dir: &Path) -> Result<(), LoadError> {
        self.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let twice = self.tensors.windows(2).find(|pair| pair[0].name == pair[1].name);
        match twice {
            Some(pair) => Err(LoadError::damaged(dir, format!("tensor '{}' occurs twice", pair[0].name))),
            None => Ok(()),
        }
    }
}

/// A stored type: name, the format that kernels read it as, bytes per element.
const TYPES: &[(&str, Option<Format>, u64)] = &[
    ("F32", Some(Format::F32), 4),
    ("F16", Some(Format::F16), 2),
    ("BF16", Some(Format::BF16), 2),
    ("F64", None, 8),
    ("I64", None, 8),
    ("U64", None, 8),
    ("I32", None, 4),
    ("U32", None, 4),
    ("I16", None, 2),
    ("U16", None, 2),
    ("I8", None, 1),
    ("U8", None, 1),
    ("BOOL", None, 1),
    ("F8_E4M3", Some(Format::F8_E4M3), 1),
    ("F8_E5M2", None, 1),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry<'a> {
    #[serde(borrow)]
    dtype: &'a str,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// Reads and checks the header of one file.
fn read_header(file: &MappedFile) -> Result<Vec<StoredTensor>, LoadError> {
    let bytes = file.bytes();
    let damaged = |reason: String| LoadError::damaged(file.path(), reason);
    let Some((len, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(damaged("the file ends inside the header's length".to_owned()));
    };
    let header_bytes = u64::from_le_bytes(*len);
    if header_bytes > MAX_HEADER_BYTES {
        return Err(damaged(format!("a header of {header_bytes} bytes is more than the {MAX_HEADER_BYTES} accepted")));
    }
    let header_len = usize::try_from(header_bytes).expect("the cap fits");
    let Some((header, data)) = rest.split_at_checked(header_len) else {
        return Err(damaged("the file ends inside the header; is the download complete?".to_owned()));
    };
    let mut deserializer = serde_json::Deserializer::from_slice(header);
    let checked = HeaderVisitor { data_start: bytes.len() - data.len(), data_len: data.len() };
    let mut tensors = deserializer.deserialize_map(checked).map_err(|error| damaged(format!("header: {error}")))?;
    // The header may be padded with spaces, not with anything else.
    deserializer.end().map_err(|error| damaged(format!("header: {error}")))?;
    tensors.sort_by_key(|tensor| (tensor.data.start, tensor.data.end));
    match tensors.windows(2).find(|pair| pair[0].data.end > pair[1].data.start) {
        Some(pair) => Err(damaged(format!("tensor '{}': its data overlaps that of '{}'", pair[1].name, pair[0].name))),
        None => Ok(tensors),
    }
}

/// Builds the tensor table while the header is parsed, so that the JSON never exists as a tree.
struct HeaderVisitor {
    data_start: usize,
    data_len: usize,
}

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Vec<StoredTensor>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with one entry per tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if tensors.len() == MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            }
            let entry = map.next_value::<Entry<'de>>();
            let tensor = entry.map_err(|why| why.to_string()).and_then(|entry| self.check(&entry));
            let mut tensor = tensor.map_err(|why| A::Error::custom(format!("tensor '{name}': {why}")))?;
            tensor.name = name;
            tensors.push(tensor);
        }
        Ok(tensors)
    }
}

impl HeaderVisitor {
    fn check(&self, entry: &Entry<'_>) -> Result<StoredTensor, String> {
        let known = TYPES.iter().find(|(name, ..)| *name == entry.dtype);
        let &(type_name, format, element_bytes) =
            known.ok_or_else(|| format!("'{}' is no known tensor type", entry.dtype))?;
        let size_bytes = entry.shape.num_elements().and_then(|elements| elements.checked_mul(element_bytes));
        let size_bytes = size_bytes.ok_or_else(|| format!("its shape {} is too large", entry.shape))?;
        let (start, end) = entry.data_offsets;
        if end.checked_sub(start) != Some(size_bytes) {
            return Err(format!(
                "{} of type {type_name} takes {size_bytes} bytes, not those from {start} to {end}",
                entry.shape
            ));
        }
        let (Ok(start), Ok(end)) = (usize::try_from(start), usize::try_from(end)) else {
            return Err("it lies beyond the end of the file".to_owned());
        };
        if end > self.data_len {
            return Err("the file ends inside its data; is the download complete?".to_owned());
        }
        let data = self.data_start + start..self.data_start + end;
        Ok(StoredTensor { name: String::new(), shape: entry.shape, format, type_name, data, shard_idx: 0 })
    }
}

/// What the index of a sharded model lists.
struct Index {
    /// File names, each once, in order of first mention.
    shards: Vec<String>,
    tensors: Vec<String>,
}

fn read_index(path: &Path) -> Result<Index, LoadError> {
    #[derive(Deserialize)]
    struct File {
        weight_map: WeightMap,
    }
    struct WeightMap(Index);
    impl<'de> Deserialize<'de> for WeightMap {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_map(IndexVisitor).map(Self)
        }
    }
    let text = read_limited(path, MAX_HEADER_BYTES)?;
    let file: File = serde_json::from_slice(&text).map_err(|error| LoadError::damaged(path, error.to_string()))?;
    Ok(file.weight_map.0)
}

struct IndexVisitor;

impl<'de> Visitor<'de> for IndexVisitor {
    type Value = Index;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object that maps tensor names to file names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Index, A::Error> {
        let mut index = Index { shards: Vec::new(), tensors: Vec::new() };
        while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
            // A path that leaves the folder is an attack, one into a subfolder a mistake.
            let is_plain = Path::new(&shard).file_name().is_some_and(|name| name == shard.as_str());
            if !is_plain {
                return Err(A::Error::custom(format!("tensor '{tensor}': '{shard}' is not a plain file name")));
            }
            if !index.shards.contains(&shard) {
                index.shards.push(shard);
            }
            if index.shards.len() > MAX_SHARDS || index.tensors.len() == MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_SHARDS} shards or {MAX_TENSORS} tensors")));
            }
            index.tensors.push(tensor);
        }
        Ok(index)
    }
}

/// Reads a whole small file; one of more than `max_bytes` is refused before it is read.
///
/// # Errors
/// [`LoadError::Io`] or [`LoadError::Damaged`].
pub(crate) fn read_limited(path: &Path, max_bytes: u64) -> Result<Vec<u8>, LoadError> {
    let io = |source| LoadError::Io { path: PathBuf::from(path), source };
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(LoadError::NotAModel { path: path.to_owned(), reason: "not a regular file".to_owned() });
    }
    let file = std::fs::File::open(path).map_err(io)?;
    let mut text = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut text).map_err(io)?;
    if text.len() as u64 > max_bytes {
        return Err(LoadError::damaged(path, format!("it has more than {max_bytes} bytes")));
    }
    Ok(text)
}
