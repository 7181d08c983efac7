//! Conversations that the server remembers for its clients: the record, the stores behind one trait, and turns in order.
//!
//! A session belongs to the tenant that began it; to everybody else it does not exist. A turn is stored as a whole or not at
//! all, and [`SessionStore::append`] returns only when it is. Used by `/chat` (src/api/dialogue) and `/sessions`.

mod breaker;
mod embedded;
mod locks;
mod redis;

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub use self::locks::{TooBusy, TurnGuard};
use self::{embedded::EmbeddedStore, locks::Locks, redis::RedisStore};
use crate::{
    auth::Tenant,
    config::{Config, SessionsConfig},
};

/// Hexadecimal digits of a session's id.
const ID_LEN: usize = 32;

/// Names a session: 128 random bits in hexadecimal. Who knows it, and is of the right tenant, may use the session.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SessionId(String);

impl SessionId {
    /// A new one, from the system's generator.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn random() -> Result<Self, StoreError> {
        let mut bytes = [0; ID_LEN / 2];
        getrandom::fill(&mut bytes).map_err(|error| StoreError::Unavailable(error.to_string()))?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The id that `text` spells, if it can be one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (text.len() == ID_LEN && text.bytes().all(is_digit)).then(|| Self(text.to_owned()))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SessionId {
    /// Its start alone: an id is a secret between client and server.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({}…)", &self.0[..6])
    }
}

/// Whose session it is: a hash of the tenant's key; empty where no keys are configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner(String);

impl Owner {
    /// As text, hexadecimal.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<Tenant> for Owner {
    fn from(tenant: Tenant) -> Self {
        if tenant == Tenant::ANONYMOUS {
            return Self::default();
        }
        let hash = blake3::derive_key("tokenmill session owner v1", &tenant.salt.to_le_bytes());
        Self(hash[..8].iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// A session and who asks for it.
#[derive(Clone, Debug)]
pub struct SessionKey {
    /// Which session.
    pub id: SessionId,
    /// Who asks.
    pub owner: Owner,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// What somebody says.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: content.into() }
    }
}

/// A session as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// All messages, oldest first.
    pub messages: Vec<Message>,
    /// Until it is forgotten, if nobody uses it.
    pub expires_in: Duration,
}

/// A session in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionEntry {
    /// Which.
    pub id: SessionId,
    /// Until it is forgotten, if nobody uses it.
    pub expires_in: Duration,
}

/// Why a store did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No such session, or another tenant's.
    #[error("no such session")]
    NotFound,
    /// There is no room for more; sessions that expire make some.
    #[error("the store is full (setting sessions.max_bytes)")]
    Full,
    /// The store cannot be reached or has failed; for the log.
    #[error("{0}")]
    Unavailable(String),
}

/// Whether a load counts as use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A turn begins: the session lives on for its whole TTL.
    Turn,
    /// It is only shown.
    Show,
}

/// What a store does. Every call ends within a bounded time; dropping its future leaves a whole turn or none.
pub trait SessionStore: Send + Sync {
    /// Whether a turn could be stored now.
    fn check(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The session, if it is the asker's.
    fn load<'a>(&'a self, key: &'a SessionKey, purpose: Purpose) -> BoxFuture<'a, Result<Session, StoreError>>;

    /// Adds messages in one piece; the session lives on for its whole TTL. `is_new` begins it, otherwise it must be there.
    fn append<'a>(
        &'a self,
        key: &'a SessionKey,
        messages: &'a [Message],
        is_new: bool,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Forgets the session, if it is the asker's.
    fn delete<'a>(&'a self, key: &'a SessionKey) -> BoxFuture<'a, Result<(), StoreError>>;

    /// The owner's sessions, those that were used last first, at most `limit`.
    fn list<'a>(&'a self, owner: &'a Owner, limit: usize) -> BoxFuture<'a, Result<Vec<SessionEntry>, StoreError>>;

    /// Called once when the server starts: clears what expired while it was down.
    fn start(&self) {}
}

/// The server's sessions: its store, and turns one after the other.
pub struct Sessions {
    /// Where they are.
    pub store: Box<dyn SessionStore>,
    locks: Arc<Locks>,
}

impl Sessions {
    /// As the settings say. Nothing is opened or connected before it is needed.
    pub fn new(config: &Config) -> Self {
        let settings: &SessionsConfig = &config.sessions;
        let store: Box<dyn SessionStore> = if settings.is_redis() {
            Box::new(RedisStore::new(settings))
        } else if settings.store == "memory" {
            Box::new(EmbeddedStore::in_memory(settings))
        } else {
            Box::new(EmbeddedStore::in_folder(settings, config.data_dir().map_err(|error| error.to_string())))
        };
        Self { store, locks: Arc::default() }
    }

    /// Waits until no other turn of the session runs. Cancel-safe.
    ///
    /// # Errors
    /// [`TooBusy`] when too many wait already.
    pub async fn lock(&self, id: &SessionId) -> Result<TurnGuard, TooBusy> {
        Locks::acquire(&self.locks, id).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_128_random_bits() {
        let ids: Vec<_> = (0..1000).map(|_| SessionId::random().unwrap()).collect();
        let distinct: std::collections::HashSet<_> = ids.iter().map(SessionId::as_str).collect();
        assert_eq!(distinct.len(), ids.len());
        for id in &ids {
            assert_eq!(SessionId::parse(id.as_str()).as_ref(), Some(id));
            assert!(!format!("{id:?}").contains(id.as_str()));
        }
        for bad in ["", "abc", &"g".repeat(32), &"A".repeat(32), &"a".repeat(33), &"é".repeat(16)] {
            assert_eq!(SessionId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn owners_differ_and_do_not_show_the_salt() {
        let owner = |salt| Owner::from(Tenant { key_idx: Some(0), salt });
        assert_eq!(Owner::from(Tenant::ANONYMOUS).as_str(), "");
        assert_eq!(owner(7).as_str().len(), 16);
        assert_ne!(owner(7), owner(8));
        assert_ne!(owner(7).as_str(), format!("{:016x}", 7));
    }
}
