//! The demo model that comes inside the binary, so that `tokenmill serve` answers without a download.
//!
//! Loaders want files to map, so it is written to the data folder at first use: into a folder named for its contents, so that
//! a new version never mixes with an old one. What is there already is compared and repaired.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The value of `--model` that stands for it.
pub const SPEC: &str = "demo";

/// Name and contents of its files; demo/README.md says where they come from.
const FILES: &[(&str, &[u8])] = &[
    ("config.json", include_bytes!("../demo/model/config.json")),
    ("generation_config.json", include_bytes!("../demo/model/generation_config.json")),
    ("model.safetensors", include_bytes!("../demo/model/model.safetensors")),
    ("tokenizer.json", include_bytes!("../demo/model/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../demo/model/tokenizer_config.json")),
];

/// The folder with its files below `data_dir`, written if they are not there.
///
/// # Errors
/// What the file system says.
pub fn unpack(data_dir: &Path) -> io::Result<PathBuf> {
    let folder = data_dir.join(format!("demo-{}", &fingerprint()[..16]));
    if !is_complete(&folder) {
        fs::create_dir_all(&folder)?;
        for (name, contents) in FILES {
            write_whole(&folder, name, contents)?;
        }
    }
    Ok(folder)
}

/// Of all names and contents.
fn fingerprint() -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, contents) in FILES {
        hasher.update(name.as_bytes());
        hasher.update(&contents.len().to_le_bytes());
        hasher.update(contents);
    }
    hasher.finalize().to_hex().to_string()
}

fn is_complete(folder: &Path) -> bool {
    FILES.iter().all(|(name, contents)| fs::read(folder.join(name)).is_ok_and(|found| found == *contents))
}

/// Writes beside and renames, so that another process never maps half a file.
fn write_whole(folder: &Path, name: &str, contents: &[u8]) -> io::Result<()> {
    let partial = folder.join(format!("{name}.{}", std::process::id()));
    fs::write(&partial, contents)?;
    fs::rename(&partial, folder.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_unpacked_once_and_repaired() {
        let dir = tempfile::tempdir().unwrap();
        let folder = unpack(dir.path()).unwrap();
        let weights = folder.join("model.safetensors");
        let written = fs::metadata(&weights).unwrap().modified().unwrap();
        assert_eq!(unpack(dir.path()).unwrap(), folder);
        assert_eq!(fs::metadata(&weights).unwrap().modified().unwrap(), written);
        fs::write(&weights, b"cut short").unwrap();
        unpack(dir.path()).unwrap();
        assert!(is_complete(&folder));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), FILES.len());
    }

    #[test]
    fn it_is_small_enough_to_carry() {
        assert!(FILES.iter().map(|(_, contents)| contents.len()).sum::<usize>() <= 12 << 20);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(unpack(file.path()).is_err());
    }
}
