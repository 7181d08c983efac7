//! Identities of requests, random numbers for ids and seeds, and where the log goes.
//!
//! No prompt, key or generated text is ever logged; fields are, and their control characters are escaped by the formatter.

use crate::config::{LogConfig, LogFormat};
use hyper::HeaderMap;
use hyper::header::HeaderValue;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::IsTerminal;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use tracing_subscriber::EnvFilter;

/// Starts logging to standard error, and logs panics from now on. Once per process; later calls change nothing.
///
/// # Errors
/// If the level cannot be parsed, which `Config::validate` has ruled out.
pub fn init(config: &LogConfig) -> Result<(), tracing_subscriber::filter::ParseError> {
    let filter = EnvFilter::try_new(&config.level)?;
    let is_terminal = std::io::stderr().is_terminal();
    let as_json = match config.format {
        LogFormat::Auto => !is_terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(is_terminal);
    // A second start in one process (tests) keeps the first one's log.
    let _already_set =
        if as_json { builder.json().flatten_event(true).try_init() } else { builder.with_target(false).try_init() };
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("(no message)");
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        tracing::error!(message_of_panic = message, location, thread = thread.name(), "panic");
    }));
    Ok(())
}

/// The header that carries a request's id, in and out.
pub const REQUEST_ID_HEADER: &str = "x-request-id";

/// The longest id accepted from a client.
const MAX_REQUEST_ID_LEN: usize = 128;

/// Names one request in the log and in `x-request-id`. The client may choose it, so it is never a key to anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    /// The client's id if it sent a sound one (letters, digits and `-_.:`, at most 128), else one of our own.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        headers
            .get(REQUEST_ID_HEADER)
            .and_then(|value| value.to_str().ok())
            .filter(|id| is_sound(id))
            .map_or_else(Self::random, |id| Self(id.to_owned()))
    }

    /// A new one.
    pub fn random() -> Self {
        Self(random_id("req_"))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As a header's value.
    pub(crate) fn header_value(&self) -> HeaderValue {
        HeaderValue::from_str(&self.0).expect("ids hold only letters, digits and -_.:")
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_sound(id: &str) -> bool {
    (1..=MAX_REQUEST_ID_LEN).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
}

/// `prefix` and 128 random bits in hexadecimal, as in `chatcmpl-…`.
pub fn random_id(prefix: &str) -> String {
    format!("{prefix}{:016x}{:016x}", random_u64(), random_u64())
}

/// A random number, for ids and for the seed of requests that name none. Not for secrets.
pub fn random_u64() -> u64 {
    // The standard library keys its hash tables from the system's generator: SipHash of a counter under such a key is a
    // good enough source here and needs no dependency.
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let mut hasher = KEY.build_hasher();
    hasher.write_u64(COUNTER.fetch_add(1, Ordering::Relaxed));
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sound_ids_are_taken_over() {
        let mut headers = HeaderMap::new();
        assert!(RequestId::from_headers(&headers).as_str().starts_with("req_"));
        let long = "x".repeat(129);
        for (sent, taken) in
            [("abc-1_2.3:4", true), ("", false), ("a b", false), ("a\"b", false), ("ä", false), (long.as_str(), false)]
        {
            headers.insert(REQUEST_ID_HEADER, HeaderValue::from_bytes(sent.as_bytes()).unwrap());
            assert_eq!(RequestId::from_headers(&headers).as_str() == sent, taken, "{sent:?}");
        }
    }

    #[test]
    fn ids_differ() {
        let ids: std::collections::HashSet<_> = (0..10_000).map(|_| random_id("x-")).collect();
        assert_eq!(ids.len(), 10_000);
        assert!(ids.iter().all(|id| id.len() == 34));
    }
}
