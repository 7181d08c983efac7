//! Models from the hub, by name: found, fetched, checked, kept in the cache that other tools share.
//!
//! Invariants: what lies in the cache under its own name is whole; two processes that fetch the same model do not disturb
//! each other; a second run fetches nothing. Used by `--model org/name` and `tokenmill pull`.

mod cache;
mod error;
mod progress;
mod remote;
mod selection;
mod spec;
mod transfer;

pub use error::HubError;
pub use spec::HubSpec;
pub use transfer::Patience;

use crate::config::{ByteSize, HubSettings};
use crate::http_client::HttpClient;
use cache::RepoCache;
use futures_util::{StreamExt, TryStreamExt, stream};
use progress::Progress;
use remote::{FileInfo, Remote};
use selection::{Selection, files_of_index};
use std::path::{Path, PathBuf};
use transfer::{Transfer, bytes_kept};

/// Questions about single files that are asked at the same time.
const MAX_QUESTIONS: usize = 4;

/// A hub and the cache of what came from it.
#[derive(Debug)]
pub struct Hub {
    client: HttpClient,
    settings: HubSettings,
    patience: Patience,
}

impl Hub {
    /// A hub with these settings; nothing is asked yet.
    #[must_use]
    pub fn new(settings: HubSettings) -> Self {
        Self { client: HttpClient::new(), settings, patience: Patience::default() }
    }

    /// The same hub, with more or less patience.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// Fetches what is missing of the model and returns what to load: a GGUF file or a folder. Blocks, and must not be
    /// called on a thread that serves.
    ///
    /// # Errors
    /// See [`HubError`].
    pub fn pull_blocking(&self, spec: &HubSpec) -> Result<PathBuf, HubError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(HubError::disk(Path::new("threads for the download")))?.block_on(self.pull(spec))
    }

    /// As [`Hub::pull_blocking`].
    ///
    /// # Errors
    /// See [`HubError`].
    pub async fn pull(&self, spec: &HubSpec) -> Result<PathBuf, HubError> {
        let cache = RepoCache::new(&self.settings.cache_dir, spec);
        if self.settings.offline {
            return self.find_offline(&cache, spec);
        }
        let remote = Remote::new(&self.client, &self.settings, spec);
        let info = match self.patiently(async || remote.repo_info().await).await {
            Ok(info) => info,
            Err(error @ HubError::Network { .. }) => {
                let Ok(found) = self.find_offline(&cache, spec) else { return Err(error) };
                tracing::warn!("{error}; using what is in the cache");
                return Ok(found);
            }
            Err(error) => return Err(error),
        };
        let selection = Selection::choose(&spec.repo, spec.choice.as_deref(), &info.files)?;
        self.fetch(&remote, &cache, &info.commit, &selection.files).await?;
        if let Some(index) = selection.index {
            let shards = read_index(&cache, &info.commit, index)?;
            if let Some(missing) = shards.iter().find(|file| !info.files.contains(file)) {
                let reason = format!("it names {missing:?}, which is not there");
                return Err(HubError::BadAnswer { what: index.to_owned(), reason });
            }
            self.fetch(&remote, &cache, &info.commit, &shards).await?;
        }
        cache.set_commit(&spec.revision, &info.commit)?;
        Ok(entry_path(&cache, &info.commit, &selection))
    }

    /// The model in the cache, if all of it is there.
    fn find_offline(&self, cache: &RepoCache, spec: &HubSpec) -> Result<PathBuf, HubError> {
        let offline = || HubError::Offline { spec: spec.to_string(), cache: self.settings.cache_dir.clone() };
        let commit = cache.commit_of(&spec.revision).ok_or_else(offline)?;
        let available = cache.files(&commit);
        let selection = Selection::choose(&spec.repo, spec.choice.as_deref(), &available).map_err(|_| offline())?;
        let shards = match selection.index {
            Some(index) => read_index(cache, &commit, index)?,
            None => Vec::new(),
        };
        let is_whole = shards.iter().all(|file| available.contains(file)) && parts_are_there(&selection.files);
        if is_whole { Ok(entry_path(cache, &commit, &selection)) } else { Err(offline()) }
    }

    /// Brings `files` of `commit` into the cache.
    async fn fetch(
        &self,
        remote: &Remote<'_>,
        cache: &RepoCache,
        commit: &str,
        files: &[String],
    ) -> Result<(), HubError> {
        let missing = files.iter().filter(|file| !cache.has(commit, file));
        let questions = stream::iter(missing).map(|file| self.patiently(async || remote.file_info(commit, file).await));
        let infos: Vec<FileInfo> = questions.buffer_unordered(MAX_QUESTIONS).try_collect().await?;
        if infos.is_empty() {
            return Ok(());
        }
        let blobs = cache.make_blobs()?;
        let is_new = |info: &&FileInfo| !blobs.join(&info.etag).is_file();
        let total: u64 = infos.iter().filter(is_new).map(|info| info.size).sum();
        let kept: u64 = infos.iter().map(|info| bytes_kept(&blobs.join(&info.etag), info.size)).sum();
        check_space(&blobs, total.saturating_sub(kept))?;
        tracing::info!(files = infos.len(), size = %ByteSize::new(total), "fetching {}", remote_name(&infos));
        let progress = Progress::new(total);
        // Small files side by side; a large one has parts for that.
        let (large, small): (Vec<&FileInfo>, Vec<&FileInfo>) =
            infos.iter().partition(|info| info.size > self.patience.part_bytes);
        let one = |info| self.fetch_one(remote, cache, commit, info, &blobs, &progress);
        stream::iter(small).map(one).buffer_unordered(self.settings.connections.max(1)).try_collect::<()>().await?;
        for info in large {
            self.fetch_one(remote, cache, commit, info, &blobs, &progress).await?;
        }
        Ok(())
    }

    /// Asks until there is an answer, or one that will not change.
    async fn patiently<T>(&self, ask: impl AsyncFn() -> Result<T, HubError>) -> Result<T, HubError> {
        let mut failures = 0;
        loop {
            let error = match ask().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            failures += 1;
            let Some(wait) = self.patience.wait_after(&error, failures) else { return Err(error) };
            tokio::time::sleep(wait).await;
        }
    }

    async fn fetch_one(
        &self,
        remote: &Remote<'_>,
        cache: &RepoCache,
        commit: &str,
        info: &FileInfo,
        blobs: &Path,
        progress: &Progress,
    ) -> Result<(), HubError> {
        let blob = blobs.join(&info.etag);
        let lock = {
            let (cache, etag, name) = (cache.clone(), info.etag.clone(), info.name.clone());
            tokio::task::spawn_blocking(move || cache.lock(&etag, &name)).await.expect("locking does not panic")?
        };
        // Another process may have been faster.
        if !blob.is_file() {
            progress.note(&info.name);
            let transfer = Transfer {
                remote,
                url: remote.url(commit, &info.name),
                info,
                blob,
                connections: self.settings.connections,
                patience: self.patience,
                progress,
            };
            transfer.run().await?;
        }
        drop(lock);
        cache.link(commit, &info.name, &info.etag)
    }
}

fn remote_name(infos: &[FileInfo]) -> &str {
    infos.iter().max_by_key(|info| info.size).map_or("", |info| &info.name)
}

fn entry_path(cache: &RepoCache, commit: &str, selection: &Selection) -> PathBuf {
    let folder = cache.snapshot(commit);
    selection.entry.as_ref().map_or_else(|| folder.clone(), |file| folder.join(file))
}

fn read_index(cache: &RepoCache, commit: &str, index: &str) -> Result<Vec<String>, HubError> {
    let path = cache.snapshot(commit).join(index);
    files_of_index(&std::fs::read(&path).map_err(HubError::disk(&path))?)
}

/// Whether the parts of a split GGUF file are as many as their names say.
fn parts_are_there(files: &[String]) -> bool {
    let count = files.first().and_then(|file| {
        let (_, count) = file.rsplit_once("-of-")?;
        count.get(..5)?.parse::<usize>().ok()
    });
    count.is_none_or(|count| files.len() == count)
}

#[cfg(unix)]
fn check_space(dir: &Path, needed: u64) -> Result<(), HubError> {
    let Ok(disk) = rustix::fs::statvfs(dir) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if needed > free {
        let (needed, free) = (ByteSize::new(needed), ByteSize::new(free));
        return Err(HubError::NoSpace { needed, free, dir: dir.to_owned() });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_space(_dir: &Path, _needed: u64) -> Result<(), HubError> {
    Ok(())
}
