//! The database's tables, within one transaction.
//!
//! `sessions` holds a record per session, `messages` its messages by number, `by_expiry` and `by_owner` the same sessions in
//! other orders, `totals` the bytes of all messages. Every change keeps the five in step.

use std::time::Duration;

use redb::{Error, ReadableTable, Table, TableDefinition, WriteTransaction};

use super::super::{Message, Owner, Purpose, Session, SessionEntry, SessionId, SessionKey, StoreError};

/// Id to owner, expiry (ms since 1970), messages, their bytes.
const SESSIONS: TableDefinition<'_, &str, (&str, u64, u64, u64)> = TableDefinition::new("sessions");
/// Id and number to a message in JSON.
const MESSAGES: TableDefinition<'_, (&str, u64), &str> = TableDefinition::new("messages");
/// Expiry and id.
const BY_EXPIRY: TableDefinition<'_, (u64, &str), ()> = TableDefinition::new("by_expiry");
/// Owner, `u64::MAX` less expiry, and id: the last used come first.
const BY_OWNER: TableDefinition<'_, (&str, u64, &str), ()> = TableDefinition::new("by_owner");
/// `bytes` of all messages.
const TOTALS: TableDefinition<'_, &str, u64> = TableDefinition::new("totals");

/// Sessions forgotten per transaction at most.
const MAX_SWEPT: usize = 256;

/// What the store may hold.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) ttl_ms: u64,
    pub(super) max_bytes: u64,
}

#[derive(Clone)]
struct Record {
    owner: String,
    expires_ms: u64,
    num_messages: u64,
    num_bytes: u64,
}

pub(super) struct Tables<'txn> {
    sessions: Table<'txn, &'static str, (&'static str, u64, u64, u64)>,
    messages: Table<'txn, (&'static str, u64), &'static str>,
    by_expiry: Table<'txn, (u64, &'static str), ()>,
    by_owner: Table<'txn, (&'static str, u64, &'static str), ()>,
    totals: Table<'txn, &'static str, u64>,
    limits: Limits,
    now_ms: u64,
    /// Anything has changed.
    pub(super) has_changed: bool,
    /// More than the time of a session's last use has changed.
    pub(super) must_last: bool,
}

/// What the store answers, within what can go wrong with the file.
type Answer<T> = Result<Result<T, StoreError>, Error>;

impl<'txn> Tables<'txn> {
    pub(super) fn open(transaction: &'txn WriteTransaction, limits: Limits, now_ms: u64) -> Result<Self, Error> {
        Ok(Self {
            sessions: transaction.open_table(SESSIONS)?,
            messages: transaction.open_table(MESSAGES)?,
            by_expiry: transaction.open_table(BY_EXPIRY)?,
            by_owner: transaction.open_table(BY_OWNER)?,
            totals: transaction.open_table(TOTALS)?,
            limits,
            now_ms,
            has_changed: false,
            must_last: false,
        })
    }

    pub(super) fn load(&mut self, key: &SessionKey, purpose: Purpose) -> Answer<Session> {
        let Some(mut record) = self.find(key)? else { return Ok(Err(StoreError::NotFound)) };
        if purpose == Purpose::Turn {
            let fresh = Record { expires_ms: self.now_ms + self.limits.ttl_ms, ..record.clone() };
            self.replace(key.id.as_str(), Some(&record), Some(&fresh))?;
            record = fresh;
        }
        let id = key.id.as_str();
        let mut messages = Vec::new();
        for entry in self.messages.range((id, 0)..=(id, u64::MAX))? {
            let (_, json) = entry?;
            match serde_json::from_str(json.value()) {
                Ok(message) => messages.push(message),
                Err(error) => return Ok(Err(StoreError::Unavailable(format!("a stored message is broken: {error}")))),
            }
        }
        Ok(Ok(Session { messages, expires_in: self.left(record.expires_ms) }))
    }

    pub(super) fn append(&mut self, key: &SessionKey, messages: &[Message], is_new: bool) -> Answer<()> {
        let id = key.id.as_str();
        let old = self.find(key)?;
        if old.is_none() != is_new {
            return Ok(Err(StoreError::NotFound));
        }
        let json: Vec<String> =
            messages.iter().map(|message| serde_json::to_string(message).expect("two strings")).collect();
        let num_bytes: u64 = json.iter().map(|json| json.len() as u64).sum();
        let total = self.totals.get("bytes")?.map_or(0, |total| total.value()) + num_bytes;
        if total > self.limits.max_bytes {
            return Ok(Err(StoreError::Full));
        }
        let (num_before, bytes_before) = old.as_ref().map_or((0, 0), |old| (old.num_messages, old.num_bytes));
        let mut num_messages = num_before;
        for json in &json {
            self.messages.insert((id, num_messages), json.as_str())?;
            num_messages += 1;
        }
        self.totals.insert("bytes", total)?;
        let record = Record {
            owner: key.owner.as_str().to_owned(),
            expires_ms: self.now_ms + self.limits.ttl_ms,
            num_messages,
            num_bytes: bytes_before + num_bytes,
        };
        self.replace(id, old.as_ref(), Some(&record))?;
        self.must_last = true;
        Ok(Ok(()))
    }

    pub(super) fn delete(&mut self, key: &SessionKey) -> Answer<()> {
        let Some(record) = self.find(key)? else { return Ok(Err(StoreError::NotFound)) };
        self.forget(key.id.as_str(), &record)?;
        Ok(Ok(()))
    }

    pub(super) fn list(&mut self, owner: &Owner, limit: usize) -> Result<Vec<SessionEntry>, Error> {
        let owner = owner.as_str();
        let mut entries = Vec::new();
        for entry in self.by_owner.range((owner, 0, "")..=(owner, u64::MAX, ""))?.take(limit) {
            let (key, _) = entry?;
            let (_, inverse, id) = key.value();
            let expires_ms = u64::MAX - inverse;
            if expires_ms <= self.now_ms {
                break;
            }
            if let Some(id) = SessionId::parse(id) {
                entries.push(SessionEntry { id, expires_in: self.left(expires_ms) });
            }
        }
        Ok(entries)
    }

    /// Forgets sessions that have expired, a bounded number.
    pub(super) fn sweep(&mut self) -> Result<(), Error> {
        let mut expired = Vec::new();
        for entry in self.by_expiry.range(..(self.now_ms + 1, ""))?.take(MAX_SWEPT) {
            expired.push(entry?.0.value().1.to_owned());
        }
        for id in expired {
            if let Some(record) = self.record(&id)? {
                self.forget(&id, &record)?;
            }
        }
        Ok(())
    }

    fn record(&self, id: &str) -> Result<Option<Record>, Error> {
        Ok(self.sessions.get(id)?.map(|found| {
            let (owner, expires_ms, num_messages, num_bytes) = found.value();
            Record { owner: owner.to_owned(), expires_ms, num_messages, num_bytes }
        }))
    }

    /// The session if it is the asker's and has not expired.
    fn find(&self, key: &SessionKey) -> Result<Option<Record>, Error> {
        let record = self.record(key.id.as_str())?;
        Ok(record.filter(|record| record.owner == key.owner.as_str() && record.expires_ms > self.now_ms))
    }

    fn forget(&mut self, id: &str, record: &Record) -> Result<(), Error> {
        self.messages.retain_in((id, 0)..=(id, u64::MAX), |_, _| false)?;
        let total = self.totals.get("bytes")?.map_or(0, |total| total.value());
        self.totals.insert("bytes", total.saturating_sub(record.num_bytes))?;
        self.must_last = true;
        self.replace(id, Some(record), None)
    }

    /// Puts `new` in the place of `old` in all orders.
    fn replace(&mut self, id: &str, old: Option<&Record>, new: Option<&Record>) -> Result<(), Error> {
        self.has_changed = true;
        if let Some(old) = old {
            self.by_expiry.remove((old.expires_ms, id))?;
            self.by_owner.remove((old.owner.as_str(), u64::MAX - old.expires_ms, id))?;
        }
        match new {
            Some(new) => {
                let row = (new.owner.as_str(), new.expires_ms, new.num_messages, new.num_bytes);
                self.sessions.insert(id, row)?;
                self.by_expiry.insert((new.expires_ms, id), ())?;
                self.by_owner.insert((new.owner.as_str(), u64::MAX - new.expires_ms, id), ())?;
            }
            None => drop(self.sessions.remove(id)?),
        }
        Ok(())
    }

    fn left(&self, expires_ms: u64) -> Duration {
        Duration::from_millis(expires_ms.saturating_sub(self.now_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redb::{Database, backends::InMemoryBackend};

    const LIMITS: Limits = Limits { ttl_ms: 1000, max_bytes: 1000 };

    fn database() -> Database {
        Database::builder().create_with_backend(InMemoryBackend::new()).unwrap()
    }

    /// One transaction at `now_ms`.
    fn at<T>(database: &Database, now_ms: u64, work: impl FnOnce(&mut Tables<'_>) -> T) -> T {
        let transaction = database.begin_write().unwrap();
        let mut tables = Tables::open(&transaction, LIMITS, now_ms).unwrap();
        let result = work(&mut tables);
        drop(tables);
        transaction.commit().unwrap();
        result
    }

    fn key(owner: &str) -> SessionKey {
        SessionKey { id: SessionId::random().unwrap(), owner: Owner(owner.to_owned()) }
    }

    fn turn(text: &str) -> Vec<Message> {
        vec![Message::new("user", text), Message::new("assistant", "yes")]
    }

    /// Rows of every table: sessions, messages, by expiry, by owner.
    fn num_rows(database: &Database) -> [u64; 4] {
        use redb::ReadableTableMetadata;
        at(database, 0, |tables| {
            [
                tables.sessions.len().unwrap(),
                tables.messages.len().unwrap(),
                tables.by_expiry.len().unwrap(),
                tables.by_owner.len().unwrap(),
            ]
        })
    }

    #[test]
    fn use_prolongs_a_session_and_the_sweep_leaves_nothing() {
        let database = database();
        let key = key("a");
        at(&database, 10, |tables| tables.append(&key, &turn("one"), true).unwrap().unwrap());
        let shown = at(&database, 900, |tables| tables.load(&key, Purpose::Show).unwrap().unwrap());
        assert_eq!((shown.messages.len(), shown.expires_in.as_millis()), (2, 110));
        let used = at(&database, 900, |tables| tables.load(&key, Purpose::Turn).unwrap().unwrap());
        assert_eq!(used.expires_in.as_millis(), 1000);
        at(&database, 1800, |tables| tables.append(&key, &turn("two"), false).unwrap().unwrap());
        assert_eq!(num_rows(&database), [1, 4, 1, 1]);
        // Expired, though nobody has swept yet.
        let gone = at(&database, 2800, |tables| tables.load(&key, Purpose::Turn).unwrap());
        assert_eq!(gone, Err(StoreError::NotFound));
        at(&database, 2799, |tables| tables.sweep().unwrap());
        assert_eq!(num_rows(&database), [1, 4, 1, 1]);
        at(&database, 2800, |tables| tables.sweep().unwrap());
        assert_eq!(num_rows(&database), [0; 4]);
        assert_eq!(at(&database, 2800, |tables| tables.totals.get("bytes").unwrap().unwrap().value()), 0);
    }

    #[test]
    fn sessions_are_their_owners_alone() {
        let database = database();
        let (mine, yours) = (key("a"), key("b"));
        at(&database, 1, |tables| tables.append(&mine, &turn("one"), true).unwrap().unwrap());
        at(&database, 2, |tables| tables.append(&yours, &turn("two"), true).unwrap().unwrap());
        let stolen = SessionKey { owner: yours.owner.clone(), ..mine.clone() };
        at(&database, 3, |tables| {
            assert_eq!(tables.load(&stolen, Purpose::Show).unwrap(), Err(StoreError::NotFound));
            assert_eq!(tables.append(&stolen, &turn("x"), false).unwrap(), Err(StoreError::NotFound));
            assert_eq!(tables.delete(&stolen).unwrap(), Err(StoreError::NotFound));
            assert_eq!(tables.list(&yours.owner, 10).unwrap().len(), 1);
            assert_eq!(tables.list(&mine.owner, 10).unwrap()[0].id, mine.id);
            assert_eq!(tables.list(&Owner::default(), 10).unwrap(), []);
            assert_eq!(tables.delete(&mine).unwrap(), Ok(()));
            assert_eq!(tables.append(&mine, &turn("x"), false).unwrap(), Err(StoreError::NotFound));
        });
        assert_eq!(num_rows(&database), [1, 2, 1, 1]);
    }

    #[test]
    fn the_last_used_are_listed_first() {
        let database = database();
        let keys: Vec<_> = (0..5).map(|_| key("a")).collect();
        for (time, key) in (1..).zip(&keys) {
            at(&database, time, |tables| tables.append(key, &turn("x"), true).unwrap().unwrap());
        }
        at(&database, 9, |tables| tables.load(&keys[1], Purpose::Turn).unwrap().unwrap());
        let listed = at(&database, 10, |tables| tables.list(&keys[0].owner, 3).unwrap());
        let ids: Vec<_> = listed.into_iter().map(|entry| entry.id).collect();
        assert_eq!(ids, [keys[1].id.clone(), keys[4].id.clone(), keys[3].id.clone()]);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_changes_nothing() {
        let database = database();
        let (small, large) = (key("a"), key("a"));
        at(&database, 1, |tables| {
            tables.append(&small, &turn("x"), true).unwrap().unwrap();
            assert_eq!(tables.append(&large, &turn(&"x".repeat(1000)), true).unwrap(), Err(StoreError::Full));
            assert_eq!(tables.append(&small, &turn(&"x".repeat(950)), false).unwrap(), Err(StoreError::Full));
        });
        assert_eq!(num_rows(&database), [1, 2, 1, 1]);
    }
}
