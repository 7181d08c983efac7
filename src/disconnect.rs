//! Knowing that a client has left.
//!
//! Fired by the connection's watcher (src/server.rs) as soon as the socket is closed or reset, and by the router when the
//! request's future or body is dropped before its end. A handler whose future simply is dropped needs nothing of this; work
//! that it has handed to other tasks does.

use tokio_util::sync::{CancellationToken, DropGuard};

/// A flag that turns once, when the client has left, and can be waited for.
#[derive(Clone, Debug, Default)]
pub struct Disconnect(CancellationToken);

impl Disconnect {
    /// A client that is there.
    pub fn new() -> Self {
        Self::default()
    }

    /// Resolves when the client has left; never if it stays to the end.
    pub async fn gone(&self) {
        self.0.cancelled().await;
    }

    /// Whether the client has left.
    pub fn is_gone(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Turns the flag.
    pub fn set_gone(&self) {
        self.0.cancel();
    }

    /// A flag that turns with this one, or alone.
    #[must_use]
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }

    /// Turns the flag when dropped, unless disarmed.
    pub(crate) fn guard(&self) -> DropGuard {
        self.0.clone().drop_guard()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_turns_with_its_parent_and_not_the_other_way() {
        let connection = Disconnect::new();
        let (first, second) = (connection.child(), connection.child());
        first.set_gone();
        assert!(first.is_gone() && !second.is_gone() && !connection.is_gone());
        connection.set_gone();
        second.gone().await;
    }

    #[test]
    fn a_guard_turns_it_unless_disarmed() {
        let flag = Disconnect::new();
        flag.guard().disarm();
        assert!(!flag.is_gone());
        drop(flag.guard());
        assert!(flag.is_gone());
    }
}
