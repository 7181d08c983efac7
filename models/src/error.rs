//! [`LoadError`]: why a model could not be opened or loaded.

use std::path::{Path, PathBuf};

/// Why a model could not be opened or loaded. Messages name the file, tensor or key and say what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file is missing or cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The path exists but holds no model that could be meant.
    #[error("{}: {reason}", path.display())]
    NotAModel {
        /// The file or folder.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// A file contradicts its own format: cut short, overlapping, counts that cannot be.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, naming the key or tensor.
        reason: String,
    },
    /// A configuration or metadata key is missing or has a value that no such model can have.
    #[error("{key}: {reason}")]
    Config {
        /// The key, as the file spells it.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor is missing or does not have the shape that the configuration asks for.
    #[error("tensor '{name}' {reason}")]
    Tensor {
        /// The tensor, as the file spells it.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is sound, but asks for something that is not built.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// The options contradict each other or the model.
    #[error("{0}")]
    Options(String),
    /// The model does not fit into the memory that it may use. Nothing was allocated.
    #[error(
        "the model needs at least {} MiB of memory ({detail}), but may use {} MiB: {advice}",
        needed_bytes.div_ceil(1 << 20),
        available_bytes >> 20
    )]
    DoesNotFit {
        /// Bytes that the smallest useful configuration takes.
        needed_bytes: u64,
        /// Bytes that it may use.
        available_bytes: u64,
        /// What takes how much.
        detail: String,
        /// What to change.
        advice: String,
    },
}

impl LoadError {
    pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn config(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Config { key: key.into(), reason: reason.into() }
    }

    pub(crate) fn tensor(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Tensor { name: name.into(), reason: reason.into() }
    }
}
