//! [`GgufMetadata`]: the typed key-value part of a GGUF file.
//!
//! Everything is checked once, when the file is opened; the values stay in the mapped file and are decoded when asked
//! for, so that a vocabulary of 150,000 strings costs nothing until somebody iterates over it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::mmap::MappedFile;
use crate::error::LoadError;

/// Most keys that are accepted; real files have a few dozen.
const MAX_ENTRIES: u64 = 16_384;
/// Arrays inside arrays that are followed; no known key nests at all.
const MAX_NESTING: u32 = 4;

/// The types that a metadata value may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    /// Unsigned, 8 bits.
    U8,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 16 bits.
    U16,
    /// Signed, 16 bits.
    I16,
    /// Unsigned, 32 bits.
    U32,
    /// Signed, 32 bits.
    I32,
    /// IEEE 754, 32 bits.
    F32,
    /// One byte, 0 or 1.
    Bool,
    /// UTF-8 with a 64-bit length.
    String,
    /// A typed list.
    Array,
    /// Unsigned, 64 bits.
    U64,
    /// Signed, 64 bits.
    I64,
    /// IEEE 754, 64 bits.
    F64,
}

impl ValueType {
    /// By GGUF's numbers.
    const ALL: [Self; 13] = {
        use ValueType::{Array, Bool, F32, F64, I8, I16, I32, I64, String, U8, U16, U32, U64};
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64]
    };

    fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    fn id(self) -> u32 {
        (0..).zip(Self::ALL).find(|(_, known)| *known == self).expect("every type has a number").0
    }

    /// Bytes of a value of fixed size.
    fn size_bytes(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::String | Self::Array => None,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", format!("{self:?}").to_lowercase())
    }
}

/// One metadata value, borrowed from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Any unsigned type.
    Unsigned(u64),
    /// Any signed type.
    Signed(i64),
    /// Either float type.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Text.
    String(&'a str),
    /// A list.
    Array(GgufArray<'a>),
}

impl<'a> Value<'a> {
    /// The value as an integer that fits `u32`, whatever integer type the writer chose.
    #[must_use]
    pub fn as_u32(self) -> Option<u32> {
        match self {
            Self::Unsigned(value) => u32::try_from(value).ok(),
            Self::Signed(value) => u32::try_from(value).ok(),
            _ => None,
        }
    }

    /// The value as a signed integer, whatever integer type the writer chose.
    #[must_use]
    pub fn as_i64(self) -> Option<i64> {
        match self {
            Self::Unsigned(value) => i64::try_from(value).ok(),
            Self::Signed(value) => Some(value),
            _ => None,
        }
    }

    /// The value as text.
    #[must_use]
    pub fn as_str(self) -> Option<&'a str> {
        if let Self::String(text) = self { Some(text) } else { None }
    }

    /// The value as a float.
    #[must_use]
    pub fn as_f32(self) -> Option<f32> {
        if let Self::Float(value) = self { Some(value as f32) } else { None }
    }
}

/// A list in the metadata: elements are decoded as they are iterated over.
#[derive(Clone, Copy, PartialEq)]
pub struct GgufArray<'a> {
    element: ValueType,
    len: usize,
    data: &'a [u8],
}

impl<'a> GgufArray<'a> {
    /// Type of the elements.
    #[must_use]
    pub fn element_type(&self) -> ValueType {
        self.element
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements in order.
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let mut cursor = Cursor { bytes: self.data, pos: 0 };
        let element = self.element;
        (0..self.len).map(move |_| cursor.value(element).expect("checked when the file was opened"))
    }

    /// The elements as text; none at all when they are of another type.
    pub fn strings(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.iter().filter_map(Value::as_str)
    }
}

impl fmt::Debug for GgufArray<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}; {}]", self.element, self.len)
    }
}

/// The metadata of a GGUF file. Cheap to clone; keeps the file mapped.
#[derive(Clone, Debug)]
pub struct GgufMetadata {
    file: Arc<MappedFile>,
    /// Sorted by key.
    entries: Arc<[Entry]>,
}

#[derive(Clone, Debug)]
struct Entry {
    key: Range<usize>,
    value_type: ValueType,
    value: Range<usize>,
}

impl GgufMetadata {
    /// Reads and checks `num_entries` entries that begin at `cursor`.
    pub(super) fn read(file: &Arc<MappedFile>, cursor: &mut Cursor<'_>, num_entries: u64) -> Result<Self, LoadError> {
        let damaged = |reason: String| LoadError::damaged(file.path(), reason);
        if num_entries > MAX_ENTRIES {
            return Err(damaged(format!("{num_entries} metadata keys are more than the {MAX_ENTRIES} accepted")));
        }
        let mut entries = Vec::new();
        for entry_idx in 0..num_entries {
            let (key, key_range) =
                cursor.string().map_err(|why| damaged(format!("metadata key number {entry_idx}: {why}")))?;
            let in_key = |why: Fault| damaged(format!("metadata key '{}': {why}", shorten(key)));
            let type_id = cursor.u32().map_err(in_key)?;
            let value_type = ValueType::from_id(type_id).ok_or_else(|| in_key(Fault::UnknownType(type_id)))?;
            let start = cursor.pos;
            cursor.skip_value(value_type, 0).map_err(in_key)?;
            entries.push(Entry { key: key_range, value_type, value: start..cursor.pos });
        }
        let bytes = file.bytes();
        entries.sort_by(|a, b| bytes[a.key.clone()].cmp(&bytes[b.key.clone()]));
        if let Some(pair) = entries.windows(2).find(|pair| bytes[pair[0].key.clone()] == bytes[pair[1].key.clone()]) {
            let key = String::from_utf8_lossy(&bytes[pair[0].key.clone()]);
            return Err(damaged(format!("metadata key '{}' occurs twice", shorten(&key))));
        }
        Ok(Self { file: Arc::clone(file), entries: entries.into() })
    }

    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every key with its value, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.entries.iter().map(|entry| (self.key(entry), self.value(entry)))
    }

    /// Every key with GGUF's number for its type and its encoding, in the order of the file: to copy them.
    pub fn raw_entries(&self) -> impl Iterator<Item = (&str, u32, &[u8])> {
        let mut entries: Vec<&Entry> = self.entries.iter().collect();
        entries.sort_by_key(|entry| entry.key.start);
        entries
            .into_iter()
            .map(|entry| (self.key(entry), entry.value_type.id(), &self.file.bytes()[entry.value.clone()]))
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        let found = self.entries.binary_search_by(|entry| self.key(entry).cmp(key)).ok()?;
        Some(self.value(&self.entries[found]))
    }

    /// `key` as an unsigned integer of any width.
    ///
    /// # Errors
    /// When the key is there but is no such number; so for the other typed getters.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, LoadError> {
        self.typed(key, "an integer from 0 to 4294967295", Value::as_u32)
    }

    /// `key` as a float.
    ///
    /// # Errors
    /// As [`GgufMetadata::u32`].
    pub fn f32(&self, key: &str) -> Result<Option<f32>, LoadError> {
        self.typed(key, "a float", Value::as_f32)
    }

    /// `key` as a truth value.
    ///
    /// # Errors
    /// As [`GgufMetadata::u32`].
    pub fn bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.typed(key, "a bool", |value| if let Value::Bool(value) = value { Some(value) } else { None })
    }

    /// `key` as text.
    ///
    /// # Errors
    /// As [`GgufMetadata::u32`].
    pub fn str(&self, key: &str) -> Result<Option<&str>, LoadError> {
        self.typed(key, "a string", Value::as_str)
    }

    /// `key` as a list of any element type.
    ///
    /// # Errors
    /// As [`GgufMetadata::u32`].
    pub fn array(&self, key: &str) -> Result<Option<GgufArray<'_>>, LoadError> {
        self.typed(key, "an array", |value| if let Value::Array(array) = value { Some(array) } else { None })
    }

    /// `key` as a list of strings.
    ///
    /// # Errors
    /// As [`GgufMetadata::u32`].
    pub fn string_array(&self, key: &str) -> Result<Option<GgufArray<'_>>, LoadError> {
        self.typed(key, "an array of strings", |value| match value {
            Value::Array(array) if array.element == ValueType::String => Some(array),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        convert: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let converted = convert(value);
        if converted.is_none() {
            return Err(LoadError::config(key, format!("found {}, expected {wanted}", describe(value))));
        }
        Ok(converted)
    }

    fn key(&self, entry: &Entry) -> &str {
        std::str::from_utf8(&self.file.bytes()[entry.key.clone()]).expect("checked when the file was opened")
    }

    fn value(&self, entry: &Entry) -> Value<'_> {
        let mut cursor = Cursor { bytes: &self.file.bytes()[entry.value.clone()], pos: 0 };
        cursor.value(entry.value_type).expect("checked when the file was opened")
    }
}

fn describe(value: Value<'_>) -> String {
    match value {
        Value::Unsigned(number) => number.to_string(),
        Value::Signed(number) => number.to_string(),
        Value::Float(number) => format!("the float {number}"),
        Value::Bool(truth) => truth.to_string(),
        Value::String(text) => format!("the string \"{}\"", shorten(text)),
        Value::Array(array) => format!("an array of {} {}s", array.len, array.element),
    }
}

/// A name from the file as far as a message can carry it.
pub(super) fn shorten(text: &str) -> String {
    const MAX_CHARS: usize = 100;
    let printable = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let mut out: String = text.chars().take(MAX_CHARS).map(printable).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        out.push('…');
    }
    out
}

/// Why a piece of the file cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the file ends inside it")]
    Truncated,
    #[error("it is not valid UTF-8")]
    NotUtf8,
    #[error("{0} is no known value type")]
    UnknownType(u32),
    #[error("it is nested more than {MAX_NESTING} arrays deep")]
    TooDeep,
    #[error("{0} is no truth value")]
    NotBool(u8),
}

/// Reads little-endian values from the front of a file, never past its end.
pub(super) struct Cursor<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) pos: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: u64) -> Result<&'a [u8], Fault> {
        let len = usize::try_from(len).map_err(|_| Fault::Truncated)?;
        let end = self.pos.checked_add(len).ok_or(Fault::Truncated)?;
        let taken = self.bytes.get(self.pos..end).ok_or(Fault::Truncated)?;
        self.pos = end;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let taken = self.take(N as u64)?;
        Ok(taken.try_into().expect("`take` returns what was asked for"))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        self.take_array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        self.take_array().map(u64::from_le_bytes)
    }

    /// A string and where it lies in the file.
    pub(super) fn string(&mut self) -> Result<(&'a str, Range<usize>), Fault> {
        let len = self.u64()?;
        let start = self.pos;
        let text = std::str::from_utf8(self.take(len)?).map_err(|_| Fault::NotUtf8)?;
        Ok((text, start..self.pos))
    }

    /// Checks a value of this type and moves past it. Time is linear in the bytes passed.
    fn skip_value(&mut self, value_type: ValueType, depth: u32) -> Result<(), Fault> {
        match value_type {
            ValueType::String => self.string().map(drop),
            ValueType::Bool => self.value(ValueType::Bool).map(drop),
            ValueType::Array => {
                if depth == MAX_NESTING {
                    return Err(Fault::TooDeep);
                }
                let type_id = self.u32()?;
                let element = ValueType::from_id(type_id).ok_or(Fault::UnknownType(type_id))?;
                let len = self.u64()?;
                if let Some(size_bytes) = element.size_bytes().filter(|_| element != ValueType::Bool) {
                    return self.take(len.checked_mul(size_bytes).ok_or(Fault::Truncated)?).map(drop);
                }
                // Every element takes a byte at least, so a count that lies ends at the end of the file.
                for _ in 0..len {
                    self.skip_value(element, depth + 1)?;
                }
                Ok(())
            }
            fixed => self.take(fixed.size_bytes().expect("all others have a fixed size")).map(drop),
        }
    }

    fn value(&mut self, value_type: ValueType) -> Result<Value<'a>, Fault> {
        Ok(match value_type {
            ValueType::U8 => Value::Unsigned(self.take_array().map(u8::from_le_bytes)?.into()),
            ValueType::I8 => Value::Signed(self.take_array().map(i8::from_le_bytes)?.into()),
            ValueType::U16 => Value::Unsigned(self.take_array().map(u16::from_le_bytes)?.into()),
            ValueType::I16 => Value::Signed(self.take_array().map(i16::from_le_bytes)?.into()),
            ValueType::U32 => Value::Unsigned(self.u32()?.into()),
            ValueType::I32 => Value::Signed(self.take_array().map(i32::from_le_bytes)?.into()),
            ValueType::F32 => Value::Float(self.take_array().map(f32::from_le_bytes)?.into()),
            ValueType::U64 => Value::Unsigned(self.u64()?),
            ValueType::I64 => Value::Signed(self.take_array().map(i64::from_le_bytes)?),
            ValueType::F64 => Value::Float(self.take_array().map(f64::from_le_bytes)?),
            ValueType::Bool => match self.take_array::<1>()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(Fault::NotBool(other)),
            },
            ValueType::String => Value::String(self.string()?.0),
            ValueType::Array => {
                let type_id = self.u32()?;
                let element = ValueType::from_id(type_id).ok_or(Fault::UnknownType(type_id))?;
                let len = usize::try_from(self.u64()?).map_err(|_| Fault::Truncated)?;
                let start = self.pos;
                let header_bytes = 12;
                self.pos = start - header_bytes;
                self.skip_value(ValueType::Array, 0)?;
                Value::Array(GgufArray { element, len, data: &self.bytes[start..self.pos] })
            }
        })
    }
}
