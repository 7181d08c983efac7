//! Writing GGUF files: the counterpart of `gguf`, for synthetic models, conversions and tests.
//!
//! The header states all tensors before their data, so a file is declared first ([`GgufHeader`]) and then streamed in
//! the declared order ([`GgufWriter`]); nothing but a header is ever in memory.

use std::io::{self, Write};

use tokenmill_kernels::quant::Format;

/// Version 3, little-endian: what every current reader takes.
const VERSION: u32 = 3;
const ALIGNMENT: usize = 32;

const TYPE_U32: u32 = 4;
const TYPE_I32: u32 = 5;
const TYPE_F32: u32 = 6;
const TYPE_BOOL: u32 = 7;
const TYPE_STRING: u32 = 8;
const TYPE_ARRAY: u32 = 9;

/// The metadata and tensor table of a file to be written.
#[derive(Debug, Default)]
pub struct GgufHeader {
    metadata: Vec<u8>,
    num_entries: u64,
    tensors: Vec<Declared>,
}

#[derive(Debug)]
struct Declared {
    name: String,
    dims: Vec<u64>,
    format: Format,
    num_bytes: usize,
}

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum GgufWriteError {
    /// A tensor's rows are not whole blocks of its format.
    #[error("tensor '{name}': {format:?} needs rows of whole blocks, not of {cols} values")]
    Shape {
        /// The tensor.
        name: String,
        /// Its format.
        format: Format,
        /// Values in a row.
        cols: usize,
    },
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl GgufHeader {
    /// A header without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a number.
    pub fn put_u32(&mut self, key: &str, value: u32) {
        self.key(key, TYPE_U32);
        self.metadata.extend_from_slice(&value.to_le_bytes());
    }

    /// Adds a float.
    pub fn put_f32(&mut self, key: &str, value: f32) {
        self.key(key, TYPE_F32);
        self.metadata.extend_from_slice(&value.to_le_bytes());
    }

    /// Adds a truth value.
    pub fn put_bool(&mut self, key: &str, value: bool) {
        self.key(key, TYPE_BOOL);
        self.metadata.push(u8::from(value));
    }

    /// Adds a text.
    pub fn put_str(&mut self, key: &str, value: &str) {
        self.key(key, TYPE_STRING);
        put_text(&mut self.metadata, value);
    }

    /// Adds a value as another file holds it: `value_type` is GGUF's number for its type, `bytes` its encoding.
    pub fn put_raw(&mut self, key: &str, value_type: u32, bytes: &[u8]) {
        self.key(key, value_type);
        self.metadata.extend_from_slice(bytes);
    }

    /// Adds a list of texts.
    pub fn put_strs(&mut self, key: &str, values: &[String]) {
        self.array(key, TYPE_STRING, values.len());
        for value in values {
            put_text(&mut self.metadata, value);
        }
    }

    /// Adds a list of numbers.
    pub fn put_i32s(&mut self, key: &str, values: &[i32]) {
        self.array(key, TYPE_I32, values.len());
        for value in values {
            self.metadata.extend_from_slice(&value.to_le_bytes());
        }
    }

    /// Declares a tensor; `shape` is outermost first, `[rows, cols]` or `[cols]`.
    ///
    /// # Errors
    /// [`GgufWriteError::Shape`] when a row is not whole blocks.
    pub fn declare(&mut self, name: &str, shape: &[usize], format: Format) -> Result<(), GgufWriteError> {
        let (cols, outer) = shape.split_last().map_or((1, shape), |(cols, outer)| (*cols, outer));
        let row_bytes = format.row_bytes(cols);
        let num_bytes = row_bytes.and_then(|bytes| outer.iter().try_fold(bytes, |bytes, dim| bytes.checked_mul(*dim)));
        let Some(num_bytes) = num_bytes else {
            return Err(GgufWriteError::Shape { name: name.to_owned(), format, cols });
        };
        // The file lists dimensions innermost first.
        let dims = shape.iter().rev().map(|&dim| dim as u64).collect();
        self.tensors.push(Declared { name: name.to_owned(), dims, format, num_bytes });
        Ok(())
    }

    /// Bytes of the whole file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        let data: usize = self.tensors.iter().map(|tensor| tensor.num_bytes.next_multiple_of(ALIGNMENT)).sum();
        self.bytes().len() as u64 + data as u64
    }

    /// Writes the header to `out`; the tensors follow through the writer.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn start<W: Write>(self, mut out: W) -> Result<GgufWriter<W>, GgufWriteError> {
        out.write_all(&self.bytes())?;
        Ok(GgufWriter { out, tensors: self.tensors, tensor_idx: 0, num_written: 0 })
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.metadata.len() + 128 * self.tensors.len());
        bytes.extend_from_slice(b"GGUF");
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&self.num_entries.to_le_bytes());
        bytes.extend_from_slice(&self.metadata);
        let mut offset = 0_u64;
        for tensor in &self.tensors {
            put_text(&mut bytes, &tensor.name);
            let num_dims = u32::try_from(tensor.dims.len()).expect("tensors have a handful of dimensions");
            bytes.extend_from_slice(&num_dims.to_le_bytes());
            for dim in &tensor.dims {
                bytes.extend_from_slice(&dim.to_le_bytes());
            }
            bytes.extend_from_slice(&tensor.format.info().gguf_type.to_le_bytes());
            bytes.extend_from_slice(&offset.to_le_bytes());
            offset += tensor.num_bytes.next_multiple_of(ALIGNMENT) as u64;
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }

    fn key(&mut self, key: &str, value_type: u32) {
        put_text(&mut self.metadata, key);
        self.metadata.extend_from_slice(&value_type.to_le_bytes());
        self.num_entries += 1;
    }

    fn array(&mut self, key: &str, element_type: u32, len: usize) {
        self.key(key, TYPE_ARRAY);
        self.metadata.extend_from_slice(&element_type.to_le_bytes());
        self.metadata.extend_from_slice(&(len as u64).to_le_bytes());
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

/// Takes the tensors' bytes in the order in which they were declared.
#[derive(Debug)]
pub struct GgufWriter<W> {
    out: W,
    tensors: Vec<Declared>,
    tensor_idx: usize,
    /// Bytes of the current tensor.
    num_written: usize,
}

impl<W: Write> GgufWriter<W> {
    /// Writes the next bytes of the current tensor: any whole part of what it still lacks.
    ///
    /// # Errors
    /// Those of the output.
    ///
    /// # Panics
    /// When `bytes` is more than the current tensor lacks.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), GgufWriteError> {
        let tensor = self.tensors.get(self.tensor_idx).expect("a tensor was declared for these bytes");
        let (end, name) = (self.num_written + bytes.len(), &tensor.name);
        assert!(end <= tensor.num_bytes, "tensor '{name}' has {} bytes, not {end}", tensor.num_bytes);
        self.out.write_all(bytes)?;
        self.num_written = end;
        if end == tensor.num_bytes {
            self.out.write_all(&[0; ALIGNMENT][..end.next_multiple_of(ALIGNMENT) - end])?;
            self.tensor_idx += 1;
            self.num_written = 0;
        }
        Ok(())
    }

    /// Flushes and hands back the output.
    ///
    /// # Errors
    /// Those of the output.
    ///
    /// # Panics
    /// When a declared tensor is not written.
    pub fn finish(mut self) -> Result<W, GgufWriteError> {
        assert!(self.tensor_idx == self.tensors.len(), "{} of {} tensors written", self.tensor_idx, self.tensors.len());
        self.out.flush()?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::gguf::{Gguf, Value};
    use tokenmill_kernels::quant::quantize_row;

    #[test]
    fn what_is_written_is_read() {
        let mut header = GgufHeader::new();
        header.put_str("general.architecture", "llama");
        header.put_u32("a.number", 7);
        header.put_f32("a.float", 0.5);
        header.put_bool("a.bool", true);
        header.put_strs("a.texts", &["é".to_owned(), String::new()]);
        header.put_i32s("a.numbers", &[1, -3]);
        header.declare("odd", &[5], Format::F32).unwrap();
        header.declare("matrix", &[3, 64], Format::Q8_0).unwrap();
        assert!(matches!(header.declare("bad", &[3, 33], Format::Q8_0), Err(GgufWriteError::Shape { cols: 33, .. })));
        let expected_bytes = header.file_bytes();

        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = header.start(file.as_file()).unwrap();
        let odd: Vec<u8> = (0..5_u16).flat_map(|value| f32::from(value).to_le_bytes()).collect();
        writer.write(&odd[..8]).unwrap();
        writer.write(&odd[8..]).unwrap();
        let mut row = vec![0; Format::Q8_0.row_bytes(64).unwrap()];
        quantize_row(Format::Q8_0, &[1.0; 64], &mut row);
        for _ in 0..3 {
            writer.write(&row).unwrap();
        }
        writer.finish().unwrap();

        assert_eq!(file.as_file().metadata().unwrap().len(), expected_bytes);
        let read = Gguf::open(file.path()).unwrap();
        let metadata = read.metadata();
        assert_eq!(metadata.str("general.architecture").unwrap(), Some("llama"));
        assert_eq!(metadata.u32("a.number").unwrap(), Some(7));
        assert_eq!(metadata.f32("a.float").unwrap(), Some(0.5));
        assert_eq!(metadata.bool("a.bool").unwrap(), Some(true));
        let texts: Vec<&str> = metadata.string_array("a.texts").unwrap().unwrap().strings().collect();
        assert_eq!(texts, ["é", ""]);
        let numbers: Vec<Option<i64>> =
            metadata.array("a.numbers").unwrap().unwrap().iter().map(Value::as_i64).collect();
        assert_eq!(numbers, [Some(1), Some(-3)]);
        let matrix = read.tensor("matrix").unwrap();
        assert_eq!((matrix.shape.dims(), matrix.format), (&[3, 64][..], Some(Format::Q8_0)));
        assert_eq!(read.file_of(matrix).bytes()[matrix.data.clone()], row.repeat(3));
        let odd_tensor = read.tensor("odd").unwrap();
        assert_eq!(read.file_of(odd_tensor).bytes()[odd_tensor.data.clone()], odd);
    }

    #[test]
    #[should_panic(expected = "0 of 1 tensors written")]
    fn a_missing_tensor_is_noticed() {
        let mut header = GgufHeader::new();
        header.declare("x", &[4], Format::F32).unwrap();
        drop(header.start(Vec::new()).unwrap().finish());
    }
}
