//! The store that several servers share: a Redis.
//!
//! A session is a list of JSON messages under `<prefix><id>`, and a line in its owner's sorted set (by expiry) so that it can
//! be listed. Messages are appended and both expiries set in one MULTI/EXEC. One multiplexed connection serves all requests;
//! one that has failed or not answered in time is never used again, so no answer can reach the wrong request. Behind the
//! breaker a Redis that is away costs nothing.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::future::BoxFuture;
use redis::{AsyncConnectionConfig, Client, FromRedisValue, Pipeline, RedisError, aio::MultiplexedConnection};
use serde::{Deserialize, Serialize};
use tokio::{sync::Mutex, time::timeout};

use super::{
    Message, Owner, Purpose, Session, SessionEntry, SessionId, SessionKey, SessionStore, StoreError, breaker::Breaker,
};
use crate::config::SessionsConfig;

/// See the module.
pub(super) struct RedisStore {
    link: Arc<Link>,
    prefix: String,
    ttl: Duration,
}

/// A message as it stands in the list.
#[derive(Serialize, Deserialize)]
struct StoredMessage {
    #[serde(flatten)]
    message: Message,
    /// Whose session it is; absent where no keys are configured.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    owner: String,
}

impl RedisStore {
    pub(super) fn new(settings: &SessionsConfig) -> Self {
        let client = Client::open(settings.store.as_str()).map_err(|error| error.to_string());
        if settings.store.starts_with("rediss://") {
            // Whichever part of the program is first chooses; all choose the same.
            let _chosen_before = rustls::crypto::ring::default_provider().install_default();
        }
        let link =
            Link { client, connection: Mutex::new(None), breaker: Arc::default(), timeout: settings.timeout.get() };
        Self { link: Arc::new(link), prefix: settings.key_prefix.clone(), ttl: settings.ttl.get() }
    }

    fn list_key(&self, id: &SessionId) -> String {
        format!("{}{}", self.prefix, id.as_str())
    }

    /// `chat_history:` gives `chat_history_index:<owner>`: no session's id looks like that.
    fn index_key(&self, owner: &Owner) -> String {
        format!("{}_index:{}", self.prefix.trim_end_matches(':'), owner.as_str())
    }

    fn ttl_ms(&self) -> i64 {
        i64::try_from(self.ttl.as_millis()).unwrap_or(i64::MAX / 4)
    }

    /// Appends what makes the session, and its line in the index, live on.
    fn refresh(&self, pipe: &mut Pipeline, key: &SessionKey) {
        let index = self.index_key(&key.owner);
        let ttl_ms = self.ttl_ms();
        pipe.pexpire(self.list_key(&key.id), ttl_ms);
        pipe.zadd(&index, key.id.as_str(), now_ms() + ttl_ms).ignore();
        pipe.pexpire(&index, ttl_ms).ignore();
    }

    async fn load(&self, key: &SessionKey, purpose: Purpose) -> Result<Session, StoreError> {
        let list = self.list_key(&key.id);
        let mut pipe = redis::pipe();
        pipe.atomic().lrange(&list, 0, -1).pttl(&list);
        let (stored, left_ms): (Vec<String>, i64) = self.link.ask(&pipe, true).await?;
        let mut expires_in = Duration::from_millis(u64::try_from(left_ms).unwrap_or(0));
        let messages = read_messages(&stored, &key.owner)?;
        if purpose == Purpose::Turn {
            let mut pipe = redis::pipe();
            self.refresh(pipe.atomic(), key);
            let (is_there,): (i64,) = self.link.ask(&pipe, true).await?;
            if is_there == 0 {
                return Err(StoreError::NotFound);
            }
            expires_in = self.ttl;
        }
        Ok(Session { messages, expires_in })
    }

    async fn append(&self, key: &SessionKey, messages: &[Message], is_new: bool) -> Result<(), StoreError> {
        let stored: Vec<String> = messages
            .iter()
            .map(|message| {
                let stored = StoredMessage { message: message.clone(), owner: key.owner.as_str().to_owned() };
                serde_json::to_string(&stored).expect("three strings")
            })
            .collect();
        let mut pipe = redis::pipe();
        // RPUSHX adds to a list that is there and makes none: a session that was deleted meanwhile stays deleted.
        pipe.atomic().cmd(if is_new { "RPUSH" } else { "RPUSHX" }).arg(self.list_key(&key.id)).arg(&stored);
        self.refresh(&mut pipe, key);
        let (num_messages, _): (i64, i64) = self.link.ask(&pipe, false).await?;
        if num_messages == 0 { Err(StoreError::NotFound) } else { Ok(()) }
    }

    async fn delete(&self, key: &SessionKey) -> Result<(), StoreError> {
        let list = self.list_key(&key.id);
        let mut pipe = redis::pipe();
        pipe.lrange(&list, 0, 0);
        let (first,): (Vec<String>,) = self.link.ask(&pipe, true).await?;
        read_messages(&first, &key.owner)?;
        let mut pipe = redis::pipe();
        pipe.atomic().del(&list).zrem(self.index_key(&key.owner), key.id.as_str()).ignore();
        let (num_deleted,): (i64,) = self.link.ask(&pipe, true).await?;
        if num_deleted == 0 { Err(StoreError::NotFound) } else { Ok(()) }
    }

    async fn list(&self, owner: &Owner, limit: usize) -> Result<Vec<SessionEntry>, StoreError> {
        let index = self.index_key(owner);
        let last = isize::try_from(limit).unwrap_or(isize::MAX) - 1;
        let mut pipe = redis::pipe();
        pipe.atomic().zrembyscore(&index, 0, now_ms()).ignore().zrevrange(&index, 0, last);
        let (ids,): (Vec<String>,) = self.link.ask(&pipe, true).await?;
        let ids: Vec<SessionId> = ids.iter().filter_map(|id| SessionId::parse(id)).collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = redis::pipe();
        for id in &ids {
            pipe.pttl(self.list_key(id));
        }
        let left: Vec<i64> = self.link.ask(&pipe, true).await?;
        // Negative: deleted by somebody else.
        let entry =
            |(id, left_ms)| Some(SessionEntry { id, expires_in: Duration::from_millis(u64::try_from(left_ms).ok()?) });
        Ok(ids.into_iter().zip(left).filter_map(entry).collect())
    }
}

impl SessionStore for RedisStore {
    fn check(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async {
            let mut pipe = redis::pipe();
            pipe.cmd("PING").ignore();
            self.link.ask(&pipe, true).await
        })
    }

    fn load<'a>(&'a self, key: &'a SessionKey, purpose: Purpose) -> BoxFuture<'a, Result<Session, StoreError>> {
        Box::pin(self.load(key, purpose))
    }

    fn append<'a>(
        &'a self,
        key: &'a SessionKey,
        messages: &'a [Message],
        is_new: bool,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.append(key, messages, is_new))
    }

    fn delete<'a>(&'a self, key: &'a SessionKey) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.delete(key))
    }

    fn list<'a>(&'a self, owner: &'a Owner, limit: usize) -> BoxFuture<'a, Result<Vec<SessionEntry>, StoreError>> {
        Box::pin(self.list(owner, limit))
    }
}

/// The messages of a list, if it is the owner's; an empty list is no session.
fn read_messages(stored: &[String], owner: &Owner) -> Result<Vec<Message>, StoreError> {
    let mut messages = Vec::with_capacity(stored.len());
    for json in stored {
        let StoredMessage { message, owner: stored_owner } = serde_json::from_str(json)
            .map_err(|error| StoreError::Unavailable(format!("a stored message is broken: {error}")))?;
        if stored_owner != owner.as_str() {
            return Err(StoreError::NotFound);
        }
        messages.push(message);
    }
    if messages.is_empty() { Err(StoreError::NotFound) } else { Ok(messages) }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX / 2)
}

/// The connection, the breaker in front of it, and the time that both may take.
struct Link {
    client: Result<Client, String>,
    connection: Mutex<Option<MultiplexedConnection>>,
    breaker: Arc<Breaker>,
    timeout: Duration,
}

impl Link {
    /// Sends a pipeline. `may_repeat` says that a second time does no harm, should the connection prove dead.
    async fn ask<T: FromRedisValue>(self: &Arc<Self>, pipe: &Pipeline, may_repeat: bool) -> Result<T, StoreError> {
        if self.breaker.is_open() {
            return Err(StoreError::Unavailable("redis is away".to_owned()));
        }
        match timeout(self.timeout, self.attempt(pipe, may_repeat)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                // What Redis itself answers (OOM, READONLY, LOADING) came at once: the breaker would gain nothing.
                if error.is_io_error() || error.is_unrecoverable_error() {
                    self.fail(&error.to_string()).await;
                }
                Err(StoreError::Unavailable(error.to_string()))
            }
            Err(_) => {
                let cause = format!("redis did not answer within {:?}", self.timeout);
                self.fail(&cause).await;
                Err(StoreError::Unavailable(cause))
            }
        }
    }

    async fn attempt<T: FromRedisValue>(&self, pipe: &Pipeline, may_repeat: bool) -> Result<T, RedisError> {
        let (mut connection, is_fresh) = self.connect().await?;
        match pipe.query_async(&mut connection).await {
            // Redis has closed a connection that nobody used, or was started anew.
            Err(error) if may_repeat && !is_fresh && error.is_connection_dropped() => {
                *self.connection.lock().await = None;
                let (mut connection, _) = self.connect().await?;
                pipe.query_async(&mut connection).await
            }
            result => result,
        }
    }

    /// The connection, and whether it was made just now.
    async fn connect(&self) -> Result<(MultiplexedConnection, bool), RedisError> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = &*held {
            return Ok((connection.clone(), false));
        }
        let client =
            self.client.as_ref().map_err(|_| (redis::ErrorKind::InvalidClientConfig, "the URL is not sound"))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        *held = Some(connection.clone());
        Ok((connection, true))
    }

    /// Gives the connection up, and asks nobody until a probe says that Redis is back.
    async fn fail(self: &Arc<Self>, cause: &str) {
        if !self.breaker.is_open() {
            tracing::warn!(cause, "the session store is away");
        }
        let link = Arc::downgrade(self);
        self.breaker.trip(move || {
            let link = link.clone();
            async move { Some(link.upgrade()?.probe().await) }
        });
        // Held only while somebody connects, which has a bound.
        *self.connection.lock().await = None;
    }

    async fn probe(&self) -> bool {
        *self.connection.lock().await = None;
        let mut pipe = redis::pipe();
        pipe.cmd("PING").ignore();
        matches!(timeout(self.timeout, self.attempt::<()>(&pipe, false)).await, Ok(Ok(())))
    }
}
