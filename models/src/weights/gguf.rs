//! [`Gguf`]: a reader for GGUF files, versions 2 and 3, in one part or split, that trusts nothing in them.
//!
//! Everything a file claims is checked before it is used: counts, lengths, nesting, products of dimensions, types,
//! alignment, and that tensors lie inside the file and do not overlap. Until that is done only small tables are
//! allocated; tensor data and long metadata arrays stay in the mapped file.
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenmill_kernels::quant::Format;

use super::gguf_metadata::{Cursor, shorten};
pub use super::gguf_metadata::{GgufArray, GgufMetadata, Value, ValueType};
use super::mmap::MappedFile;
use super::shape::{MAX_DIMS, Shape};
use crate::error::LoadError;

const MAGIC: u32 = u32::from_le_bytes(*b"GGUF");
/// Most tensors that are accepted; the largest published models have a few thousand.
const MAX_TENSORS: u64 = 32_768;
/// Most files that a model may be split into.
const MAX_PARTS: u16 = 512;
const DEFAULT_ALIGNMENT: u32 = 32;

/// A type that ggml can store: enough to check bounds, also of types that no kernel here can read.
struct GgmlType {
    id: u32,
    name: &'static str,
    block_len: u64,
    block_bytes: u64,
}

const fn ggml(id: u32, name: &'static str, block_len: u64, block_bytes: u64) -> GgmlType {
    GgmlType { id, name, block_len, block_bytes }
}

/// `enum ggml_type` of ggml.h with the block sizes of ggml-common.h.
const GGML_TYPES: &[GgmlType] = &[
    ggml(0, "F32", 1, 4),
    ggml(1, "F16", 1, 2),
    ggml(2, "Q4_0", 32, 18),
    ggml(3, "Q4_1", 32, 20),
    ggml(6, "Q5_0", 32, 22),
    ggml(7, "Q5_1", 32, 24),
    ggml(8, "Q8_0", 32, 34),
    ggml(9, "Q8_1", 32, 36),
    ggml(10, "Q2_K", 256, 84),
    ggml(11, "Q3_K", 256, 110),
    ggml(12, "Q4_K", 256, 144),
    ggml(13, "Q5_K", 256, 176),
    ggml(14, "Q6_K", 256, 210),
    ggml(15, "Q8_K", 256, 292),
    ggml(16, "IQ2_XXS", 256, 66),
    ggml(17, "IQ2_XS", 256, 74),
    ggml(18, "IQ3_XXS", 256, 98),
    ggml(19, "IQ1_S", 256, 50),
    ggml(20, "IQ4_NL", 32, 18),
    ggml(21, "IQ3_S", 256, 110),
    ggml(22, "IQ2_S", 256, 82),
    ggml(23, "IQ4_XS", 256, 136),
    ggml(24, "I8", 1, 1),
    ggml(25, "I16", 1, 2),
    ggml(26, "I32", 1, 4),
    ggml(27, "I64", 1, 8),
    ggml(28, "F64", 1, 8),
    ggml(29, "IQ1_M", 256, 56),
    ggml(30, "BF16", 1, 2),
    ggml(34, "TQ1_0", 256, 54),
    ggml(35, "TQ2_0", 256, 66),
    ggml(39, "MXFP4", 32, 17),
];

/// A GGUF file with all its parts: its metadata and where its tensors lie. Cheap to clone; keeps the files mapped.
#[derive(Clone, Debug)]
pub struct Gguf {
    parts: Arc<[Arc<MappedFile>]>,
    metadata: GgufMetadata,
    /// Sorted by name.
    tensors: Arc<[GgufTensor]>,
}

/// Where one tensor of a [`Gguf`] lies.
#[derive(Clone, Debug)]
pub struct GgufTensor {
    part_idx: usize,
    /// Bytes of its part.
    name: Range<usize>,
    /// Outermost dimension first, the reverse of the file's order.
    pub shape: Shape,
    /// `None` for a type that no kernel here can read.
    pub format: Option<Format>,
    /// The type as ggml calls it.
    pub type_name: &'static str,
    /// Bytes of its part.
    pub data: Range<usize>,
}

impl Gguf {
    /// Maps and checks the file at `path`, and all parts of the model where it is one of several.
    ///
    /// # Errors
    /// [`LoadError::Io`], [`LoadError::NotAModel`] or, naming the key, tensor or part, [`LoadError::Damaged`].
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let opened = Part::open(path, 0)?;
        let Some(split) = Split::of(&opened, path)? else { return Self::from_parts(vec![opened], path) };
        let mut parts = Vec::new();
        let mut num_tensors = 0;
        for part_idx in 0..split.num_parts {
            let part_path = split.path_of(part_idx);
            let part = Part::open(&part_path, usize::from(part_idx)).map_err(|error| match error {
                LoadError::Io { path, source } if source.kind() == std::io::ErrorKind::NotFound => {
                    let reason = format!(
                        "it is part {} of {}, and part {} is missing: {}",
                        split.part_idx + 1,
                        split.num_parts,
                        part_idx + 1,
                        path.display()
                    );
                    LoadError::NotAModel { path: split.path.clone(), reason }
                }
                other => other,
            })?;
            let found = Split::of(&part, &part_path)?.map(|split| (split.part_idx, split.num_parts));
            if found != Some((part_idx, split.num_parts)) {
                let reason = format!("split.no and split.count do not say part {part_idx} of {}", split.num_parts);
                return Err(LoadError::damaged(&part_path, reason));
            }
            num_tensors += part.tensors.len();
            if num_tensors as u64 > MAX_TENSORS {
                return Err(LoadError::damaged(&part_path, format!("more than {MAX_TENSORS} tensors in all parts")));
            }
            parts.push(part);
        }
        let declared = parts[0].metadata.u32("split.tensors.count")?;
        if declared.is_some_and(|declared| declared as usize != num_tensors) {
            let reason = format!("split.tensors.count is {}, but the parts hold {num_tensors}", declared.unwrap_or(0));
            return Err(LoadError::damaged(&split.path_of(0), reason));
        }
        Self::from_parts(parts, path)
    }

    fn from_parts(parts: Vec<Part>, path: &Path) -> Result<Self, LoadError> {
        let metadata = parts[0].metadata.clone();
        let (mut files, mut tensors) = (Vec::with_capacity(parts.len()), Vec::new());
        for part in parts {
            files.push(part.file);
            tensors.extend(part.tensors);
        }
        let name = |tensor: &GgufTensor| &files[tensor.part_idx].bytes()[tensor.name.clone()];
        tensors.sort_by(|a, b| name(a).cmp(name(b)));
        if let Some(pair) = tensors.windows(2).find(|pair| name(&pair[0]) == name(&pair[1])) {
            let name = String::from_utf8_lossy(name(&pair[0]));
            return Err(LoadError::damaged(path, format!("tensor '{}' occurs twice", shorten(&name))));
        }
        Ok(Self { parts: files.into(), metadata, tensors: tensors.into() })
    }

    /// Where the file was; of several parts, the first.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.parts[0].path()
    }

    /// The typed key-value part.
    #[must_use]
    pub fn metadata(&self) -> &GgufMetadata {
        &self.metadata
    }

    /// Every tensor with its name, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &GgufTensor)> {
        self.tensors.iter().map(|tensor| (self.name(tensor), tensor))
    }

    /// The tensor called `name`.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        let found = self.tensors.binary_search_by(|tensor| self.name(tensor).cmp(name)).ok()?;
        Some(&self.tensors[found])
    }

    /// The mapped file that `tensor`'s ranges refer to.
    #[must_use]
    pub fn file_of(&self, tensor: &GgufTensor) -> &MappedFile {
        &self.parts[tensor.part_idx]
    }

    fn name(&self, tensor: &GgufTensor) -> &str {
        let bytes = &self.file_of(tensor).bytes()[tensor.name.clone()];
        std::str::from_utf8(bytes).expect("checked when the file was opened")
    }
}

/// One file of a model.
struct Part {
    file: Arc<MappedFile>,
    metadata: GgufMetadata,
    tensors: Vec<GgufTensor>,
}

impl Part {
    /// Maps and checks the file at `path`, which becomes part `part_idx`.
    fn open(path: &Path, part_idx: usize) -> Result<Self, LoadError> {
        let file = Arc::new(MappedFile::open(path)?);
        let mut cursor = Cursor { bytes: file.bytes(), pos: 0 };
        let (num_tensors, num_entries) = read_header(&mut cursor, path)?;
        let metadata = GgufMetadata::read(&file, &mut cursor, num_entries)?;
        let alignment = metadata.u32("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() {
            return Err(LoadError::damaged(path, format!("general.alignment is {alignment}, not a power of two")));
        }
        let mut tensors = read_tensor_table(&mut cursor, path, num_tensors)?;
        place_tensors(&mut tensors, &file, cursor.pos, alignment)?;
        for tensor in &mut tensors {
            tensor.part_idx = part_idx;
        }
        Ok(Self { file, metadata, tensors })
    }
}

/// What a part of a split model says of itself.
struct Split {
    path: PathBuf,
    /// What comes before `-00001-of-00003.gguf`.
    stem: String,
    /// From 0.
    part_idx: u16,
    num_parts: u16,
}

impl Split {
    /// None for a file that is the whole model.
    fn of(part: &Part, path: &Path) -> Result<Option<Self>, LoadError> {
        let number = |key: &str| match part.metadata.u32(key)? {
            Some(number) => u16::try_from(number)
                .map(Some)
                .map_err(|_| LoadError::damaged(path, format!("{key} is {number}, more than any file is split into"))),
            None => Ok(None),
        };
        let Some(num_parts) = number("split.count")?.filter(|count| *count > 1) else { return Ok(None) };
        let part_idx = number("split.no")?.unwrap_or(0);
        if num_parts > MAX_PARTS || part_idx >= num_parts {
            let reason = format!("split.no {part_idx} and split.count {num_parts} are no part of at most {MAX_PARTS}");
            return Err(LoadError::damaged(path, reason));
        }
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(stem) = name.strip_suffix(&ending(part_idx, num_parts)) else {
            let reason = format!(
                "it is part {} of {num_parts}, so its name must end in '{}' for the others to be found",
                part_idx + 1,
                ending(part_idx, num_parts)
            );
            return Err(LoadError::NotAModel { path: path.to_owned(), reason });
        };
        Ok(Some(Self { path: path.to_owned(), stem: stem.to_owned(), part_idx, num_parts }))
    }

    fn path_of(&self, part_idx: u16) -> PathBuf {
        self.path.with_file_name(format!("{}{}", self.stem, ending(part_idx, self.num_parts)))
    }
}

/// How the name of a part ends.
fn ending(part_idx: u16, num_parts: u16) -> String {
    format!("-{:05}-of-{num_parts:05}.gguf", part_idx + 1)
}

/// Checks magic and version; returns the numbers of tensors and of metadata keys.
fn read_header(cursor: &mut Cursor<'_>, path: &Path) -> Result<(u64, u64), LoadError> {
    let damaged = |what: &str| LoadError::damaged(path, format!("the file ends inside {what}"));
    if cursor.u32().ok() != Some(MAGIC) {
        return Err(LoadError::NotAModel { path: path.to_owned(), reason: "not a GGUF file".to_owned() });
    }
    let version = cursor.u32().map_err(|_| damaged("the version"))?;
    if !(2..=3).contains(&version) {
        let hint = if (2..=3).contains(&version.swap_bytes()) { " (a big-endian file?)" } else { "" };
        return Err(LoadError::Unsupported(format!("GGUF version {version}{hint}; use a file of version 2 or 3")));
    }
    let num_tensors = cursor.u64().map_err(|_| damaged("the number of tensors"))?;
    let num_entries = cursor.u64().map_err(|_| damaged("the number of metadata keys"))?;
    if num_tensors > MAX_TENSORS {
        let reason = format!("{num_tensors} tensors are more than the {MAX_TENSORS} accepted");
        return Err(LoadError::damaged(path, reason));
    }
    Ok((num_tensors, num_entries))
}

/// Reads the tensor table; `data` holds offsets relative to the data section until [`place_tensors`] moves it.
fn read_tensor_table(cursor: &mut Cursor<'_>, path: &Path, num_tensors: u64) -> Result<Vec<GgufTensor>, LoadError> {
    let mut tensors = Vec::new();
    for tensor_idx in 0..num_tensors {
        let name = cursor.string();
        let (name, name_range) =
            name.map_err(|why| LoadError::damaged(path, format!("name of tensor number {tensor_idx}: {why}")))?;
        let in_tensor = |why: String| LoadError::damaged(path, format!("tensor '{}': {why}", shorten(name)));
        let truncated = |_| in_tensor("the file ends inside its description".to_owned());
        let num_dims = cursor.u32().map_err(truncated)? as usize;
        if !(1..=MAX_DIMS).contains(&num_dims) {
            return Err(in_tensor(format!("it has {num_dims} dimensions, expected 1 to {MAX_DIMS}")));
        }
        let mut dims = [0; MAX_DIMS];
        for dim in dims[..num_dims].iter_mut().rev() {
            *dim = cursor.u64().map_err(truncated)?;
        }
        let shape = Shape::new(&dims[..num_dims]).expect("the number of dimensions was checked");
        let type_id = cursor.u32().map_err(truncated)?;
        let offset = cursor.u64().map_err(truncated)?;
        let known = GGML_TYPES.iter().find(|known| known.id == type_id);
        let known = known.ok_or_else(|| in_tensor(format!("{type_id} is no known tensor type")))?;
        let size_bytes = stored_bytes(&shape, known).map_err(in_tensor)?;
        let end = offset.checked_add(size_bytes);
        let (Ok(start), Some(Ok(end))) = (usize::try_from(offset), end.map(usize::try_from)) else {
            return Err(in_tensor(format!("its offset {offset} lies beyond the end of the file")));
        };
        let format = Format::from_gguf_type(type_id);
        tensors.push(GgufTensor {
            part_idx: 0,
            name: name_range,
            shape,
            format,
            type_name: known.name,
            data: start..end,
        });
    }
    Ok(tensors)
}

/// Bytes that a tensor takes, or why no tensor can have this shape.
fn stored_bytes(shape: &Shape, ggml_type: &GgmlType) -> Result<u64, String> {
    if shape.dims().contains(&0) {
        return Err(format!("its shape {shape} has a dimension of 0"));
    }
    let num_elements = shape.num_elements().ok_or_else(|| format!("its shape {shape} is too large"))?;
    if !shape.row_len().is_multiple_of(ggml_type.block_len) {
        let (name, block_len) = (ggml_type.name, ggml_type.block_len);
        return Err(format!("its rows of {} are not whole blocks of {name} ({block_len})", shape.row_len()));
    }
    let blocks = num_elements / ggml_type.block_len;
    blocks.checked_mul(ggml_type.block_bytes).ok_or_else(|| format!("its shape {shape} is too large"))
}

/// Turns relative offsets into places in the file and checks that they lie in it and apart from each other.
fn place_tensors(
    tensors: &mut [GgufTensor],
    file: &MappedFile,
    table_end: usize,
    alignment: u32,
) -> Result<(), LoadError> {
    let (path, bytes) = (file.path(), file.bytes());
    let alignment = alignment as usize;
    let damaged = |name: &Range<usize>, why: &str| {
        let name = String::from_utf8_lossy(&bytes[name.clone()]);
        LoadError::damaged(path, format!("tensor '{}': {why}", shorten(&name)))
    };
    for tensor in tensors.iter_mut() {
        if tensor.data.start % alignment != 0 {
            let why = format!("its offset {} is not a multiple of the alignment {alignment}", tensor.data.start);
            return Err(damaged(&tensor.name, &why));
        }
        let data_start = table_end.checked_next_multiple_of(alignment);
        let end = data_start.and_then(|start| start.checked_add(tensor.data.end)).filter(|end| *end <= bytes.len());
        let Some(end) = end else {
            return Err(damaged(&tensor.name, "the file ends inside its data; is the download complete?"));
        };
        tensor.data = end - tensor.data.len()..end;
    }
    tensors.sort_by_key(|tensor| tensor.data.start);
    for pair in tensors.windows(2) {
        if pair[0].data.end > pair[1].data.start {
            let other = String::from_utf8_lossy(&bytes[pair[0].name.clone()]);
            return Err(damaged(&pair[1].name, &format!("its data overlaps that of '{}'", shorten(&other))));
        }
    }
    Ok(())
}
