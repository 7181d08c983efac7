//! [`Gguf`]: a reader for GGUF files, versions 2 and 3, that trusts nothing in them.
//!
//! Everything a file claims is checked before it is used: counts, lengths, nesting, products of dimensions, types,
//! alignment, and that tensors lie inside the file and do not overlap. Until that is done only small tables are
//! allocated; tensor data and long metadata arrays stay in the mapped file.
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::ops::Range;
use std::path::Path;
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

/// A GGUF file: its metadata and where its tensors lie. Cheap to clone; keeps the file mapped.
#[derive(Clone, Debug)]
pub struct Gguf {
    file: Arc<MappedFile>,
    metadata: GgufMetadata,
    /// Sorted by name.
    tensors: Arc<[GgufTensor]>,
}

/// Where one tensor of a [`Gguf`] lies.
#[derive(Clone, Debug)]
pub struct GgufTensor {
    name: Range<usize>,
    /// Outermost dimension first, the reverse of the file's order.
    pub shape: Shape,
    /// `None` for a type that no kernel here can read.
    pub format: Option<Format>,
    /// The type as ggml calls it.
    pub type_name: &'static str,
    /// Bytes of the file.
    pub data: Range<usize>,
}

impl Gguf {
    /// Maps and checks the file at `path`.
    ///
    /// # Errors
    /// [`LoadError::Io`], [`LoadError::NotAModel`] or, naming the key or tensor, [`LoadError::Damaged`].
    pub fn open(path: &Path) -> Result<Self, LoadError> {
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
        let bytes = file.bytes();
        tensors.sort_by(|a, b| bytes[a.name.clone()].cmp(&bytes[b.name.clone()]));
        let twice = tensors.windows(2).find(|pair| bytes[pair[0].name.clone()] == bytes[pair[1].name.clone()]);
        if let Some(pair) = twice {
            let name = String::from_utf8_lossy(&bytes[pair[0].name.clone()]);
            return Err(LoadError::damaged(path, format!("tensor '{}' occurs twice", shorten(&name))));
        }
        Ok(Self { file, metadata, tensors: tensors.into() })
    }

    /// Where the file was.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
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

    /// The mapped file that the tensors' ranges refer to.
    #[must_use]
    pub fn file(&self) -> &MappedFile {
        &self.file
    }

    fn name(&self, tensor: &GgufTensor) -> &str {
        std::str::from_utf8(&self.file.bytes()[tensor.name.clone()]).expect("checked when the file was opened")
    }
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
        tensors.push(GgufTensor { name: name_range, shape, format, type_name: known.name, data: start..end });
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
