//! What can go wrong with the hub. Each message is one line that says what to do.

use crate::config::ByteSize;
use crate::http_client::HttpError;
use std::io;
use std::path::PathBuf;

/// Why a model could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The hub does not know it, or does not show it to strangers.
    #[error(
        "the hub at {endpoint} has no model '{repo}'{}: check the spelling; if it is private or gated, accept its terms \
         on its page and set HF_TOKEN",
        revision_note(revision)
    )]
    NotFound {
        /// Where it was looked for.
        endpoint: String,
        /// `org/name`.
        repo: String,
        /// The revision that was asked for.
        revision: String,
    },
    /// Not everybody may have it.
    #[error(
        "access to '{repo}' is restricted: accept its terms at {page}, then set HF_TOKEN to a token of your account"
    )]
    Gated {
        /// `org/name`.
        repo: String,
        /// Its page.
        page: String,
    },
    /// The token is not good.
    #[error("the hub refuses the token (HF_TOKEN, or the token file): make a new one at {endpoint}/settings/tokens")]
    BadToken {
        /// The hub.
        endpoint: String,
    },
    /// A file that was asked for is not there.
    #[error("'{repo}' has no file or quantization '{choice}'; it has {available}")]
    NoSuchFile {
        /// `org/name`.
        repo: String,
        /// What was asked for.
        choice: String,
        /// What there is.
        available: String,
    },
    /// Nothing that can be served.
    #[error("'{repo}' holds neither safetensors with a config.json nor GGUF files; it has {available}")]
    NoModel {
        /// `org/name`.
        repo: String,
        /// What there is.
        available: String,
    },
    /// Not in the cache.
    #[error("'{spec}' is not complete in {}, and the network is off: pull it without HF_HUB_OFFLINE first", cache.display())]
    Offline {
        /// What was asked for.
        spec: String,
        /// The cache.
        cache: PathBuf,
    },
    /// Asked too often.
    #[error("the hub asks to wait{}: try again later{}", wait_note(*seconds), token_note(*has_token))]
    RateLimited {
        /// How long, if it says.
        seconds: Option<u64>,
        /// Whether a token was sent.
        has_token: bool,
    },
    /// An answer that is not expected.
    #[error("the hub answers {status} for {what}{}", if *is_passing { ": try again later" } else { "" })]
    Status {
        /// The HTTP status.
        status: u16,
        /// What was asked for.
        what: String,
        /// Whether it may be different in a moment.
        is_passing: bool,
    },
    /// An answer that makes no sense.
    #[error("the hub's answer for {what} makes no sense: {reason}")]
    BadAnswer {
        /// What was asked for.
        what: String,
        /// Why.
        reason: String,
    },
    /// The network.
    #[error("cannot fetch {what}: {source}; what has arrived is kept, run the same command again to go on")]
    Network {
        /// What was asked for.
        what: String,
        /// What happened.
        source: HttpError,
    },
    /// The bytes that came are not those that were promised.
    #[error("{what} arrived with {kind} {found} instead of {expected}, twice: a proxy or the server damages it")]
    Checksum {
        /// Which file.
        what: String,
        /// Which checksum.
        kind: &'static str,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The server has changed its mind in the middle.
    #[error("{what} changed while it was fetched: run the same command again")]
    Changed {
        /// Which file.
        what: String,
    },
    /// The disk is too small.
    #[error("{needed} are to be fetched, but {} has {free} free: make room, or set HF_HUB_CACHE to another disk", dir.display())]
    NoSpace {
        /// Still to come.
        needed: ByteSize,
        /// What there is.
        free: ByteSize,
        /// The cache.
        dir: PathBuf,
    },
    /// The cache cannot be read or written.
    #[error("{}: {source}{}", path.display(), disk_note(source))]
    Disk {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl HubError {
    pub(super) fn disk(path: &std::path::Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Disk { path, source }
    }

    /// Whether the same request may succeed a moment later.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::RateLimited { .. } => true,
            Self::Status { is_passing, .. } => *is_passing,
            Self::Network { source, .. } => source.is_transient(),
            _ => false,
        }
    }
}

fn revision_note(revision: &str) -> String {
    if revision == "main" { String::new() } else { format!(" with a revision '{revision}'") }
}

fn wait_note(seconds: Option<u64>) -> String {
    seconds.map(|seconds| format!(" {seconds} s")).unwrap_or_default()
}

fn token_note(has_token: bool) -> &'static str {
    if has_token { "" } else { ", or set HF_TOKEN: accounts may ask more often" }
}

fn disk_note(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; make room, or set HF_HUB_CACHE to another disk, and run the same command again: what has arrived is kept"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; set HF_HUB_CACHE to a folder of yours"
        }
        _ => "",
    }
}
