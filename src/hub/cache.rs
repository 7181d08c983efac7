//! The hub's cache on disk, in the layout that other tools share.
//!
//! ```text
//! models--org--name/refs/main              the commit that `main` was at
//! models--org--name/blobs/<etag>           contents, once each
//! models--org--name/snapshots/<commit>/…   a commit's files: links to blobs
//! .locks/models--org--name/<etag>.lock     held while a blob is fetched
//! ```
//!
//! Invariant: what lies under `blobs` by its name is whole and checked; links and refs are put in place by renaming, so a
//! reader never sees half of one.

use super::error::HubError;
use super::spec::{HubSpec, is_safe_path};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Files that a snapshot may have; more are not looked at.
const MAX_FILES: usize = 10_000;

/// One repository's part of the cache.
#[derive(Clone, Debug)]
pub(super) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(super) fn new(cache_dir: &Path, spec: &HubSpec) -> Self {
        let folder = spec.folder();
        Self { root: cache_dir.join(&folder), locks: cache_dir.join(".locks").join(folder) }
    }

    /// Makes the folders and returns that of the blobs.
    pub(super) fn make_blobs(&self) -> Result<PathBuf, HubError> {
        let blobs = self.root.join("blobs");
        for dir in [&blobs, &self.locks] {
            fs::create_dir_all(dir).map_err(HubError::disk(dir))?;
        }
        Ok(blobs)
    }

    /// The folder of commit `commit`.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The commit that `revision` was at when it was fetched last; a commit stands for itself.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        let text = fs::read_to_string(self.root.join("refs").join(revision)).ok();
        let commit = text.map(|text| text.trim().to_owned()).filter(|commit| is_safe_path(commit));
        commit.or_else(|| self.snapshot(revision).is_dir().then(|| revision.to_owned()))
    }

    /// Notes that `revision` is at `commit`.
    pub(super) fn set_commit(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        let dir = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(dir).map_err(HubError::disk(dir))?;
        let fresh = unique(&path);
        fs::write(&fresh, commit).and_then(|()| fs::rename(&fresh, &path)).map_err(HubError::disk(&path))
    }

    /// Whether the snapshot has `file`, whole.
    pub(super) fn has(&self, commit: &str, file: &str) -> bool {
        // Follows the link, so that one whose blob is gone does not count.
        self.snapshot(commit).join(file).is_file()
    }

    /// The files of a snapshot, with `/` between folders.
    pub(super) fn files(&self, commit: &str) -> Vec<String> {
        let mut files = Vec::new();
        collect(&self.snapshot(commit), "", &mut files);
        files.sort();
        files
    }

    /// Makes `file` of `commit` a link to the blob `etag`, which is there.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let path = self.snapshot(commit).join(file);
        let dir = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(dir).map_err(HubError::disk(dir))?;
        let up = "../".repeat(2 + file.matches('/').count());
        let (target, blob) = (PathBuf::from(format!("{up}blobs/{etag}")), self.root.join("blobs").join(etag));
        let fresh = unique(&path);
        let made = symlink(&target, &fresh)
            // Where links are not allowed, a second name does as well, and a copy at worst.
            .or_else(|_| fs::hard_link(&blob, &fresh))
            .or_else(|_| fs::copy(&blob, &fresh).map(|_| ()));
        made.and_then(|()| fs::rename(&fresh, &path)).map_err(HubError::disk(&path))
    }

    /// Waits until nobody else fetches the blob `etag`; the lock holds until the file is dropped. Blocks.
    pub(super) fn lock(&self, etag: &str, what: &str) -> Result<File, HubError> {
        let path = self.locks.join(format!("{etag}.lock"));
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(HubError::disk(&path))?;
        if file.try_lock().is_err() {
            tracing::info!("another process fetches {what}; waiting for it");
            file.lock().map_err(HubError::disk(&path))?;
        }
        Ok(file)
    }
}

fn collect(dir: &Path, prefix: &str, files: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = entry.path();
        if files.len() >= MAX_FILES || !is_safe_path(&name) {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&path, &format!("{prefix}{name}/"), files);
        } else if path.is_file() {
            files.push(format!("{prefix}{name}"));
        }
    }
}

/// A name beside `path` that no other process takes.
fn unique(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{:x}", std::process::id(), crate::trace::random_u64()));
    path.with_file_name(name)
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_target: &Path, _link: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
