//! [`GgufConfig`]: typed access to GGUF metadata, with what all families share. Rotary settings are in `rope`.

use super::hf::check_layers;
use crate::error::LoadError;
use crate::spec::ExpertSpec;
use crate::weights::Weights;
use crate::weights::gguf::{Gguf, GgufMetadata};

/// The metadata of a GGUF file seen from one architecture: keys are without its prefix.
pub struct GgufConfig<'a> {
    weights: &'a Weights,
    metadata: &'a GgufMetadata,
    architecture: &'a str,
}

impl<'a> GgufConfig<'a> {
    /// The configuration of `gguf`, which `weights` wraps.
    ///
    /// # Errors
    /// [`LoadError::Config`] when it names no architecture.
    pub fn new(weights: &'a Weights, gguf: &'a Gguf) -> Result<Self, LoadError> {
        let metadata = gguf.metadata();
        let architecture = metadata.str("general.architecture")?;
        let architecture = architecture.ok_or_else(|| LoadError::config("general.architecture", "is missing"))?;
        Ok(Self { weights, metadata, architecture })
    }

    /// The value of `general.architecture`.
    #[must_use]
    pub fn architecture(&self) -> &'a str {
        self.architecture
    }

    /// Whether the file has the tensor `name`.
    #[must_use]
    pub fn has_tensor(&self, name: &str) -> bool {
        self.weights.contains(name)
    }

    /// The values of a small vector of the file.
    ///
    /// # Errors
    /// As [`Weights::vector`].
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        self.weights.vector(name, len)
    }

    /// `key` as a size.
    ///
    /// # Errors
    /// [`LoadError::Config`] when it is missing or no such number; the other getters alike.
    pub fn size(&self, key: &str) -> Result<usize, LoadError> {
        let missing = || LoadError::config(self.full(key), "is missing from the file's metadata");
        self.optional_size(key)?.ok_or_else(missing)
    }

    /// `key` as a size, if it is there.
    ///
    /// # Errors
    /// As [`GgufConfig::size`].
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>, LoadError> {
        Ok(self.metadata.u32(&self.full(key))?.map(|size| size as usize))
    }

    /// `key` as a float, if it is there.
    ///
    /// # Errors
    /// As [`GgufConfig::size`].
    pub fn optional_float(&self, key: &str) -> Result<Option<f32>, LoadError> {
        self.metadata.f32(&self.full(key))
    }

    /// `key` as a float.
    ///
    /// # Errors
    /// As [`GgufConfig::size`].
    pub fn float(&self, key: &str) -> Result<f32, LoadError> {
        let missing = || LoadError::config(self.full(key), "is missing from the file's metadata");
        self.optional_float(key)?.ok_or_else(missing)
    }

    /// Rows of the embedding.
    ///
    /// # Errors
    /// [`LoadError::Tensor`] when there is no such matrix.
    pub fn vocab_size(&self, embedding: &str) -> Result<usize, LoadError> {
        let name = format!("{embedding}.weight");
        let shape = self.weights.shape(&name).ok_or_else(|| LoadError::tensor(&name, "is missing from the file"))?;
        match shape.dims() {
            [rows, _] => Ok(usize::try_from(*rows).unwrap_or(usize::MAX)),
            _ => Err(LoadError::tensor(&name, format!("has shape {shape}, expected a matrix"))),
        }
    }

    /// Entries of one head: `attention.key_length`, or what the heads share of the hidden size.
    ///
    /// # Errors
    /// As [`GgufConfig::size`]; also when values have another length than keys.
    pub fn head_dim(&self) -> Result<usize, LoadError> {
        let (hidden, heads) = (self.size("embedding_length")?, self.size("attention.head_count")?);
        let shared = hidden.checked_div(heads).unwrap_or(0);
        let key_len = self.optional_size("attention.key_length")?.unwrap_or(shared);
        let value_len = self.optional_size("attention.value_length")?.unwrap_or(shared);
        if key_len != value_len {
            return Err(LoadError::Unsupported(format!(
                "keys of {key_len} and values of {value_len} entries per head"
            )));
        }
        Ok(key_len)
    }

    /// `block_count`, small enough to make a list of them.
    ///
    /// # Errors
    /// As [`GgufConfig::size`].
    pub fn num_layers(&self) -> Result<usize, LoadError> {
        check_layers(&self.full("block_count"), self.size("block_count")?)
    }

    /// `attention.sliding_window` for the layers that `is_sliding` names; a window that no context exceeds is none.
    ///
    /// # Errors
    /// As [`GgufConfig::size`].
    pub fn windows(&self, is_sliding: impl Fn(usize) -> bool) -> Result<Vec<Option<u32>>, LoadError> {
        let context = self.size("context_length")?;
        let window = self.optional_size("attention.sliding_window")?;
        let window =
            window.filter(|window| (1..context).contains(window)).and_then(|window| u32::try_from(window).ok());
        Ok((0..self.num_layers()?).map(|layer_idx| window.filter(|_| is_sliding(layer_idx))).collect())
    }

    /// No windows, in an architecture that has none.
    ///
    /// # Errors
    /// [`LoadError::Unsupported`] naming the key when there is one.
    pub fn full_layers(&self) -> Result<Vec<Option<u32>>, LoadError> {
        let windows = self.windows(|_| true)?;
        match windows.iter().flatten().next() {
            Some(window) => {
                Err(LoadError::Unsupported(format!("{} of {window}", self.full("attention.sliding_window"))))
            }
            None => Ok(windows),
        }
    }

    /// The experts of every layer, if there are any; `normalize` says whether their shares are scaled to sum to 1.
    ///
    /// # Errors
    /// As [`GgufConfig::size`].
    pub fn experts(&self, normalize: bool) -> Result<Option<ExpertSpec>, LoadError> {
        let Some(num_experts) = self.optional_size("expert_count")?.filter(|experts| *experts > 0) else {
            return Ok(None);
        };
        let ffn_dim = match self.optional_size("expert_feed_forward_length")? {
            Some(ffn_dim) => ffn_dim,
            None => self.size("feed_forward_length")?,
        };
        if let Some(shared) = self.optional_size("expert_shared_count")?.filter(|shared| *shared > 0) {
            return Err(LoadError::Unsupported(format!("{} of {shared}", self.full("expert_shared_count"))));
        }
        let num_active = self.size("expert_used_count")?;
        Ok(Some(ExpertSpec { num_experts, num_active, ffn_dim, normalize }))
    }

    /// A string of the metadata.
    ///
    /// # Errors
    /// As [`GgufConfig::size`].
    pub(super) fn optional_str(&self, key: &str) -> Result<Option<&'a str>, LoadError> {
        self.metadata.str(&self.full(key))
    }

    /// `key` with the architecture's prefix.
    pub(super) fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }
}
