//! The store that needs no server: a database file under the data folder, or the same in memory.
//!
//! One thread owns the database and takes jobs from a bounded queue. What waits there together is one transaction, so turns
//! that end together share one write to the disk; an answer leaves only when that has happened. The file is opened with the
//! first job and again after a failure, so a disk that was full or a file that was in use needs no restart.

mod tables;

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use futures_util::future::BoxFuture;
use redb::{
    Database, Durability,
    backends::{FileBackend, InMemoryBackend},
};
use tokio::sync::oneshot;

use self::tables::{Limits, Tables};
use super::{Message, Owner, Purpose, Session, SessionEntry, SessionKey, SessionStore, StoreError};
use crate::config::SessionsConfig;

/// The database's file in the data folder.
const FILE_NAME: &str = "sessions.redb";
/// Jobs that may wait; the next is refused.
const MAX_QUEUE: usize = 512;
/// Jobs in one transaction.
const MAX_BATCH: usize = 64;
/// Between two looks for sessions that have expired, while nothing else happens.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// The database's own cache.
const CACHE_BYTES: usize = 8 << 20;

/// What is asked of the thread.
enum Action {
    /// Opens the database and clears what has expired.
    Sweep,
    Load(SessionKey, Purpose),
    Append(SessionKey, Vec<Message>, bool),
    Delete(SessionKey),
    List(Owner, usize),
}

/// What it answers.
enum Outcome {
    Done,
    Session(Session),
    List(Vec<SessionEntry>),
}

struct Job {
    action: Action,
    answer: oneshot::Sender<Result<Outcome, StoreError>>,
}

/// Where the database is.
#[derive(Clone)]
enum Place {
    Memory,
    /// The data folder, or why there is none.
    Folder(Result<PathBuf, String>),
}

/// See the module.
pub(super) struct EmbeddedStore {
    place: Place,
    limits: Limits,
    jobs: OnceLock<Sender<Job>>,
}

impl EmbeddedStore {
    pub(super) fn in_memory(settings: &SessionsConfig) -> Self {
        Self::at(Place::Memory, settings)
    }

    pub(super) fn in_folder(settings: &SessionsConfig, folder: Result<PathBuf, String>) -> Self {
        Self::at(Place::Folder(folder), settings)
    }

    fn at(place: Place, settings: &SessionsConfig) -> Self {
        let ttl_ms = u64::try_from(settings.ttl.get().as_millis()).unwrap_or(u64::MAX / 4).min(u64::MAX / 4);
        Self { place, limits: Limits { ttl_ms, max_bytes: settings.max_bytes.get() }, jobs: OnceLock::new() }
    }

    /// The queue of the thread, which the first caller starts.
    fn jobs(&self) -> &Sender<Job> {
        self.jobs.get_or_init(|| {
            let (sender, jobs) = bounded(MAX_QUEUE);
            let keeper = Keeper { place: self.place.clone(), limits: self.limits, database: None };
            let started = thread::Builder::new().name("sessions".to_owned()).spawn(move || keeper.run(&jobs));
            if let Err(error) = started {
                // The queue has no reader then, which every job is told.
                tracing::error!(%error, "the thread of the session store does not start");
            }
            sender
        })
    }

    async fn ask(&self, action: Action) -> Result<Outcome, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.jobs().try_send(Job { action, answer }).map_err(|error| {
            let cause = match error {
                TrySendError::Full(_) => "too many turns wait for the session store",
                TrySendError::Disconnected(_) => "the session store's thread has ended",
            };
            StoreError::Unavailable(cause.to_owned())
        })?;
        answered.await.unwrap_or_else(|_| Err(StoreError::Unavailable("the session store failed".to_owned())))
    }
}

impl SessionStore for EmbeddedStore {
    fn check(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { self.ask(Action::Sweep).await.map(drop) })
    }

    fn load<'a>(&'a self, key: &'a SessionKey, purpose: Purpose) -> BoxFuture<'a, Result<Session, StoreError>> {
        Box::pin(async move {
            match self.ask(Action::Load(key.clone(), purpose)).await? {
                Outcome::Session(session) => Ok(session),
                Outcome::Done | Outcome::List(_) => unreachable!("a load is answered with a session"),
            }
        })
    }

    fn append<'a>(
        &'a self,
        key: &'a SessionKey,
        messages: &'a [Message],
        is_new: bool,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.ask(Action::Append(key.clone(), messages.to_vec(), is_new)).await.map(drop) })
    }

    fn delete<'a>(&'a self, key: &'a SessionKey) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.ask(Action::Delete(key.clone())).await.map(drop) })
    }

    fn list<'a>(&'a self, owner: &'a Owner, limit: usize) -> BoxFuture<'a, Result<Vec<SessionEntry>, StoreError>> {
        Box::pin(async move {
            match self.ask(Action::List(owner.clone(), limit)).await? {
                Outcome::List(list) => Ok(list),
                Outcome::Done | Outcome::Session(_) => unreachable!("a list is answered with a list"),
            }
        })
    }

    fn start(&self) {
        // A server that has no sessions yet gets no file before it has one.
        let Place::Folder(Ok(folder)) = &self.place else { return };
        if folder.join(FILE_NAME).exists() {
            let (answer, _nobody_waits) = oneshot::channel();
            // A full queue sweeps anyway.
            let _sent = self.jobs().try_send(Job { action: Action::Sweep, answer });
        }
    }
}

/// The thread's own.
struct Keeper {
    place: Place,
    limits: Limits,
    database: Option<Database>,
}

impl Keeper {
    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            match jobs.recv_timeout(SWEEP_EVERY) {
                Ok(first) => {
                    let batch = std::iter::once(first).chain(jobs.try_iter()).take(MAX_BATCH).collect();
                    self.serve(batch);
                }
                Err(RecvTimeoutError::Timeout) if self.database.is_some() => self.serve(Vec::new()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// One transaction; the answers leave when it is on the disk.
    fn serve(&mut self, batch: Vec<Job>) {
        let (actions, askers): (Vec<_>, Vec<_>) = batch.into_iter().map(|job| (job.action, job.answer)).unzip();
        let results = self.transact(actions).unwrap_or_else(|cause| {
            // A database that has failed once may refuse everything: the next job opens it anew.
            self.database = None;
            tracing::warn!(cause, "the session store failed");
            askers.iter().map(|_| Err(StoreError::Unavailable(cause.clone()))).collect()
        });
        for (asker, result) in askers.into_iter().zip(results) {
            // Whoever asked may have left; what was asked has happened.
            let _left = asker.send(result);
        }
    }

    fn transact(&mut self, actions: Vec<Action>) -> Result<Vec<Result<Outcome, StoreError>>, String> {
        let limits = self.limits;
        let database = match &mut self.database {
            Some(database) => database,
            none => none.insert(open(&self.place)?),
        };
        let in_memory = matches!(self.place, Place::Memory);
        apply(database, limits, actions, in_memory).map_err(|error| error.to_string())
    }
}

fn apply(
    database: &Database,
    limits: Limits,
    actions: Vec<Action>,
    in_memory: bool,
) -> Result<Vec<Result<Outcome, StoreError>>, redb::Error> {
    let mut transaction = database.begin_write()?;
    let mut tables = Tables::open(&transaction, limits, now_ms())?;
    tables.sweep()?;
    let mut results = Vec::with_capacity(actions.len());
    for action in actions {
        results.push(match action {
            Action::Sweep => Ok(Outcome::Done),
            Action::Load(key, purpose) => tables.load(&key, purpose)?.map(Outcome::Session),
            Action::Append(key, messages, is_new) => tables.append(&key, &messages, is_new)?.map(|()| Outcome::Done),
            Action::Delete(key) => tables.delete(&key)?.map(|()| Outcome::Done),
            Action::List(owner, limit) => Ok(Outcome::List(tables.list(&owner, limit)?)),
        });
    }
    let (has_changed, must_last) = (tables.has_changed, tables.must_last);
    drop(tables);
    if !has_changed {
        transaction.abort()?;
        return Ok(results);
    }
    if must_last && !in_memory {
        // After a crash the file is ready at once, however large it is.
        transaction.set_quick_repair(true);
    } else {
        // A crash may forget that a session was used, never what was said.
        transaction.set_durability(Durability::None).expect("there are no savepoints, and one process");
    }
    transaction.commit()?;
    Ok(results)
}

fn open(place: &Place) -> Result<Database, String> {
    let folder = match place {
        Place::Memory => {
            let database = Database::builder().create_with_backend(InMemoryBackend::new());
            return database.map_err(|error| error.to_string());
        }
        Place::Folder(folder) => folder.as_ref().map_err(Clone::clone)?,
    };
    let path = folder.join(FILE_NAME);
    let explain = |error: &dyn std::fmt::Display| format!("cannot open {}: {error}", path.display());
    std::fs::create_dir_all(folder).map_err(|error| explain(&error))?;
    let file = open_file(&path).map_err(|error| explain(&error))?;
    let backend = FileBackend::new(file).map_err(|error| explain(&error))?;
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder.create_with_backend(backend).map_err(|error| explain(&error))
}

/// Conversations are nobody else's business: the file is for its owner alone.
fn open_file(path: &Path) -> std::io::Result<std::fs::File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX / 2)
}
