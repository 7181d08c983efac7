//! Settings of the sessions of `/chat`.

use super::{ByteSize, ConfigError, Span};
use serde::Deserialize;

/// Longest start of a Redis key.
const MAX_PREFIX_LEN: usize = 128;

/// What is remembered of conversations, where, and for how long.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionsConfig {
    /// `embedded`, `memory`, or the URL of a Redis.
    pub store: String,
    /// A session is forgotten this long after its last use.
    pub ttl: Span,
    /// Start of the keys in Redis.
    pub key_prefix: String,
    /// What happens to requests with a session while the store is away.
    pub on_failure: OnFailure,
    /// Turns that a session may have.
    pub max_turns: u32,
    /// Longest `query`, and longest message of `history`.
    pub max_message: ByteSize,
    /// What an embedded store may hold.
    pub max_bytes: ByteSize,
    /// For one exchange with Redis.
    pub timeout: Span,
}

/// What happens to requests with a session while the store is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// 503.
    Refuse,
    /// An answer without memory that says `"saved": false`.
    Serve,
}

impl std::fmt::Debug for SessionsConfig {
    /// Without the store's URL, which may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SessionsConfig {{ is_redis: {}, ttl: {:?} }}", self.is_redis(), self.ttl)
    }
}

impl SessionsConfig {
    /// Whether the store is a Redis.
    pub fn is_redis(&self) -> bool {
        self.store.starts_with("redis://") || self.store.starts_with("rediss://")
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// Names the key and what is allowed; never the URL.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |key: &str, reason: &str| Err(ConfigError::invalid(&format!("sessions.{key}"), reason));
        if self.is_redis() {
            if redis::Client::open(self.store.as_str()).is_err() {
                return invalid("store", "is not a sound URL; write redis://[user:password@]host[:port][/db]");
            }
        } else if !["embedded", "memory"].contains(&self.store.as_str()) {
            return invalid("store", "must be embedded, memory, redis://… or rediss://…");
        }
        if self.ttl.get().as_millis() < 100 {
            return invalid("ttl", "must be at least 100ms");
        }
        if self.timeout.get().is_zero() {
            return invalid("timeout", "must be longer than 0");
        }
        let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
        if self.key_prefix.len() > MAX_PREFIX_LEN || !self.key_prefix.bytes().all(is_sound) {
            return invalid("key_prefix", "must be at most 128 letters, digits and -_.:/");
        }
        if self.max_turns == 0 {
            return invalid("max_turns", "must be at least 1, not 0");
        }
        if self.max_message.get() == 0 {
            return invalid("max_message", "must be at least 1, not 0");
        }
        if self.max_bytes.get() < 1 << 20 {
            return invalid("max_bytes", "must be at least 1MiB");
        }
        Ok(())
    }
}
