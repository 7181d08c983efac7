//! One turn of a session at a time.
//!
//! The map holds the sessions that somebody uses or waits for, and no others: an entry goes with its last user.

use std::sync::Arc;

use dashmap::{DashMap, Entry};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::SessionId;

/// Turns of one session that may run or wait; the next is refused.
const MAX_TURNS_WAITING: usize = 64;
/// Sessions that may be in use at the same time.
const MAX_SESSIONS: usize = 16_384;

/// Too many turns wait for this session, or too many sessions are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many turns wait")]
pub struct TooBusy;

/// The sessions in use.
#[derive(Default)]
pub(super) struct Locks {
    sessions: DashMap<SessionId, InUse>,
}

#[derive(Default)]
struct InUse {
    lock: Arc<Mutex<()>>,
    num_users: usize,
}

/// While it lives, the session has no other turn in this server.
pub struct TurnGuard {
    // Dropped first: the seat may take the lock's entry away.
    _turn: OwnedMutexGuard<()>,
    _seat: Seat,
}

/// A place in the session's queue.
struct Seat {
    locks: Arc<Locks>,
    id: SessionId,
}

impl Locks {
    pub(super) async fn acquire(locks: &Arc<Self>, id: &SessionId) -> Result<TurnGuard, TooBusy> {
        let (lock, seat) = Self::sit_down(locks, id)?;
        Ok(TurnGuard { _turn: lock.lock_owned().await, _seat: seat })
    }

    fn sit_down(locks: &Arc<Self>, id: &SessionId) -> Result<(Arc<Mutex<()>>, Seat), TooBusy> {
        // Counted before the entry is held: len() visits every shard. A few more than the bound do no harm.
        let is_full = locks.sessions.len() >= MAX_SESSIONS;
        let lock = match locks.sessions.entry(id.clone()) {
            Entry::Vacant(_) if is_full => return Err(TooBusy),
            Entry::Occupied(entry) if entry.get().num_users >= MAX_TURNS_WAITING => return Err(TooBusy),
            entry => {
                let mut in_use = entry.or_default();
                in_use.num_users += 1;
                Arc::clone(&in_use.lock)
            }
        };
        Ok((lock, Seat { locks: Arc::clone(locks), id: id.clone() }))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Entry::Occupied(mut entry) = self.locks.sessions.entry(self.id.clone()) {
            entry.get_mut().num_users -= 1;
            if entry.get().num_users == 0 {
                drop(entry.remove());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_of_a_session_wait_for_each_other_and_leave_nothing() {
        let locks = Arc::new(Locks::default());
        let (one, two) = (SessionId::random().unwrap(), SessionId::random().unwrap());
        let first = Locks::acquire(&locks, &one).await.unwrap();
        let other = Locks::acquire(&locks, &two).await.unwrap();
        let mut second = Box::pin(Locks::acquire(&locks, &one));
        assert!(futures_util::FutureExt::now_or_never(&mut second).is_none());
        // A turn whose client leaves while it waits gives its place up.
        let mut left = Box::pin(Locks::acquire(&locks, &one));
        assert!(futures_util::FutureExt::now_or_never(&mut left).is_none());
        drop(left);
        drop(first);
        drop((second.await.unwrap(), other));
        assert!(locks.sessions.is_empty());
    }

    #[tokio::test]
    async fn the_queue_of_a_session_is_bounded() {
        let locks = Arc::new(Locks::default());
        let id = SessionId::random().unwrap();
        let seats: Vec<_> = (0..MAX_TURNS_WAITING).map(|_| Locks::sit_down(&locks, &id).unwrap()).collect();
        assert_eq!(Locks::acquire(&locks, &id).await.err(), Some(TooBusy));
        drop(seats);
        assert!(Locks::acquire(&locks, &id).await.is_ok());
        assert!(locks.sessions.is_empty());
    }
}
