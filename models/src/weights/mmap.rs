//! [`MappedFile`]: a model file mapped into memory, read-only.
//!
//! The pages belong to the system's cache, so an unused part costs nothing and a used one can be given back with
//! [`MappedFile::release`]. A file that somebody truncates while it is mapped kills the process with SIGBUS; a model
//! file must be replaced by renaming a new one over it, never by writing into it.
#![allow(unsafe_code, reason = "mapping a file is unsafe; the only place outside the kernels")]

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::LoadError;

/// A whole file, mapped read-only.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
    path: PathBuf,
}

impl MappedFile {
    /// Maps the regular file at `path`.
    ///
    /// # Errors
    /// [`LoadError::Io`] when it cannot be opened, [`LoadError::Damaged`] when it is empty,
    /// [`LoadError::NotAModel`] when it is not a regular file.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let io = |source| LoadError::Io { path: path.to_owned(), source };
        // Asked before opening: opening a named pipe would wait for a writer.
        let metadata = std::fs::metadata(path).map_err(io)?;
        if !metadata.is_file() {
            return Err(LoadError::NotAModel { path: path.to_owned(), reason: "not a regular file".to_owned() });
        }
        if metadata.len() == 0 {
            return Err(LoadError::damaged(path, "it is empty"));
        }
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is private and read-only; that nobody changes the file meanwhile is the documented condition
        // of use (see the module's text), which no program can enforce on Linux.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Self { map, path: path.to_owned() })
    }

    /// Where the file was.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's contents.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Tells the system that `range` will not be read again soon: its pages stop counting as this process's memory.
    /// Reading them later is allowed and fetches them from the file again.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        {
            let len = range.end.min(self.map.len()).saturating_sub(range.start);
            if len > 0 {
                // SAFETY: for a private read-only map of a file the dropped pages come back with the same contents.
                let advised =
                    unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, len) };
                if let Err(error) = advised {
                    tracing::debug!(%error, "pages of the model file could not be released");
                }
            }
        }
        #[cfg(not(unix))]
        drop(range);
    }
}
