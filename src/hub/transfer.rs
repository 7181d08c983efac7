//! One blob from the hub to the disk: in parts side by side, going on after a cut, checked at the end.
//!
//! The bytes go into `<etag>.tokenmill` at their places, and how far each part has come into `<etag>.tokenmill.json`, which
//! is never ahead of the bytes by more than a crash of the machine can make it; a wrong byte is found by the checksum.
//! Invariant: the blob gets its own name only after the checksum was right.

use super::error::HubError;
use super::progress::Progress;
use super::remote::{FileInfo, Remote};
use crate::http_client::{Follow, HttpError, HttpResponse};
use futures_util::{StreamExt, TryStreamExt, stream};
use hyper::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};
use sha2::Sha256;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// How patient a download is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Bytes of a part; a smaller file comes in one.
    pub part_bytes: u64,
    /// Failures in a row, without a byte between, after which a part gives up.
    pub max_failures: u32,
    /// The wait after the first failure; it doubles with each.
    pub first_wait: Duration,
    /// The longest wait that a server may ask for.
    pub max_wait: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            part_bytes: 64 << 20,
            max_failures: 6,
            first_wait: Duration::from_millis(500),
            max_wait: Duration::from_secs(120),
        }
    }
}

impl Patience {
    /// How long to wait after the failure number `failures` in a row; `None` to give up.
    pub(super) fn wait_after(&self, error: &HubError, failures: u32) -> Option<Duration> {
        let mut wait = self.first_wait.saturating_mul(1 << failures.saturating_sub(1).min(10));
        if let HubError::RateLimited { seconds: Some(seconds), .. } = error {
            wait = wait.max(Duration::from_secs(*seconds));
        }
        (error.is_transient() && failures < self.max_failures && wait <= self.max_wait).then_some(wait)
    }
}

/// Bytes after which a part's progress is written down.
const NOTE_BYTES: u64 = 4 << 20;

/// How far a download has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Journal {
    size: u64,
    part_bytes: u64,
    /// Bytes that each part has.
    done: Vec<u64>,
}

impl Journal {
    fn new(size: u64, part_bytes: u64) -> Self {
        let part_bytes = part_bytes.max(1);
        let num_parts = usize::try_from(size.div_ceil(part_bytes).max(1)).unwrap_or(usize::MAX);
        Self { size, part_bytes, done: vec![0; num_parts] }
    }

    /// First byte of part `idx`, and the byte after its last.
    fn range(&self, idx: usize) -> (u64, u64) {
        let start = idx as u64 * self.part_bytes;
        (start, (start + self.part_bytes).min(self.size))
    }

    fn is_sound(&self, size: u64) -> bool {
        let expected = if self.part_bytes == 0 { 0 } else { size.div_ceil(self.part_bytes).max(1) };
        self.size == size
            && self.done.len() as u64 == expected
            && (0..self.done.len()).all(|idx| self.done[idx] <= self.range(idx).1 - self.range(idx).0)
    }
}

/// Why a part did not come.
enum PartFailure {
    /// The server sends whole files only.
    NoRanges,
    Hub(HubError),
}

impl From<HubError> for PartFailure {
    fn from(error: HubError) -> Self {
        Self::Hub(error)
    }
}

/// A blob on its way.
pub(super) struct Transfer<'a> {
    pub(super) remote: &'a Remote<'a>,
    pub(super) url: String,
    pub(super) info: &'a FileInfo,
    /// Where the blob belongs.
    pub(super) blob: PathBuf,
    pub(super) connections: usize,
    pub(super) patience: Patience,
    pub(super) progress: &'a Progress,
}

/// What the parts of one attempt share.
struct Shared {
    journal: Mutex<Journal>,
    /// Names the contents that the first answer came from; all parts must be of the same.
    version: Mutex<Option<HeaderValue>>,
}

impl Transfer<'_> {
    /// Fetches what is missing, checks it, and gives the blob its name.
    pub(super) async fn run(&self) -> Result<(), HubError> {
        let data = with_suffix(&self.blob, ".tokenmill");
        let notes = with_suffix(&self.blob, ".tokenmill.json");
        let mut mismatch = None;
        for _ in 0..2 {
            self.fetch(&data, &notes).await?;
            self.progress.note(&format!("checking {}", self.info.name));
            let (path, etag, size) = (data.clone(), self.info.etag.clone(), self.info.size);
            let checked = tokio::task::spawn_blocking(move || check(&path, &etag, size)).await;
            match checked.expect("checking does not panic")? {
                None => {
                    fs::rename(&data, &self.blob).map_err(HubError::disk(&self.blob))?;
                    let _gone = fs::remove_file(&notes);
                    return Ok(());
                }
                Some(wrong) => {
                    tracing::warn!("{} arrived damaged; fetching it again", self.info.name);
                    mismatch = Some(wrong);
                    self.progress.take_back(self.info.size);
                    let _gone = (fs::remove_file(&notes), fs::remove_file(&data));
                }
            }
        }
        let (kind, found) = mismatch.unwrap_or(("checksum", String::new()));
        let (what, expected) = (self.info.name.clone(), self.info.etag.clone());
        Err(HubError::Checksum { what, kind, expected, found })
    }

    async fn fetch(&self, data: &Path, notes: &Path) -> Result<(), HubError> {
        let kept = fs::read(notes).ok().and_then(|json| serde_json::from_slice::<Journal>(&json).ok());
        let has_data = data.metadata().is_ok_and(|file| file.len() == self.info.size);
        let kept = kept.filter(|journal| has_data && journal.is_sound(self.info.size));
        let mut journal = kept.unwrap_or_else(|| Journal::new(self.info.size, self.patience.part_bytes));
        self.progress.add(journal.done.iter().sum());
        let file = File::options().create(true).truncate(false).write(true).open(data).map_err(HubError::disk(data))?;
        file.set_len(self.info.size).map_err(HubError::disk(data))?;
        drop(file);
        if self.info.size == 0 {
            return Ok(());
        }
        for is_last in [false, true] {
            let shared = Shared { journal: Mutex::new(journal), version: Mutex::new(None) };
            let parts = 0..shared.journal.lock().expect("no panic under the lock").done.len();
            let all = stream::iter(parts).map(|idx| self.part(idx, data, notes, &shared));
            let result = all.buffer_unordered(self.connections.max(1)).try_collect::<Vec<()>>().await;
            match result {
                Ok(_) => return Ok(()),
                Err(PartFailure::Hub(error)) => {
                    self.note(&shared, notes)?;
                    return Err(error);
                }
                Err(PartFailure::NoRanges) if !is_last => {
                    let done = shared.journal.lock().expect("no panic under the lock").done.iter().sum();
                    self.progress.take_back(done);
                    journal = Journal::new(self.info.size, self.info.size);
                }
                Err(PartFailure::NoRanges) => break,
            }
        }
        Err(HubError::Changed { what: self.info.name.clone() })
    }

    /// Fetches part `idx`, again after failures that may pass.
    async fn part(&self, idx: usize, data: &Path, notes: &Path, shared: &Shared) -> Result<(), PartFailure> {
        let done = || shared.journal.lock().expect("no panic under the lock").done[idx];
        let mut failures = 0;
        loop {
            let before = done();
            let error = match self.attempt(idx, data, notes, shared).await {
                Ok(()) => return Ok(()),
                Err(PartFailure::Hub(error)) => error,
                Err(failure) => return Err(failure),
            };
            failures = if done() > before { 1 } else { failures + 1 };
            let Some(wait) = self.patience.wait_after(&error, failures) else { return Err(error.into()) };
            tracing::debug!(%error, failures, "part {idx} of {} goes on after a wait", self.info.name);
            tokio::time::sleep(wait).await;
        }
    }

    /// Asks for what part `idx` still lacks and writes what comes.
    async fn attempt(&self, idx: usize, data: &Path, notes: &Path, shared: &Shared) -> Result<(), PartFailure> {
        let (start, end, is_only) = {
            let journal = shared.journal.lock().expect("no panic under the lock");
            let (start, end) = journal.range(idx);
            (start + journal.done[idx], end, journal.done.len() == 1)
        };
        if start >= end {
            return Ok(());
        }
        let mut request = self.remote.request(Method::GET, self.url.clone());
        let range = HeaderValue::from_str(&format!("bytes={start}-{}", end - 1)).expect("digits are a header");
        request.headers.insert(RANGE, range);
        if let Some(version) = &*shared.version.lock().expect("no panic under the lock") {
            request.headers.insert(IF_RANGE, version.clone());
        }
        let response = self.remote.client().send(&request, Follow::Everywhere).await;
        let mut response = response.map_err(|source| self.network(source))?;
        let mut place = start;
        match response.status {
            StatusCode::PARTIAL_CONTENT => {
                self.check_version(&response, shared)?;
                if content_range(&response.headers) != Some((start, end - 1, self.info.size)) {
                    return Err(self.bad("it is another range than was asked for").into());
                }
            }
            // The whole file: from its start, if there is only one part.
            StatusCode::OK if is_only => {
                self.check_version(&response, shared)?;
                let mut journal = shared.journal.lock().expect("no panic under the lock");
                self.progress.take_back(journal.done[idx]);
                journal.done[idx] = 0;
                place = 0;
            }
            StatusCode::OK => {
                self.check_version(&response, shared)?;
                return Err(PartFailure::NoRanges);
            }
            status => return Err(self.remote.refusal(status, &response.headers, &self.info.name).into()),
        }
        let mut file = File::options().write(true).open(data).map_err(HubError::disk(data))?;
        file.seek(SeekFrom::Start(place)).map_err(HubError::disk(data))?;
        let mut noted = place;
        while let Some(chunk) = response.body.chunk().await.map_err(|source| self.network(source))? {
            if chunk.len() as u64 > end - place {
                return Err(self.bad("it is longer than it said").into());
            }
            file.write_all(&chunk).map_err(HubError::disk(data))?;
            place += chunk.len() as u64;
            self.progress.add(chunk.len() as u64);
            shared.journal.lock().expect("no panic under the lock").done[idx] += chunk.len() as u64;
            if place - noted >= NOTE_BYTES {
                noted = place;
                self.note(shared, notes)?;
            }
        }
        if place < end {
            let reason = format!("{} bytes are missing", end - place);
            return Err(self.network(HttpError::Broken { host: "the hub".to_owned(), reason }).into());
        }
        self.note(shared, notes).map_err(Into::into)
    }

    /// All answers must be of one version of the file; only a strong etag says so.
    fn check_version(&self, response: &HttpResponse, shared: &Shared) -> Result<(), HubError> {
        let etag = response.headers.get(ETAG).filter(|etag| etag.as_bytes().starts_with(b"\""));
        let mut version = shared.version.lock().expect("no panic under the lock");
        match (&*version, etag) {
            (Some(version), Some(etag)) if version != etag => Err(HubError::Changed { what: self.info.name.clone() }),
            (None, Some(etag)) => {
                *version = Some(etag.clone());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Writes down how far the parts are.
    fn note(&self, shared: &Shared, notes: &Path) -> Result<(), HubError> {
        let journal = shared.journal.lock().expect("no panic under the lock");
        let json = serde_json::to_vec(&*journal).expect("numbers are JSON");
        let fresh = with_suffix(notes, ".new");
        fs::write(&fresh, json).and_then(|()| fs::rename(&fresh, notes)).map_err(HubError::disk(notes))
    }

    fn network(&self, source: HttpError) -> HubError {
        HubError::Network { what: self.info.name.clone(), source }
    }

    fn bad(&self, reason: &str) -> HubError {
        HubError::BadAnswer { what: self.info.name.clone(), reason: reason.to_owned() }
    }
}

/// Bytes of the blob `etag` that lie on the disk already.
pub(super) fn bytes_kept(blob: &Path, size: u64) -> u64 {
    let journal = fs::read(with_suffix(blob, ".tokenmill.json")).ok();
    let journal = journal.and_then(|json| serde_json::from_slice::<Journal>(&json).ok());
    journal.filter(|journal| journal.is_sound(size)).map_or(0, |journal| journal.done.iter().sum())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// First byte, last byte and total of a `Content-Range`.
fn content_range(headers: &HeaderMap) -> Option<(u64, u64, u64)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = text.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?, total.parse().ok()?))
}

/// The kind of checksum and what the file has, where that is not `etag`: SHA-256 if that has 64 digits, git's SHA-1 if it
/// has 40; other etags tell nothing.
fn check(path: &Path, etag: &str, size: u64) -> Result<Option<(&'static str, String)>, HubError> {
    let is_hex = etag.bytes().all(|byte| byte.is_ascii_hexdigit());
    let (kind, found) = match etag.len() {
        64 if is_hex => ("SHA-256", digest(path, Sha256::new())?),
        40 if is_hex => {
            let mut hasher = Sha1::new();
            hasher.update(format!("blob {size}\0"));
            ("SHA-1", digest(path, hasher)?)
        }
        _ => return Ok(None),
    };
    Ok((!found.eq_ignore_ascii_case(etag)).then_some((kind, found)))
}

fn digest<D: Digest>(path: &Path, mut hasher: D) -> Result<String, HubError> {
    let mut file = File::open(path).map_err(HubError::disk(path))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let len = file.read(&mut buffer).map_err(HubError::disk(path))?;
        if len == 0 {
            return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hasher.update(&buffer[..len]);
    }
}
