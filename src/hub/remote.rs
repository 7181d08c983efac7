//! What the hub says: a repository's commit and files, a file's size and checksum, and refusals as errors.

use super::error::HubError;
use super::spec::{HubSpec, is_safe_path};
use crate::config::HubSettings;
use crate::http_client::{Follow, HttpClient, HttpRequest, HttpResponse};
use hyper::header::{ACCEPT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Method, StatusCode};
use serde::Deserialize;

/// Longest description of a repository, in bytes.
const MAX_INFO_BYTES: usize = 32 << 20;

/// The hub, seen for one repository.
pub(super) struct Remote<'a> {
    client: &'a HttpClient,
    settings: &'a HubSettings,
    spec: &'a HubSpec,
}

/// A repository at a revision.
#[derive(Debug)]
pub(super) struct RepoInfo {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// A file at a commit.
#[derive(Clone, Debug)]
pub(super) struct FileInfo {
    pub(super) name: String,
    /// Names the contents: a SHA-256 for large files, git's SHA-1 for others.
    pub(super) etag: String,
    pub(super) size: u64,
}

impl<'a> Remote<'a> {
    pub(super) fn new(client: &'a HttpClient, settings: &'a HubSettings, spec: &'a HubSpec) -> Self {
        Self { client, settings, spec }
    }

    /// The commit and the files of the revision.
    pub(super) async fn repo_info(&self) -> Result<RepoInfo, HubError> {
        #[derive(Deserialize)]
        struct Info {
            sha: String,
            #[serde(default)]
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let HubSpec { repo, revision, .. } = self.spec;
        let url =
            format!("{}/api/models/{repo}/revision/{}", self.settings.endpoint, encode(&revision.replace('/', "%2F")));
        let response = self.send(Method::GET, url, Follow::WithinHost, repo).await?;
        let what = repo.as_str();
        let body = response.body.collect(MAX_INFO_BYTES).await;
        let body = body.map_err(|source| HubError::Network { what: what.to_owned(), source })?;
        let bad = |reason: String| HubError::BadAnswer { what: what.to_owned(), reason };
        let info: Info = serde_json::from_slice(&body).map_err(|error| bad(error.to_string()))?;
        if !is_safe_path(&info.sha) || info.sha.contains('/') {
            return Err(bad(format!("{:?} is no commit", info.sha)));
        }
        let files: Vec<String> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        // It writes into a folder of ours what the server names.
        if let Some(name) = files.iter().find(|name| !is_safe_path(name)) {
            return Err(bad(format!("it names a file {name:?}, which would not stay in the cache")));
        }
        Ok(RepoInfo { commit: info.sha, files })
    }

    /// Size and checksum of `file`.
    pub(super) async fn file_info(&self, commit: &str, file: &str) -> Result<FileInfo, HubError> {
        let response = self.send(Method::HEAD, self.url(commit, file), Follow::WithinHost, file).await?;
        let text = |name: &str| response.headers.get(name).and_then(|value| value.to_str().ok());
        let bad = |reason: &str| HubError::BadAnswer { what: file.to_owned(), reason: reason.to_owned() };
        let etag = text("x-linked-etag").or_else(|| text(ETAG.as_str())).ok_or_else(|| bad("it has no etag"))?;
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        if !is_safe_path(&etag) || etag.contains('/') || etag.starts_with('.') {
            return Err(bad(&format!("{etag:?} is no etag that could name a file")));
        }
        let size = text("x-linked-size").or_else(|| text(CONTENT_LENGTH.as_str()));
        let size = size.and_then(|size| size.parse().ok()).ok_or_else(|| bad("it has no size"))?;
        Ok(FileInfo { name: file.to_owned(), etag, size })
    }

    /// Where the contents of `file` are.
    pub(super) fn url(&self, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.settings.endpoint, self.spec.repo, encode(file))
    }

    /// A request to the hub, with the token.
    pub(super) fn request(&self, method: Method, url: String) -> HttpRequest {
        let mut request = HttpRequest::new(method, url);
        request.headers.insert(USER_AGENT, HeaderValue::from_static(concat!("tokenmill/", env!("CARGO_PKG_VERSION"))));
        // Sizes and ranges count the bytes as they are.
        request.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let secret = self.settings.token.as_ref().map(|token| HeaderValue::from_str(&format!("Bearer {token}")));
        request.authorization = secret.and_then(Result::ok).map(|mut value| {
            value.set_sensitive(true);
            value
        });
        request
    }

    pub(super) fn client(&self) -> &HttpClient {
        self.client
    }

    async fn send(&self, method: Method, url: String, follow: Follow, what: &str) -> Result<HttpResponse, HubError> {
        let response = self.client.send(&self.request(method, url), follow).await;
        let response = response.map_err(|source| HubError::Network { what: what.to_owned(), source })?;
        // A redirect to the storage: its headers are what matters here.
        if response.status.is_success() || response.status.is_redirection() {
            return Ok(response);
        }
        Err(self.refusal(response.status, &response.headers, what))
    }

    /// Why the hub answers `status` for `what`.
    pub(super) fn refusal(&self, status: StatusCode, headers: &HeaderMap, what: &str) -> HubError {
        let HubSpec { repo, revision, .. } = self.spec;
        let endpoint = self.settings.endpoint.clone();
        let code = headers.get("x-error-code").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let gated = || HubError::Gated { repo: repo.clone(), page: format!("{}/{repo}", self.settings.endpoint) };
        let not_found =
            || HubError::NotFound { endpoint: endpoint.clone(), repo: repo.clone(), revision: revision.clone() };
        match (status.as_u16(), code) {
            (_, "GatedRepo") => gated(),
            (_, "RepoNotFound" | "RevisionNotFound") => not_found(),
            (401, _) if self.settings.token.is_some() => HubError::BadToken { endpoint },
            (401, _) if what == repo => not_found(),
            (401 | 403, _) => gated(),
            (404, _) if what == repo => not_found(),
            (429, _) => {
                let wait = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
                HubError::RateLimited { seconds: wait, has_token: self.settings.token.is_some() }
            }
            (status, _) => {
                HubError::Status { status, what: what.to_owned(), is_passing: status >= 500 || status == 408 }
            }
        }
    }
}

/// `path` as part of an address; slashes stay, and so does what is encoded already.
fn encode(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => out.push(char::from(byte)),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out.replace("%252F", "%2F")
}
