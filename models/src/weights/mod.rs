//! Weight files: find a tensor by name, get its bytes, shape and format.
//!
//! [`Weights`] is what the loader sees; `gguf` and `safetensors` read the two forms that models come in. Both check a
//! file completely when it is opened, so a tensor that is handed out always lies inside its file.

pub mod float8;
pub mod gguf;
pub mod gguf_metadata;
pub mod gguf_writer;
pub mod mmap;
pub mod safetensors;
pub mod shape;

use std::ops::Range;
use std::path::Path;

use tokenmill_kernels::quant::{FORMATS, Format, QuantMatrix};

use self::gguf::Gguf;
use self::mmap::MappedFile;
use self::safetensors::Safetensors;
use self::shape::Shape;
use crate::error::LoadError;

/// What safetensors files call the 8-bit floats that are read here.
const F8: &str = "F8_E4M3";

/// The tensors of a model, whatever file they are in.
#[derive(Debug)]
pub enum Weights {
    /// A GGUF file, in one part or split.
    Gguf(Gguf),
    /// A Hugging Face folder.
    Folder(Safetensors),
}

/// A tensor whose type some kernel can read.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    /// Outermost dimension first.
    pub shape: Shape,
    /// How `bytes` are to be read.
    pub format: Format,
    file: &'a MappedFile,
    data: Range<usize>,
}

impl Tensor<'_> {
    /// The tensor's bytes, row-major, at any alignment.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.file.bytes()[self.data.clone()]
    }

    /// Lets go of the pages that hold the bytes, once they have been copied. See [`MappedFile::release`].
    pub fn release(&self) {
        self.file.release(self.data.clone());
    }
}

/// A stored tensor as `inspect` lists it.
#[derive(Clone, Debug)]
pub struct TensorSummary<'a> {
    /// The name in the file.
    pub name: &'a str,
    /// The type as the file calls it.
    pub type_name: &'static str,
    /// Whether a kernel can read the type.
    pub is_supported: bool,
    /// Number of weights.
    pub num_elements: u64,
    /// Bytes in the file.
    pub size_bytes: u64,
}

impl Weights {
    /// Opens the weights at `path`: a GGUF file or a folder with safetensors.
    ///
    /// # Errors
    /// As [`Gguf::open`] and [`Safetensors::open`].
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        if path.is_dir() { Safetensors::open(path).map(Self::Folder) } else { Gguf::open(path).map(Self::Gguf) }
    }

    /// Whether there is a tensor called `name`.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::Gguf(gguf) => gguf.tensor(name).is_some(),
            Self::Folder(folder) => folder.tensor(name).is_some(),
        }
    }

    /// Dimensions of the tensor called `name`, also of one whose type nobody can read.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<Shape> {
        match self {
            Self::Gguf(gguf) => gguf.tensor(name).map(|tensor| tensor.shape),
            Self::Folder(folder) => folder.tensor(name).map(|tensor| tensor.shape),
        }
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// [`LoadError::Tensor`] when it is missing, [`LoadError::Unsupported`] when no kernel can read its type.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, LoadError> {
        let (shape, format, type_name, file, data) = match self {
            Self::Gguf(gguf) => gguf.tensor(name).map(|t| (t.shape, t.format, t.type_name, gguf.file_of(t), &t.data)),
            Self::Folder(folder) => {
                folder.tensor(name).map(|t| (t.shape, t.format, t.type_name, folder.file(t), &t.data))
            }
        }
        .ok_or_else(|| LoadError::tensor(name, "is missing from the file"))?;
        let format = format.ok_or_else(|| {
            let known: Vec<&str> = FORMATS.iter().map(|info| info.name).collect();
            LoadError::Unsupported(format!(
                "tensor '{name}' is of type {type_name}; use weights in {}",
                known.join(", ")
            ))
        })?;
        Ok(Tensor { shape, format, file, data: data.clone() })
    }

    /// The matrix called `name`, `[rows, cols]`.
    ///
    /// # Errors
    /// As [`Weights::tensor`], and [`LoadError::Tensor`] when its shape is another.
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Tensor<'_>, LoadError> {
        self.rows(name, &[rows, cols], 0..rows)
    }

    /// Some rows of the tensor called `name`, which has shape `shape`; all dimensions but the last count rows.
    ///
    /// # Errors
    /// As [`Weights::matrix`].
    ///
    /// # Panics
    /// When the tensor has that shape, but not those rows.
    pub fn rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<Tensor<'_>, LoadError> {
        let tensor = self.tensor(name)?;
        if !tensor.shape.dims().iter().copied().eq(shape.iter().map(|dim| *dim as u64)) {
            return Err(LoadError::tensor(name, format!("has shape {}, expected {shape:?}", tensor.shape)));
        }
        let Some((cols, outer)) = shape.split_last() else { return Ok(tensor) };
        let num_rows: usize = outer.iter().product();
        assert!(rows.start <= rows.end && rows.end <= num_rows, "rows {rows:?} of {num_rows}");
        let row_bytes = tensor.data.len() / num_rows.max(1);
        let data = tensor.data.start + rows.start * row_bytes..tensor.data.start + rows.end * row_bytes;
        let shape = Shape::new(&[rows.len() as u64, *cols as u64]).expect("two dimensions are few");
        Ok(Tensor { shape, data, ..tensor })
    }

    /// Whether the tensor called `name` holds 8-bit floats, which `float8` reads.
    #[must_use]
    pub fn is_f8(&self, name: &str) -> bool {
        matches!(self, Self::Folder(folder) if folder.tensor(name).is_some_and(|tensor| tensor.type_name == F8))
    }

    /// The bytes of the matrix of 8-bit floats called `name`, `[rows, cols]`.
    ///
    /// # Errors
    /// [`LoadError::Tensor`] when it is missing, of another type or of another shape.
    pub fn f8_bytes(&self, name: &str, rows: usize, cols: usize) -> Result<&[u8], LoadError> {
        let Self::Folder(folder) = self else { return Err(LoadError::tensor(name, "is not in a folder")) };
        let tensor = folder.tensor(name).ok_or_else(|| LoadError::tensor(name, "is missing from the file"))?;
        if tensor.type_name != F8 || tensor.shape.dims() != [rows as u64, cols as u64] {
            let (found, shape) = (tensor.type_name, tensor.shape);
            return Err(LoadError::tensor(name, format!("is {found} {shape}, expected {F8} [{rows}, {cols}]")));
        }
        Ok(&folder.file(tensor).bytes()[tensor.data.clone()])
    }

    /// All values of the tensor called `name`, row by row.
    ///
    /// # Errors
    /// As [`Weights::tensor`].
    pub fn values(&self, name: &str) -> Result<Vec<f32>, LoadError> {
        let tensor = self.tensor(name)?;
        let len = tensor.shape.num_elements().expect("checked when the file was opened") as usize;
        let row = QuantMatrix::new(tensor.format, 1, len, tensor.bytes())
            .map_err(|error| LoadError::tensor(name, error.to_string()))?;
        let mut values = vec![0.0; len];
        row.dequantize_row(0, &mut values);
        Ok(values)
    }

    /// The vector called `name`, `[len]`, as f32.
    ///
    /// # Errors
    /// As [`Weights::matrix`].
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let tensor = self.tensor(name)?;
        if tensor.shape.dims() != [len as u64] {
            return Err(LoadError::tensor(name, format!("has shape {}, expected [{len}]", tensor.shape)));
        }
        self.values(name)
    }

    /// Every tensor, in order of name.
    #[must_use]
    pub fn summaries(&self) -> Vec<TensorSummary<'_>> {
        match self {
            Self::Gguf(gguf) => {
                let each = gguf.tensors().map(|(name, t)| summary(name, t.type_name, t.format, t.shape, t.data.len()));
                each.collect()
            }
            Self::Folder(folder) => {
                let each = folder.tensors().map(|t| summary(&t.name, t.type_name, t.format, t.shape, t.data.len()));
                each.collect()
            }
        }
    }
}

fn summary<'a>(
    name: &'a str,
    type_name: &'static str,
    format: Option<Format>,
    shape: Shape,
    size_bytes: usize,
) -> TensorSummary<'a> {
    let num_elements = shape.num_elements().expect("checked when the file was opened");
    TensorSummary { name, type_name, is_supported: format.is_some(), num_elements, size_bytes: size_bytes as u64 }
}
